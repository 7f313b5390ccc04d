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
CLAIMS = {  # what was measured of each; in brackets stand the paper's names of the numbers
    "compression": """10 %: [orders.local_steps_1.random_k_10.difference] points in
        [orders.local_steps_1.random_k_10.ratio]× fewer bytes""",
    "erased": """6 %, [erased.eps_4.own_6_2_bits.ratio]×: own [erased.eps_4.own_6_2_bits.difference], common
        [erased.eps_4.shared_6_2_bits.difference]; 1 %: [erased.eps_4.own_1.difference],
        [erased.eps_4.shared_1.difference]""",
    "top_k": """CIFAR-10: [top_k.cifar10_small.top_1_feedback.difference] points; 0.1 %:
        [top_k.cifar10_small_long.top_0_1_feedback.difference]; Fashion-MNIST, ε ≤
        [setup.top_k_fashion_mnist.noisy_epsilon]: [top_k.fashion_mnist.eps_4.top_1_feedback.difference]""",
    "allocation": """[allocation.no_noise.packed.equal_8_bits.ratio1]×,
        [allocation.no_noise.packed.equal_8_bits.difference] points; 2 bits:
        [rounding.no_noise.equal.nearest.accuracy] %, random [rounding.no_noise.equal.stochastic.accuracy]""",
    "scrambling": """[claimed.alone.4.least] to [claimed.alone.4.most] %; with error feedback
        [claimed.feedback.4.least] to [claimed.feedback.4.most] %""",
    "local_steps": """3, 5, 10 beside 1: [local_steps.equal_rounds_dense.8.3.difference],
        [local_steps.equal_rounds_dense.8.5.difference], [local_steps.equal_rounds_dense.8.10.difference] points""",
    "delta_coding": "bits saved: [prediction.0.saved]; at z = ¼ [prediction.0_25.saved]",
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
OWN = "erased.eps_4.own_6_2_bits"
NOTES = {  # what the page of findings says below the table
    "erased": f"""Own 1 % take [erased.eps_4.own_1.ratio]× fewer uplink bytes than float32; both ways together the
        common 6 % take [{SHARED}.total]× fewer bytes and the own ones [{OWN}.total]×. One bit of all coordinates
        ([{ONE_BIT}.ratio]×) differs by [{ONE_BIT}.difference]. With five local steps own 1 % differ by
        [erased.steps_5.own_1.difference] from dense updates with as many. With skewed labels (Dirichlet 0.3) own 6 and
        1 % differ by [erased.dirichlet.own_6_2_bits.difference] and [erased.dirichlet.own_1.difference].""",
    "cifar": """On CIFAR-10 at ε ≤ 8, all with momentum, own 6 and 1 % differ by
        [erased.cifar10_momentum.own_6_2_bits_momentum.difference] and
        [erased.cifar10_momentum.own_1_momentum.difference], and a common 6 % by
        [erased.cifar10_momentum.common_6_2_bits_momentum.difference]; with skewed labels own 6 % by
        [erased.cifar10_dirichlet.own_6_2_bits_momentum.difference] and a common one by
        [erased.cifar10_dirichlet.common_6_2_bits_momentum.difference].""",
    "law": """What is lost by codes that add no more than twice the noise's energy is, within [law.furthest] points
        where clients are alike, what dense updates lose to as much more noise as compression adds error, by a closed
        form of which one term was chosen after the data were seen (R² = [law.explained], [law.explained.range] over
        draws of seeds; the mean loss alone is within [law.furthest_constant]). With skewed labels it overestimates; on
        CIFAR-10 it predicts [law.cifar10.own_6_2_bits_momentum.foretold] and
        [law.cifar10.own_1_momentum.foretold] for own 6 and 1 %, about half of what is lost. On Fashion-MNIST, to lose
        no more than a point takes about [law.fewest_bytes] bytes ([law.fewest_bytes_least] to
        [law.fewest_bytes_most]) with ten clients and codes of this kind.""",
    "local_steps": """The row is of dense updates on digits. On Fashion-MNIST three, five and ten differ from one by
        [local_steps.fashion_mnist.4.3.difference], [local_steps.fashion_mnist.4.5.difference] and
        [local_steps.fashion_mnist.4.10.difference] at equal bytes; one step over a batch three times as large, by
        [local_steps.batch.difference]. At equal work and ε ≤ 8 ten dense steps differ from one by
        [local_steps.equal_steps_dense.8.10.difference] with a tenth of the bytes. With the top 10 % and feedback
        nothing is gained at equal bytes, and ten steps differ by [local_steps.equal_steps.8.10.difference] at equal
        work.""",
    "delta_coding": """With a coarse step, which rounds most of an update to zero (training ends at
        [delta_coding.0.nothing.accuracy] % without noise), [delta_coding.0.saved] % of the bytes are saved.""",
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
    assert f"{row['accuracy_percent']:.1f} ({row['deviation']:.1f}) % over three seeds" in words(text)
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


def test_what_the_page_of_findings_says_below_its_table_is_what_the_paper_says():
    for sentence in NOTES.values():
        assert with_numbers(sentence) in words(FINDINGS)


def with_numbers(sentence):
    return re.sub(r"\[([\w.]+)\]", lambda match: in_plain_text(PAPER[match.group(1)]), words(sentence))


def in_plain_text(value):
    for latex, plain in ((r"\pm", "±"), (r"\,(", " ("), ("{,}", ","), (r"\text{--}", "–"), ("$", "")):
        value = value.replace(latex, plain)
    return value


def test_the_table_of_methods_is_that_of_the_tracked_results():
    table = compare(CONFIGS / "compression")
    assert (table["seeds"] == [5 if method.startswith("local_steps_1/") else 3 for method in table["method"]]).all()
    assert (table["epsilon"] <= 4).all()
    for row in table.to_dict("records"):
        steps, method = row["method"].split("/")
        cells = f"{row['accuracy_percent']:.1f} ({row['deviation']:.1f}) %"
        line = next(line for line in FINDINGS.splitlines() if line.startswith(f"| {METHODS[method]} "))
        columns = [cell.strip() for cell in line.strip("|").split("|")]
        assert columns[1 if steps == "local_steps_1" else 2] == cells, (row["method"], cells)
        if steps == "local_steps_1":
            assert columns[3:] == [f"{row['payload_bytes']:,.0f}", f"{row['compression_ratio']:.0f}×"], method
    found = [
        [in_plain_text(PAPER[f"orders.local_steps_{steps}.{method}.difference"]) for steps in (1, 3)]
        for method in ("random_k_10", "random_k_1", "top_k_1")
    ]
    (ten, ten_of_three), (one, one_of_three), (top, top_of_three) = found
    text = words(FINDINGS)
    assert f"a random 10 % by {ten} and {ten_of_three} points, a random 1 % by {one} and {one_of_three}" in text
    assert f"top-k 1 % by {top} and {top_of_three}" in text


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
    least, most = (PAPER[f"energy.mean_times_{end}"] for end in ("least", "most"))
    text = words(FINDINGS)
    assert f"loses {losses[0].min():.0f} to {losses[0].max():.0f} % of its compression ratio" in text
    assert f"even without noise, it loses {losses[1].min():.0f} to {losses[1].max():.0f} %" in text
    assert f"takes {least} to {most} times the bytes" in text
