"""The cohort of a round: drawn once, kept, and enforced."""

import shutil
from dataclasses import dataclass

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated import Cohort, Server, TrustedRelease, Weigh
from dpcomp.simulation.network.unversioned import UnversionedServer
from tests.federated.ends import LAYOUT, NOISE, PIPELINE, RUN, RUN_ID, TOP, update_of, zeros

CLIENTS, RATE = 40, dp.Poisson(0.3)
SAMPLED = dp.Pipeline(mechanism=NOISE, codec=TOP, unit="client", trust="server", sampling=RATE)


def trusted(folder=None, ledger=None, clients=CLIENTS, secret=None, **more):
    release = TrustedRelease(
        pipeline=SAMPLED, secret=secret or dp.SecretSeed(), ledger=ledger or dp.Ledger(), divisor=12.0
    )
    memory = SAMPLED.init_server(LAYOUT, RUN, run_id=RUN_ID)
    return Server(SAMPLED.channel, memory, zeros(), trusted_release=release, clients=clients, folder=folder, **more)


def untrusted(**more):
    return Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, RUN, run_id=RUN_ID), zeros(), clients=CLIENTS, **more)


def payload_of(server, client, pipeline, seed=0):
    memory = pipeline.init_client(LAYOUT, RUN, client, first_model=zeros(), run_id=RUN_ID)
    assert memory.shared.digest == server.memory.shared.digest
    return pipeline.send(update_of(pipeline, memory, seed), memory)[0]


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_trusted_server_takes_updates_of_those_that_it_drew_and_of_nobody_else(asked_before):
    server = trusted()
    if asked_before:
        server.cohort()
    for client in range(CLIENTS):
        assert server.handle(payload_of(server, client, SAMPLED), client) is not None
    cohort = server.cohort()
    assert [client for client in range(-1, CLIENTS + 1) if server.asks(client)] == cohort
    assert [one.client for one in server.accepted] == cohort
    assert server.refusals == {"uninvited": CLIENTS - len(cohort)}
    assert len(server.memory.links) == len(cohort)


def test_a_draw_holds_for_its_round_alone():
    server, draws = trusted(), []
    for _ in range(30):
        draws.append(server.cohort())
        assert server.cohort() == draws[-1]
        server.close_round()
    assert len({tuple(draw) for draw in draws}) > 20
    assert abs(sum(map(len, draws)) - 30 * CLIENTS * RATE.rate) < 5 * np.sqrt(30 * CLIENTS * 0.3 * 0.7)


def test_a_restarted_server_returns_the_same_draw(tmp_path):
    ledger, server = dp.Ledger(), None
    for number in range(4):
        server = trusted(tmp_path, ledger)
        before = server.cohort()
        if number == 0:
            server.handle(payload_of(server, before[0], SAMPLED), before[0])
        server.restart()
        assert server.cohort() == before
        server.close()
        server = trusted(tmp_path, ledger)
        assert server.cohort() == before
        assert len(server.accepted) == (number == 0)
        server.close_round()
        server.close()


def test_a_draw_that_could_not_be_kept_is_told_to_nobody(tmp_path, monkeypatch):
    server = trusted(tmp_path)

    def full(*_):
        raise dp.DpcompError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("dpcomp.federated.server.journal.Journal.keep_cohort", full)
        with pytest.raises(dp.DpcompError, match="full"):
            server.cohort()
        with pytest.raises(dp.DpcompError, match="full"):
            server.handle(payload_of(server, 3, SAMPLED), 3)
    assert not server.accepted
    drawn = server.cohort()
    server.restart()
    assert server.cohort() == drawn
    server.close()


def test_the_generation_in_reserve_has_the_draw_of_its_round(tmp_path):
    ledger = dp.Ledger()
    server = trusted(tmp_path, ledger)
    first = server.cohort()
    server.close_round()
    second = server.cohort()
    server.close()
    newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(b"torn")
    with pytest.warns(UserWarning, match="torn"), pytest.warns(UserWarning, match="set back by one round"):
        server = trusted(tmp_path, ledger)
    assert server.memory.shared.version == 0
    assert server.cohort() == first
    with pytest.warns(UserWarning, match="without a release"):  # the round was charged
        server.close_round()
    assert server.cohort() == second
    server.close()


def test_a_draw_is_seeded_where_the_noise_is_and_public_where_nobody_is_trusted():
    assert trusted(secret=dp.SecretSeed(4)).cohort() == trusted(secret=dp.SecretSeed(4)).cohort()
    assert len({tuple(trusted().cohort()) for _ in range(5)}) > 1
    public = [untrusted(cohort=Cohort(sampling=RATE)).cohort() for _ in range(2)]
    assert public[0] == public[1] == RATE.draw(CLIENTS, RUN.stream("cohort", 0)).tolist()


def test_an_asked_cohort_holds_where_nobody_is_trusted_and_for_late_updates_of_its_round():
    server = untrusted(cohort=Cohort(sampling=RATE), late_policy=Weigh(max_age=2))
    payloads = [payload_of(server, client, PIPELINE) for client in range(CLIENTS)]
    first = server.cohort()
    server.close_round()
    second = server.cohort()
    assert first != second
    for client, payload in enumerate(payloads):
        server.handle(payload, client)
    assert [one.client for one in server.accepted] == first
    assert {one.weight for one in server.accepted} == {2**-0.5}


def test_without_a_draw_all_clients_are_asked():
    assert untrusted().cohort() == list(range(CLIENTS))
    everybody = Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, RUN), zeros())
    with pytest.raises(ValueError, match="give it clients="):
        everybody.cohort()


def test_what_contradicts_the_guarantee_is_refused():
    with pytest.raises(dp.NotPrivate, match="pipeline says how clients are drawn"):
        trusted(cohort=Cohort(sampling=dp.Poisson(1.0)))
    with pytest.raises(ValueError, match="clients="):
        trusted(clients=dp.SERVER)
    with pytest.raises(dp.NotPrivate):
        UnversionedServer(SAMPLED.channel, SAMPLED.init_server(LAYOUT, RUN), zeros())


def test_a_copy_of_the_folder_from_before_a_draw_charges_no_second_release(tmp_path):
    ledger = dp.Ledger()
    trusted(tmp_path / "live", ledger).close()
    shutil.copytree(tmp_path / "live", tmp_path / "backup")
    server = trusted(tmp_path / "live", ledger)
    for client in server.cohort():
        server.handle(payload_of(server, client, SAMPLED), client)
    server.close_round()
    server.close()
    with pytest.warns(UserWarning, match="set back by one round"):
        set_back = trusted(tmp_path / "backup", ledger)
    for client in set_back.cohort():
        set_back.handle(payload_of(set_back, client, SAMPLED), client)
    with pytest.warns(UserWarning, match="without a release"):
        set_back.close_round()
    assert not set_back.model.any()  # the round was released before
    assert ledger.guarantee(1e-5).steps == 1
    set_back.close()


def test_a_late_policy_has_an_age_that_rounds_can_have_and_an_own_one_any(tmp_path):
    @dataclass(frozen=True)
    class Endless:
        max_age = 10**30

        def weight(self, age):
            return 1.0

    with pytest.raises(ValueError, match="to 4,294,967,295"):
        Weigh(max_age=2**63)
    for number, policy in enumerate((Endless(), Weigh(max_age=2**32 - 1))):
        server = untrusted(cohort=Cohort(sampling=RATE), late_policy=policy, folder=tmp_path / str(number))
        for _ in range(2):
            server.cohort()
            server.close_round()
        server.close()
