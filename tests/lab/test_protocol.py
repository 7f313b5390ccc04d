"""How trials are judged: held-out examples, the declared measure, and tunings at the edge of their grid."""

import numpy as np
import pytest
import torch
from scipy.stats import t, ttest_rel

from analysis.tables.trials import trials_of
from dpcomp.core.errors import ConfigError
from dpcomp.lab.config.build import make_task
from dpcomp.lab.config.experiment import load
from dpcomp.lab.results.measure import metric_of
from dpcomp.lab.sweep.comparison import compare, measured
from dpcomp.lab.sweep.paired import paired_difference
from dpcomp.lab.sweep.plan import outcomes, standing_of
from dpcomp.lab.sweep.sweep import run
from dpcomp.lab.sweep.table import table
from dpcomp.lab.tasks import SHIPPED_TASKS, digits
from tests.lab.test_comparison import UNTUNED, config_in, finished

ROUNDS = 6
TUNED = f"""
task = {{ digits = {{ validation = 100 }} }}
delta = 1e-4
federation = {{ clients = 2, rounds = {ROUNDS}, tail = 0.5 }}
tune = {{ learning_rate = [1.0, 2.0, 4.0] }}

[pipeline]
mechanism = [{{ Clip = {{ norm = 1.0 }} }}, {{ Gaussian = {{ noise_multiplier = 1.0 }} }}]
"""


def results(config, curves):
    """Leave results of the first seed: learning rate → columns."""
    for rate, columns in curves.items():
        name = f"learning_rate={rate}/seed-0"
        finished(config, {name: [0.0] * ROUNDS}, curves=given(**columns))


def given(test=(0.1,) * ROUNDS, validation=None, tail_test=None, tail_validation=None):
    columns = {"test_accuracy": list(test)}
    if validation is not None:
        columns["validation_accuracy"] = list(validation)
    for name, value in (("tail_test_accuracy", tail_test), ("tail_validation_accuracy", tail_validation)):
        if value is not None:
            columns[name] = [None] * (ROUNDS - 1) + [value]
    bytes_of = {name: [8] * ROUNDS for name in ("payload_bytes", "uplink_bytes", "downlink_bytes")}
    return {"round": list(range(1, ROUNDS + 1)), "participants": [2] * ROUNDS, **columns, **bytes_of}


def tuning_of(config):
    (outcome,) = outcomes(config)
    return outcome.tuning


class TestHeldOutExamples:
    def test_training_and_validation_part_the_training_set_and_the_test_set_stays(self):
        whole, parted = digits(), digits(validation=200)
        (inputs, targets), held_out = parted.train(), parted.validation()
        assert held_out is not None and whole.validation() is None
        assert (parted.population, len(targets), len(held_out[1])) == (1237, 1237, 200)

        def rows(inputs, targets):
            return sorted(map(bytes, np.column_stack([inputs.flatten(1).numpy(), targets.numpy()]).astype(np.float32)))

        together = torch.cat([inputs, held_out[0]]), torch.cat([targets, held_out[1]])
        assert rows(*together) == rows(*whole.train())
        assert torch.equal(parted.test()[0], whole.test()[0])

    def test_the_draw_is_public_and_larger_ones_hold_the_smaller_ones(self):
        first, again, larger = (digits(validation=count).validation() for count in (50, 50, 100))
        assert torch.equal(first[0], again[0])
        pictures = {image.numpy().tobytes() for image in larger[0]}
        assert all(image.numpy().tobytes() in pictures for image in first[0])
        assert not torch.equal(first[1], digits().train()[1][:50])

    @pytest.mark.parametrize("count", [-1, 1437, 2.5])
    def test_a_count_that_leaves_nothing_is_refused(self, count):
        with pytest.raises((TypeError, ValueError), match=r"holding_out\(count\)"):
            digits(validation=count)

    def test_a_config_calls_a_named_task_and_a_plain_name_holds_nothing_out(self, tmp_path):
        called = make_task(load(config_in(tmp_path, "called", TUNED)), SHIPPED_TASKS)
        named = TUNED.replace("{ digits = { validation = 100 } }", '"digits"')
        plain = make_task(load(config_in(tmp_path, "plain", named)), SHIPPED_TASKS)
        assert (called.population, plain.population) == (1337, 1437)
        assert plain.validation() is None
        unknown = config_in(tmp_path, "unknown", TUNED.replace("validation =", "held_back ="))
        with pytest.raises(ConfigError, match="validation"):
            make_task(load(unknown), SHIPPED_TASKS)


class TestTheChoice:
    def test_it_is_made_on_validation_examples_where_there_are_any(self, tmp_path):
        config = config_in(tmp_path, "held_out", TUNED)
        better_test, better_validation = [0.9] * ROUNDS, [0.8] * ROUNDS
        results(config, {1: {"test": better_test, "validation": [0.2] * ROUNDS}, 2: {"validation": better_validation}})
        assert tuning_of(config) == "learning_rate=2"
        without = config_in(tmp_path, "without", TUNED)
        results(without, {1: {"test": better_test}, 2: {}})
        assert tuning_of(without) == "learning_rate=1"

    @pytest.mark.parametrize(("measure", "best"), [("last", 1), ("last_five", 2), ("tail", 4)])
    def test_it_is_made_by_the_declared_measure(self, tmp_path, measure, best):
        config = config_in(tmp_path, "measured", f'measure = "{measure}"\n{TUNED}')
        results(
            config,
            {
                1: {"validation": [0.9, 0.1, 0.1, 0.1, 0.1, 0.6], "tail_validation": 0.3},
                2: {"validation": [0.0, 0.5, 0.5, 0.5, 0.5, 0.5], "tail_validation": 0.3},
                4: {"validation": [0.9, 0.4, 0.4, 0.4, 0.4, 0.4], "tail_validation": 0.4},
            },
        )
        assert tuning_of(config) == f"learning_rate={best}"

    def test_another_measure_leaves_the_results_as_they_are(self, tmp_path):
        config = config_in(tmp_path, "judged", TUNED)
        results(config, {1: {}, 2: {}})
        config.write_text(f'measure = "last_five"\n{TUNED}', encoding="utf-8")
        assert len(standing_of(config).finished) == 2


def test_a_measure_is_of_evaluated_rounds_alone():
    report = {"curves": {"test_accuracy": [0.1, None, 0.2, 0.3, None, 0.4, 0.5, 0.6]}}
    assert metric_of(report) == 0.6
    assert metric_of(report, measure="last_five") == pytest.approx(0.4)
    with pytest.raises(ConfigError, match="tail_test_accuracy"):
        metric_of(report, measure="tail")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", 'measure = "best"\n', "give one of 'last', 'last_five', 'tail'"),
        (", tail = 0.5", "", "without `tail`"),
        ("learning_rate = [1.0, 2.0, 4.0]", "tail = [0.0, 0.5]", "without `tail`"),
        ("tail = 0.5", "tail = 0.5, evaluate_every = 2", "3 evaluations"),
        ("learning_rate = [1.0, 2.0, 4.0]", "rounds = [4, 9]", "4 evaluations"),
    ],
)
def test_a_measure_that_trials_would_not_have_is_refused_before_they_run(tmp_path, before, after, said):
    measure = "tail" if "`tail`" in said else "last_five"
    text = after + TUNED if not before else f'measure = "{measure}"\n' + TUNED.replace(before, after)
    with pytest.raises(ConfigError, match=said):
        load(config_in(tmp_path, "refused", text))


class TestEdges:
    @pytest.mark.parametrize(("best", "side"), [(1, "smaller"), (2, None), (4, "larger")])
    def test_a_best_value_at_the_edge_of_its_grid_is_named(self, tmp_path, best, side):
        config = config_in(tmp_path, "edges", TUNED)
        results(config, {rate: {"validation": [0.5 + 0.1 * (rate == best)] * ROUNDS} for rate in (1, 2, 4)})
        lines = standing_of(config).edges()
        assert len(lines) == (side is not None)
        assert all(f"add {side} values" in line and f"learning_rate at edges, {best}," in line for line in lines)

    def test_an_edge_that_ties_with_the_best_value_inside_is_named(self, tmp_path):
        config = config_in(tmp_path, "edges", TUNED)
        results(config, {rate: {"validation": [0.5 + 0.1 * (rate > 1)] * ROUNDS} for rate in (1, 2, 4)})
        assert tuning_of(config) == "learning_rate=2"
        (line,) = standing_of(config).edges()
        assert "add larger values" in line

    def test_a_grid_that_is_not_tried_whole_has_no_edge_yet(self, tmp_path):
        config = config_in(tmp_path, "edges", TUNED)
        results(config, {1: {}, 2: {}})
        assert standing_of(config).edges() == []

    def test_nothing_is_missing_below_the_smallest_value_that_there_is(self, tmp_path):
        config = config_in(tmp_path, "edges", TUNED.replace("learning_rate = [1.0", "server_momentum = [0.0"))
        for rate, best in (("0", 0.9), ("2", 0.1), ("4", 0.1)):
            finished(config, {f"server_momentum={rate}/seed-0": [0.0] * ROUNDS}, curves=given(test=[best] * ROUNDS))
        assert tuning_of(config) == "server_momentum=0"
        assert standing_of(config).edges() == []


GRID = """
task = "digits"
delta = 1e-4
seeds = [0, 1, 2]
federation = { clients = 2, rounds = 6 }

[pipeline]
mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]

[grid."pipeline.mechanism.Gaussian.noise_multiplier"]
little = 0.5
much = 1.5

[grid.method]
dense = { "pipeline.feedback" = false }
sparse = { "pipeline.feedback" = true }
"""
DENSE = {"little": (0.9, 0.7, 0.8), "much": (0.5, 0.3, 0.4)}
SPARSE = {"little": (0.88, 0.69, 0.75), "much": (0.45, 0.31)}


def of_grid(folder, text=GRID):
    config = config_in(folder, "grid", text)
    for method, noises in (("dense", DENSE), ("sparse", SPARSE)):
        for noise, accuracies in noises.items():
            for seed, accuracy in enumerate(accuracies):
                name = f"method={method},noise_multiplier={noise}/seed-{seed}"
                finished(config, {name: [0.0] * ROUNDS}, curves=given(test=[0.0, *[accuracy] * (ROUNDS - 1)]))
    return config


class TestDifferences:
    @pytest.mark.parametrize("count", [2, 3, 8])
    def test_the_interval_is_that_of_a_paired_t_test(self, count):
        rng = np.random.default_rng(count)
        values, others = (dict(enumerate(rng.normal(size=count))) for _ in range(2))
        expected = ttest_rel(list(values.values()), list(others.values())).confidence_interval(0.95)
        difference, half = paired_difference(values, others | {99: 1e9})
        assert (difference - half, difference + half) == pytest.approx((expected.low, expected.high))

    def test_what_the_seed_does_to_both_leaves_the_difference(self):
        values, others = {0: 0.2, 1: 0.9, 2: 0.5}, {2: 0.4, 1: 0.8, 0: 0.1}
        assert paired_difference(values, others) == pytest.approx((0.1, 0.0))

    def test_one_seed_has_no_interval_and_none_no_difference(self):
        assert paired_difference({0: 0.5}, {0: 0.25, 1: 0.0}) == pytest.approx((0.25, np.nan), nan_ok=True)
        assert paired_difference({0: 0.5}, {1: 0.5}) == pytest.approx((np.nan, np.nan), nan_ok=True)

    def test_each_point_is_compared_with_the_dense_one_of_its_own_other_labels(self, tmp_path):
        config = of_grid(tmp_path, f'measure = "last_five"\n{GRID}')
        rows = compare(config).set_index("method")
        for noise, accuracies in SPARSE.items():
            row, dense = (rows.loc[f"{noise}, {name}"] for name in ("sparse", "dense"))
            differences = 100 * (np.array(accuracies) - DENSE[noise][: len(accuracies)])
            assert row["difference"] == pytest.approx(differences.mean())
            half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
            assert row["half_interval"] == pytest.approx(half)
            assert np.isnan(dense["difference"]) and np.isnan(dense["half_interval"])
            assert (row["measure"], row["seeds"]) == ("last_five", len(accuracies))
        of_sweep = table(standing_of(config).outcomes())
        columns = ["difference", "half_interval"]
        np.testing.assert_array_equal(of_sweep[columns].to_numpy(), rows[columns].to_numpy())

    def test_methods_of_different_measures_are_not_compared(self, tmp_path):
        for name, measure in (("dense", "last"), ("sparse", "last"), ("other", "last_five")):
            text = f'measure = "{measure}"\n{TUNED}'.replace("tune = { learning_rate = [1.0, 2.0, 4.0] }\n", "")
            finished(config_in(tmp_path, name, text), {"seed-0": [0.0] * ROUNDS}, curves=given())
        rows = compare(tmp_path).set_index("method")["difference"]
        assert rows["sparse"] == 0
        assert np.isnan(rows["other"]) and np.isnan(rows["dense"])


def test_a_table_shows_the_declared_measure_of_the_test_set_and_its_deviation(tmp_path):
    text = f'measure = "tail"\n{TUNED}'.replace("tune = { learning_rate = [1.0, 2.0, 4.0] }", "seeds = [0, 1]")
    config = config_in(tmp_path, "shown", text)
    for seed, tail in ((0, 0.6), (1, 0.8)):
        curves = given(tail_test=tail, tail_validation=0.1, validation=[0.2] * ROUNDS)
        finished(config, {f"seed-{seed}": [0.0] * ROUNDS}, curves=curves)
    (row,) = compare(config).to_dict("records")
    assert (row["measure"], row["accuracy_percent"]) == ("tail", pytest.approx(70))
    assert row["deviation"] == pytest.approx(20 / 2**0.5)
    assert trials_of(config)["test_accuracy"].tolist() == [0.6, 0.8]


def test_the_total_ratio_counts_dense_updates_and_broadcasts(tmp_path):
    config = config_in(tmp_path, "bytes", TUNED.replace("tune = { learning_rate = [1.0, 2.0, 4.0] }", ""))
    finished(config, {"seed-0": [0.0] * ROUNDS}, curves=given())
    (row,) = compare(config).to_dict("records")
    coordinates, updates, broadcasts = 1000, 2 * ROUNDS, 2 * ROUNDS
    assert row["total_ratio"] == pytest.approx(4 * coordinates * (updates + broadcasts) / (16 * ROUNDS))
    old = {name: values for name, values in given().items() if name != "participants"}
    finished(config_in(tmp_path, "old/old", UNTUNED), {"seed-0": [0.0] * ROUNDS}, curves=old)
    assert np.isnan(compare(tmp_path / "old")["total_ratio"].iloc[0])


def test_an_uncompressed_run_has_a_total_ratio_just_below_one(tmp_path):
    codec = 'codec = { Codec = {} }\nunit = "client"\ndownlink = { Codec = {} }\n'
    text = TUNED.replace("tune = { learning_rate = [1.0, 2.0, 4.0] }", "").replace(f"rounds = {ROUNDS}", "rounds = 2")
    standing = run(config_in(tmp_path, "plain", text + codec), SHIPPED_TASKS, progress=False)
    assert 0.99 < measured(standing.outcomes()[0], None)["total_ratio"] < 1


def test_a_real_trial_has_every_measure_and_its_choice_is_by_validation(tmp_path):
    config = config_in(tmp_path, "real", f'measure = "tail"\n{TUNED}sampling = {{ Poisson = {{ rate = 0.02 }} }}\n')
    standing = run(config, SHIPPED_TASKS, progress=False)
    (outcome,) = standing.outcomes()
    scores = {
        name.split("/")[0]: metric_of(report, measure="tail", examples="validation")
        for name, report in standing.finished.items()
    }
    assert len(scores) == 3
    assert outcome.tuning == max(scores, key=scores.__getitem__)
    curves = outcome.reports[0]["curves"]
    assert all(value is not None for value in curves["validation_accuracy"])
    assert curves["tail_test_accuracy"][:-1] == [None] * (ROUNDS - 1)
    assert 0 <= curves["tail_test_accuracy"][-1] <= 1
