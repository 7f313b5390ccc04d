"""ClientPolicy: terms that a client does not allow are refused before anything is trained or charged."""

import threading
import time

import numpy as np
import pytest
import tomli_w

import dpcomp as dp
from dpcomp.core.errors import ConfigError, TermsRefused
from dpcomp.terms import ClientPolicy, FederationTerms

FIRST = np.zeros(10, np.float32)
EXAMPLE = dp.Pipeline(sampling=dp.Poisson(0.1), mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
TRUSTED = dp.Pipeline(
    unit="client", trust="server", sampling=dp.Poisson(0.1), mechanism=(dp.Clip(1.0), dp.Gaussian(1.0))
)
DELTA = 1e-5


def terms_of(pipeline=EXAMPLE, rounds=20, steps=5, **others):
    if pipeline.trust == "server":
        others = {"least_updates": 0, "round_seconds": 5.0} | others
    return FederationTerms.agree(pipeline, 10, FIRST, rounds=rounds, steps=steps, clients=9, **others)


def policy_of(epsilon, **others):
    return ClientPolicy(budget=dp.Budget(epsilon=epsilon, delta=DELTA), **others)


def test_the_budget_of_all_rounds_is_the_border():
    terms, ledger = terms_of(), dp.Ledger()
    exact = terms.guarantee(DELTA).epsilon
    policy_of(exact).check(terms, ledger, client=3)
    with pytest.raises(TermsRefused, match="20 rounds of 5 releases cost more"):
        policy_of(exact * 0.999).check(terms, ledger, client=3)
    assert ledger.mark.count == 0


def test_rounds_that_were_charged_before_a_restart_are_not_counted_twice():
    terms, ledger = terms_of(), dp.Ledger()
    policy = policy_of(terms.guarantee(DELTA).epsilon)
    for number in (0, 1, 5):
        ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number, 3, number), steps=5)
    policy.check(terms, ledger, client=3)
    ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number + 1, 3, 0), steps=5)  # of another federation
    with pytest.raises(TermsRefused, match="17 rounds of 5 releases beside what"):
        policy.check(terms, ledger, client=3)


def test_rounds_that_a_client_missed_cost_it_nothing():
    terms, ledger = terms_of(), dp.Ledger()
    policy = policy_of(terms.guarantee(DELTA).epsilon)
    for number in range(4):
        ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number, 3, number), steps=5)
    for number in range(6):  # of another federation, while this one went on without the client
        ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number + 1, 3, number), steps=5)
    policy.check(terms, ledger, client=3, version=10)  # 4 + 6 + the 10 that are left
    with pytest.raises(TermsRefused, match="11 rounds of 5 releases beside what"):
        policy.check(terms, ledger, client=3, version=9)
    ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number, 3, 10), steps=5)
    policy.check(terms, ledger, client=3, version=10)  # the charge of the present round is in the ledger


def test_a_round_that_a_server_which_was_set_back_plays_again_is_held_against_the_policy():
    terms, ledger = terms_of(), dp.Ledger()
    policy = policy_of(terms.guarantee(DELTA).epsilon)
    for number in range(19):
        ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number, 3, number + 1), steps=5)
    missed = dp.Address(terms.seed.number, 3, 0)
    policy.refuse_round(ledger, EXAMPLE.cost, missed, 5)
    ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number + 1, 3, 0), steps=5)
    with pytest.raises(dp.BudgetExhausted, match="of this client's policy"):
        policy.refuse_round(ledger, EXAMPLE.cost, missed, 5)


def test_a_round_that_is_refused_without_another_federation_names_the_server_that_was_set_back():
    terms, ledger = terms_of(), dp.Ledger()
    policy = policy_of(EXAMPLE.guarantee(10 * 5, DELTA).epsilon)
    policy.check(terms, ledger, client=3, version=10)
    for number in range(10):  # the server is set back to its first round
        address = dp.Address(terms.seed.number, 3, number)
        policy.refuse_round(ledger, EXAMPLE.cost, address, 5)
        ledger.charge(EXAMPLE.cost, address, steps=5)
    with pytest.raises(dp.BudgetExhausted, match="or the server was set back"):
        policy.refuse_round(ledger, EXAMPLE.cost, dp.Address(terms.seed.number, 3, 10), 5)


def test_the_budget_of_the_ledger_counts_too():
    terms = terms_of()
    epsilon = terms.guarantee(DELTA).epsilon
    ledger = dp.Ledger(budget=dp.Budget(epsilon=epsilon / 2, delta=DELTA))
    with pytest.raises(TermsRefused, match=r"or than Budget\(epsilon=.*\) of the ledger itself"):
        policy_of(epsilon).check(terms, ledger, client=3)


def test_a_plan_that_the_terms_follow_is_counted_as_planned():
    terms = terms_of()
    ledger = dp.Ledger(plan=dp.Plan([(EXAMPLE.cost, 5)] * 20))
    policy = policy_of(terms.guarantee(DELTA).epsilon)
    policy.check(terms, ledger, client=3)
    ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number, 3, 0), steps=5)
    policy.check(terms, ledger, client=3)


@pytest.mark.parametrize("plan", [None, dp.Plan([(EXAMPLE.cost, 5)] * 20), dp.Plan([(EXAMPLE.cost, 10**12)])])
def test_terms_of_others_with_endless_rounds_are_refused_at_once(plan):
    terms = terms_of(rounds=10**12, steps=1)
    ledger = dp.Ledger(plan=plan)
    ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number, 3, 1))
    with pytest.raises(TermsRefused, match="999,999,999,999 rounds"):
        policy_of(8.0).check(terms, ledger, client=3)
    policy_of(8.0).check(terms, ledger, client=3, version=10**12)


def test_a_ledger_of_another_number_is_refused_since_charges_would_not_add_up():
    terms, ledger = terms_of(), dp.Ledger()
    ledger.charge(EXAMPLE.cost, dp.Address(0, 4, 0))
    with pytest.raises(TermsRefused, match="charges of client 4, and this client has the number 3"):
        policy_of(100.0).check(terms, ledger, client=3)


def test_two_numbers_on_one_ledger_are_refused_at_the_charge_too():
    terms, ledger, policy = terms_of(), dp.Ledger(), policy_of(100.0)
    policy.check(terms, ledger, client=3)
    policy.check(terms_of(), ledger, client=4)  # another federation of the same data, before either is charged
    place = dp.Address(terms.seed.number, 3, 0)
    policy.refuse_round(ledger, EXAMPLE.cost, place, 5)
    ledger.charge(EXAMPLE.cost, place, steps=5)
    with pytest.raises(TermsRefused, match="charges of client 3, and this client has the number 4"):
        policy.refuse_round(ledger, EXAMPLE.cost, dp.Address(0, 4, 0), 5)
    whole = dp.Pipeline(unit="client", mechanism=EXAMPLE.mechanism)
    with pytest.raises(TermsRefused, match="unit='example'"):  # and so is another unit
        policy.refuse_round(ledger, whole.cost, dp.Address(0, 3, 1), 1)


def test_a_ledger_that_cannot_be_added_up_is_refused():
    ledger = dp.Ledger()
    ledger.mark_incomplete("a test")
    with pytest.raises(TermsRefused, match=r"is incomplete \(a test\)"):
        policy_of(100.0).check(terms_of(), ledger, client=3)
    assert not ledger.within(dp.Budget(1e6, DELTA), EXAMPLE.cost, 3, 1, charges=0)
    with pytest.raises(TermsRefused, match=r"is incomplete \(a test\)"):
        policy_of(100.0).refuse_round(ledger, EXAMPLE.cost, dp.Address(0, 3, 0), 1)
    other = dp.Ledger()
    other.charge(dp.Pipeline(unit="client", mechanism=EXAMPLE.mechanism).cost, dp.Address(0, 3, 0))
    with pytest.raises(TermsRefused, match="unit='client'"):
        policy_of(100.0).check(terms_of(), other, client=3)


def test_trust_unit_and_noise_are_held_to_the_policy():
    with pytest.raises(TermsRefused, match="trust='server'"):
        policy_of(100.0).check(terms_of(TRUSTED, steps=1), dp.Ledger(), client=3)
    policy_of(100.0, trust=("nobody", "server")).check(terms_of(TRUSTED, steps=1), dp.Ledger(), client=3)
    with pytest.raises(TermsRefused, match="cost more"):
        policy_of(0.1, trust=("server",)).check(terms_of(TRUSTED, steps=1), dp.Ledger(), client=3)
    with pytest.raises(TermsRefused, match="protect one example"):
        policy_of(100.0, units=("client",)).check(terms_of(), dp.Ledger(), client=3)
    with pytest.raises(TermsRefused, match=r"noise multiplier 1, and this client asks for at least 1\.01"):
        policy_of(100.0, least_noise_multiplier=1.01).check(terms_of(), dp.Ledger(), client=3)
    policy_of(100.0, least_noise_multiplier=1.0).check(terms_of(), dp.Ledger(), client=3)


def test_the_federations_of_a_trusted_server_are_added_up_in_the_clients_own_ledger():
    seed = dp.PublicSeed(0)  # of both, which are two federations all the same
    first, second = (terms_of(TRUSTED, steps=1, seed=seed) for _ in range(2))
    alone, both = first.guarantee(DELTA).epsilon, TRUSTED.guarantee(2 * first.rounds, DELTA).epsilon
    ledger, policy = dp.Ledger(), policy_of((alone + both) / 2, trust=("server",))
    policy.check(first, ledger, client=3)
    assert not ledger.clients
    for _ in range(2):  # once, however often a client asks
        policy.charge_all_rounds(first, ledger, client=3)
        policy.check(first, ledger, client=3)
        assert ledger.guarantee(DELTA).epsilon == alone
    with pytest.raises(TermsRefused, match="20 rounds of 1 releases beside what"):
        policy.check(second, ledger, client=3)
    with pytest.raises(TermsRefused, match="beside what"):
        policy.charge_all_rounds(second, ledger, client=3)
    policy_of(both, trust=("server",)).charge_all_rounds(second, ledger, client=3)
    assert ledger.guarantee(DELTA).epsilon == both


def test_what_a_client_released_itself_does_not_vanish_under_a_trusted_server():
    policy, ledger = policy_of(100.0, trust=("nobody", "server")), dp.Ledger()
    ledger.charge(dp.Pipeline(unit="client", mechanism=TRUSTED.mechanism).cost, dp.Address(1, 3, 0))
    with pytest.raises(TermsRefused, match="They do not compose"):
        policy.check(terms_of(TRUSTED, steps=1), ledger, client=3)
    with pytest.raises(TypeError, match="the client's ledger, whoever is trusted"):
        policy.check(terms_of(TRUSTED, steps=1), None, client=3)
    with pytest.raises(ValueError, match="charges each round itself"):
        policy.charge_all_rounds(terms_of(), dp.Ledger(), client=3)


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3)])
def test_a_client_and_a_version_may_be_numbers_of_numpy(number):
    terms, ledger = terms_of(rounds=4), dp.Ledger()
    policy = policy_of(terms.guarantee(DELTA).epsilon)
    ledger.charge(EXAMPLE.cost, dp.Address(terms.seed.number, 3, 0), steps=5)
    policy.check(terms, ledger, number)  # which finds the round that was charged
    policy.check(terms, ledger, number, number)


@pytest.mark.parametrize("number", ["3", 3.0, True, None, np.array(3)])
def test_what_is_no_number_of_a_client_or_version_is_refused(number):
    terms, policy, ledger = terms_of(), policy_of(100.0), dp.Ledger()
    with pytest.raises(TypeError, match=r"check\(client\) is .*: give a whole number from 0 to 8"):
        policy.check(terms, ledger, number)
    with pytest.raises(TypeError, match=r"check\(version\) is .*: give a whole number from 0 on"):
        policy.check(terms, ledger, 3, number)
    for ask in (policy.check, policy.charge_all_rounds):
        with pytest.raises(TypeError, match="FederationTerms"):
            ask(number, ledger, 3)
    with pytest.raises(TypeError, match="give an Address"):
        policy.refuse_round(ledger, EXAMPLE.cost, number, 5)
    with pytest.raises(TypeError, match="give the client's ledger"):
        policy.charge_round(number, EXAMPLE.cost, dp.Address(0, 3, 0), 5)
    for outside in (-1, 9):
        with pytest.raises(ValueError, match=r"check\(client\)"):
            policy.check(terms, ledger, outside)
    assert ledger.mark.count == 0


def test_threads_with_two_numbers_cannot_both_charge_one_ledger(monkeypatch):
    policy, ledger, refuse, ends = policy_of(100.0), dp.Ledger(), ClientPolicy.refuse_round, []

    def refuse_slowly(*args):
        refuse(*args)
        time.sleep(0.05)

    def charge(client):
        try:
            ends.append(policy.charge_round(ledger, EXAMPLE.cost, dp.Address(client, client, 0), 5).steps)
        except TermsRefused as refusal:
            ends.append(str(refusal))

    monkeypatch.setattr(ClientPolicy, "refuse_round", refuse_slowly)
    threads = [threading.Thread(target=charge, args=(client,)) for client in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends[0] == 5
    assert "charges of client" in ends[1]
    assert len(ledger.clients) == 1


@pytest.mark.parametrize("numbers", [(3, 3), (3, 4)])
def test_threads_with_two_federations_cannot_both_charge_all_rounds(numbers, monkeypatch):
    both, check, ends = [terms_of(TRUSTED, steps=1) for _ in numbers], ClientPolicy.check, []
    policy, ledger = policy_of(both[0].guarantee(DELTA).epsilon, trust=("server",)), dp.Ledger()

    def check_slowly(*args):
        check(*args)
        time.sleep(0.05)

    def charge(terms, client):
        try:
            policy.charge_all_rounds(terms, ledger, client)
            ends.append("charged")
        except TermsRefused:
            ends.append("refused")

    monkeypatch.setattr(ClientPolicy, "check", check_slowly)
    threads = [threading.Thread(target=charge, args=each) for each in zip(both, numbers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == ["charged", "refused"]
    assert ledger.mark.count == 1


def test_threads_with_two_federations_may_both_charge_what_the_budget_allows():
    both, ledger = [terms_of(TRUSTED, steps=1) for _ in range(2)], dp.Ledger()
    policy = policy_of(2.0 * both[0].guarantee(DELTA).epsilon, trust=("server",))
    threads = [threading.Thread(target=policy.charge_all_rounds, args=(terms, ledger, 3)) for terms in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.mark.count == 2


def test_a_pipeline_without_noise_is_refused_whatever_the_budget():
    unsafe = dp.Pipeline(mechanism=dp.unsafe("a test", dp.Clip(1.0)))
    with pytest.raises(TermsRefused, match="no guarantee"):
        policy_of(1e9).check(terms_of(unsafe, steps=1), dp.Ledger(), client=3)


def test_a_file_gives_back_the_policy(tmp_path):
    policy = policy_of(8.0, least_noise_multiplier=0.5, trust=("nobody", "server"), units=("client",))
    policy.write(tmp_path / "client.toml")
    assert ClientPolicy.read(tmp_path / "client.toml") == policy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 8.0}, "write budget"),
        ({"budget": {"epsilon": 8.0}}, "write budget"),
        ({"budget": {"epsilon": -8.0, "delta": 1e-5}}, "above 0"),
        ({"budjet": {}}, "nearest is 'budget'"),
        ({"trust": ["everybody"]}, "'nobody', 'server'"),
        ({"trust": []}, "trust"),
        ({"trust": [{}]}, "'nobody', 'server'"),
        ({"units": "example"}, "units"),
        ({"least_noise_multiplier": -1.0}, "least_noise_multiplier"),
        ({"least_noise_multiplier": "much"}, "least_noise_multiplier"),
    ],
)
def test_a_bad_policy_is_refused_by_name(change, words, tmp_path):
    table = policy_of(8.0).to_table() | change
    (tmp_path / "client.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(ConfigError, match=words):
        ClientPolicy.read(tmp_path / "client.toml")
