"""The cost study, on a small network."""

import json
from dataclasses import replace

import numpy as np
import pytest

from analysis.cost.break_even import THIS_MACHINE, cost_summary, costs_by_device, measured_costs
from analysis.cost.devices import DEVICES
from analysis.figures import cost as figure
from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.results_file import ResultsFile
from dpcomp.lab.tasks import SHIPPED_TASKS
from experiments.cli import main
from experiments.studies import cost_study as cost
from experiments.studies import timing
from experiments.studies.codecs_measured import FRACTION, SENDERS, Road
from experiments.studies.cost_study import STUDIES, Study, measured
from experiments.studies.recorded_updates import Recording
from experiments.studies.timing import peak_bytes, timed
from experiments.studies.update_sources import Drawn, Recorded

RECORDED = Recorded(
    task="digits",
    recording=Recording(phases={"early": 1}, batches=(30,), rounds=2, densities=(FRACTION,)),
)
NOISY = Study(name="digits", updates=RECORDED, trust="nobody", repeats=1)
CLEAN = Study(name="resnet18", updates=Drawn(task="digits", density=FRACTION), trust="server", repeats=1)


@pytest.fixture(autouse=True, scope="module")
def few_supports_to_forget():
    """No test compares times, and to draw 64 supports before each, with shapes checked, takes longer than the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "REMEMBERED", 1)
        yield


@pytest.fixture(scope="module", params=[NOISY, CLEAN], ids=lambda study: study.name)
def case(request):
    rounds = request.param.updates.rounds(3, SHIPPED_TASKS)
    return request.param, rounds, json.loads(json.dumps(measured(request.param, rounds)))


def test_payloads_are_those_that_the_pipeline_really_sends(case):
    study, rounds, facts = case
    assert facts["costs"]["codec"] == [sender.name for sender in SENDERS]
    for sender, payload_bytes in zip(SENDERS, facts["costs"]["payload_bytes"], strict=True):
        road = Road(sender, rounds, trust=study.trust, noise_multiplier=study.noise_multiplier)
        payload, memory = road.pipeline.send(road.update, road.client)
        assert len(payload) == payload_bytes
        assert memory.link.count == 2
        assert np.array_equal(road.decode(payload), road.pipeline.receive(payload, road.server)[0].dense())


def test_float32_loses_nothing_and_what_was_measured_is_positive(case):
    _, _, facts = case
    costs = facts["costs"]
    assert costs["relative_squared_error"][0] == 0
    assert all(0 <= lost < 1 for lost in costs["relative_squared_error"])
    for name in costs:
        if name not in ("codec", "relative_squared_error"):
            assert all(value > 0 for value in costs[name]), name
    assert facts["copied_bytes_per_second"] > 0


def test_noise_or_none_stands_in_what_is_sent(case):
    study, rounds, _ = case
    road = Road(SENDERS[0], rounds, trust=study.trust, noise_multiplier=study.noise_multiplier)
    added = road.update.dense() - rounds.vectors[1]
    expected = 0.0 if study.trust == "server" else study.noise_multiplier * rounds.clip_norm
    assert added.std() == pytest.approx(expected, rel=0.05)


def test_drawn_rounds_are_a_function_of_the_seed_and_correlate():
    one, again, other = (CLEAN.updates.rounds(seed, SHIPPED_TASKS) for seed in (0, 0, 1))
    assert all(np.array_equal(*pair) for pair in zip(one.vectors, again.vectors, strict=True))
    assert not np.array_equal(one.vectors[0], other.vectors[0])
    assert np.corrcoef(*one.vectors)[0, 1] == pytest.approx(0.9, abs=0.03)


def test_peak_memory_is_what_the_work_holds_at_once():
    size = 10**6

    def work():
        first = np.ones(size, np.uint8)
        second = first + first
        del first
        return second

    assert peak_bytes(work) == pytest.approx(2 * size, rel=0.01)


def test_work_is_told_in_copies_of_its_neighbourhood_when_the_machine_slows_down(monkeypatch):
    """By a clock of the test: a bound on real seconds fails where others are busy."""
    called = []

    def work():
        called.append("work")

    def seconds(task):
        task()
        slow = 1.0 + len(called)  # from repeat to repeat
        return 3.0 * slow if task is work else slow

    monkeypatch.setattr(timing, "cpu_seconds", seconds)
    found = timed(work, np.ones(10, np.float32), repeats=9)
    assert called == ["work"] * 9
    before, after = range(1, 10), range(2, 11)  # what a copy takes before and after the work of each repeat
    assert found.copies == np.median(
        [3 * late / ((early + late) / 2) for early, late in zip(before, after, strict=True)]
    )
    assert found.seconds == np.median([3 * late for late in after])
    assert found.copy_seconds == np.median([*before, *after])


def test_a_study_goes_on_from_what_is_finished_and_is_told_and_drawn(tmp_path, capsys):
    studies = (NOISY, CLEAN)
    file = ResultsFile(path=tmp_path / "cost.jsonl")
    cost.study(file.path, (0, 1), SHIPPED_TASKS, studies)
    before = file.read()
    names = [f"{study.name}/seed-{seed}" for study in studies for seed in (0, 1)]
    assert [report["trial"] for report in before] == names
    file.replace(before[:-1])
    capsys.readouterr()
    cost.study(file.path, (0, 1), SHIPPED_TASKS, studies)
    assert capsys.readouterr().out.startswith("resnet18/seed-1 (")  # alone
    reports = file.read()
    assert reports[:-1] == before[:-1]
    assert [path.name for path in tmp_path.iterdir()] == ["cost.jsonl"]
    with pytest.raises(ConfigError, match="another study"):
        cost.study(file.path, (0,), SHIPPED_TASKS, (replace(NOISY, repeats=2),))

    table = cost_summary(reports)
    assert len(table) == 2 * len(SENDERS)
    coded = table[table["codec"] != "float32"]
    assert (coded["mbits"] >= coded["mbits_of_free"]).all()
    assert table.loc[table["codec"] == "float32", ["mbits", "mbits_of_free"]].isna().all(axis=None)
    assert table.set_index("codec").loc[["float32", "float16", "8 bits, packed"], "mbits_of_packed"].isna().all()
    evens = costs_by_device(measured_costs(reports))
    assert len(evens) == len(table) * (1 + len(DEVICES))
    for name in ("encode_seconds", "mbits", "packed_mbits", "nanojoules"):
        known = evens.dropna(subset=f"{name}_low")
        assert (known[f"{name}_low"] <= known[f"{name}_high"]).all()
    here = evens[(evens["device"] == THIS_MACHINE) & (evens["update"] == "digits")].set_index("codec")
    seconds = [report["costs"]["encode_seconds"][4] for report in reports if report["config"]["name"] == "digits"]
    assert here.loc["4 bits", "encode_seconds_low"] == min(seconds)
    figure.draw(evens).canvas.draw()


def test_the_command_measures_what_is_asked_for_and_tells_the_claim(tmp_path, monkeypatch, capsys):
    small = replace(NOISY, senders=SENDERS[:2])
    asked = []

    def study(results, seeds, tasks):
        asked.append((results, seeds))
        measure(results, seeds, tasks, (small,))

    measure = cost.study
    monkeypatch.setattr(cost, "study", study)
    assert main(["study", "cost", "--configs", str(tmp_path), "--seeds", "4"]) == 0
    assert asked == [(tmp_path / "cost.jsonl", (4,))]
    assert "float16" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["study", "cost", "--tasks", "cifar10"])


def test_tracked_studies_have_names_and_senders_of_their_own():
    assert len({study.name for study in STUDIES}) == len(STUDIES)
    assert len({sender.name for sender in SENDERS}) == len(SENDERS)
