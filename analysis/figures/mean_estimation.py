"""What bits buy in distributed mean estimation, at two ε: the benchmark's results."""

from pathlib import Path

import pandas as pd

from analysis.figures import ResultsFigure
from analysis.tables.studies import study_reports
from dpcomp.lab.figures.mean_estimation import draw
from dpcomp.lab.mean_estimation.setting import SIGNS
from dpcomp.lab.mean_estimation.table import frame_of

CLIENTS, DIMENSIONS = 500, 1000


def read(source: Path) -> pd.DataFrame:
    """Return the results at the settings of CSGM's and PPR's experiments. Raises ConfigError."""
    task = {"clients": CLIENTS, "dimensions": DIMENSIONS, "inputs": SIGNS.name}
    return frame_of(report for report in study_reports(source) if task.items() <= report["config"].items())


FIGURE = ResultsFigure(source="mean_estimation", read=read, draw=draw)
