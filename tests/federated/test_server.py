"""The server: what it takes, what it refuses, and how it brings clients back."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.codec.frame import PAYLOAD
from dpcomp.federated.client import ClientState, transition
from dpcomp.federated.late import Reject, Weigh
from dpcomp.federated.messages import WORD
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import Due, Heard, Phase, Restarted, Told, Trained
from dpcomp.federated.server import Releasing, Server
from dpcomp.memory import Link

LAYOUT = dp.Layout.of({"a": (100, 48), "b": (200,)})
RUN = dp.PublicSeed(3)
NOISE = (dp.Clip(1.0), dp.Gaussian(0.5))
TOP = dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4))
PIPELINE = dp.Pipeline(mechanism=NOISE, codec=TOP)
TRUSTED = dp.Pipeline(mechanism=NOISE, codec=TOP, unit="client", trust="server")
DOWN = {
    "top-k": PIPELINE,
    "dense": dp.Pipeline(mechanism=NOISE, codec=TOP, downlink=dp.Codec(quantize=dp.Uniform(4))),
    "predicted": dp.Pipeline(
        mechanism=NOISE, codec=TOP, downlink=dp.Codec(predict=dp.LastBroadcast(), quantize=dp.Sign())
    ),
}


def zeros(layout=LAYOUT):
    return np.zeros(layout.size, np.float32)


def server_of(pipeline=PIPELINE, folder=None, ledger=None, late=None):
    releasing = None
    if pipeline.trust == "server":
        releasing = Releasing(secret=dp.SecretSeed(0), ledger=ledger or dp.Ledger(), divisor=1.0)
    memory = pipeline.init_server(LAYOUT, RUN)
    return Server(pipeline, memory, zeros(), releasing=releasing, folder=folder, late=late or Reject())


def participant_of(pipeline=PIPELINE, client=1, run=RUN, layout=LAYOUT):
    return Participant(pipeline, pipeline.init(layout, run, client), zeros(layout), dp.Ledger())


def update_of(pipeline, memory, seed=0):
    values = np.random.default_rng(seed).standard_normal(memory.layout.size).astype(np.float32)
    claim = pipeline.claim if pipeline.trust == "nobody" else None
    facts = {} if claim is None else {"claim": claim}
    return dp.Update(values=values, layout=memory.layout, address=memory.address, **facts)


def talk(participant, server, event):
    """An event, and all that is said until nobody has anything to say."""
    memory, pipeline = participant.state.memory, participant._pipeline
    if isinstance(event, Trained) and pipeline.trust == "nobody" and not participant.ledger.charged(memory.address):
        participant.ledger.charge(pipeline, memory.address)
    messages = participant.on(event)
    while messages:
        word = server.hear(messages.pop(0), participant.state.memory.client)
        if word is not None:
            messages += participant.on(Told(word))


def together(pipeline, rounds, server=None, participant=None):
    """Both ends after so many rounds."""
    server, participant = server or server_of(pipeline), participant or participant_of(pipeline)
    talk(participant, server, Due())
    for number in range(rounds):
        talk(participant, server, Trained(update_of(pipeline, participant.state.memory, number)))
        talk(participant, server, Heard(server.close()))
    return server, participant


def stands_with(participant, server):
    state, shared = participant.state, server.memory.shared
    assert state.phase is Phase.SYNCED
    assert state.model.tobytes() == server.model.tobytes()
    assert (state.memory.shared.version, state.memory.shared.digest) == (shared.version, shared.digest)
    assert state.memory.shared.last_support == shared.last_support
    for one, other in ((state.memory.shared.reference, shared.reference),):
        assert (one is None) == (other is None) and (one is None or one.tobytes() == other.tobytes())
    assert state.memory.link == server.memory.link(state.memory.client)


@pytest.mark.parametrize("down", DOWN)
@pytest.mark.parametrize("absence", [1, 10, 100])
def test_coming_back_costs_the_cheaper_of_broadcasts_and_snapshot(down, absence):
    pipeline = DOWN[down]
    server, active = together(pipeline, 3)
    away = participant_of(pipeline, client=2)
    talk(away, server, Due())
    stands_with(away, server)
    missed = []
    for number in range(absence):
        talk(active, server, Trained(update_of(pipeline, active.state.memory, 10 + number)))
        missed.append(server.close())
        talk(active, server, Heard(missed[-1]))
    away.restart()
    (question,) = away.on(Due())
    word = server.hear(question, 2)
    chain, snapshot = sum(map(len, missed)), 4 * LAYOUT.size * (2 if down == "predicted" else 1)
    assert len(word) - WORD.header_bytes <= 1.01 * min(chain, snapshot)
    away.on(Told(word))
    stands_with(away, server)
    talk(away, server, Trained(update_of(pipeline, away.state.memory, 999)))  # and it is as good as any other
    assert len(server.accepted) == 1
    stands_with(away, server)


def test_the_broadcasts_that_are_kept_are_never_more_than_a_snapshot():
    server, participant = together(PIPELINE, 0)
    most = 0
    for number in range(150):
        talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, number)))
        talk(participant, server, Heard(server.close()))
        most = max(most, sum(map(len, server._history)))
    assert most <= 4 * LAYOUT.size
    assert len(server._history) < 150


def payload_of(pipeline, **changes):
    """A payload that would be accepted, but for the changes."""
    participant = participant_of(pipeline, **changes)
    return pipeline.send(update_of(pipeline, participant.state.memory), participant.state.memory)[0]


def forged(payload, **fields):
    frame, body = PAYLOAD.unseal(payload)
    return PAYLOAD.seal(replace(frame, **fields), body)


def claimed(message):
    """Who a message says that it is of."""
    try:
        return PAYLOAD.unseal(message)[0].client
    except dp.CorruptPayload:
        return 1


@pytest.mark.parametrize("trusted", [False, True])
def test_what_belongs_elsewhere_changes_nothing_and_is_counted(trusted):
    pipeline = TRUSTED if trusted else PIPELINE
    server, participant = together(pipeline, 2)
    good, _ = pipeline.send(update_of(pipeline, participant.state.memory, 5), participant.state.memory)
    other = replace(pipeline, codec=dp.Codec(sparsify=dp.TopK(0.02), quantize=dp.Uniform(4)))
    bad = {
        "pipeline": [payload_of(other), payload_of(pipeline, layout=dp.Layout.of({"a": (48, 100), "b": (200,)}))],
        "run": [payload_of(pipeline, run=dp.PublicSeed(4)), forged(good, run=9)],
        "version": [payload_of(pipeline), forged(good, version=1), forged(good, shared=b"12345678")],
        "link": [forged(good, client=3), forged(good, link=b"1234"), forged(good, link_count=7)],
        "repeat": [forged(good, link_count=1)],
        "direction": [server_of(pipeline).close(), forged(good, client=dp.SERVER)],
        "corrupt": [good[:-1], good[:20], b"", b"nonsense" * 20, forged(good, link=good[:4])[:-1] + b"x", good + b"x"],
    }
    before, model = server.memory, server.model.tobytes()
    for reason, messages in bad.items():
        for message in messages:
            counted = server.refusals.copy()
            server.hear(message, claimed(message))
            assert server.memory is before and not server.accepted and server.model.tobytes() == model
            assert server.refusals - counted == {reason: 1}
    assert server.hear(good, 1) is not None and len(server.accepted) == 1  # none of it spoilt anything
    server.hear(good, 1)
    assert len(server.accepted) == 1 and server.refusals["repeat"] == 2


def test_values_that_are_not_finite_are_refused():
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec())
    server, participant = together(pipeline, 0)
    payload, _ = pipeline.send(update_of(pipeline, participant.state.memory), participant.state.memory)
    frame, body = PAYLOAD.unseal(payload)
    for value in (np.nan, np.inf, -np.inf):
        word = server.hear(PAYLOAD.seal(frame, body[:-4] + np.float32(value).tobytes()), 1)
        assert word is not None and not server.accepted
    assert server.refusals == {"corrupt": 3}


def test_a_trusted_server_clips_what_it_hears():
    ledger = dp.Ledger()
    loud, server = participant_of(TRUSTED), server_of(TRUSTED, ledger=ledger)
    talk(loud, server, Due())
    memory = loud.state.memory
    update = dp.Update(values=np.full(LAYOUT.size, 1e3, np.float32), layout=LAYOUT, address=memory.address)
    talk(loud, server, Trained(update))
    server.close()
    silent = server_of(TRUSTED)
    silent.close()
    assert np.linalg.norm((server.model - silent.model).astype(np.float64)) < 2  # the noise is the same


def test_a_late_update_counts_less_where_that_is_declared():
    server, participant = server_of(late=Weigh(max_age=2, exponent=1.0)), participant_of()
    talk(participant, server, Due())
    update = update_of(PIPELINE, participant.state.memory)
    (payload,) = participant.on(Trained(update))
    server.close()
    server.close()
    server.hear(payload, 1)
    ((taken, weight, _),) = server.accepted
    assert weight == pytest.approx(1 / 3)
    before = server.model
    server.close()
    moved = server.model + server.memory.residual - before
    np.testing.assert_allclose(moved, taken.dense() / 3, atol=1e-6)
    tardy = participant_of(client=8)
    talk(tardy, server_of(), Due())
    (payload,) = tardy.on(Trained(update_of(PIPELINE, tardy.state.memory)))
    server.hear(payload, 8)
    assert server.refusals == {"version": 1}  # three rounds late


def test_late_updates_are_not_weighed_under_a_trusted_server():
    with pytest.raises(dp.NotPrivate, match="twice the sensitivity"):
        server_of(TRUSTED, late=Weigh(max_age=1))


def test_a_charged_round_of_a_trusted_server_is_forfeit_after_a_crash(tmp_path):
    ledger = dp.Ledger()
    server, participant = together(TRUSTED, 1, server_of(TRUSTED, tmp_path, ledger))
    talk(participant, server, Trained(update_of(TRUSTED, participant.state.memory, 7)))
    before = server.model
    ledger.charge(TRUSTED, server.memory.address)  # and the power went
    server.shut()
    again = server_of(TRUSTED, tmp_path, ledger)
    assert len(again.accepted) == 1
    talk(participant, again, Heard(again.close()))
    stands_with(participant, again)
    np.testing.assert_allclose(again.model + again.memory.residual, before + server.memory.residual, atol=1e-6)
    talk(participant, again, Trained(update_of(TRUSTED, participant.state.memory, 8)))
    again.close()
    assert ledger.guarantee(1e-5).steps == 3
    again.shut()


@pytest.mark.parametrize("pipeline", [PIPELINE, TRUSTED], ids=["nobody", "server"])
@pytest.mark.parametrize("heard_before", [False, True])
def test_clients_notice_a_server_that_was_set_back_and_resync(tmp_path, pipeline, heard_before):
    ledger = dp.Ledger()
    live, backup = tmp_path / "live", tmp_path / "backup"
    server, participant = together(pipeline, 3, server_of(pipeline, live, ledger))
    other = participant_of(pipeline, client=2)
    talk(other, server, Due())
    server.shut()
    shutil.copytree(live, backup)
    server = server_of(pipeline, live, ledger)
    together(pipeline, 4, server, participant)
    server.shut()
    set_back = server_of(pipeline, backup, ledger)
    assert set_back.memory.shared.version == 3 < participant.state.memory.shared.version == 7
    if heard_before:
        for _ in range(4):  # it comes to the client's version on another way
            set_back.close()
        assert set_back.memory.shared.digest != participant.state.memory.shared.digest
    for one in (participant, other):
        talk(one, set_back, Due())
    broadcast = set_back.close()
    for one in (participant, other):
        talk(one, set_back, Heard(broadcast))
        stands_with(one, set_back)
    while not participant.may_train:  # its addresses of the lost rounds are spent, and not spent again
        broadcast = set_back.close()
        for one in (participant, other):
            talk(one, set_back, Heard(broadcast))
    talk(participant, set_back, Trained(update_of(pipeline, participant.state.memory, 77)))
    assert [one.update.address.client for one in set_back.accepted] == [1]
    stands_with(participant, set_back)
    set_back.shut()


def test_a_client_that_was_set_back_takes_the_servers_link(tmp_path):
    server, participant = together(PIPELINE, 2)
    old = participant.state
    together(PIPELINE, 2, server, participant)
    restored = Participant(PIPELINE, old.memory, old.model, participant.ledger)
    restored.restart()
    talk(restored, server, Due())
    stands_with(restored, server)
    talk(restored, server, Trained(update_of(PIPELINE, restored.state.memory, 78)))
    assert len(server.accepted) == 1
    stands_with(restored, server)


def test_one_server_at_a_time_holds_a_folder(tmp_path):
    server = server_of(folder=tmp_path)
    with pytest.raises(dp.DpcompError, match="another process"):
        server_of(folder=tmp_path)
    server.shut()
    server_of(folder=tmp_path).shut()


def test_a_folder_of_another_run_is_refused(tmp_path):
    server_of(folder=tmp_path).shut()
    with pytest.raises(dp.DpcompError, match="of run"):
        Server(PIPELINE, PIPELINE.init_server(LAYOUT, dp.PublicSeed(77)), zeros(), folder=tmp_path)


def test_a_server_restarts_with_all_that_it_called_accepted(tmp_path):
    server, participant = together(PIPELINE, 2, server_of(folder=tmp_path))
    talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, 5)))
    server.shut()
    again = server_of(folder=tmp_path)
    assert again.memory.links == server.memory.links and not again.refusals
    assert [one.weight for one in again.accepted] == [1.0]
    unbroken, other = together(PIPELINE, 2)
    talk(other, unbroken, Trained(update_of(PIPELINE, other.state.memory, 5)))
    assert again.close() == unbroken.close()
    again.shut()


def test_states_are_checked_when_a_client_is_opened(tmp_path):
    ledger = dp.Ledger(tmp_path / "ledger.db")
    memory = PIPELINE.init(LAYOUT, RUN, 1)
    participant = Participant(PIPELINE, memory, zeros(), ledger, tmp_path / "checkpoints")
    server = server_of()
    talk(participant, server, Due())
    permit = ledger.charge(PIPELINE, memory.address)
    block = np.ones((1, LAYOUT.size), np.float32)
    talk(participant, server, Trained(PIPELINE.release([block], memory, dp.SecretSeed(0), permit)))
    again = Participant(PIPELINE, memory, zeros(), ledger, tmp_path / "checkpoints")
    assert again.state.phase is Phase.STALE and again.state.memory.link == server.memory.link(1)
    with pytest.raises(dp.DpcompError, match="never charged"):
        Participant(PIPELINE, memory, zeros(), dp.Ledger(), tmp_path / "checkpoints")
    with pytest.raises(dp.DpcompError, match="of client 1"):
        Participant(PIPELINE, PIPELINE.init(LAYOUT, RUN, 2), zeros(), ledger, tmp_path / "checkpoints")


def test_a_state_machine_runs_without_a_participant():
    state = ClientState(memory=PIPELINE.init(LAYOUT, RUN, 1), model=zeros())
    assert transition(PIPELINE, state, Restarted())[0].phase is Phase.STALE


def test_nobody_speaks_for_another():
    server, participant = together(TRUSTED, 1)
    spy = participant_of(TRUSTED, client=6)
    (question,) = participant.on(Due())
    payload, _ = TRUSTED.send(update_of(TRUSTED, participant.state.memory, 3), participant.state.memory)
    for message in (question, payload):
        assert server.hear(message, spy.state.memory.client) is None
    assert server.refusals == {"direction": 2} and not server.accepted
    small = Server(PIPELINE, PIPELINE.init_server(LAYOUT, RUN), zeros(), clients=1)
    assert small.hear(participant_of(client=1).on(Due())[0], 1) is None
    assert small.hear(participant_of(client=0).on(Due())[0], 0) is not None


@pytest.mark.parametrize("down", [dp.Codec(), TOP, dp.Codec(predict=dp.LastBroadcast(), quantize=dp.Sign())])
def test_values_that_no_sum_can_bear_are_refused(down):
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec(), downlink=down)
    server, participant = together(pipeline, 0)
    for value in (3e38, -1e30):
        update = update_of(pipeline, participant.state.memory)
        talk(participant, server, Trained(replace(update, values=np.full(LAYOUT.size, value, np.float32))))
        talk(participant, server, Heard(server.close()))
    assert server.refusals == {"corrupt": 2} and not server.model.any()


def test_what_could_not_be_saved_did_not_happen(tmp_path, monkeypatch):
    server, participant = together(PIPELINE, 1, server_of(folder=tmp_path / "server"))
    talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, 4)))
    before, model = server.memory, server.model.tobytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpcomp.checkpoint.save", full)
    with pytest.raises(OSError, match="No space"):
        server.close()
    assert server.memory is before and server.model.tobytes() == model and len(server.accepted) == 1
    monkeypatch.undo()
    talk(participant, server, Heard(server.close()))
    stands_with(participant, server)
    server.shut()


def test_a_folder_whose_first_save_was_cut_short_can_be_opened(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "unfinished").write_bytes(b"half")
    server_of(folder=tmp_path).shut()


def test_a_server_that_was_shut_does_nothing(tmp_path):
    server = server_of(folder=tmp_path)
    server.shut()
    for act in (server.close, lambda: server.hear(b"", 1)):
        with pytest.raises(dp.DpcompError, match="was shut"):
            act()


def test_the_generation_in_reserve_brings_back_its_round(tmp_path):
    server, participant = together(PIPELINE, 2, server_of(folder=tmp_path))
    server.shut()
    newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="torn"):
        again = server_of(folder=tmp_path)
    assert again.memory.shared.version == 1 and len(again.accepted) == 1
    again.close()  # the same round, of the same updates
    stands_with(participant, again)
    again.shut()
    newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(b"torn too")
    with pytest.warns(UserWarning, match="torn"):  # the one in reserve is whole: what was torn is set aside
        server_of(folder=tmp_path).shut()


def test_a_trusted_server_does_not_go_on_with_an_older_ledger(tmp_path):
    ledger = dp.Ledger()
    server = server_of(TRUSTED, tmp_path, ledger)
    server.close()
    server.shut()
    with pytest.raises(dp.DpcompError, match="newest"):
        server_of(TRUSTED, tmp_path, dp.Ledger())
    server_of(TRUSTED, tmp_path, ledger).shut()


def test_a_client_without_its_ledger_does_not_go_on():
    server, _ = together(PIPELINE, 1)
    forgetful = participant_of()
    with pytest.raises(dp.DpcompError, match="newest ledger"):
        talk(forgetful, server, Due())
    assert forgetful.state.memory.link.count == 0


def test_a_broadcast_alone_syncs_nobody_who_was_away():
    server, participant = together(PIPELINE, 1)
    anew = Participant(PIPELINE, participant.state.memory, zeros(), participant.ledger)
    anew.state = replace(anew.state, memory=replace(anew.state.memory, link=Link()))
    messages = anew.on(Heard(server.close()))
    assert anew.state.phase is Phase.RESYNCING and len(messages) == 1


def test_a_synced_client_may_ask():
    server, participant = together(PIPELINE, 1)
    server.close()  # nobody hears it
    talk(participant, server, Due())
    stands_with(participant, server)


def test_a_duplicate_of_an_old_answer_answers_no_later_question():
    server, participant = server_of(TRUSTED), participant_of(TRUSTED)
    (first,) = participant.on(Due())
    old = server.hear(first, 1)
    participant.on(Told(old))
    (payload,) = participant.on(Trained(update_of(TRUSTED, participant.state.memory)))
    server.close()
    (second,) = participant.on(Told(server.hear(payload, 1)))
    assert second != first
    participant.on(Told(old))
    assert participant.state.phase is Phase.RESYNCING and not participant.may_train


def test_a_policy_that_has_changed_holds_at_once(tmp_path):
    server, participant = server_of(folder=tmp_path, late=Weigh(max_age=3)), participant_of()
    talk(participant, server, Due())
    (payload,) = participant.on(Trained(update_of(PIPELINE, participant.state.memory)))
    server.close()
    server.shut()
    strict = server_of(folder=tmp_path)
    strict.hear(payload, 1)
    assert strict.refusals == {"version": 1}
    strict.shut()
