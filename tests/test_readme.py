"""The README and the page of findings: the example runs, and every number is that of the tracked results."""

import math
import re
from pathlib import Path

import pytest

import dpcomp as dp
from dpcomp.lab.results.frames import summary
from dpcomp.lab.results.results_file import ResultsFile
from dpcomp.lab.sweep.comparison import compare
from experiments.publish.figures import figures_in

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "experiments" / "configs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
BOTH = pytest.mark.parametrize("text", [README, FINDINGS], ids=["README", "findings"])
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
# tests/experiments/test_paper.py holds these to the results.
SETVAL = re.compile(r"^\\setval\{([^}]*)\}\{(.*)\}$", flags=re.MULTILINE)
PAPER = dict(SETVAL.findall((ROOT / "paper" / "numbers.tex").read_text(encoding="utf-8")))
LOSS = "[loss.{}.0_01.noise_first.nobody.uplink.{}.4.8.loss_mean]"
CLAIMS = {  # what was measured of each; in brackets stand the paper's names of the numbers
    "compression": """10 %: [orders.local_steps_1.random_k_10.accuracy] % in
        [orders.local_steps_1.random_k_10.ratio]× fewer bytes; all: [orders.local_steps_1.dense.accuracy] %""",
    "erased": """[erased.eps_4.own_6_2_bits.ratio]×: [erased.eps_4.own_6_2_bits.difference] points,
        [erased.eps_4.own_1.ratio]×: [erased.eps_4.own_1.difference]; CIFAR-10:
        [erased.cifar10.own_6_2_bits.difference], [erased.cifar10.own_1.difference]""",
    "top_k": """5 epochs: [top_k.cifar10_small.top_1_feedback.difference] points; 0.1 %, 20 epochs:
        [top_k.cifar10_small_long.top_0_1_feedback.difference]; at ε ≤
        [setup.top_k_fashion_mnist.noisy_epsilon]: [top_k.fashion_mnist.eps_4.top_1_feedback.difference]""",
    "allocation": """[allocation.no_noise.packed.equal_8_bits.ratio1]×,
        [allocation.no_noise.packed.equal_8_bits.difference] points; 2 bits:
        [rounding.no_noise.equal.nearest.accuracy] %, random [rounding.no_noise.equal.stochastic.accuracy]""",
    "scrambling": f"""{LOSS.format("cifar10.300", "alone")} to {LOSS.format("fashion_mnist.2000", "alone")} %;
        with error feedback {LOSS.format("fashion_mnist.300", "feedback")} to
        {LOSS.format("cifar10.300", "feedback")} %""",
    "local_steps": """[local_steps.equal_steps.8.1.accuracy] % with 1,
        [local_steps.equal_steps.8.3.accuracy] % with 3, [local_steps.equal_steps.8.5.accuracy] % with 5""",
    "delta_coding": "it saves [delta_coding.0.saved] % without noise, [delta_coding.0_25.saved] % at z = ¼",
    "cost": "top 1 % pays up to [cost.pi_zero_2_w.top_1_4_bits.mbits] Mbit/s on a Pi Zero 2 W",
}
METHODS = {
    "dense": "float32",
    "bits_4": "4 bits",
    "top_k_1": "noise, then top-k 1 %, 4 bits, feedback",
    "random_k_10": "random 10 %, then noise, 4 bits",
    "random_k_1": "random 1 %, then noise, 4 bits",
}

SHARED, ONE_BIT = "erased.eps_4.shared_6_2_bits", "erased.eps_4.dense_1_bit"
NOTES = {  # what the page of findings says beside a claim
    "erased": f"""a 6 % support that all share, at the same bytes, [{SHARED}.difference], and one bit of all
        coordinates ([{ONE_BIT}.ratio]×) [{ONE_BIT}.difference]. With skewed labels (Fashion-MNIST, ε ≤ 4, Dirichlet
        0.3, five seeds) [erased.dirichlet.own_6_2_bits.difference] and [erased.dirichlet.own_1.difference]. What is
        lost is, within [law.furthest] points where clients are alike, what dense updates lose to as much more noise as
        compression adds error, by a closed form: a loss of a point takes [law.fewest_bytes] bytes or more |""",
}


def words(text):
    return " ".join(text.split())


def test_the_readme_is_two_screens_long():
    lines = README.splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 120


def test_the_example_is_short_and_prints_its_guarantee_and_table(capsys):
    (example,) = EXAMPLES
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    quoted = re.search(r"print\(run.guarantee\)  # (.*?) · …", example).group(1)
    assert printed.startswith(quoted)
    assert printed.splitlines()[1].split()[:3] == ["round", "test_accuracy", "uplink_bytes"]
    assert len(names["run"].table()) == 20
    assert (names["run"].table()["payload_bytes"] > 60).all()


def test_the_refusal_is_quoted_word_for_word():
    quoted = re.search(r"> NotPrivate: (.*?)\n\n", README, flags=re.DOTALL).group(1).replace("\n> ", " ")
    with pytest.raises(dp.NotPrivate) as refusal:
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.TopK(0.01), dp.Gaussian(1.1)))
    assert str(refusal.value) == quoted


def test_the_demos_figures_are_those_of_its_tracked_results():
    results = ResultsFile(path=ROOT / "results" / "demo.jsonl").read()
    by_method = summary({result["config"]["demo"]: [result] for result in results}).set_index("method")
    top = by_method.loc["noise, then top 5%"]
    assert f"is {top['compression_ratio']:.0f} times smaller than" in README
    dense = by_method.loc["dense float32"]
    assert f"ends at {100 * top['test_accuracy']:.1f} % where dense" in words(README)
    assert f"float32 ends at {100 * dense['test_accuracy']:.1f} %" in words(README)
    assert abs(top["top_k_overlap"] - 0.05) < 0.01  # what docs/start.md calls nearly a random choice


@BOTH
def test_the_yardstick_is_quoted_as_its_results_have_it(text):
    row = compare(CONFIGS / "yardstick").iloc[0]
    assert row["seeds"] == 3
    assert f"{row['accuracy_percent']:.1f} ± {row['deviation']:.1f} % over three seeds" in words(text)
    assert f"ε ≤ {math.ceil(100 * row['epsilon']) / 100:.2f}, δ = 10⁻⁵" in text


@BOTH
def test_what_was_measured_of_each_claim_is_what_the_paper_says(text):
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) in (3, 5):
            rows[cells[1]] = line
    for name, sentence in CLAIMS.items():
        assert name in rows[with_numbers(sentence)]


def test_what_the_page_of_findings_says_beside_a_claim_is_what_the_paper_says():
    for sentence in NOTES.values():
        assert with_numbers(sentence) in words(FINDINGS)


def with_numbers(sentence):
    return re.sub(r"\[([\w.]+)\]", lambda match: in_plain_text(PAPER[match.group(1)]), words(sentence))


def in_plain_text(value):
    for latex, plain in ((r"\pm", "±"), ("{,}", ","), (r"\text{--}", "–"), ("$", "")):
        value = value.replace(latex, plain)
    return value


def test_the_table_of_methods_is_that_of_the_tracked_results():
    table = compare(CONFIGS / "compression")
    assert (table["seeds"] == 3).all()
    assert (table["epsilon"] <= 4).all()
    for row in table.to_dict("records"):
        steps, method = row["method"].split("/")
        cells = f"{row['accuracy_percent']:.1f} ± {row['deviation']:.1f} %"
        line = next(line for line in FINDINGS.splitlines() if line.startswith(f"| {METHODS[method]} "))
        columns = [cell.strip() for cell in line.strip("|").split("|")]
        assert columns[1 if steps == "local_steps_1" else 2] == cells, (row["method"], cells)
        if steps == "local_steps_1":
            assert columns[3:] == [f"{row['payload_bytes']:,.0f}", f"{row['compression_ratio']:.0f}×"], method
    accuracy = table.set_index("method")["accuracy_percent"]
    gaps = [accuracy[f"local_steps_{steps}/dense"] - accuracy[f"local_steps_{steps}/top_k_1"] for steps in (1, 3)]
    behind = table.set_index("method")["rounds_behind"]
    lags = [behind[f"local_steps_{steps}/top_k_1"] for steps in (1, 3)]
    text = words(FINDINGS)
    assert f"ends {gaps[0]:.1f} points below float32 after one local step a round and {gaps[1]:.1f} after three" in text
    assert f"where float32 stood {lags[0]:.0f} and {lags[1]:.0f} rounds before" in text
    for steps in (1, 3):
        assert accuracy[f"local_steps_{steps}/random_k_10"] > accuracy[f"local_steps_{steps}/dense"]


def test_what_noise_does_to_compression_is_that_of_the_tracked_results():
    source = CONFIGS / "scrambling"
    measured = figures_in()["efficiency"].read(source)
    noise_first = (measured["order"] == "noise first") & (measured["trust"] == "nobody")
    setting = (
        (measured["link"] == "uplink")
        & (measured["density"] == 0.01)
        & (measured["bits"] == 4)
        & (measured["noise_multiplier"] == 8)
    )
    losses = measured[noise_first & setting].groupby(["feedback", "task", "batch"])["loss"].mean()
    losses = 100 * losses if losses.max() <= 1 else losses
    energy = figures_in()["energy"].read(source)
    half = energy[(energy["order"] == "noise first") & (energy["energy_share"] == 0.5)]
    half_bytes = half.groupby(["noise_multiplier", "task", "batch"])["payload_bytes"].mean()
    dearer = half_bytes[8] / half_bytes[0]
    text = words(FINDINGS)
    assert f"loses {losses[0].min():.0f} to {losses[0].max():.0f} % of its compression ratio" in text
    assert f"even without noise, it loses {losses[1].min():.0f} to {losses[1].max():.0f} %" in text
    assert f"takes {dearer.min():.0f} to {dearer.max():.0f} times the bytes" in text
