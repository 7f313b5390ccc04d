"""All figures, drawn from the tracked reports alone."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from experiments.calls import ConfigError
from experiments.figures import FIGURES, draw_all

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_labelled_axes_that_fit_into_it(name):
    drawn = FIGURES[name]
    figure = drawn.draw(drawn.read(CONFIGS / drawn.source))
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    for axes in figure.axes:
        labels = [axes.xaxis.label, axes.yaxis.label, axes.title]
        assert labels[0].get_text()
        assert any(other.get_ylabel() for other in axes.get_shared_y_axes().get_siblings(axes))
        for text in [*labels, *axes.get_xticklabels(), *axes.get_yticklabels()]:
            if text.get_text() and text.get_visible():
                box = text.get_window_extent()
                assert box.x0 >= -1
                assert box.y0 >= -1
                assert box.x1 <= width + 1
                assert box.y1 <= height + 1
    plt.close(figure)


def test_a_figure_without_reports_says_what_to_run(tmp_path):
    with pytest.raises((ConfigError, FileNotFoundError)):
        draw_all(tmp_path, tmp_path / "figures")
