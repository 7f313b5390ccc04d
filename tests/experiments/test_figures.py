"""All figures, drawn from the tracked reports alone."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from dpcomp.lab.config.calls import ConfigError
from experiments.publish.figures import FIGURES, draw_all

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


def test_a_figure_without_reports_says_what_to_run(tmp_path):
    with pytest.raises((ConfigError, FileNotFoundError)):
        draw_all(tmp_path, tmp_path / "figures")
