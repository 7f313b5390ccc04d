import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dpcomp as dp
from dpcomp.privacy.cost import NOT_TUNED, SAMPLED, SECRET, SEEDED
from dpcomp.privacy.guarantee import delta_note


def a_guarantee(**changes):
    facts = {
        "epsilon": 4.0,
        "delta": 1e-5,
        "unit": "example",
        "adjacency": "add/remove",
        "sampling": "Poisson 0.02",
        "steps": 300,
        "accountant": "PLD",
        "trust": "nobody",
        "assumptions": ("the Gaussian is idealised",),
    }
    return dp.Guarantee(**{**facts, **changes})


def test_it_prints_all_that_it_depends_on_in_one_line():
    line = str(a_guarantee())
    assert "\n" not in line
    assert line == (
        "ε ≤ 4.00 at δ = 1e-05 · one example, add/remove · Poisson 0.02 × 300 · PLD · trusts nobody · "
        "the Gaussian is idealised"
    )
    assert "for the released model; trusts the server and the channel" in str(a_guarantee(trust="server"))


@given(st.floats(1e-8, 1e8))
def test_the_printed_epsilon_is_never_below_the_proven_one(value):
    printed = str(a_guarantee(epsilon=value)).removeprefix("ε ≤ ").split(" ")[0]
    assert value <= float(printed) <= max(1.02 * value, value + 0.01)


def test_no_guarantee_prints_infinity():
    assert str(a_guarantee(epsilon=math.inf)).startswith("ε = ∞ ")


@pytest.mark.parametrize("changes", [{"epsilon": -1.0}, {"epsilon": math.nan}, {"delta": 0.0}, {"unit": "user"}])
def test_impossible_values_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))}="):
        a_guarantee(**changes)


def test_it_is_no_number_and_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        a_guarantee().epsilon = 0.0
    with pytest.raises(TypeError):
        float(a_guarantee())


def test_a_delta_that_is_too_large_is_said_aloud():
    assert "publishes one unit at random would pass" in delta_note(0.1, 60)
    assert "below 1/N = 1/60,000" in delta_note(1e-5, 60_000)
    assert "more than 1/δ = 100,000 units" in delta_note(1e-5)
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
    with pytest.warns(dp.DpcompWarning, match="δ = 0.1 is not below 1/N = 1/60"):
        assert "publishes one unit at random" in str(pipeline.guarantee(10, 0.1, population=60))


def test_a_guarantee_says_what_is_assumed_of_tuning_seeds_and_draws():
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
    said = pipeline.guarantee(10, 1e-5).assumptions
    assert {NOT_TUNED, SAMPLED, SECRET} <= set(said)
    everyone = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    assert SAMPLED not in everyone.guarantee(10, 1e-5).assumptions
    ledger, memory = dp.Ledger(), everyone.init_client(3, dp.PublicSeed(0), client=0)
    everyone.release([], memory, dp.SecretSeed(7), ledger.charge(everyone.cost, memory.address))
    seeded = ledger.guarantee(1e-5).assumptions
    assert seeded[0] == SEEDED and SECRET not in seeded
