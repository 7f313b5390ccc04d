"""What values print and show in notebooks: short, escaped, and without a private value."""

import math
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dpcomp as dp
from dpcomp.display.text import BARS, outline, shortened, sparkline
from dpcomp.pipeline.display import steps_of
from dpcomp.privacy.units.unit_gradients import Units
from dpcomp.simulation import Run

PUBLIC = {name: getattr(dp, name) for name in dp.__all__}
TOP = dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
PIPELINES = {
    "plain": dp.Pipeline(mechanism=(dp.Clip(1.5), dp.Gaussian(2.0))),
    "sampled": dp.Pipeline(mechanism=(dp.Clip(1.5), dp.Gaussian(2.0)), sampling=dp.Poisson(0.1), codec=TOP),
    "masked": dp.Pipeline(mechanism=(dp.RandomK(0.05), dp.Clip(1.0), dp.Gaussian(1.0)), feedback=False),
    "server": dp.Pipeline(
        mechanism=(dp.Clip(2.0), dp.Gaussian(1.0)),
        sampling=dp.Poisson(0.2),
        codec=TOP,
        downlink=dp.Codec(quantize=dp.Float16()),
        unit="client",
        trust="server",
    ),
    "momentum": dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=TOP, feedback=dp.MomentumCorrection(momentum=0.9)
    ),
    "unsafe": dp.Pipeline(mechanism=dp.unsafe("a <b>study</b>", dp.Clip(1.0), dp.TopK(0.1), dp.Gaussian(1.0))),
    "no stage": dp.Pipeline(mechanism=dp.unsafe("no noise")),
}
SECRET = 8192.625  # a private value that no text may hold
NAMED = "<img src=x onerror=alert(1)>"


class Reader(HTMLParser):
    """Reads HTML: refuses tags that are not closed, and keeps tags and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(value):
    return Reader(value._repr_html_())


def fits(text):
    return len(text) <= 2400 and len(text.splitlines()) <= 30


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_the_repr_of_a_pipeline_and_of_its_codec_is_the_call_that_makes_it(pipeline):
    again = eval(repr(pipeline), dict(PUBLIC))  # noqa: S307
    assert again == pipeline and again.channel.identity == pipeline.channel.identity
    assert eval(repr(pipeline.codec), dict(PUBLIC)) == pipeline.codec  # noqa: S307
    assert fits(repr(pipeline)) and len(repr(pipeline.codec)) < 200
    assert "downlink=None" not in repr(pipeline) and "predict=None" not in repr(pipeline.codec)


def test_a_pipeline_says_what_is_known_after_each_step():
    text = repr(PIPELINES["sampled"])
    said = {line.split("#")[0].strip(): line.split("# ")[1] for line in text.splitlines() if "#" in line}
    assert said["sampling=Poisson(rate=0.1),"] == "clean, each example with probability 0.1"
    assert said["Clip(norm=1.5),"] == "clean, one example moves the sum by at most 1.5"
    assert said["Gaussian(noise_multiplier=2.0),"] == "released, noise of standard deviation 3"
    assert said["sparsify=TopK(fraction=0.1, per='vector'),"].startswith("released, 10 % of the coordinates")
    assert said["quantize=Uniform(bits=4, rounding=Nearest()),"] == "released, 4 bits a value"


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_the_chain_tells_clean_from_released(pipeline):
    steps = steps_of(pipeline)
    noise = next((place for place, step in enumerate(steps) if step.title.startswith("Gaussian")), None)
    unsafe = "unsafe" in repr(pipeline)
    for place, step in enumerate(steps):
        after = noise is None or place >= noise
        assert step.state == (("none" if unsafe else "released") if after else "clean"), step
        assert step.place.startswith("server") == (
            "broadcast" in step.place or (pipeline.trust == "server" and step.title.startswith(("Gaussian", "Poisson")))
        )
    page = read(pipeline)
    assert [step.title for step in steps if step.title not in page.words] == []
    assert page.words.count("→") == len(steps) - 1


def a_run(rounds, *, probed=("seconds",), warnings=()):
    rows = tuple(
        {"round": number, "participants": 3, "uplink_bytes": 300, "downlink_bytes": 500, "seconds": SECRET}
        | ({"test_loss": 1.0, "test_accuracy": number / rounds, "epsilon": 0.1 * number} if number % 5 == 0 else {})
        | {"top_k_overlap": SECRET}
        for number in range(1, rounds + 1)
    )
    return Run(
        rows=rows,
        guarantee=PIPELINES["sampled"].guarantee(steps=rounds, delta=1e-5),
        layout=dp.Layout.of({f"layer.{number}.weight": (10, 3) for number in range(100)}),
        model=np.full(3000, SECRET, np.float32),
        probed=(*probed, "top_k_overlap"),
        warnings=warnings,
    )


def test_a_run_fits_a_screen_and_shows_accuracy_bytes_and_epsilon():
    run = a_run(300, warnings=tuple(f"{NAMED}\x1b[31m warning {number}" for number in range(50)))
    text = repr(run)
    assert fits(text) and fits(" ".join(read(run).words))
    for word in ("300 rounds", "test_accuracy", "uplink_bytes", "epsilon", BARS[0], BARS[-1], str(run.guarantee)):
        assert word in text and any(word in said for said in read(run).words)
    assert "\x1b" not in text + run._repr_html_() and "img" not in read(run).tags
    assert "47 more" in text


def test_columns_of_clean_data_are_not_shown_but_named():
    run = a_run(20, probed=("seconds", "uplink_bytes", "downlink_bytes"))
    lines = repr(run).splitlines()
    assert not any("300" in line.split() for line in lines)
    assert lines[-1].endswith("uplink_bytes, downlink_bytes, top_k_overlap")


def test_the_first_columns_of_a_run_are_accuracy_bytes_and_epsilon(capsys):
    table = a_run(20).table()
    assert list(table.columns)[:5] == ["round", "test_accuracy", "uplink_bytes", "downlink_bytes", "epsilon"]
    assert isinstance(table, pd.DataFrame) and table["round"].tolist() == list(range(1, 21))
    print(table)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.split()[:5] == ["round", "test_accuracy", "uplink_bytes", "downlink_bytes", "epsilon"]
    assert any("top_k_overlap" in line for line in others)
    assert type(table[table["round"] > 3]) is type(table.head()) is pd.DataFrame


def private_things():
    vector = np.full(100, SECRET, dtype=np.float32)
    pipeline = PIPELINES["server"]
    layout = dp.Layout.of(100)
    clean = dp.Update(values=vector, layout=layout, address=dp.Address(0, 7, 0))
    memory = pipeline.init_client(100, dp.PublicSeed(0), client=7)
    _, after = pipeline.send(clean, memory)
    ledger = dp.Ledger()
    yield from (clean, after, after.kept, after.shared, ledger)
    yield ledger.charge(pipeline.cost, pipeline.init_server(100, dp.PublicSeed(0)).address)
    yield from (Units.of(np.full((3, 100), SECRET), layout), pipeline.clip(np.full((1, 100), SECRET), memory))
    yield from (dp.SecretSeed(81926), dp.DitherKeys(b"8192" * 8), a_run(10))


def test_no_text_holds_a_private_value():
    for thing in private_things():
        shown = [repr(thing), str(thing)] + ([read(thing).words] if hasattr(thing, "_repr_html_") else [])
        assert "8192" not in "".join(map(str, shown)) and fits(shown[0]), thing


def test_what_is_large_is_shown_short():
    large = np.zeros(10**7, dtype=np.float32)
    update = dp.Update(values=large, layout=dp.Layout.of(10**7), address=dp.Address(0, 7, 0))
    listed = dp.Listed(np.arange(10**5))
    memory = PIPELINES["sampled"].init_client(10**7, dp.PublicSeed(0), client=7)
    layout = dp.Layout.of({f"layer.{number}.weight": (10, 3) for number in range(1000)})
    for thing in (update, listed, memory, layout, memory.kept):
        assert len(repr(thing)) < 500
    assert "10,000,000 of 10,000,000" in repr(update) and "clean" in repr(update)
    few = dp.Listed(np.array([1, 5]))
    assert eval(repr(few), {**PUBLIC, "array": np.array}) == few  # noqa: S307
    small = dp.Layout.of({"weight": (10, 3)})
    assert eval(repr(small), dict(PUBLIC)) == small  # noqa: S307


def test_a_release_is_told_from_a_clean_update():
    pipeline, ledger = PIPELINES["plain"], dp.Ledger()
    memory = pipeline.init_client(10, dp.PublicSeed(0), client=7)
    permit = ledger.charge(pipeline.cost, memory.address)
    update = pipeline.release([np.ones((2, 10))], memory, dp.SecretSeed(0), permit)
    assert "released" in repr(update) and "released" in read(update).words and "clean" not in repr(update)
    assert "noise_stddev=3" in repr(update)
    assert "released" not in repr(dp.Update(values=np.ones(10), layout=dp.Layout.of(10), address=memory.address))


def test_a_ledger_says_what_it_holds_and_errors_only_its_path(tmp_path):
    path = tmp_path / f"{'<b>'}.db"
    pipeline = PIPELINES["plain"]
    with dp.Ledger.create(path, dp.Budget(50.0, 1e-6)) as ledger:
        for client in (3, 8):
            ledger.charge(pipeline.cost, dp.Address(0, client, 0), steps=client)
        shown = read(ledger)
    assert repr(ledger) == f"Ledger({str(path)!r}, 3 entries, 2 clients, Budget(epsilon=50.0, delta=1e-06))"
    assert str(ledger) == f"Ledger({str(path)!r})"
    spent = f"{pipeline.guarantee(8, 1e-6)}".split(" · ")[0]
    record = dp.Ledger.read(path)
    for words in (shown.words, read(ledger).words, read(record).words):
        assert spent in words and "b" not in shown.tags and any(str(path) in said for said in words)


def test_a_guarantee_shows_all_that_it_depends_on():
    guarantee = PIPELINES["server"].guarantee(7, 1e-5)
    words = read(guarantee).words
    assert {str(guarantee).split(" · ")[0], "one client, add/remove", *guarantee.assumptions} <= set(words)
    assert str(guarantee) in repr(guarantee) and fits(repr(guarantee))
    assert "ε = ∞ at δ = 1e-05" in read(PIPELINES["unsafe"].guarantee(7, 1e-5)).words


def test_names_from_outside_are_escaped():
    pipeline = dp.Pipeline(mechanism=dp.unsafe(NAMED, dp.Clip(1.0)))
    page = read(pipeline)
    assert NAMED in page.words and set(page.tags) <= {"div", "table", "tr", "th", "td", "span"}


@given(st.lists(st.floats(), max_size=200), st.integers(1, 60))
def test_a_curve_is_one_short_line_from_the_lowest_value_to_the_highest(values, most):
    line = sparkline(values, most)
    finite = [value for value in values if math.isfinite(value)]
    assert len(line) == min(most, len(finite)) and set(line) <= set(BARS)
    if len(finite) == len(line) and 0 < max(finite, default=0) - min(finite, default=0) < math.inf:
        assert line[finite.index(max(finite))] == BARS[-1] and line[finite.index(min(finite))] == BARS[0]
    assert all(unicodedata.east_asian_width(bar) != "W" for bar in line)


def test_rising_values_rise():
    assert sparkline(range(8)) == BARS and sparkline(range(16), 8) == BARS and sparkline([2, 2]) == BARS[3] * 2


def test_an_outline_has_shapes_in_place_of_values():
    memory = PIPELINES["sampled"].init_client(10, dp.PublicSeed(0), client=7)
    assert outline(memory.kept) == "Kept(residual=<float32 (10,)>, momentum=None, sent=None)"
    assert shortened("x" * 50, 10) == "xxxxx...xx" and shortened("short", 10) == "short"
