"""The README's examples run, and say what they claim to say."""

import hashlib
import math
import re
from pathlib import Path

import pandas as pd
import pytest

import dpcomp as dp
from dpcomp.lab.cli import main
from dpcomp.lab.results.frames import summary
from dpcomp.lab.results.results_file import ResultsFile, results_of
from dpcomp.lab.sweep.comparison import compare
from experiments.publish.figures import figures_in

ROOT = Path(__file__).parent.parent
Z_IS_ONE = "Gaussian = { noise_multiplier = 1.0 }"  # calibration takes seconds, and other tests see to it
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_example_is_short_and_prints_its_guarantee_and_table(capsys):
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 20
    names = {}
    exec(compile(EXAMPLES[0], "README.md", "exec"), names)
    printed = capsys.readouterr().out
    quoted = re.search(r"print\(run.guarantee\)  # (.*?) · …", EXAMPLES[0]).group(1)
    assert printed.startswith(quoted)
    assert "[20 rows x 10 columns]" in printed
    assert (names["run"].table()["payload_bytes"] > 60).all()


def test_the_opacus_script_becomes_a_client():
    names = {}
    exec(compile(EXAMPLES[1], "README.md", "exec"), names)
    memory, ledger = names["memory"], names["ledger"]
    assert 0 < len(names["payload"]) < 4 * memory.layout.size / 4
    assert ledger.guarantee(1e-5) == names["pipeline"].guarantee(3, 1e-5)
    assert memory.link.count == 1


def test_the_refusal_is_quoted_word_for_word():
    quoted = re.search(r"> NotPrivate: (.*?)\n\n", README, flags=re.DOTALL).group(1).replace("\n> ", " ")
    with pytest.raises(dp.NotPrivate) as refusal:
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.TopK(0.01), dp.Gaussian(1.1)))
    assert str(refusal.value) == quoted


def test_the_demos_figures_are_those_of_its_tracked_reports():
    reports = ResultsFile(path=ROOT / "results" / "demo.jsonl").read()
    by_method = summary({facts["config"]["demo"]: [facts] for facts in reports}).set_index("method")
    top = by_method.loc["noise, then top 5%"]
    assert f"is {top['compression_ratio']:.0f} times smaller than" in README
    dense = by_method.loc["dense float32"]
    for accuracy in (top["test_accuracy"], dense["test_accuracy"]):
        assert f"{100 * accuracy:.1f} %" in README
    assert abs(top["top_k_overlap"] - 0.05) < 0.01  # chance


def test_the_yardstick_is_quoted_as_its_reports_have_it():
    row = compare(ROOT / "experiments/configs/yardstick").iloc[0]
    assert row["seeds"] == 3
    assert f"{row['accuracy_percent']:.1f} ± {row['deviation']:.1f} % over three seeds" in README
    assert f"ε ≤ {math.ceil(100 * row['epsilon']) / 100:.2f}, δ = 10⁻⁵" in README


def test_the_table_of_methods_is_that_of_the_tracked_reports():
    table = compare(ROOT / "experiments/configs/compression")
    assert (table["seeds"] == 3).all()
    assert (table["epsilon"] <= 4).all()
    for row in table.to_dict("records"):
        steps, method = row["method"].split("/")
        cells = f"{row['accuracy_percent']:.1f} ± {row['deviation']:.1f} %"
        line = next(line for line in README.splitlines() if line.startswith(f"| {NAMES[method]} "))
        columns = [cell.strip() for cell in line.strip("|").split("|")]
        assert columns[1 if steps == "local_steps_1" else 2] == cells, (row["method"], cells)
        if steps == "local_steps_1":
            assert columns[3:] == [f"{row['payload_bytes']:,.0f}", f"{row['compression_ratio']:.0f}×"], method
    accuracy = table.set_index("method")["accuracy_percent"]
    gaps = [accuracy[f"local_steps_{steps}/dense"] - accuracy[f"local_steps_{steps}/top_k_1"] for steps in (1, 3)]
    behind = table.set_index("method")["rounds_behind"]
    lags = [behind[f"local_steps_{steps}/top_k_1"] for steps in (1, 3)]
    text = " ".join(README.split())
    assert f"ends {gaps[0]:.1f} points below float32 after one local step a round and {gaps[1]:.1f} after three" in text
    assert f"where float32 stood {lags[0]:.0f} and {lags[1]:.0f} rounds before" in text
    assert max(gaps[0], accuracy["local_steps_3/dense"] - accuracy["local_steps_3/random_k_1"]) < 1.5
    for steps in (1, 3):
        assert accuracy[f"local_steps_{steps}/random_k_10"] > accuracy[f"local_steps_{steps}/dense"]


def test_what_noise_does_to_compression_is_that_of_the_tracked_reports():
    source = ROOT / "experiments/configs/scrambling"
    found = figures_in()["efficiency"].read(source)
    noise_first = (found["order"] == "noise first") & (found["trust"] == "nobody") & (found["link"] == "uplink")
    setting = (found["density"] == 0.01) & (found["bits"] == 4) & (found["noise_multiplier"] == 8)
    losses = found[noise_first & setting].groupby(["feedback", "task", "batch"])["loss"].mean()
    losses = 100 * losses if losses.max() <= 1 else losses
    energy = figures_in()["energy"].read(source)
    half = energy[(energy["order"] == "noise first") & (energy["energy_share"] == 0.5)]
    half_bytes = half.groupby(["noise_multiplier", "task", "batch"])["payload_bytes"].mean()
    dearer = half_bytes[8] / half_bytes[0]
    text = " ".join(README.split())
    assert f"loses {losses[0].min():.0f} to {losses[0].max():.0f} % of its compression ratio" in text
    assert f"even without noise, it loses {losses[1].min():.0f} to {losses[1].max():.0f} %" in text
    assert f"costs {dearer.min():.0f} to {dearer.max():.0f} times the bytes" in text


NAMES = {
    "dense": "float32",
    "bits_4": "4 bits",
    "top_k_1": "noise, then top-k 1 %, 4 bits, feedback",
    "random_k_10": "random 10 %, then noise, 4 bits",
    "random_k_1": "random 1 %, then noise, 4 bits",
}


def test_state_survives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(EXAMPLES[2], "README.md", "exec"), names)
    assert names["client"].state.memory.link == names["server"].memory.link(7)
    assert (tmp_path / "client-7.db").exists() and list((tmp_path / "client-7").iterdir())
    names["ledger"].close()
    names["server"].close()


def test_a_sparsifier_of_ones_own_is_swept_beside_top_k(tmp_path):
    (tmp_path / "block_top_k.py").write_text(EXAMPLES[3], encoding="utf-8")
    text = re.search(r"```toml\n(.*?)```", README, flags=re.DOTALL).group(1)
    for written, short in (("rounds = 20", "rounds = 2"), ("seeds = [0, 1, 2]", ""), ("[1.0, 2.0, 4.0]", "[2.0]")):
        assert written in text
        text = text.replace(written, short)
    text = text.replace("[1, 3]", "[1]").replace("epsilon = 8.0", "").replace("Gaussian = {}", Z_IS_ONE)
    (tmp_path / "blocks.toml").write_text(text, encoding="utf-8")
    assert main(["sweep", str(tmp_path / "blocks.toml")]) == 0
    table = pd.read_csv(tmp_path / "blocks.csv").set_index("sparsify")
    assert list(table.index) == ["top 5 %", "blocks, 5 %", "every coordinate"]
    assert table.loc["blocks, 5 %", "payload_bytes"] < table.loc["every coordinate", "payload_bytes"] / 5
    reports = {report["trial"]: report for report in results_of(tmp_path / "blocks.toml").read()}
    configs = {name: reports[f"{row['trials']}/seed-0"]["config"] for name, row in table.to_dict("index").items()}
    digest = hashlib.sha256((tmp_path / "block_top_k.py").read_bytes()).hexdigest()
    assert [config.get("imports") for config in configs.values()] == [None, {"block_top_k.py": digest}, None]
    assert (tmp_path / "blocks.training.png").stat().st_size > 10_000


def test_every_path_and_command_that_is_named_exists():
    for path in re.findall(r"`((?:dpcomp|analysis|experiments|benchmarks|tests|docs)/[^ `]*)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"dpcomp (?:epsilon|run|sweep|table|figures) (experiments/\S+?)[`\s]", README):
        assert (ROOT / path).exists(), path
