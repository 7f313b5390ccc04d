"""The Flower adapter in one process: what a node and a server do when messages are lost, late, false or too many."""

import logging
import shutil

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping

import dpcomp as dp
from dpcomp.adapters.flower import (
    PrivateClientApp,
    PrivateStrategy,
    client_app,
    exchange,
    folder_in_node_config,
    simulated_folders,
    strategy,
)
from dpcomp.adapters.flower.exchange import MOST_MESSAGES
from dpcomp.adapters.flower.records import FAILED, arrays_of
from dpcomp.core.database.database import look_at_database
from dpcomp.core.errors import DpcompError, NotPrivate
from dpcomp.federated import Server
from dpcomp.federated.messages import HELLO, largest_message, name_of
from dpcomp.terms import ClientPolicy
from dpcomp.training.pytorch.rows.parameters import layout_of, read
from tests.adapters.flower_ends import (
    GENEROUS,
    NODES,
    PIPELINE,
    STEPS,
    TRUSTED,
    InProcess,
    app_of,
    network,
    played,
    terms_of,
)

DELTA = 1e-5


class Clock:
    """A clock that only waiting moves on, so that a busy machine misses no deadline."""

    now = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return 0.0  # before any message was made: no message is too late

    def sleep(self, seconds):
        self.now += max(seconds, 0.0)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    found = Clock()
    for module in (exchange, strategy, client_app):
        monkeypatch.setattr(module, "time", found)
    return found


class Killed(BaseException):
    """The end of a process."""


def ledger_of(grid, node):
    return dp.Ledger.read(grid.folder / str(node) / "ledger.db")


def payloads_in(reply):
    messages = reply.content["dpcomp"].get("messages", []) if reply.has_content() else []
    return [message for message in messages if not HELLO.begins(message)]


def with_messages(reply, messages):
    """A reply to the same message with other content."""
    reply.content["dpcomp"]["messages"] = messages
    return reply


def accepted_by(monkeypatch):
    """Record the payloads that servers accept, in their order, beside their version."""
    kept, take = [], Server._take_payload

    def recorded(self, message, sender, journal):
        before = len(self.accepted)
        reply = take(self, message, sender, journal)
        if len(self.accepted) > before and journal is not None:
            kept.append((self.memory.shared.version, sender, message))
        return reply

    monkeypatch.setattr(Server, "_take_payload", recorded)
    return kept


def replayed(terms, kept):
    """The model of a server that gets the accepted payloads alone."""
    module = network()
    server = terms.server(layout_of(module), read(module))
    for version in range(terms.rounds):
        for number, sender, payload in kept:
            if number == version:
                server.handle(payload, sender)
        server.close_round()
    return server.model


def vector(arrays):
    return np.concatenate([array.numpy().reshape(-1) for array in arrays.values()])


def test_rounds_cost_what_the_terms_say_and_end_at_the_replayed_model(tmp_path, monkeypatch):
    terms, kept = terms_of(), accepted_by(monkeypatch)
    grid = InProcess(tmp_path, terms)
    private, result = played(grid, tmp_path / "server")
    assert vector(result.arrays).tobytes() == replayed(terms, kept).tobytes()
    assert len(kept) == 3 * terms.rounds
    for node in NODES:
        assert ledger_of(grid, node).guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon
    # One message to a node and one reply a round; a new node asks once more.
    assert len(grid.sent) == 3 * terms.rounds + 3
    assert not private.exchange.dropped
    assert not private.server.refusals


def test_a_lost_reply_is_sent_again_and_charged_once(tmp_path):
    terms = terms_of(least_updates=3, round_seconds=1.0)
    grid, lost = InProcess(tmp_path, terms), []

    def lose_one(node, message, answer):
        reply = answer()
        if node == NODES[1] and payloads_in(reply) and not lost:
            lost.extend(payloads_in(reply))  # the process ended after it saved, before Flower had the reply
            return []
        return [reply]

    grid.fault = lose_one
    played(grid, tmp_path / "server")
    sent = [payload for node, reply in grid.received if node == NODES[1] for payload in payloads_in(reply)]
    assert sent[0] == lost[0]
    assert name_of(sent[0]) == name_of(sent[1])  # the same bytes, now with a full header
    assert ledger_of(grid, NODES[1]).guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon


def test_a_node_that_is_killed_as_it_trains_gives_the_round_up(tmp_path):
    terms, kills = terms_of(least_updates=2, round_seconds=1.0), [1]

    def kill_once():
        if kills:
            kills.pop()
            raise Killed

    grid = InProcess(tmp_path, terms)
    whole = grid.make
    grid.make = lambda node: app_of(terms, 1, after=kill_once) if node == NODES[1] else whole(node)

    def fault(node, message, answer):
        try:
            return [answer()]
        except Killed:
            return []

    grid.fault = fault
    private, _ = played(grid, tmp_path / "server")
    charged = terms.pipeline.guarantee(terms.rounds * STEPS, DELTA).epsilon  # the lost round is charged too
    assert ledger_of(grid, NODES[1]).guarantee(DELTA).epsilon == charged
    assert private.server.memory.link(1).count == terms.rounds - 1


def test_rounds_that_a_restored_server_plays_again_are_given_up_and_closed(tmp_path):
    terms = terms_of(least_updates=2, rounds=4)
    grid = InProcess(tmp_path, terms)
    played(grid, tmp_path / "server", rounds=1)
    shutil.copytree(tmp_path / "server", tmp_path / "backup")
    played(grid, tmp_path / "server", rounds=3)
    grid.replies.clear()
    private, _ = played(grid, tmp_path / "backup")
    assert private.server.memory.shared.version == 4
    assert [private.server.memory.link(client).count for client in range(3)] == [2, 2, 2]  # of the first and the last
    for node in NODES:
        assert ledger_of(grid, node).guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon


def test_a_node_that_is_away_holds_up_no_round_that_the_others_give_up(tmp_path):
    terms = terms_of(least_updates=2, rounds=4, round_seconds=1.0)
    grid = InProcess(tmp_path, terms, nodes=NODES[:2])
    played(grid, tmp_path / "server", rounds=1)
    shutil.copytree(tmp_path / "server", tmp_path / "backup")
    played(grid, tmp_path / "server", rounds=3)
    grid.replies.clear()
    private, _ = played(grid, tmp_path / "backup")
    assert private.server.memory.shared.version == 4
    assert [private.server.memory.link(client).count for client in range(3)] == [2, 2, 0]  # of the first and the last


def test_false_replies_change_nothing(tmp_path, monkeypatch):
    terms = terms_of(least_updates=2, round_seconds=1.0)
    kept, first = accepted_by(monkeypatch), []
    grid = InProcess(tmp_path, terms)

    def falsify(node, message, answer):
        reply, round_number = answer(), int(message.metadata.group_id)
        if node != NODES[2] or not payloads_in(reply):
            return [reply]
        first.append(reply.content["dpcomp"]["messages"][0])
        other = next(payloads_in(each)[0] for at, each in grid.received if at == NODES[0] and payloads_in(each))
        match round_number:
            case 2:
                return [with_messages(reply, [first[0]])]  # the payload of round 1 again
            case 3:
                return [with_messages(reply, [other])]  # another client's
            case 4:
                return [with_messages(reply, [bytes(largest_message(10) + 1)])]
        return [reply]

    grid.fault = falsify
    private, result = played(grid, tmp_path / "server")
    assert private.server.refusals.keys() >= {"direction", "length"}
    assert private.server.memory.link(2).count == 1
    assert vector(result.arrays).tobytes() == replayed(terms, kept).tobytes()


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"dpcomp": ConfigRecord()}),
        RecordDict({"dpcomp": ConfigRecord({"messages": "text"})}),
        RecordDict({"dpcomp": ConfigRecord({"messages": [b"x"] * 3})}),
        RecordDict({"dpcomp": ConfigRecord({"messages": [1, 2]})}),
    ],
    ids=["empty", "no messages", "text", "too many", "numbers"],
)
def test_replies_of_no_form_end_with_the_round(tmp_path, content):
    terms = terms_of(rounds=1, least_updates=2)
    grid = InProcess(tmp_path, terms)
    grid.fault = lambda node, message, answer: [Message(content, reply_to=message)] if node == NODES[0] else [answer()]
    private, _ = played(grid, tmp_path / "server")
    assert private.server.memory.shared.version == 1
    assert sum(node == NODES[0] for node, _ in grid.sent) <= MOST_MESSAGES


def test_a_reply_of_another_node_is_dropped(tmp_path):
    terms = terms_of(rounds=1, least_updates=2, round_seconds=1.0)
    grid = InProcess(tmp_path, terms)

    def from_another(node, message, answer):
        reply = answer()
        if node == NODES[0]:
            reply.metadata.__dict__["_src_node_id"] = NODES[1]
        return [reply]

    grid.fault = from_another
    private, _ = played(grid, tmp_path / "server")
    assert private.exchange.dropped["node"]
    assert private.server.memory.link(0).count == 0


def test_unknown_nodes_take_no_memory_and_no_message(tmp_path):
    terms = terms_of(rounds=2)
    grid = InProcess(tmp_path, terms)
    grid.connected = [*NODES, *range(10**6, 10**6 + 10**4)]
    private, _ = played(grid, tmp_path / "server")
    assert private.exchange.unknown == 10**4
    assert {node for node, _ in grid.sent} == set(NODES)
    assert len(private.exchange._questions) == 3
    assert len(private.exchange._numbers._clients) == 3


def test_a_node_whose_policy_refuses_will_not_take_part(tmp_path):
    terms = terms_of(rounds=2, least_updates=2)
    grid = InProcess(tmp_path, terms)
    ClientPolicy(budget=dp.Budget(0.1, DELTA)).write(grid.folder / str(NODES[0]) / "client.toml")
    private, _ = played(grid, tmp_path / "server")
    assert private.server.memory.shared.version == 2
    assert set(private.exchange.declined) == {0}
    assert private.exchange.declined[0] == "the policy of this node does not allow the terms"  # the rest is its own
    assert not private.exchange.failed and not private.exchange.dropped
    assert private.server.withdrawn == {0: "policy"}
    assert sum(reply.has_error() for _, reply in grid.received) == 1  # it is not asked again
    assert ledger_of(grid, NODES[0]).guarantee(DELTA).epsilon == 0


def test_a_node_that_missed_rounds_needs_no_budget_for_them(tmp_path):
    terms = terms_of(least_updates=2)
    budget = dp.Budget(terms.guarantee(DELTA).epsilon, DELTA)
    grid = InProcess(tmp_path, terms, policy=ClientPolicy(budget=budget))
    played(grid, tmp_path / "server", rounds=1)
    grid.connected = list(NODES[1:])
    played(grid, tmp_path / "server", rounds=3)
    with dp.Ledger(grid.folder / str(NODES[0]) / "ledger.db") as ledger:
        for number in range(2):  # of another federation
            ledger.charge(PIPELINE.cost, dp.Address(terms.seed.number + 1, 0, number), steps=STEPS)
    grid.connected = list(NODES)
    private, _ = played(grid, tmp_path / "server")
    assert [private.server.memory.link(client).count for client in range(3)] == [2, 4, 4]
    assert not private.exchange.declined and not private.server.withdrawn


def test_rounds_end_where_nobody_takes_part(tmp_path):
    terms = terms_of()
    grid = InProcess(tmp_path, terms, policy=ClientPolicy(budget=dp.Budget(0.1, DELTA)))
    private, result = played(grid, tmp_path / "server")
    assert private.server.memory.shared.version == 0
    assert vector(result.arrays).tobytes() == read(network()).tobytes()


def test_the_text_of_an_error_stays_on_the_node(tmp_path):
    def fail():
        raise KeyError("the name of a patient")

    grid = InProcess(tmp_path, terms_of(), before_begin=fail)
    with pytest.raises(DpcompError, match="no more will come"):
        played(grid, tmp_path / "server")
    errors = [reply.error for _, reply in grid.received if reply.has_error()]
    assert {error.code for error in errors} == {FAILED}
    assert not any("patient" in error.reason for error in errors)
    assert ledger_of(grid, NODES[0]).guarantee(DELTA).epsilon == 0  # nothing was charged before begin


@pytest.mark.parametrize("epochs", [0, 2])
def test_an_app_that_takes_other_steps_than_the_terms_say_has_failed_and_not_withdrawn(tmp_path, epochs):
    grid = InProcess(tmp_path, terms_of(), epochs=epochs)
    with pytest.raises(DpcompError, match="no more will come"):
        played(grid, tmp_path / "server")
    assert {reply.error.code for _, reply in grid.received if reply.has_error()} == {FAILED}


def test_a_node_whose_budget_ends_will_not_take_part(tmp_path, monkeypatch):
    monkeypatch.setattr(ClientPolicy, "check", lambda *_: None)  # else the node would not have begun
    terms = terms_of(rounds=3, least_updates=2)
    grid, path = InProcess(tmp_path, terms), tmp_path / str(NODES[0]) / "ledger.db"
    path.unlink()
    dp.Ledger.create(path, dp.Budget(PIPELINE.guarantee(2 * STEPS, DELTA).epsilon, DELTA)).close()
    private, _ = played(grid, tmp_path / "server")
    assert private.server.memory.shared.version == 3
    assert private.server.withdrawn == {0: "budget"}
    assert private.server.memory.link(0).count == 2
    assert not private.exchange.failed


def test_only_declared_metrics_leave(tmp_path):
    terms = terms_of(rounds=1)
    grid = InProcess(tmp_path / "kept", terms)
    _, result = played(grid, tmp_path / "kept server", fraction_evaluate=1.0)
    assert not result.train_metrics_clientapp and not result.evaluate_metrics_clientapp
    grid = InProcess(tmp_path / "declared", terms, nonprivate_metrics=("train_loss", "bias"))
    _, result = played(grid, tmp_path / "declared server", fraction_evaluate=1.0)
    assert dict(result.train_metrics_clientapp[1]) == {"train_loss": 0.5}
    # The nodes evaluate the model after the broadcast.
    assert result.evaluate_metrics_clientapp[1]["bias"] == pytest.approx(result.arrays["bias"].numpy()[0])
    assert "train_loss, bias leave the node without noise" in str(ledger_of(grid, NODES[0]).guarantee(DELTA))


def test_a_killed_server_goes_on_in_the_same_round(tmp_path, monkeypatch):
    terms, kept = terms_of(), accepted_by(monkeypatch)
    grid = InProcess(tmp_path, terms)

    def kill_in_round_three(node, message, answer):
        if message.metadata.group_id == "3" and node == NODES[2]:
            raise Killed
        return [answer()]

    grid.fault = kill_in_round_three
    with pytest.raises(Killed):
        played(grid, tmp_path / "server")
    grid.replies.clear()  # of a run that is over
    grid.fault = lambda node, message, answer: [answer()]
    private, result = played(grid, tmp_path / "server")
    assert private.server.memory.shared.version == terms.rounds
    assert vector(result.arrays).tobytes() == replayed(terms, kept).tobytes()
    for node in NODES:
        assert ledger_of(grid, node).guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon


def test_a_node_that_was_away_is_brought_up_to_date(tmp_path, monkeypatch):
    terms, kept = terms_of(rounds=6), accepted_by(monkeypatch)
    grid = InProcess(tmp_path, terms)
    for until, connected in ((2, NODES), (5, NODES[:2]), (6, NODES)):
        grid.connected = list(connected)
        private, result = played(grid, tmp_path / "server", until)
    assert private.server.memory.link(2).count == 3
    charged = terms.pipeline.guarantee(3 * STEPS, DELTA).epsilon
    assert ledger_of(grid, NODES[2]).guarantee(DELTA).epsilon == charged
    assert vector(result.arrays).tobytes() == replayed(terms, kept).tobytes()


def test_a_late_reply_is_refused_and_its_residual_kept(tmp_path):
    terms = terms_of(least_updates=2, round_seconds=1.0)
    grid, held = InProcess(tmp_path, terms), []

    def hold_one(node, message, answer):
        reply = answer()
        if node == NODES[0] and payloads_in(reply) and message.metadata.group_id == "2" and not held:
            held.append(reply)
            return []
        late = held[:] if message.metadata.group_id == "3" and len(held) == 1 else []
        held.extend(late)
        return [reply, *late]

    grid.fault = hold_one
    private, _ = played(grid, tmp_path / "server")
    assert sum(private.server.refusals[reason] for reason in ("round", "version")) == 1
    assert private.server.memory.link(0).count == terms.rounds - 1


def test_a_message_that_comes_too_late_trains_nothing(tmp_path, clock):
    terms = terms_of(rounds=2, round_seconds=1.0)
    grid, late = InProcess(tmp_path, terms), []

    def too_late(node, message, answer):
        late_now = node == NODES[2] and message.metadata.group_id == "2"
        clock.time = lambda: message.metadata.created_at + (1.5 if late_now else 0.5)
        reply = answer()
        late.extend([reply] if late_now else [])
        return [reply]

    grid.fault = too_late
    private, _ = played(grid, tmp_path / "server")
    assert private.server.memory.shared.version == 2
    assert late and not any(payloads_in(reply) for reply in late)
    charged = terms.pipeline.guarantee(STEPS, DELTA).epsilon
    assert ledger_of(grid, NODES[2]).guarantee(DELTA).epsilon == charged


def test_nodes_that_take_most_of_a_round_for_each_message_train_in_every_round(tmp_path, clock):
    terms = terms_of(rounds=3, least_updates=3, round_seconds=1.0)
    grid, free, queue, deliver = InProcess(tmp_path, terms), {}, [], []

    def hold(node, message, answer):
        begun = max(clock.now, free.get(node, 0.0))  # one message at a time
        free[node] = begun + 0.7
        queue.append((free[node], node, message, begun + 0.3 - clock.now))
        return []

    def pull(names):
        for item in [item for item in queue if item[0] <= clock.now]:
            queue.remove(item)
            _, node, message, waited = item
            clock.time = lambda sent=message.metadata.created_at, waited=waited: sent + waited
            deliver.append(grid.answer(node, message))
        ready = [reply for reply in deliver if reply.metadata.reply_to_message_id in names]
        deliver[:] = [reply for reply in deliver if reply not in ready]
        return ready

    grid.fault, grid.pull_messages = hold, pull
    private, _ = played(grid, tmp_path / "server")
    assert private.server.memory.shared.version == terms.rounds
    for node in NODES:
        assert ledger_of(grid, node).guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon
    assert len(grid.sent) <= 3 * (2 * terms.rounds + 1)


def test_a_trusted_server_asks_those_whom_it_has_drawn_and_closes_rounds_by_time(tmp_path, clock):
    with pytest.raises(NotPrivate, match="by time alone"):
        terms_of(TRUSTED)
    terms = terms_of(TRUSTED, rounds=6, least_updates=0)
    grid, ledger = InProcess(tmp_path, terms), dp.Ledger()
    private, _ = played(grid, tmp_path / "server", secret=dp.SecretSeed(0), ledger=ledger)
    asked = {(int(message.metadata.group_id), node) for node, message in grid.sent}
    drawn = sum(private.server.memory.link(client).count for client in range(3))
    assert 0 < len(asked) < 18
    assert clock.now == pytest.approx(6 * 5.0)  # however many had come
    assert drawn == len(asked)
    assert ledger.guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon
    assert not private.server.refusals
    sent = [NODES[client] for client in range(3) if private.server.memory.link(client).count]
    for node in sent:  # the node's own ledger has all rounds, of which any may have released its data
        assert ledger_of(grid, node).guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon


def test_a_node_adds_up_the_federations_of_trusted_servers(tmp_path, clock):
    first, second = (terms_of(TRUSTED, rounds=4, least_updates=0) for _ in range(2))
    policy = ClientPolicy(budget=dp.Budget(first.guarantee(DELTA).epsilon, DELTA), trust=("server",))
    private, _ = played(
        InProcess(tmp_path, first, policy=policy), tmp_path / "1", secret=dp.SecretSeed(0), ledger=dp.Ledger()
    )
    sent = {client for client in range(3) if private.server.memory.link(client).count}
    assert sent and not private.server.withdrawn
    private, _ = played(
        InProcess(tmp_path, second, policy=policy), tmp_path / "2", secret=dp.SecretSeed(1), ledger=dp.Ledger()
    )
    assert not any(private.server.memory.link(client).count for client in sent)


def test_what_a_trusted_server_shows_does_not_depend_on_who_was_drawn(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO, "flwr.dpcomp")
    terms = terms_of(TRUSTED, rounds=3, least_updates=0, seed=dp.PublicSeed(0))
    grid = InProcess(tmp_path, terms)
    ClientPolicy(budget=dp.Budget(0.1, DELTA)).write(tmp_path / str(NODES[0]) / "client.toml")

    def answer_of(node, message, answer):
        reply = answer()
        if node == NODES[1] and message.metadata.message_type.startswith("train"):
            reply = Message(Error(FAILED, "a test"), reply_to=message)
        return [reply]

    grid.fault = answer_of
    private, _ = played(grid, tmp_path / "server", secret=dp.SecretSeed(0), ledger=dp.Ledger(), fraction_evaluate=1.0)
    assert clock.now == pytest.approx(3 * 2 * 5.0)  # a train phase and an evaluation a round, whoever answers when
    assert private.exchange.declined and set(private.exchange.dropped) == {f"error {FAILED}"}
    said = [record for record in caplog.records if record.module in ("strategy", "exchange")]  # nodes have other logs
    rounds = [record.getMessage() for record in said if record.getMessage().startswith("round ")]
    assert len(rounds) == 3 and not any("updates" in each for each in rounds)
    assert not any(record.levelno >= logging.WARNING for record in said)


def test_flowers_own_noise_is_refused_beside_ours(tmp_path):
    terms = terms_of()
    for mod in (fixedclipping_mod, LocalDpMod(1.0, 1.0, 1.0, 1e-5)):
        with pytest.raises(NotPrivate, match="beside dpcomp"):
            PrivateClientApp(terms, mods=[mod])
        with pytest.raises(NotPrivate, match="beside dpcomp"):
            PrivateClientApp(terms).train(mods=[mod])
    with pytest.raises(NotPrivate, match="query"):
        PrivateClientApp(terms).query()
    private = PrivateStrategy(terms, folder=tmp_path / "server")
    wrapped = DifferentialPrivacyServerSideFixedClipping(private, 1.0, 1.0, 3)
    grid, module = InProcess(tmp_path, terms), network()
    with pytest.raises(NotPrivate, match="another strategy"):
        wrapped.start(grid, arrays_of(layout_of(module), read(module)), 1)


def test_begin_refuses_what_the_terms_do_not_release(tmp_path):
    with pytest.raises(DpcompError, match="outside of a train function"):
        PrivateClientApp(terms_of()).begin(network())
    grid = InProcess(tmp_path, terms_of(learning_rate=0.2))  # and the apps train with another
    with pytest.raises(DpcompError, match="no more will come"):
        played(grid, tmp_path / "server")
    assert ledger_of(grid, NODES[0]).guarantee(DELTA).epsilon == 0


def test_a_folder_is_named_and_made_by_its_operator(tmp_path):
    terms = terms_of()
    grid = InProcess(tmp_path, terms)
    (grid.folder / str(NODES[0]) / "ledger.db").unlink()
    private, _ = played(grid, tmp_path / "server", 1)
    assert set(private.exchange.failed) == {0}

    class WithoutFolder:
        node_config: dict[str, str] = {}  # noqa: RUF012
        node_id = NODES[0]

    with pytest.raises(DpcompError, match="dpcomp-folder"):
        folder_in_node_config(WithoutFolder())
    folder_of = simulated_folders(tmp_path / "simulated", GENEROUS)
    assert folder_of(WithoutFolder()) == folder_of(WithoutFolder())
    assert (folder_of(WithoutFolder()) / "ledger.db").exists()


def test_numbers_of_nodes_are_durable(tmp_path):
    terms = terms_of(rounds=2, least_updates=1)
    grid = InProcess(tmp_path, terms)
    grid.connected = [NODES[1]]
    played(grid, tmp_path / "server", 1)
    grid.connected = [NODES[2], NODES[1], NODES[0]]
    private, _ = played(grid, tmp_path / "server", 2)
    assert private.server.memory.link(0).count == 2  # node 1 is client 0 as before
    from dpcomp.adapters.flower.node_numbers import KIND

    with look_at_database(tmp_path / "server" / "nodes.db", KIND) as connection:
        rows = dict(connection.execute("SELECT client, node FROM nodes").fetchall())
    assert rows[0] == NODES[1].to_bytes(8, "big")


def test_another_first_model_and_more_rounds_are_refused(tmp_path):
    terms, module = terms_of(), network()
    private, grid = PrivateStrategy(terms, folder=tmp_path / "server"), InProcess(tmp_path, terms)
    with pytest.raises(dp.VersionMismatch, match="first model"):
        private.start(grid, arrays_of(layout_of(module), read(module) + 1))
    with pytest.raises(ValueError, match="4 rounds"):
        private.start(grid, arrays_of(layout_of(module), read(module)), 5)
    assert terms.pipeline == PIPELINE
