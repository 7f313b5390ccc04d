"""What either end has said outlives its process, or is noticed to be gone."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, Phase, ReplyReceived, TimedOut, Trained
from dpcomp.federated.server import Server
from dpcomp.federated.server.late import Weigh
from dpcomp.federated.status import ServerStatus
from dpcomp.wire import checkpoint
from tests.federated.ends import (
    LAYOUT,
    PIPELINE,
    RUN,
    TRUSTED,
    participant_of,
    server_of,
    stands_with,
    talk,
    together,
    trained,
    update_of,
    zeros,
)


def test_a_charged_round_of_a_trusted_server_is_forfeit_after_a_crash(tmp_path):
    ledger = dp.Ledger()
    server, participant = together(TRUSTED, 1, server_of(TRUSTED, tmp_path, ledger))
    talk(participant, server, Trained(update_of(TRUSTED, participant.state.memory, 7)))
    before = server.model
    ledger.charge(TRUSTED.cost, server.memory.address)  # and the power went
    server.close()
    with pytest.warns(UserWarning, match="charged for round 1 already: a process ended between its charge and its end"):
        again = server_of(TRUSTED, tmp_path, ledger)
    assert len(again.accepted) == 1 and again.forfeited == (1,)
    with pytest.warns(UserWarning, match="round 1 is closed without a release"):
        broadcast = again.close_round()
    talk(participant, again, BroadcastReceived(broadcast))
    stands_with(participant, again)
    np.testing.assert_allclose(again.model + again.memory.residual, before + server.memory.residual, atol=1e-6)
    talk(participant, again, Trained(update_of(TRUSTED, participant.state.memory, 8)))
    again.close_round()
    assert ledger.guarantee(1e-5).steps == 3
    again.close()


def test_a_trusted_server_that_was_set_back_says_which_rounds_it_closes_without_a_release(tmp_path):
    ledger, folder = dp.Ledger(), tmp_path / "server"
    server = server_of(TRUSTED, folder, ledger)
    server.close_round()
    server.close()
    shutil.copytree(folder, tmp_path / "backup")
    server = server_of(TRUSTED, folder, ledger)  # nothing is said of a server that goes on
    for _ in range(3):
        server.close_round()
    server.close()
    assert server.forfeited == ()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    words = r"is at version 1, and .* was charged for 3 rounds from 1 to 3 already: the folder was set back"
    with pytest.warns(UserWarning, match=words):
        server = server_of(TRUSTED, folder, ledger)
    before = server.model + server.memory.residual
    for number in (1, 2):
        with pytest.warns(UserWarning, match=f"round {number} is closed without a release"):
            server.close_round()
        assert server.forfeited == (1, 2, 3)
    np.testing.assert_allclose(server.model + server.memory.residual, before, atol=1e-6)
    assert ServerStatus.read(folder).forfeited == (1, 2)
    server.close()
    with pytest.warns(UserWarning, match="charged for round 3 already"):
        server = server_of(TRUSTED, folder, ledger)
    with pytest.warns(UserWarning, match="round 3 is closed without a release"):
        server.close_round()
    server.close_round()
    assert server.forfeited == ServerStatus.read(folder).forfeited == (1, 2, 3)
    assert ledger.guarantee(1e-5).steps == 5
    server.close()


@pytest.mark.parametrize("killed", [True, False])
def test_a_release_that_could_not_be_saved_moves_no_clip_norm(killed, tmp_path, monkeypatch):
    ledger = dp.Ledger()
    adaptive = dp.Pipeline(
        mechanism=(dp.AdaptiveClip(initial=1.0, learning_rate=1.0), dp.Gaussian(0.5)), unit="client", trust="server"
    )

    def full(*_):
        raise OSError(28, "No space left on device")

    server = server_of(adaptive, tmp_path, ledger)
    with monkeypatch.context() as patched:
        patched.setattr("dpcomp.wire.checkpoint.save", full)
        with pytest.raises(OSError, match="No space"):
            server.close_round()
    if killed:
        server.close()
        with pytest.warns(UserWarning, match="charged for round 0 already"):
            server = server_of(adaptive, tmp_path, ledger)
    with pytest.warns(UserWarning, match="round 0 is closed without a release"):
        server.close_round()
    assert server.memory.clip_norm == 1.0
    server.close_round()
    assert server.memory.clip_norm != 1.0
    server.close()


def test_another_server_of_one_seed_and_ledger_says_that_it_releases_nothing(tmp_path):
    ledger = dp.Ledger()
    server_of(TRUSTED, ledger=ledger).close_round()
    with pytest.warns(UserWarning, match="round 0 is closed without a release"):
        server_of(TRUSTED, ledger=ledger).close_round()
    with pytest.warns(UserWarning, match="is at version 0, and .* charged for round 0 already"):
        server_of(TRUSTED, tmp_path, ledger).close()


def test_one_server_at_a_time_holds_a_folder(tmp_path):
    server = server_of(folder=tmp_path)
    with pytest.raises(dp.DpcompError, match="another process"):
        server_of(folder=tmp_path)
    server.close()
    server_of(folder=tmp_path).close()


def test_a_folder_of_another_run_is_refused(tmp_path):
    server_of(folder=tmp_path).close()
    with pytest.raises(dp.DpcompError, match="of run"):
        Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, dp.PublicSeed(77)), zeros(), folder=tmp_path)


def test_a_server_restarts_with_all_that_it_called_accepted(tmp_path):
    server, participant = together(PIPELINE, 2, server_of(folder=tmp_path))
    talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, 5)))
    server.close()
    again = server_of(folder=tmp_path)
    assert again.memory.links == server.memory.links and not again.refusals
    assert [one.weight for one in again.accepted] == [1.0]
    unbroken, other = together(PIPELINE, 2)
    talk(other, unbroken, Trained(update_of(PIPELINE, other.state.memory, 5)))
    assert again.close_round() == unbroken.close_round()
    again.close()


def test_states_are_checked_when_a_client_is_opened(tmp_path):
    ledger = dp.Ledger.create(tmp_path / "ledger.db", research=True)
    memory = PIPELINE.init_client(LAYOUT, RUN, 1)
    participant = Participant(PIPELINE.channel, memory, zeros(), ledger, tmp_path / "checkpoints")
    server = server_of()
    talk(participant, server, TimedOut())
    permit = ledger.charge(PIPELINE.cost, memory.address)
    block = np.ones((1, LAYOUT.size), np.float32)
    talk(participant, server, Trained(PIPELINE.release([block], memory, dp.SecretSeed(0), permit)))
    again = Participant(PIPELINE.channel, memory, zeros(), ledger, tmp_path / "checkpoints")
    assert again.state.phase is Phase.STALE and again.state.memory.link == server.memory.link(1)
    with pytest.raises(dp.DpcompError, match="never charged"):
        Participant(PIPELINE.channel, memory, zeros(), dp.Ledger(), tmp_path / "checkpoints")
    with pytest.raises(dp.DpcompError, match="of client 1"):
        Participant(PIPELINE.channel, PIPELINE.init_client(LAYOUT, RUN, 2), zeros(), ledger, tmp_path / "checkpoints")


def test_what_could_not_be_saved_did_not_happen(tmp_path, monkeypatch):
    server, participant = together(PIPELINE, 1, server_of(folder=tmp_path / "server"))
    talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, 4)))
    before, model = server.memory, server.model.tobytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpcomp.wire.checkpoint.save", full)
    with pytest.raises(OSError, match="No space"):
        server.close_round()
    assert server.memory is before and server.model.tobytes() == model and len(server.accepted) == 1
    monkeypatch.undo()
    talk(participant, server, BroadcastReceived(server.close_round()))
    stands_with(participant, server)
    server.close()


@pytest.mark.parametrize("pipeline", [PIPELINE, TRUSTED], ids=["not trusted", "trusted"])
def test_a_round_that_is_saved_is_closed_whatever_cannot_be_deleted(tmp_path, monkeypatch, pipeline):
    ledger = dp.Ledger()
    server, participant = together(pipeline, 0, server_of(pipeline, tmp_path, ledger))
    talk(participant, server, Trained(update_of(pipeline, participant.state.memory, 1)))

    def full(*_):
        raise dp.DpcompError("journal.db cannot be written")

    with monkeypatch.context() as patched:
        patched.setattr("dpcomp.federated.server.journal.Journal.forget_before", full)
        with pytest.warns(UserWarning, match="could not be deleted"):
            broadcast = server.close_round()
    assert server.memory.shared.version == 1 and server.model.any()
    talk(participant, server, BroadcastReceived(broadcast))
    talk(participant, server, Trained(update_of(pipeline, participant.state.memory, 2)))
    accepted = server.memory.link(1)
    server.close()
    server = server_of(pipeline, tmp_path, ledger)  # it goes on in the round in which the update was accepted
    assert (server.memory.link(1), len(server.accepted)) == (accepted, 1)
    talk(participant, server, BroadcastReceived(server.close_round()))
    stands_with(participant, server)
    server.close_round()
    assert server._folder is not None and server._folder.journal.payloads() == []
    server.close()


@pytest.mark.parametrize("pipeline", [PIPELINE, TRUSTED], ids=["not trusted", "trusted"])
@pytest.mark.parametrize("fault", ["unlink", "sync"])
def test_a_round_whose_checkpoint_is_in_place_is_closed_whatever_fails_afterwards(
    tmp_path, monkeypatch, pipeline, fault
):
    def damaged(path, *_, **__):
        if fault == "unlink" or path.is_dir():
            raise OSError(5, "Input/output error")

    ledger = dp.Ledger()
    server, participant = together(pipeline, 3, server_of(pipeline, tmp_path, ledger))
    other = participant_of(pipeline, client=2)
    talk(other, server, TimedOut())
    talk(participant, server, Trained(update_of(pipeline, participant.state.memory, 5)))
    with monkeypatch.context() as patched:
        if fault == "unlink":
            patched.setattr(Path, "unlink", damaged)
        else:
            patched.setattr("dpcomp.core.storage.sync", damaged)
        with pytest.warns(UserWarning, match="can't be (deleted|synced)"):
            server.close_round()
    assert server.memory.shared.version == 4
    talk(other, server, TimedOut())
    talk(other, server, Trained(update_of(pipeline, other.state.memory, 6)))
    assert [each.client for each in server.accepted] == [2]
    server.close()
    server = server_of(pipeline, tmp_path, ledger)
    assert [each.client for each in server.accepted] == [2]
    server.close_round()
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 2
    server.close()


def test_a_server_that_was_interrupted_while_it_saved_a_round_goes_no_further(tmp_path, monkeypatch):
    server, participant = together(PIPELINE, 1, server_of(folder=tmp_path))
    talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, 4)))
    save = checkpoint.save

    def interrupted(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            server.close_round()
    for go_on in (server.close_round, lambda: server.handle(b"", 1)):  # what it took now, a restart would not find
        with pytest.raises(dp.DpcompError, match="saved a round"):
            go_on()
    server.restart()
    assert server.memory.shared.version == 2 and not server.accepted
    talk(participant, server, TimedOut())
    stands_with(participant, server)
    server.close()


def test_an_update_that_was_accepted_in_a_round_which_the_checkpoint_has_closed_is_named(tmp_path):
    server, _ = together(PIPELINE, 1, server_of(folder=tmp_path))
    server.close()
    newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    newest.rename(tmp_path / newest.name)
    server, other = server_of(folder=tmp_path), participant_of(client=2)
    talk(other, server, TimedOut())
    talk(other, server, Trained(update_of(PIPELINE, other.state.memory, 8)))
    server.close()
    (tmp_path / newest.name).rename(newest)
    with pytest.warns(UserWarning, match="accepted at version 0 is in no round"):
        server = server_of(folder=tmp_path)
    assert server.memory.shared.version == 1 and not server.accepted
    server.close()


def test_a_folder_whose_first_save_was_cut_short_can_be_opened(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "unfinished").write_bytes(b"half")
    server_of(folder=tmp_path).close()


def test_a_server_that_was_closed_does_nothing(tmp_path):
    server = server_of(folder=tmp_path)
    server.close()
    for act in (server.close_round, lambda: server.handle(b"", 1)):
        with pytest.raises(dp.DpcompError, match="was closed"):
            act()


def test_the_checkpoint_in_reserve_brings_back_its_round(tmp_path):
    server, participant = together(PIPELINE, 2, server_of(folder=tmp_path))
    server.close()
    newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="torn"):
        again = server_of(folder=tmp_path)
    assert again.memory.shared.version == 1 and len(again.accepted) == 1
    again.close_round()  # the same round, of the same updates
    stands_with(participant, again)
    again.close()
    newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(b"torn too")
    with pytest.warns(UserWarning, match="torn"):  # the one in reserve is whole: what was torn is set aside
        server_of(folder=tmp_path).close()


@pytest.mark.parametrize("same", [True, False])
def test_an_update_that_was_lost_with_its_checkpoint_is_neither_counted_nor_refused_later(same, tmp_path):
    server, participant = together(PIPELINE, 1, server_of(folder=tmp_path))
    talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, 7)))  # accepted at version 1
    server.close()
    sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1].write_bytes(b"torn")
    with pytest.warns(UserWarning, match="torn"), pytest.warns(UserWarning, match="accepted at version 1 is lost"):
        server = server_of(folder=tmp_path)
    other = participant_of(client=2)
    talk(other, server, TimedOut())
    if not same:  # round 0 ends with another broadcast than before
        talk(other, server, Trained(update_of(PIPELINE, other.state.memory, 8)))
    talk(other, server, BroadcastReceived(server.close_round()))
    talk(participant, server, TimedOut())
    assert participant.gives_round_up and not server.accepted
    server.close()
    server = server_of(folder=tmp_path)  # a warning would be an error here
    assert not server.accepted and not server.refusals
    stands_with(participant, server)
    server.close()


def test_a_trusted_server_does_not_go_on_with_an_older_ledger(tmp_path):
    ledger = dp.Ledger()
    server = server_of(TRUSTED, tmp_path, ledger)
    server.close_round()
    server.close()
    with pytest.raises(dp.DpcompError, match="newest"):
        server_of(TRUSTED, tmp_path, dp.Ledger())
    server_of(TRUSTED, tmp_path, ledger).close()


def test_a_trusted_server_with_a_durable_ledger_takes_no_numbered_seed(tmp_path):
    with dp.Ledger.create(tmp_path / "ledger.db") as ledger:
        with pytest.raises(dp.NotPrivate, match="SecretSeed with a number"):
            server_of(TRUSTED, ledger=ledger)
        assert not ledger.mark.count


def test_a_policy_that_has_changed_holds_at_once(tmp_path):
    server, participant = server_of(folder=tmp_path, late_policy=Weigh(max_age=3)), participant_of()
    talk(participant, server, TimedOut())
    (payload,) = participant.handle(trained(participant))
    server.close_round()
    server.close()
    strict = server_of(folder=tmp_path)
    strict.handle(payload, 1)
    assert strict.refusals == {"version": 1}
    strict.close()


def test_a_missing_journal_beside_a_checkpoint_is_an_error(tmp_path):
    server_of(folder=tmp_path).close()
    (tmp_path / "journal.db").unlink()
    with pytest.raises(dp.DpcompError, match=r"no journal\.db: .*Restore both"):
        server_of(folder=tmp_path)
    assert not (tmp_path / "journal.db").exists()


def test_a_missing_checkpoint_beside_a_journal_in_use_is_an_error(tmp_path):
    together(PIPELINE, 1, server_of(folder=tmp_path))[0].close()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(dp.DpcompError, match="no checkpoint"):
        server_of(folder=tmp_path)


def test_a_journal_that_is_older_than_the_checkpoint_or_of_another_federation_is_an_error(tmp_path):
    server, participant = together(PIPELINE, 1, server_of(folder=tmp_path / "live"))
    server.close()
    shutil.copy(tmp_path / "live" / "journal.db", tmp_path / "old.db")
    server = server_of(folder=tmp_path / "live")
    together(PIPELINE, 1, server, participant)
    server.close()
    shutil.copy(tmp_path / "old.db", tmp_path / "live" / "journal.db")
    with pytest.raises(dp.DpcompError, match="older"):
        server_of(folder=tmp_path / "live")
    other = Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, RUN), zeros(), folder=tmp_path / "other")
    other.close()
    shutil.copy(tmp_path / "other" / "journal.db", tmp_path / "live" / "journal.db")
    with pytest.raises(dp.DpcompError, match="journal of"):
        server_of(folder=tmp_path / "live")


def test_a_server_that_was_set_back_counts_no_payload_twice(tmp_path):
    server = server_of(folder=tmp_path / "live")
    participant = participant_of()
    talk(participant, server, TimedOut())
    (payload,) = participant.handle(trained(participant, PIPELINE, 3))
    server.close()
    shutil.copytree(tmp_path / "live", tmp_path / "backup")
    server = server_of(folder=tmp_path / "live")
    participant.handle(ReplyReceived(server.handle(payload, 1)))
    participant.handle(BroadcastReceived(server.close_round()))
    server.close()
    set_back = server_of(folder=tmp_path / "backup")
    for _ in range(3):  # late copies of the network
        set_back.handle(payload, 1)
    assert len(set_back.accepted) == 1 and set_back.refusals == {"repeat": 2}
    talk(participant, set_back, TimedOut())
    stands_with(participant, set_back)
    assert not participant.may_train  # its address is spent
    talk(participant, set_back, BroadcastReceived(set_back.close_round()))
    stands_with(participant, set_back)
    set_back.close()


def test_a_client_counts_once_in_a_round_whatever_it_releases():
    server, participant = together(PIPELINE, 1)
    memory, votes = participant.state.memory, 0
    for vote in range(91):
        payload, memory = PIPELINE.send(update_of(PIPELINE, memory, vote), memory)
        votes += server.handle(payload, 1) is not None
        memory = replace(memory, link=server.memory.link(1))
    assert votes == 91 and len(server.accepted) == 1
    assert server.refusals == {"twice": 90}


@pytest.mark.parametrize(("late", "accepted"), [(None, 0), (Weigh(max_age=1), 1)])
def test_an_update_of_an_earlier_round_than_its_version_is_a_late_one(late, accepted):
    server, participant = server_of(late_policy=late), participant_of()
    talk(participant, server, TimedOut())
    event = trained(participant)
    talk(participant, server, BroadcastReceived(server.close_round()))
    talk(participant, server, event)
    assert [one.weight for one in server.accepted] == [2**-0.5] * accepted
    assert server.refusals == ({} if accepted else {"round": 1})


def test_an_update_of_a_round_to_come_is_refused():
    server, participant = server_of(late_policy=Weigh(max_age=3)), participant_of()
    talk(participant, server, TimedOut())
    memory = participant.state.memory
    update = update_of(PIPELINE, replace(memory, shared=replace(memory.shared, version=1)))
    server.handle(PIPELINE.send(update, memory)[0], 1)
    assert server.refusals == {"round": 1} and not server.accepted


def test_a_ledger_that_lost_its_newest_charges_is_refused_by_both_ends(tmp_path):
    memory = PIPELINE.init_client(LAYOUT, RUN, 1)
    dp.Ledger.create(tmp_path / "ledger.db").close()
    shutil.copy(tmp_path / "ledger.db", tmp_path / "new.db")
    ledger, server = dp.Ledger(tmp_path / "ledger.db"), server_of()
    participant = Participant(PIPELINE.channel, memory, zeros(), ledger, tmp_path / "client")
    talk(participant, server, TimedOut())
    ledger.charge(PIPELINE.cost, participant.state.memory.address)  # and the update was never sent
    talk(participant, server, BroadcastReceived(server.close_round()))
    ledger.close()
    shutil.copy(tmp_path / "new.db", tmp_path / "ledger.db")
    with dp.Ledger(tmp_path / "ledger.db") as restored, pytest.raises(dp.DpcompError, match="older"):
        Participant(PIPELINE.channel, memory, zeros(), restored, tmp_path / "client")
    charged = dp.Ledger()
    trusted = server_of(TRUSTED, tmp_path / "server", charged)
    trusted.close_round()
    trusted.close()
    forged = dp.Ledger()
    forged.charge(TRUSTED.cost, dp.Address(RUN.number, dp.SERVER, 0))
    with pytest.raises(dp.DpcompError, match="what is spent cannot be taken back"):
        server_of(TRUSTED, tmp_path / "server", forged)
