"""A federation that runs for weeks: copies of a folder, budgets that end, disks that fill, clocks and backups."""

import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated import BroadcastReceived, ReplyReceived, TimedOut, Trained, Weigh
from dpcomp.federated.messages import REFUSALS, REPLY, WITHDRAWAL
from dpcomp.terms import FederationTerms
from dpcomp.wire import checkpoint
from tests.federated import weeks
from tests.federated.weeks import DELTA, FIRST, PIPELINE, Client, D, open_ledger, terms_of


@pytest.fixture
def federation(tmp_path):
    terms = terms_of()
    server = terms.server(D, FIRST, folder=tmp_path / "server")
    yield terms, server
    server.close()


def test_of_two_copies_of_a_folder_the_second_to_send_is_refused_and_marked(federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    client.take_part(server)
    server.close_round()
    client.close()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = Client(terms, tmp_path / "one"), Client(terms, tmp_path / "two")
    for copy in (one, two):
        copy.say(server, TimedOut())
    one.say(server, one.release())
    accepted = server.memory.link(1)
    with pytest.raises(dp.DpcompError, match="two processes take part as client 1"):
        two.say(server, two.release())
    assert server.memory.link(1) == accepted
    assert len(server.accepted) == 1
    assert not one.ledger.incomplete
    assert "another process released" in two.ledger.incomplete
    two.close()
    two = open_ledger(tmp_path / "two" / "ledger.db")  # it stays marked
    assert two.guarantee(DELTA).epsilon == math.inf
    assert str(two.guarantee(DELTA)).startswith("ε = ∞")
    assert "INCOMPLETE" in str(two.guarantee(DELTA))
    with pytest.raises(dp.DpcompError, match="incomplete"):
        two.charge(PIPELINE.cost, dp.Address(5, 1, 0))
    two.close()
    assert dp.Ledger.read(tmp_path / "two" / "ledger.db").guarantee(DELTA).epsilon == math.inf
    assert one.ledger.guarantee(DELTA).epsilon == PIPELINE.guarantee(4, DELTA).epsilon
    one.close()


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_copy_that_was_idle_meanwhile_is_refused_and_marked(ahead, federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    client.take_part(server)
    server.close_round()
    client.close()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = Client(terms, tmp_path / "one"), Client(terms, tmp_path / "two")
    for _ in range(ahead):
        one.take_part(server)
        server.close_round()
    with pytest.raises(dp.DpcompError, match="never charged"):
        two.take_part(server)
    assert "not charged" in two.ledger.incomplete
    one.close()
    two.close()


def test_a_ledger_of_other_data_is_refused_and_not_marked(federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    client.take_part(server)
    client.close()
    with dp.Ledger.create(tmp_path / "other.db") as other:
        other.charge(PIPELINE.cost, dp.Address(12345, 9, 0))
        newcomer = terms.participant(D, FIRST, client=1, ledger=other)
        (question,) = newcomer.handle(TimedOut())
        with pytest.raises(dp.DpcompError, match="another client's"):
            newcomer.handle(ReplyReceived(server.handle(question, sender=1)))
        assert not other.incomplete


def test_an_honest_client_is_never_marked_whatever_is_lost(federation, tmp_path):
    terms, server = federation
    rng, client = np.random.default_rng(0), Client(terms, tmp_path / "one")
    for _ in range(terms.rounds):
        for event in (TimedOut(), None, TimedOut()):
            if event is None:
                if not client.participant.may_train:
                    continue
                event = client.release()
            for message in client.participant.handle(event):
                if rng.random() < 0.3:
                    continue  # lost on the way
                reply = server.handle(message, sender=1)
                if reply is not None and rng.random() < 0.7:
                    client.participant.handle(ReplyReceived(reply))
        if rng.random() < 0.2:  # killed
            client.close()
            client = Client(terms, tmp_path / "one")
        broadcast = server.close_round()
        if rng.random() < 0.5:
            client.participant.handle(BroadcastReceived(broadcast))
    assert server.memory.link(1).count > 5
    assert not client.ledger.incomplete
    client.close()


def test_a_client_whose_budget_ends_says_so_and_is_awaited_no_longer(tmp_path):
    terms = terms_of(clients=2)
    budget = dp.Budget(PIPELINE.guarantee(3 * terms.steps, DELTA).epsilon, DELTA)
    server = terms.server(D, FIRST, folder=tmp_path / "server")
    poor, rich = Client(terms, tmp_path / "poor", 0, budget), Client(terms, tmp_path / "rich", 1)
    for number in range(5):
        assert server.awaited == (2 if number < 4 else 1)
        rich.take_part(server)
        try:
            poor.take_part(server)
        except dp.BudgetExhausted:
            assert number >= 3
            reply = server.handle(poor.participant.withdrawal("budget"), sender=0)
            assert reply is not None
            assert poor.participant.handle(ReplyReceived(reply)) == []
        assert server.awaited == 0
        server.close_round()
    assert server.withdrawn == {0: "budget"}
    server.close()
    server = terms.server(D, FIRST, folder=tmp_path / "server")  # a later process knows it too
    assert (server.withdrawn, server.awaited) == ({0: "budget"}, 1)
    assert poor.ledger.guarantee(DELTA).epsilon <= budget.epsilon
    server.close()
    for client in (poor, rich):
        client.close()


def test_a_client_that_comes_back_counts_again(federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    server.handle(client.participant.withdrawal("done"), sender=1)
    assert (server.withdrawn, server.awaited) == ({1: "done"}, 3)
    client.take_part(server)
    assert (server.withdrawn, server.awaited) == ({}, 3)
    server.handle(client.participant.withdrawal("done"), sender=1)  # after its update
    assert (server.withdrawn, server.awaited) == ({1: "done"}, 3)
    server.close_round()
    assert server.awaited == 3
    client.close()


def test_a_restarted_server_knows_who_has_withdrawn_after_an_update_and_who_has_come_back(tmp_path):
    terms = terms_of()
    server = terms.server(D, FIRST, folder=tmp_path / "server")
    one, two = Client(terms, tmp_path / "one", 1), Client(terms, tmp_path / "two", 2)
    one.take_part(server)
    for client in (one, two):
        server.handle(client.participant.withdrawal("done"), sender=client.client)
    two.take_part(server)
    for awaited in (2, 3):  # in the same round, and in the next one
        server.close()
        server = terms.server(D, FIRST, folder=tmp_path / "server")
        for _ in range(2):
            assert (server.withdrawn, server.awaited) == ({1: "done"}, awaited)
            server.restart()
        server.close_round()
    for each in (server, one, two):
        each.close()


def refusal_of(reply):
    return REFUSALS[REPLY.unseal(reply)[0].refusal]


def test_a_withdrawal_that_comes_again_after_the_client_has_come_back_changes_nothing(tmp_path):
    terms = terms_of()
    server = terms.server(D, FIRST, folder=tmp_path / "server")
    client, said = Client(terms, tmp_path / "one", 1), []
    for _ in range(3):
        said += [client.participant.withdrawal("done"), client.participant.withdrawal("budget")]
        for message in said[-2:]:
            assert refusal_of(server.handle(message, sender=1)) == ""
        assert server.withdrawn == {1: "budget"}
        client.take_part(server)
        for message in said:
            assert refusal_of(server.handle(message, sender=1)) == "round"
        assert (server.withdrawn, server.awaited) == ({}, 3)
        server.close_round()
        server.close()
        server = terms.server(D, FIRST, folder=tmp_path / "server")
        for message in said:
            server.handle(message, sender=1)
        assert (server.withdrawn, server.awaited) == ({}, 4)
    for each in (server, client):
        each.close()


def test_an_update_that_was_sent_before_a_withdrawal_and_comes_after_it_takes_it_back_in_no_process(tmp_path):
    terms = terms_of()
    server, client = terms.server(D, FIRST, folder=tmp_path / "server"), Client(terms, tmp_path / "one", 1)
    client.say(server, TimedOut())
    (payload,) = client.participant.handle(client.release())
    server.handle(client.participant.withdrawal("done"), sender=1)
    server.handle(payload, sender=1)
    assert len(server.accepted) == 1
    for awaited in (3, 3):  # in this process and in the next one
        assert (server.withdrawn, server.awaited) == ({1: "done"}, awaited)
        server.close()
        server = terms.server(D, FIRST, folder=tmp_path / "server")
    server.close_round()
    assert server.awaited == 3
    client.take_part(server)
    assert (server.withdrawn, server.awaited) == ({}, 3)
    for each in (server, client):
        each.close()


def test_a_client_that_gave_a_round_up_is_awaited_in_the_next_whatever_comes_again(federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    client.say(server, TimedOut())
    client.ledger.charge(PIPELINE.cost, client.participant.state.memory.address, steps=terms.steps)  # and it was killed
    assert client.participant.gives_round_up
    message = client.participant.withdrawal("round")
    assert refusal_of(server.handle(message, sender=1)) == ""
    assert (server.given_up, server.awaited) == ({1}, 3)
    client.say(server, BroadcastReceived(server.close_round()))
    assert refusal_of(server.handle(message, sender=1)) == "round"
    assert (server.given_up, server.awaited) == (set(), 4)
    client.take_part(server)
    assert server.handle(message, sender=1) is not None
    assert (server.given_up, server.awaited) == (set(), 3)
    client.close()


def test_a_client_with_a_late_update_that_gave_the_round_up_counts_once(tmp_path):
    terms = terms_of(late_policy=Weigh(max_age=1))
    server, client = terms.server(D, FIRST), Client(terms, tmp_path / "one")
    client.say(server, TimedOut())
    (late,) = client.participant.handle(client.release())
    server.close_round()
    client.participant.restart()
    (question,) = client.participant.handle(TimedOut())
    (resent,) = client.participant.handle(ReplyReceived(server.handle(question, sender=1)))
    assert resent != late  # with a full header
    client.say(server, ReplyReceived(server.handle(resent, sender=1)))
    client.say(server, TimedOut())
    client.ledger.charge(PIPELINE.cost, client.participant.state.memory.address, steps=terms.steps)  # and it was killed
    server.handle(client.participant.withdrawal("round"), sender=1)
    assert (server.given_up, server.awaited, server.next_round_only) == ({1}, 3, 1)
    assert len(server.accepted) == server.present == 1
    client.close()


def test_a_withdrawal_of_another_client_federation_or_reason_changes_nothing(federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    message = client.participant.withdrawal("done")
    assert server.handle(message, sender=2) is None
    assert server.handle(message[:-1], sender=1) is None
    record, _ = WITHDRAWAL.unseal(message)
    other = terms_of(seed=terms.seed)
    foreign = other.participant(D, FIRST, client=1, ledger=dp.Ledger()).withdrawal("done")
    assert b"another federation" in server.handle(foreign, sender=1)
    unknown = type(record)(**{**vars(record), "reason": 99})
    assert server.handle(WITHDRAWAL.seal(unknown), sender=1) is None
    assert server.handle(b"dpw\x01" + message[4:], sender=1) is None  # of another format number
    assert (server.withdrawn, server.awaited) == ({}, 4)
    assert server.refusals == {"direction": 1, "corrupt": 3, "run": 1}
    client.close()


def test_a_server_from_an_older_backup_goes_on_and_no_address_is_released_twice(tmp_path):
    terms = terms_of(rounds=20, clients=1)
    server, client = terms.server(D, FIRST, folder=tmp_path / "server"), Client(terms, tmp_path / "one", 0)
    released = []
    for number in range(12):
        if number == 3:
            server.close()
            shutil.copytree(tmp_path / "server", tmp_path / "backup")
            server = terms.server(D, FIRST, folder=tmp_path / "server")
        if number == 8:
            server.close()
            shutil.rmtree(tmp_path / "server")
            shutil.copytree(tmp_path / "backup", tmp_path / "server")
            server = terms.server(D, FIRST, folder=tmp_path / "server")
            assert server.memory.shared.version == 3
        client.say(server, TimedOut())
        if client.participant.may_train:
            released.append(client.participant.state.memory.address)
            client.say(server, client.release())
        server.close_round()
    assert len(released) == len(set(released)) == 8  # rounds 3 to 6 came again, and were spent
    client.say(server, TimedOut())
    assert client.participant.state.model.tobytes() == server.model.tobytes()
    assert client.ledger.guarantee(DELTA).epsilon == PIPELINE.guarantee(8 * terms.steps, DELTA).epsilon
    assert not client.ledger.incomplete
    server.close()
    client.close()


def test_a_clock_that_jumps_changes_no_charge(tmp_path, monkeypatch):
    terms = terms_of(rounds=6, clients=1)
    server, client = terms.server(D, FIRST), Client(terms, tmp_path / "one", 0)
    now = time.time()
    for jump in (0.0, -1e6, 1e9, -1e9, 3e4, 0.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        client.take_part(server)
        server.close_round()
    assert client.ledger.guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon
    client.close()
    record = dp.Ledger.read(tmp_path / "one" / "ledger.db")
    assert [entry.address.round for entry in record.entries] == list(range(6))
    assert record.guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
import dpcomp as dp
from dpcomp.federated import ReplyReceived, TimedOut
sys.path.insert(0, sys.argv[2])
from weeks import Client, terms_of, D, FIRST
from dpcomp.terms import FederationTerms

folder = Path(sys.argv[1])
terms = FederationTerms.read(folder / "federation.toml")
server, client = terms.server(D, FIRST, folder=folder / "server"), Client(terms, folder / "one")
client.take_part(server)
server.close_round()
client.say(server, TimedOut())
before = client.participant.state, server.memory.shared.version, server.memory.link(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
for attempt in (client.release, server.close_round):
    try:
        attempt()
    except (dp.DpcompError, OSError) as error:
        assert "panic" not in str(error)
    else:
        raise SystemExit("nothing was refused")
assert (client.participant.state, server.memory.shared.version, server.memory.link(1)) == before
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
client.take_part(server)  # there is room again
assert server.memory.link(1).count == 2, server.refusals
server.close_round()
"""


def test_a_full_disk_loses_nothing_and_room_lets_both_ends_go_on(tmp_path):
    terms_of(clients=2).write(tmp_path / "federation.toml")
    (tmp_path / "script.py").write_text(FULL_DISK)
    here = str(__import__("pathlib").Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path, here], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    terms = FederationTerms.read(tmp_path / "federation.toml")
    server = terms.server(D, FIRST, folder=tmp_path / "server")
    assert (server.memory.shared.version, server.memory.link(1).count) == (2, 2)
    server.close()
    with open_ledger(tmp_path / "one" / "ledger.db") as ledger:
        assert ledger.guarantee(DELTA).epsilon >= PIPELINE.guarantee(4, DELTA).epsilon


@pytest.mark.parametrize("end", ["server", "client"])
def test_a_checkpoint_of_another_format_is_refused_by_number_and_left_alone(end, federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    for _ in range(3):
        client.take_part(server)
        server.close_round()
    client.close()
    server.close()
    folder = tmp_path / "server" / "checkpoints" if end == "server" else tmp_path / "one" / "client"
    newest = max(folder.glob("*.safetensors"))
    content = newest.read_bytes().replace(checkpoint.FORMAT.encode(), b"dpcomp checkpoint 6")
    newest.write_bytes(content)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(dp.DpcompError, match="'dpcomp checkpoint 6', not 'dpcomp checkpoint 5'"):
        terms.server(D, FIRST, folder=tmp_path / "server") if end == "server" else Client(terms, tmp_path / "one")
    assert sorted(path.name for path in folder.iterdir()) == before
    assert newest.read_bytes() == content


def test_counts_of_traffic_and_refusals_outlive_the_process(federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    client.take_part(server)
    server.handle(b"noise", sender=1)
    server.close_round()
    traffic, refusals = server.traffic, dict(server.refusals)
    assert (traffic.messages, refusals) == (3, {"corrupt": 1})
    assert traffic.received_bytes > 0 < traffic.sent_bytes
    server.close()
    again = terms.server(D, FIRST, folder=tmp_path / "server")
    assert (again.traffic, dict(again.refusals)) == (traffic, refusals)
    again.handle(b"noise", sender=1)
    again.restart()  # in the same process, which knows more than the checkpoint
    assert (again.traffic.messages, dict(again.refusals)) == (4, {"corrupt": 2})
    again.close()
    client.close()


def split(terms, server, tmp_path):
    """Let a client take part in a round, and return two processes that go on from copies of its folder."""
    client = Client(terms, tmp_path / "one")
    client.take_part(server)
    server.close_round()
    client.close()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copies = Client(terms, tmp_path / "one"), Client(terms, tmp_path / "two")
    for copy in copies:
        copy.say(server, TimedOut())
    return copies


@pytest.mark.parametrize("restarted", [False, True])
def test_a_copy_whose_update_was_refused_before_that_of_the_other_came_is_marked(restarted, tmp_path):
    terms = terms_of(late_policy=Weigh(max_age=3), largest_update=60.0)
    server = terms.server(D, FIRST)
    one, two = split(terms, server, tmp_path)
    (first,) = one.participant.handle(one.release())
    large = two.release()
    two.say(server, Trained(large.update.derive(100 * large.update.dense())))
    assert server.refusals["size"]
    assert not two.ledger.incomplete
    if restarted:
        two.close()
        two = Client(terms, tmp_path / "two")
    server.close_round()
    assert server.handle(first, sender=1) is not None  # late, and accepted
    assert server.memory.link(1).count == 2
    with pytest.raises(dp.DpcompError, match="two processes take part as client 1"):
        two.say(server, TimedOut())
    assert "another process released" in two.ledger.incomplete
    one.close()
    two.close()


def test_a_copy_that_was_charged_for_the_newest_round_alone_is_marked(federation, tmp_path):
    terms, server = federation
    one, two = split(terms, server, tmp_path)
    one.take_part(server)
    broadcast = server.close_round()
    two.participant.handle(BroadcastReceived(broadcast))  # which does not say what the server has of this client
    two.release()
    two.close()  # killed before the update was saved
    one.take_part(server)
    two = Client(terms, tmp_path / "two")
    with pytest.raises(dp.DpcompError, match=r"accepted 3 releases .* was charged for 2: two processes"):
        two.say(server, TimedOut())
    assert two.ledger.incomplete
    assert not one.ledger.incomplete
    one.close()
    two.close()


def test_a_copy_that_sends_differences_is_marked_before_it_gives_up(tmp_path, monkeypatch):
    differences = replace(PIPELINE, codec=dp.Codec(sparsify=dp.TopK(0.2)), feedback=dp.EF21())
    monkeypatch.setattr(weeks, "PIPELINE", differences)
    terms = terms_of()
    server = terms.server(D, FIRST)
    one, two = split(terms, server, tmp_path)
    one.say(server, one.release())
    with pytest.raises(dp.DpcompError, match="two processes take part as client 1"):
        two.say(server, two.release())
    assert two.ledger.incomplete
    assert one.ledger.guarantee(DELTA).epsilon == differences.guarantee(4, DELTA).epsilon
    one.close()
    two.close()


def test_a_client_set_back_to_an_older_checkpoint_is_not_marked(federation, tmp_path):
    terms, server = federation
    client = Client(terms, tmp_path / "one")
    for _ in range(2):
        client.take_part(server)
        server.close_round()
    shutil.copytree(tmp_path / "one" / "client", tmp_path / "older")
    client.say(server, TimedOut())
    client.participant.handle(client.release())  # and lost
    server.close_round()
    client.take_part(server)
    server.close_round()
    client.close()
    shutil.rmtree(tmp_path / "one" / "client")
    shutil.copytree(tmp_path / "older", tmp_path / "one" / "client")
    client = Client(terms, tmp_path / "one")
    client.take_part(server)
    assert server.memory.link(1).count == 4
    assert not client.ledger.incomplete
    client.close()
