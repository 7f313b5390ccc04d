"""Moving and renaming changed nothing that is computed: ε, payload bodies, seeded runs, the numbers of the results.

Some things were computed anew since, on purpose. Every ε charges a noise multiplier of z/(1 + 10⁻⁵), because floating
point may exceed the clip norm by 10⁻⁵. ε is computed on finer grids, so that it is smaller where rates are tiny; the ε
of the accountant before stands beside each. A release is rounded to a public grid below 10⁻⁶ of its noise, and clipped
units are summed in float64 with norms of another rounding. And release noise is made of other words, by a ziggurat over
OpenSSL's key stream: seeded runs end with other numbers, and as good ones. The head of a body is shorter, `Rotated`
sends the scale of a block as a bfloat16, `FixedWidth` fills up layers of one width together, and packed water-filling
computes the errors of layers on all their values: of `Rotated` and of packed water-filling alone the decoded values
changed, too. Of the numbers of the results, costs have two figures, and those that bound a difference an interval.
"""

import math
from pathlib import Path

import pytest
import torch

from experiments.data.tasks import TASKS
from experiments.publish.numbers import numbers
from tests.golden.computed import GOLDEN, RUNS, bodies_of, epsilon_of, run_of

# A float32 sum of torch differs in its last bits between processors: a run is bit for bit on the kind that recorded it.
CONFIGS = Path(__file__).parents[1] / "experiments" / "configs"
RECORDED_ON = {"torch": "2.13.0+cpu", "kernels": "AVX2"}
SAME_KERNELS = {"torch": torch.__version__, "kernels": torch.backends.cpu.get_cpu_capability()} == RECORDED_ON


def named(case):
    return case.get("name") or "-".join(map(str, (*case["codec"].values(), *map(str, case.get("downlink") or ()))))


@pytest.mark.parametrize("case", GOLDEN["epsilons"], ids=named)
def test_an_epsilon_is_what_it_was(case):
    computed = epsilon_of(case)
    if "target" in case:  # a root search ends a few roundings apart on another processor
        for name in ("found_noise_multiplier", "epsilon"):
            assert float(computed[name]) == pytest.approx(float(case[name]), rel=1e-9)
        return
    assert computed["accountant"] == case["accountant"]
    # Processors round a transform differently, which its power multiplies by the number of releases (and ε charges).
    releases = case.get("steps", 0) + sum(number for _, _, number in case.get("charges", []))
    assert float(computed["epsilon"]) == pytest.approx(float(case["epsilon"]), rel=1e-12 + 1e-13 * releases)


@pytest.mark.parametrize("case", GOLDEN["epsilons"], ids=named)
def test_an_epsilon_is_no_larger_than_by_the_accountant_before(case):
    for name, before in case["before_rounding_was_charged"].items():
        assert float(case[name]) <= float(before) * (1 + 5e-4)


@pytest.mark.parametrize("case", GOLDEN["bodies"], ids=named)
def test_the_bodies_of_a_codec_are_what_they_were(case):
    assert case | bodies_of(case) == case


@pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")  # runs this short may learn nothing
@pytest.mark.parametrize("name", RUNS)
def test_a_seeded_run_is_what_it_was(name):
    before, now = GOLDEN["runs"][name], run_of(name)
    if SAME_KERNELS:
        assert now == before
    assert [row.keys() for row in now["rows"]] == [row.keys() for row in before["rows"]]
    for row, row_before in zip(now["rows"], before["rows"], strict=True):
        for column, value in row_before.items():
            assert math.isclose(row[column], value, rel_tol=0.05, abs_tol=0.05), column
    assert now["guarantee"] == before["guarantee"]


def test_the_numbers_of_the_results_are_what_they_were():
    computed = numbers(CONFIGS, TASKS)
    assert {name: computed.get(name) for name in GOLDEN["numbers"]["some"]} == GOLDEN["numbers"]["some"]
    assert len(GOLDEN["numbers"]["some"]) >= 50
