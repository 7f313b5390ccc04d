"""The rounds of the terms are the last ones, and the client's ledger counts them, whoever is trusted."""

import shutil

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.address import address_of_all_rounds
from dpcomp.core.errors import TermsRefused
from dpcomp.federated import Participant, ReplyReceived, Server, TimedOut, Trained, TrustedRelease
from dpcomp.terms import ClientPolicy, FederationTerms
from dpcomp.wire import checkpoint
from dpcomp.wire.update import Update

D, DELTA = 4, 1e-5
FIRST = np.zeros(D, np.float32)
NOISE = (dp.Clip(1.0), dp.Gaussian(4.0))
PIPELINES = {
    "server": dp.Pipeline(mechanism=NOISE, sampling=dp.Poisson(1.0), unit="client", trust="server"),
    "nobody": dp.Pipeline(mechanism=NOISE, unit="client"),
}
POLICY = ClientPolicy(budget=dp.Budget(100.0, DELTA), trust=("nobody", "server"))


def terms_of(trust="server", rounds=2):
    by_time = {"least_updates": 0, "round_seconds": 60.0}
    return FederationTerms.agree(PIPELINES[trust], D, FIRST, rounds=rounds, steps=1, clients=3, **by_time)


def trusted(pipeline):
    return pipeline.trust == "server"


def server_of(terms, **others):
    secrets = {"secret": dp.SecretSeed(), "ledger": dp.Ledger()} if trusted(terms.pipeline) else {}
    return terms.server(D, FIRST, **secrets, **others)


def endless(terms):
    """A server of the same federation that heeds no terms."""
    pipeline, release = terms.pipeline, None
    if trusted(pipeline):
        release = TrustedRelease(pipeline=pipeline, secret=dp.SecretSeed(), ledger=dp.Ledger(), divisor=3.0)
    memory = pipeline.init_server(D, terms.seed, first_model=FIRST, run_id=terms.run_id)
    return Server(pipeline.channel, memory, FIRST, trusted_release=release, clients=3)


def deliver(client, server, event):
    waiting = list(client.handle(event))
    while waiting:
        reply = server.handle(waiting.pop(0), sender=client.state.memory.client)
        if reply is not None:
            waiting += client.handle(ReplyReceived(reply))


def update_of(terms, client):
    memory = client.state.memory
    if trusted(terms.pipeline):
        return Update(values=np.full(D, 0.5, np.float32), layout=memory.layout, address=memory.address)
    permit = client.ledger.charge(terms.pipeline.cost, memory.address)
    return terms.pipeline.release([np.full((1, D), 0.5, np.float32)], memory, dp.SecretSeed(), permit)


def charge(terms, ledger):
    if trusted(terms.pipeline):
        POLICY.charge_all_rounds(terms, ledger, client=1)


def play(terms, client, server, rounds):
    """Send an update in each round in which the client may; return how many."""
    sent = 0
    for _ in range(rounds):
        deliver(client, server, TimedOut())
        if client.may_train:
            deliver(client, server, Trained(update_of(terms, client)))
            sent += 1
        server.close_round()
    deliver(client, server, TimedOut())
    return sent


@pytest.mark.parametrize("trust", PIPELINES)
def test_a_client_sends_nothing_beyond_the_rounds_of_its_terms(trust):
    terms = terms_of(trust)
    client, server = terms.participant(D, FIRST, client=1, ledger=dp.Ledger()), endless(terms)
    charge(terms, client.ledger)
    assert play(terms, client, server, 5) == 2
    assert server.memory.link(1).count == 2
    state = client.state
    assert state.memory.address.round == 5  # it follows the server all the same
    update = update_of(terms, client)
    with pytest.raises(dp.DpcompError, match="terms of this federation are for 2 rounds"):
        client.handle(Trained(update))
    assert client.state is state
    with pytest.raises(dp.DpcompError, match="terms of this federation are for 2 rounds"):  # nor by a loop of its own
        terms.pipeline.send(update, state.memory)


@pytest.mark.parametrize("trust", PIPELINES)
def test_a_saved_client_keeps_the_rounds_of_its_terms(trust, tmp_path):
    terms, ledger = terms_of(trust, rounds=3), dp.Ledger()
    server = endless(terms)
    charge(terms, ledger)
    for number in range(5):  # a process a round
        client = terms.participant(D, FIRST, client=1, ledger=ledger, folder=tmp_path)
        assert play(terms, client, server, 1) == (number < 3)
    without = terms.pipeline.init_client(D, terms.seed, 1, first_model=FIRST)
    client = Participant(terms.pipeline.channel, without, FIRST, ledger, folder=tmp_path)
    deliver(client, server, TimedOut())
    assert not client.may_train


def test_a_checkpoint_that_says_no_rounds_gets_those_of_the_terms(tmp_path):
    terms = terms_of("nobody")
    memory = terms.pipeline.init_client(D, terms.seed, 1, first_model=FIRST, run_id=terms.run_id)
    client, server = Participant(terms.pipeline.channel, memory, FIRST, dp.Ledger(), tmp_path), endless(terms)
    assert play(terms, client, server, 1) == 1
    assert checkpoint.load(tmp_path, terms.pipeline.channel).memory.rounds is None
    client = terms.participant(D, FIRST, client=1, ledger=client.ledger, folder=tmp_path)
    assert play(terms, client, server, 4) == 1


def test_a_federation_without_terms_has_no_end():
    for pipeline in PIPELINES.values():
        terms = terms_of(pipeline.trust)
        memory = pipeline.init_client(D, terms.seed, 1, first_model=FIRST)
        client = Participant(pipeline.channel, memory, FIRST, dp.Ledger())
        assert play(terms, client, endless(terms), 5) == 5


@pytest.mark.parametrize("trust", PIPELINES)
def test_a_server_of_terms_closes_no_round_beyond_them(trust, tmp_path):
    terms = terms_of(trust)
    server = server_of(terms, folder=tmp_path)
    client = terms.participant(D, FIRST, client=1, ledger=dp.Ledger())
    charge(terms, client.ledger)
    assert play(terms, client, server, 2) == 2
    for again in (False, True):
        if again:
            server.restart()
        with pytest.raises(dp.DpcompError, match="all 2 rounds of the terms are closed"):
            server.close_round()
        assert (server.memory.shared.version, server.rounds) == (2, 2)
        assert not server.asks(1)
    other = terms.pipeline.init_client(D, terms.seed, 2, first_model=FIRST, run_id=terms.run_id)
    rogue = Participant(terms.pipeline.channel, other, FIRST, dp.Ledger())
    deliver(rogue, server, TimedOut())
    deliver(rogue, server, Trained(update_of(terms, rogue)))
    assert server.refusals["uninvited"] == 1
    assert len(server.accepted) == 0
    server.close()


def test_a_policy_refuses_a_trusted_server_that_is_beyond_its_terms():
    terms, ledger = terms_of(), dp.Ledger()
    POLICY.charge_all_rounds(terms, ledger, client=1)
    for version in (0, 1, 2):  # at the last one there is nothing left to send
        POLICY.check(terms, ledger, client=1, version=version)
    with pytest.raises(TermsRefused, match="has closed 3 rounds, and the terms are for 2"):
        POLICY.check(terms, ledger, client=1, version=3)


def test_an_update_that_no_charge_of_all_rounds_counts_is_not_sent(tmp_path):
    terms = terms_of()
    client, server = terms.participant(D, FIRST, client=1, ledger=dp.Ledger(), folder=tmp_path), server_of(terms)
    deliver(client, server, TimedOut())
    with pytest.raises(dp.DpcompError, match=r"never charged: .* policy\.charge_all_rounds\(terms, ledger, client\)"):
        client.handle(Trained(update_of(terms, client)))
    assert client.state.pending is None
    POLICY.charge_all_rounds(terms, client.ledger, client=1)
    deliver(client, server, Trained(update_of(terms, client)))
    assert server.memory.link(1).count == 1


@pytest.mark.parametrize("with_terms", [True, False])
def test_a_charge_of_another_federation_at_the_address_of_all_rounds_does_not_count(with_terms):
    terms, ledger = terms_of(), dp.Ledger()
    quiet = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(200.0)))
    seed = dp.PublicSeed(int.from_bytes(terms.run_id, "big"))  # which an author of both can choose
    ledger.charge(quiet.cost, quiet.init_client(D, seed, client=1).address, steps=20)
    memory = terms.init_client(D, FIRST, 1)
    client = Participant(terms.pipeline.channel, memory, FIRST, ledger)
    if with_terms:
        client = terms.participant(D, FIRST, client=1, ledger=ledger)
    server = server_of(terms)
    deliver(client, server, TimedOut())
    with pytest.raises(dp.DpcompError, match="A charge of another cost there does not count"):
        client.handle(Trained(update_of(terms, client)))
    assert client.state.pending is None


def test_a_reopened_client_asks_for_the_charge_of_its_terms(tmp_path):
    terms, ledger, other = terms_of(), dp.Ledger(), dp.Ledger()
    charge(terms, ledger)
    server = server_of(terms)
    for _ in range(2):  # the second time from the folder
        client = terms.participant(D, FIRST, client=1, ledger=ledger, folder=tmp_path)
        assert play(terms, client, server, 1) == 1
    quiet = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(200.0)), unit="client", trust="server")
    other.charge(quiet.cost, address_of_all_rounds(terms.run_id, 1), steps=2)
    with pytest.raises(dp.DpcompError, match=r"holds a release at .*never charged"):
        terms.participant(D, FIRST, client=1, ledger=other, folder=tmp_path)


def test_two_terms_with_one_run_id_are_not_taken_for_one(monkeypatch):
    monkeypatch.setattr(FederationTerms, "run_id", property(lambda _: b"the same"))
    cheap, dear, ledger = terms_of(rounds=2), terms_of(rounds=9), dp.Ledger()
    POLICY.charge_all_rounds(cheap, ledger, client=1)
    POLICY.charge_all_rounds(cheap, ledger, client=1)
    for refused in (POLICY.check, POLICY.charge_all_rounds):
        with pytest.raises(TermsRefused, match="two terms share the run id"):
            refused(dear, ledger, client=1)
    client, server = dear.participant(D, FIRST, client=1, ledger=ledger), endless(dear)
    deliver(client, server, TimedOut())
    with pytest.raises(dp.DpcompError, match="never charged"):
        client.handle(Trained(update_of(dear, client)))
    louder = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), unit="client", trust="server")
    monkeypatch.setitem(PIPELINES, "server", louder)
    with pytest.raises(TermsRefused, match="two terms share the run id"):
        POLICY.check(terms_of(rounds=2), ledger, client=1)


@pytest.mark.parametrize("trust", PIPELINES)
def test_a_client_does_not_go_on_with_an_older_ledger(trust, tmp_path):
    one, two = terms_of(trust), terms_of(trust)
    servers, path, kept = {terms: server_of(terms) for terms in (one, two)}, tmp_path / "ledger.db", []

    def took_part(terms, ledger):
        client = terms.participant(D, FIRST, client=1, ledger=ledger, folder=tmp_path / terms.run_id.hex())
        charge(terms, ledger)
        return play(terms, client, servers[terms], 1)

    dp.Ledger.create(path).close()
    for terms in (one, two, one):  # honest restarts, with what another federation was charged meanwhile
        kept.append(tmp_path / f"backup {len(kept)}.db")
        shutil.copy(path, kept[-1])
        with dp.Ledger(path) as ledger:
            assert took_part(terms, ledger) == 1
    with dp.Ledger(path) as ledger:
        assert took_part(two, ledger) == 1
        spent = ledger.guarantee(DELTA).epsilon
    newest = shutil.copy(path, tmp_path / "newest.db")
    for older in kept[:2]:  # a trusted server is charged once: later copies lack nothing
        shutil.copy(older, path)
        with dp.Ledger(path) as ledger, pytest.raises(dp.DpcompError, match=r"never charged|is older than that"):
            took_part(two, ledger)
    shutil.copy(newest, path)
    with dp.Ledger(path) as ledger:
        two.participant(D, FIRST, client=1, ledger=ledger, folder=tmp_path / two.run_id.hex())
        assert ledger.guarantee(DELTA).epsilon == spent


def test_a_ledger_that_lost_the_charge_of_another_federation_is_older_too(tmp_path):
    one, two, path = terms_of(), terms_of(), tmp_path / "ledger.db"
    server = server_of(one)
    with dp.Ledger.create(path) as ledger:
        charge(one, ledger)
    shutil.copy(path, tmp_path / "backup.db")
    with dp.Ledger(path) as ledger:
        charge(two, ledger)
        client = one.participant(D, FIRST, client=1, ledger=ledger, folder=tmp_path / "state")
        assert play(one, client, server, 1) == 1
    shutil.copy(tmp_path / "backup.db", path)  # which holds the charge of all rounds of `one`, and none of `two`
    with dp.Ledger(path) as ledger, pytest.raises(dp.DpcompError, match="is older than that"):
        one.participant(D, FIRST, client=1, ledger=ledger, folder=tmp_path / "state")
