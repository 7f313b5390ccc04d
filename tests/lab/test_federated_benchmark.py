import json
import math
from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.errors import ConfigError
from dpcomp.federated import Server
from dpcomp.lab.cli import main
from dpcomp.lab.federated_benchmark.measure import measure_all
from dpcomp.lab.federated_benchmark.methods import METHODS, REFERENCE
from dpcomp.lab.federated_benchmark.methods.count_sketch import CountSketch, FetchSGD, FetchStep
from dpcomp.lab.federated_benchmark.methods.dense import DenseFloat32, EdenDense
from dpcomp.lab.federated_benchmark.methods.fixed_support import FixedSupport, TwoPhase, TwoPhaseSupport
from dpcomp.lab.federated_benchmark.methods.random_support import OwnSupport
from dpcomp.lab.federated_benchmark.methods.shifted import ShiftedStep, SoteriaFL
from dpcomp.lab.federated_benchmark.outcome import RATES, outcomes_of, tuned
from dpcomp.lab.federated_benchmark.setting import DIGITS, FASHION_MNIST, SETTINGS
from dpcomp.lab.federated_benchmark.table import frame_of, ratios
from dpcomp.lab.results.results_file import ResultsFile
from dpcomp.lab.tasks import digits

QUICK = DIGITS.quick()
# One with each part of the benchmark's own; `make test-slow` takes all.
CHOSEN = tuple(method for method in METHODS if isinstance(method, (DenseFloat32, TwoPhase, SoteriaFL, FetchSGD)))
CHOSEN = (*CHOSEN, OwnSupport(share=0.06, bits=2))


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """Run the command once with some methods; return its folder."""
    folder = tmp_path_factory.mktemp("federated")
    assert main(quick(folder, CHOSEN)) == 0
    return folder


def quick(folder, methods):
    names = [method.name for method in methods]
    return ["benchmark", "federated", "--quick", "--folder", str(folder), "--methods", *names]


def reports_in(folder):
    return ResultsFile(path=folder / "federated_benchmark.jsonl").read()


def test_the_command_trains_once_and_draws_the_figure(quick_run, capsys):
    lines = (quick_run / "federated_benchmark.jsonl").read_text().splitlines()
    assert len(lines) == len(CHOSEN)
    assert (quick_run / "federated_digits.png").stat().st_size > 10_000
    assert main(quick(quick_run, CHOSEN[:2])) == 0
    assert (quick_run / "federated_benchmark.jsonl").read_text().splitlines() == lines  # nothing was trained again
    printed = capsys.readouterr().out
    assert all(method.name in printed for method in CHOSEN[:2])
    assert CHOSEN[2].name not in printed


@pytest.mark.slow
def test_the_command_trains_every_method(tmp_path, capsys):
    assert main(["benchmark", "federated", "--quick", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(method.name in printed for method in METHODS)
    assert {report["name"] for report in reports_in(tmp_path)} == {method.name for method in METHODS}


def test_all_methods_have_one_guarantee(quick_run):
    reports = reports_in(quick_run)
    for report in reports:
        guarantee = report["guarantee"]
        assert 0.995 * QUICK.epsilon < guarantee["epsilon"] <= QUICK.epsilon
        assert (guarantee["delta"], guarantee["unit"], guarantee["trust"]) == (QUICK.delta, "example", "nobody")
    noise = {report["pipeline"]["Pipeline"]["mechanism"][-1]["Gaussian"]["noise_multiplier"] for report in reports}
    assert len(noise) == 1


def test_the_bytes_are_those_of_the_payloads(quick_run):
    frame = frame_of(outcomes_of(reports_in(quick_run), CHOSEN, QUICK), REFERENCE.name).set_index("method")
    up, down, d = frame["uplink"], frame["downlink"], DIGITS.dimensions
    assert up["dense, float32"] == pytest.approx(4 * d, abs=40)
    assert up["own supports, 6 %, 2 bits"] == up["SoteriaFL, 6 %, 2 bits"] == pytest.approx(704 / 4, abs=40)
    assert up["TP-TopK, 6 %, 2 bits"] == pytest.approx((d / 4 + 704 / 4) / 2, abs=140)  # a round each
    assert up["FetchSGD, 40 %"] == pytest.approx(4 * 5 * 960, abs=40)
    assert down["FetchSGD, 40 %"] < 250  # 96 coordinates
    assert 704 / 2 < down["own supports, 6 %, 2 bits"] < 5 * 704 / 2  # of the union, four bits a value
    assert ratios(frame.loc["dense, float32"]) == pytest.approx((1, 1), rel=0.01)


def with_peak(peak, trained):
    """Return a trial whose validation accuracy falls with the distance of its rate from `peak`."""

    def report(rate, seed):
        trained.append((rate, seed))
        accuracy = 1 - 0.01 * abs(math.log2(rate / peak))
        measured = {"validation_accuracy": accuracy, "tail_validation_accuracy": accuracy, "tail_test_accuracy": 0.5}
        return {"curves": {column: [None, value] for column, value in measured.items()}}

    return report


@pytest.mark.parametrize("peak", [0.25, 2.0, 2.8, 23.0])
def test_tuning_climbs_to_a_best_rate_inside_of_what_was_tried(peak):
    trained = []
    outcome = tuned(REFERENCE, DIGITS, with_peak(peak, trained))
    assert outcome.rate == peak
    tried = sorted({rate for rate, _ in trained})
    assert outcome.tried == len(tried)
    assert tried[0] < peak < tried[-1]
    assert {seed for rate, seed in trained if rate == peak} == set(DIGITS.seeds)


def test_tuning_that_ends_at_the_last_rate_is_refused():
    with pytest.raises(ValueError, match="is an end of RATES"):
        tuned(REFERENCE, DIGITS, with_peak(10 * RATES[-1], []))


def test_a_tuning_seed_tunes_and_all_seeds_count():
    trained = []
    outcome = tuned(REFERENCE, replace(DIGITS, tuning_seeds=1), with_peak(2.0, trained))
    assert {rate for rate, seed in trained if seed != DIGITS.seeds[0]} == {2.0}
    assert len(outcome.reports) == 3


def test_without_tuning_the_first_rate_is_trained():
    trained = []
    outcome = tuned(EdenDense(bits=1), QUICK, with_peak(64.0, trained))
    assert (outcome.rate, outcome.tried, trained) == (2.0, 0, [(2.0, 0)])


def test_missing_and_foreign_results_are_refused(quick_run, tmp_path):
    reports = reports_in(quick_run)
    with pytest.raises(ConfigError, match="lack digits"):
        outcomes_of(reports, CHOSEN, replace(QUICK, seeds=(5,)))
    with pytest.raises(ConfigError, match="made in another way"):
        outcomes_of(reports, CHOSEN, replace(QUICK, rounds=3))
    with pytest.raises(ValueError, match="two methods have one name"):
        measure_all(ResultsFile(path=tmp_path / "a.jsonl"), (REFERENCE, DenseFloat32()), QUICK, digits)


def test_a_trial_of_a_sweep_counts_if_all_of_it_is_the_same(quick_run, tmp_path):
    (report,) = (one for one in reports_in(quick_run) if one["name"] == REFERENCE.name)
    facts = report["config"]
    config = {key: facts[key] for key in ("task", "delta", "epsilon", "federation")} | {"pipeline": {}, "tune": None}
    of_a_sweep = {key: value for key, value in report.items() if key not in ("name", "source")}
    of_a_sweep |= {"config": config, "trial": "method=dense/seed-0", "warnings": ["a mark"]}
    (taken,) = measured(tmp_path / "taken.jsonl", [of_a_sweep])
    assert (taken["warnings"], taken["copied_from"]) == (["a mark"], "method=dense/seed-0")
    others = {"seed": 1}, {"pipeline": {}}, {"config": {**config, "federation": {}}}
    (made,) = measured(tmp_path / "made.jsonl", [{**of_a_sweep, **change} for change in others])
    assert "copied_from" not in made
    assert made["curves"]["tail_test_accuracy"] == report["curves"]["tail_test_accuracy"]


def measured(path, others):
    (outcome,) = measure_all(ResultsFile(path=path), (REFERENCE,), QUICK, digits, others=others, say=lambda _: None)
    assert [json.loads(line)["trial"] for line in path.read_text().splitlines()] == [outcome.reports[0]["trial"]]
    return outcome.reports


def context(**known):
    return dp.PublicContext(layout=dp.Layout.of(1000), **known)


def test_a_fixed_support_is_that_of_its_run():
    support = FixedSupport(0.1)
    first = support.public_support(context(run_key=7, mask_key=1, client=0))
    assert first == support.public_support(context(run_key=7, mask_key=2, client=3, version=9))
    assert first != support.public_support(context(run_key=8, mask_key=1))
    assert first.count(1000) == 100


def test_the_second_phase_keeps_the_coordinates_with_the_largest_squares():
    support, layout, stream = TwoPhaseSupport(0.1, warm_up=3), dp.Layout.of(1000), np.random.default_rng(0)
    steps = stream.standard_normal((3, 1000)).astype(np.float32)
    history = support.initial_history(layout)
    for version, step in enumerate(steps):
        assert support.public_support(context(version=version, history=history)) == dp.Everywhere()
        history = support.update_history(history, step, layout)
    chosen = support.public_support(context(version=3, history=history)).indices(1000)
    np.testing.assert_array_equal(chosen, np.sort(np.argsort(-np.square(steps).sum(axis=0))[:100]))
    later = np.zeros(1000, np.float32)
    later[chosen] = stream.standard_normal(100)
    history = support.update_history(history, later, layout)
    np.testing.assert_array_equal(support.public_support(context(version=4, history=history)).indices(1000), chosen)


@pytest.mark.parametrize("stage", [FixedSupport(0.1), TwoPhaseSupport(0.1, warm_up=1)])
def test_a_support_behind_the_noise_is_refused(stage):
    with pytest.raises(ValueError, match="stands after the noise"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0), stage))


def test_a_sketch_is_linear_and_finds_a_large_coordinate():
    sketch, d = CountSketch(rows=5, columns=40), 1000
    one, other = np.random.default_rng(0).standard_normal((2, d)).astype(np.float32)
    np.testing.assert_allclose(sketch.table(one) + sketch.table(other), sketch.table(one + other), atol=1e-5)
    for position in range(10):
        assert sketch.estimate(sketch.table(3 * np.eye(1, d, position, dtype=np.float32)[0]), d)[position] == 3
    spread = np.std(sketch.estimate(sketch.table(one), d) - one)
    assert spread < 1.1 * math.sqrt(d / 40) * math.sqrt(math.pi / 2 / 5)  # of the median of five sums of d/40 others


def test_the_server_takes_the_largest_out_and_keeps_the_rest():
    sketch, d = CountSketch(rows=3, columns=20), 200
    step, first, second = FetchStep(sketch=sketch, k=2), *np.random.default_rng(0).standard_normal((2, 3, 20))
    made, moments = step.step(update_of(padded(first, d)), {})
    kept = moments["velocity"]
    estimate = sketch.estimate(first.astype(np.float32), d)
    chosen = made.support.indices(d)
    assert set(chosen) == set(np.argsort(-np.abs(estimate))[:2])
    np.testing.assert_array_equal(made.values, estimate[chosen])
    own = sum(np.abs(sketch.table(np.eye(1, d, position, dtype=np.float32)[0])) for position in chosen) > 0
    assert 3 < own.sum() <= 6  # a cell in each row, of each
    np.testing.assert_allclose(kept[60:120].reshape(3, 20), np.where(own, 0, first), rtol=1e-6)
    _, moments = FetchStep(sketch=sketch, k=1).step(update_of(padded(second, d)), moments)
    left = moments["velocity"][60:120].reshape(3, 20)
    expected = np.where(own, 0, first) + second
    assert ((left == 0) | np.isclose(left, expected, rtol=1e-5)).all()
    assert (left == 0).sum() == 3


def test_momentum_of_tables_adds_up_where_nothing_was_taken():
    sketch = CountSketch(rows=1, columns=40)
    step, moments, table = FetchStep(momentum=0.5, sketch=sketch, k=1), {}, np.arange(1.0, 41.0)[None]
    for _ in range(2):
        _, moments = step.step(update_of(padded(table, 100)), moments)
    kept = moments["velocity"]
    momentum = kept[:40]
    assert ((momentum == 0) | np.isclose(momentum, 1.5 * table[0]) | np.isclose(momentum, table[0])).all()
    assert np.isclose(momentum, 1.5 * table[0]).sum() >= 38
    np.testing.assert_array_equal(momentum == 0, kept[40:80] == 0)


def padded(table, d):
    vector = np.zeros(d, np.float32)
    vector[: table.size] = table.reshape(-1)
    return vector


def update_of(vector):
    return dp.Update(
        values=vector, layout=dp.Layout.of(len(vector)), address=dp.Address(run=0, client=dp.SERVER, round=0)
    )


def test_the_shifted_step_is_that_of_the_source():
    d, clients, share = 128, 3, 0.25
    mechanism, codec = (dp.Clip(1.0), dp.Gaussian(1.0)), dp.Codec(sparsify=dp.RandomK(share, per="client"))
    pipeline = dp.Pipeline(
        mechanism=mechanism,
        codec=codec,
        downlink=dp.Codec(),
        feedback=SoteriaFL(share=0.06, bits=2).pipeline(DIGITS, 1.0).feedback,
    )
    seed, ledger, stream = dp.PublicSeed(0), dp.Ledger(), np.random.default_rng(0)
    model = np.zeros(d, np.float32)
    server = Server(
        pipeline.channel, pipeline.init_server(d, seed), model, optimizer=ShiftedStep(scale=1 / share), clients=clients
    )
    genesis = {"first_model": model, "run_id": server.memory.genesis.run_id}
    memories = [pipeline.init_client(d, seed, client, **genesis) for client in range(clients)]
    expected, shifts = np.zeros(d), np.zeros((clients, d))
    for _ in range(9):
        moved = np.zeros((clients, d))
        for client, memory in enumerate(memories):
            gradients = stream.standard_normal((4, d)).astype(np.float32)
            permit = ledger.charge(pipeline.cost, memory.address)
            update = pipeline.release([gradients], memory, dp.SecretSeed(1), permit)
            support = codec.sparsify.public_support(pipeline.channel.context(memory)).indices(d)
            moved[client, support] = (update.dense() - shifts[client])[support]
            payload, memories[client] = pipeline.send(update, memory)
            server.handle(payload, client)
        assert len(server.accepted) == clients
        expected += shifts.mean(axis=0) + (moved / share).mean(axis=0)  # C(x) = (d/k)·mask·x
        shifts += moved  # γ·C(x), with γ = k/d
        broadcast = server.close_round()
        memories = [pipeline.follow(broadcast, memory) for memory in memories]
    np.testing.assert_allclose(server.model, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.task)
def test_supports_are_multiples_of_64(setting):
    for share in (0.001, 0.01, 0.06, 0.5):
        kept = dp.RandomK(setting.fraction(share)).count(setting.dimensions)
        assert kept % 64 == 0
        assert abs(kept - share * setting.dimensions) <= max(32, 64 - share * setting.dimensions)


@pytest.mark.parametrize(
    "wrong",
    [{"rounds": 0}, {"epsilon": 0.0}, {"epsilon": math.nan}, {"seeds": (), "tuning_seeds": 0}, {"tuning_seeds": 4}],
)
def test_a_setting_without_meaning_is_refused(wrong):
    with pytest.raises(ValueError):
        replace(DIGITS, **wrong)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_gamma_and_pipelines_fit_both_settings(method):
    for setting in SETTINGS:
        assert method.pipeline(setting, 1.0).guarantee(setting.rounds, setting.delta).trust == "nobody"
        method.server(setting)


def test_the_shift_moves_by_about_the_gamma_of_the_source():
    for setting in (DIGITS, FASHION_MNIST):
        variance = 1 / setting.fraction(0.06) - 1
        gamma = math.sqrt((1 + 2 * variance) / (2 * (1 + variance) ** 3))
        assert gamma == pytest.approx(setting.fraction(0.06), rel=0.016)
