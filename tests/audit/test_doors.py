"""The doors: what is observed, what is refused, and audits of right and wrong mechanisms through each."""

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.audit import Blocks, ClaimOfReleases, Door, Serving, audit
from dpcomp.audit.observations import feature_matrix
from dpcomp.lab.cli import main
from experiments.studies.audit.case import Case
from experiments.studies.audit.naive import naive_cases
from experiments.studies.audit.shipped import shipped_cases

SHIPPED = {case.name: case for case in shipped_cases()}
NAIVE = {case.name: case for case in naive_cases()}
AT_ONCE = {  # naive mechanisms that so few runs give away, each through another door or feature
    "clip, top-k of the clean sum, noise on it": 40,
    "scale of the clean values sent": 200,
    "small updates not sent": 200,
    "residual of clean values, noise after it": 200,
    "noise used in two rounds": 60,
    "trainer: batch norm": 40,
    "trainer: the forward pass moves a parameter": 40,
}
PIPELINE = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=dp.Uniform(4)))


def audited(case: Case, runs):
    return audit(case.door, case.claim, runs=runs, training_runs=runs)


def test_there_are_shipped_and_naive_cases_of_each_door():
    assert len(SHIPPED) >= 10
    assert len(NAIVE) >= 12
    for cases in (SHIPPED, NAIVE):
        assert {"Blocks", "Training", "Serving"} <= {type(case.door).__name__ for case in cases.values()}


@pytest.mark.parametrize("name", [*SHIPPED, *NAIVE])
def test_a_door_observes_the_same_features_on_both_neighbours(name):
    door = {**SHIPPED, **NAIVE}[name].door
    assert isinstance(door, Door)
    (names, present), (other_names, absent) = (feature_matrix(door.observe(there, 1)) for there in (True, False))
    assert names == other_names
    assert len(set(names)) == len(names)
    assert present.shape == absent.shape == (1, len(names))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "trainer: batch norm" else name for name in AT_ONCE],
)
def test_a_naive_mechanism_is_found_in_few_runs(name):
    assert audited(NAIVE[name], AT_ONCE[name]).broken


@pytest.mark.parametrize("name", ["noise, 4 bits, nearest", "trusted server, all clients"])
def test_a_shipped_pipeline_is_not_contradicted(name):
    result = audited(SHIPPED[name], 20)
    assert not result.broken
    assert result.shown_epsilon <= result.claimed_epsilon
    assert "not contradicted" in str(result)
    assert "\n" not in str(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_pipeline_stays_below_its_claim(name):
    result = audited(SHIPPED[name], 1000)
    assert not result.broken, result
    assert result.shown_epsilon <= result.claimed_epsilon


@pytest.mark.slow
@pytest.mark.parametrize("name", NAIVE)
def test_every_naive_mechanism_exceeds_its_claim(name):
    result = audited(NAIVE[name], 1000)
    assert result.broken, result
    assert result.shown_epsilon > result.claimed_epsilon


@pytest.mark.slow
def test_two_hundred_audits_of_a_right_pipeline_raise_no_false_alarm():
    claim, door = ClaimOfReleases(cost=PIPELINE.cost), Blocks.with_spikes(PIPELINE, coordinates=8)
    assert not any(audit(door, claim, runs=200).broken for _ in range(200))


def test_runs_have_fresh_noise():
    for case in (SHIPPED["noise, float32"], SHIPPED["trusted server, all clients"], SHIPPED["DP-SGD, all examples"]):
        first, second = (case.door.observe(False, 2)["round 0: value"] for _ in range(2))
        assert len(np.unique(np.concatenate([first, second]), axis=0)) == 4


def test_a_door_keeps_state_over_rounds_and_sees_a_support():
    pipeline = dp.Pipeline(mechanism=PIPELINE.mechanism, codec=dp.Codec(sparsify=dp.TopK(0.25)))
    seen = Blocks.with_spikes(pipeline, coordinates=16, rounds=2).observe(True, 2)
    assert seen["round 1: held"].sum(axis=1).tolist() == [4, 4]
    assert (seen["round 0: bytes"] > 0).all()


def test_features_that_differ_in_name_are_refused():
    class Talkative:
        def observe(self, present, runs):
            return {"sent" if present else "not sent": np.zeros((runs, 1))}

    with pytest.raises(ValueError, match="other features with the canary than without"):
        audit(Talkative(), ClaimOfReleases(cost=PIPELINE.cost), runs=20)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit canaries"):
        Blocks(pipeline=PIPELINE, canaries=np.zeros((2, 4)), others=np.zeros((1, 3, 4)))
    with pytest.raises(ValueError, match="do not fit a layout of 5"):
        Blocks(pipeline=PIPELINE, canaries=np.zeros((1, 4)), others=np.zeros((1, 3, 4)), layout=dp.Layout.of(5))
    client = dp.Pipeline(mechanism=PIPELINE.mechanism, unit="client")
    with pytest.raises(ValueError, match="where a release holds 1 unit"):
        Blocks(pipeline=client, canaries=np.zeros((1, 4)), others=np.zeros((1, 3, 4)))
    with pytest.raises(ValueError, match="use Blocks"):
        Serving(pipeline=client, canaries=np.zeros((1, 4)), others=np.zeros((1, 3, 4)))


@pytest.mark.parametrize("wrong", [{"runs": 3}, {"training_runs": 0}, {"delta": 0.0}, {"confidence": 0.0}])
def test_numbers_outside_their_range_are_refused_before_the_first_run(wrong):
    class Never:
        def observe(self, present, runs):
            raise AssertionError("it ran")

    with pytest.raises(ValueError, match=r"whole number|δ|confidence"):
        audit(Never(), ClaimOfReleases(cost=PIPELINE.cost), **wrong)


def test_the_command_prints_both_epsilons_on_one_line_and_fails_if_the_claim_is_broken(tmp_path, capsys, monkeypatch):
    file = tmp_path / "pipeline.toml"
    file.write_text(PIPELINE.to_toml(), encoding="utf-8")
    command = ["audit", str(file), "--trials", "40", "--coordinates", "8"]
    assert main(command) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("claimed ε ≤ 4.38, shown ε ≥ ")
    unclipped = lambda self, layers: (tuple(layer.sum(axis=0) for layer in layers), len(layers[0]))  # noqa: E731
    monkeypatch.setattr(dp.Clip, "_sum", unclipped)
    assert main(command) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_the_command_names_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "none.toml")]) == 1
    assert "cannot be read" in capsys.readouterr().err
