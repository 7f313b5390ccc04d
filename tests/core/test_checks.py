from dataclasses import fields
from typing import Protocol

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.checks import missing_members, real_number, whole_number
from dpcomp.federated import Decay, ServerAdam, ServerOptimizer, Weigh
from dpcomp.simulation import Faults
from dpcomp.terms import ClientPolicy, FederationTerms
from dpcomp.training.schedule import Cosine


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_of_any_kind_becomes_an_int(value):
    assert whole_number(value, "rounds", least=1, most=3) == 3
    assert type(whole_number(value, "rounds")) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, np.array([3])])
def test_anything_else_is_refused_with_its_name_and_value(value):
    with pytest.raises(TypeError, match=r"rounds is .*: give a whole number from 1 on"):
        whole_number(value, "rounds", least=1)


@pytest.mark.parametrize(
    ("least", "most", "words"), [(4, None, "from 4 on"), (None, 2, "up to 2"), (4, 9, "from 4 to 9")]
)
def test_bounds_are_named(least, most, words):
    with pytest.raises(ValueError, match=f"rounds is 3: give a whole number {words}"):
        whole_number(3, "rounds", least=least, most=most)


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int64(3)])
def test_a_number_of_any_kind_becomes_a_float(value):
    assert type(real_number(value, "Clip(norm)", "a number")) is float


@pytest.mark.parametrize("value", [True, "3", None, np.array([3.0]), float])
def test_what_is_no_number_is_refused_with_its_name_and_what_it_must_be(value):
    with pytest.raises(TypeError, match=r"Clip\(norm\) is .*: give a number above 0"):
        real_number(value, "Clip(norm)", "a number above 0")


def test_missing_members_are_those_of_the_whole_protocol():
    class Wider(Protocol):
        width: int

        def narrow(self) -> None: ...

    class Widest(Wider, Protocol):
        def widen(self) -> None: ...

    assert set(missing_members(object(), Widest)) == {"width", "narrow", "widen"}


NARROW, SHORT = np.uint8, np.float32  # whose products and sums overflow, and round, far earlier than Python's
PARTS = [
    dp.Rotated(bits=NARROW(2)),
    dp.Uniform(NARROW(4)),
    dp.Waterfill(SHORT(4), clients=NARROW(3)),
    dp.FixedStep(SHORT(0.5)),
    dp.Seeded(NARROW(7), NARROW(200)),
    dp.Dealt(seed=NARROW(7), k=NARROW(200), places=(NARROW(3), NARROW(8))),
    dp.Poisson(SHORT(0.5)),
    dp.Gaussian(SHORT(1)),
    dp.Clip(SHORT(1)),
    dp.AdaptiveClip(initial=SHORT(1)),
    dp.TopK(SHORT(0.5)),
    dp.HistoryK(SHORT(0.5), decay=SHORT(0.5), explore=SHORT(0.5), noise_stddev=SHORT(1)),
    dp.MomentumCorrection(momentum=SHORT(0.5)),
    dp.EF21(weight=SHORT(0.5)),
    dp.Budget(8.0, SHORT(1e-5)),
    dp.Address(NARROW(1), NARROW(2), NARROW(3)),
    ClientPolicy(budget=dp.Budget(8.0, 1e-5), least_noise_multiplier=SHORT(1)),
    Weigh(max_age=NARROW(200), exponent=SHORT(0.5)),
    Decay(SHORT(0.5)),
    ServerOptimizer(learning_rate=SHORT(1), momentum=SHORT(0)),
    ServerAdam(learning_rate=SHORT(1), momentum=SHORT(0), adaptivity=SHORT(1), second_momentum=SHORT(0.5)),
    Cosine(peak=1.0, rounds=NARROW(200), warm_up=NARROW(10)),
    Faults(delay=NARROW(3), patience=NARROW(3)),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_part_keeps_pythons_numbers(part):
    kept = [getattr(part, field.name) for field in fields(part)]
    kept += [item for value in kept if isinstance(value, tuple) for item in value]
    assert not [value for value in kept if isinstance(value, np.generic)]


def test_the_releases_of_terms_are_counted_in_pythons_numbers():
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
    counts = {"rounds": NARROW(32), "steps": NARROW(9), "clients": NARROW(3), "least_updates": NARROW(2)}
    terms = FederationTerms.agree(pipeline, 10, np.zeros(10, np.float32), **counts)
    assert terms.guarantee(1e-5).epsilon == pipeline.guarantee(32 * 9, 1e-5).epsilon  # 32 · 9 is 32 in eight bits
    assert all(type(getattr(terms, name)) is int for name in (*counts, "parameters"))


def test_a_budget_of_another_library_s_numbers_is_kept_in_a_ledger(tmp_path):
    dp.Ledger.create(tmp_path / "ledger.db", dp.Budget(8.0, SHORT(1e-5))).close()
    with dp.Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.budget == dp.Budget(8.0, float(SHORT(1e-5)))
