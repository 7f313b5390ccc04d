"""All figures, drawn from the results alone."""

import importlib
import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot as plt

import analysis.figures
from analysis.figures import erased
from dpcomp.core.errors import ConfigError
from experiments.publish.figures import draw_all, figures_in

FIGURES = figures_in()
CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


def shown(axis):
    """The labels of ticks that are in view; matplotlib keeps others too."""
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()
    ]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_labelled_axes_that_fit_into_it(name):
    drawn = FIGURES[name]
    figure = drawn.draw(drawn.read(CONFIGS / drawn.source))
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    for axes in figure.axes:
        assert axes.get_xlabel()
        rows = axes.get_shared_y_axes().get_siblings(axes)
        names = [text.get_text() for other in rows for text in other.get_yticklabels()]  # words speak for themselves
        assert any(other.get_ylabel() for other in rows) or any(name.isalpha() for name in names)
        for text in [axes.xaxis.label, axes.yaxis.label, axes.title, *shown(axes.xaxis), *shown(axes.yaxis)]:
            if text.get_text():
                box = text.get_window_extent()
                assert box.x0 >= -1
                assert box.y0 >= -1
                assert box.x1 <= width + 1
                assert box.y1 <= height + 1
    plt.close(figure)


@pytest.mark.parametrize(
    ("method", "drawn"), [("common 3 %, 2 bits", True), ("dense, 1 bit", False), ("mine 2 %", None)]
)
def test_a_method_of_section_8_is_drawn_or_left_out_by_name(method, drawn):
    values = {"config": "fashion_mnist", "seed": 0, "compression_ratio": 300.0}
    trials = pd.DataFrame([{**values, "grid.method": name, "test_accuracy": 0.8} for name in ("dense", method)])
    if drawn is None:
        with pytest.raises(ValueError, match="no look for the method 'mine 2 %'"):
            erased.draw(trials)
    else:
        (panel,) = erased.draw(trials).axes
        assert bool(panel.get_legend_handles_labels()[1]) == drawn


def test_every_module_is_a_figure():
    modules = {path.stem for path in Path(analysis.figures.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(FIGURES) == modules


def test_a_figure_is_one_file(tmp_path, monkeypatch):
    package = tmp_path / "own_figures"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "payloads.py").write_text(PAYLOADS)
    monkeypatch.syspath_prepend(tmp_path)
    figures = figures_in(importlib.import_module("own_figures"))
    written = draw_all(CONFIGS, tmp_path / "drawn", figures)
    assert [path.name for path in written] == ["payloads.png", "payloads.pdf"]
    assert all(path.stat().st_size > 1000 for path in written)


PAYLOADS = """
from matplotlib import pyplot as plt

from analysis.figures import ResultsFigure
from analysis.tables.trials import trials_of


def draw(trials):
    figure, axes = plt.subplots()
    axes.hist(trials["payload_bytes"])
    return figure


FIGURE = ResultsFigure(source="yardstick/fashion_mnist.toml", read=trials_of, draw=draw)
"""


def test_a_figure_without_results_says_what_to_run(tmp_path):
    for name, figure in FIGURES.items():
        source = tmp_path / figure.source
        if "." in figure.source:
            source.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CONFIGS / figure.source, source)
        elif (CONFIGS / figure.source).is_dir():
            shutil.copytree(CONFIGS / figure.source, source, dirs_exist_ok=True)
        with pytest.raises(ConfigError, match=r"sweep it first|study \w+ first"):
            draw_all(tmp_path, tmp_path / "figures", {name: figure})
