"""What compression costs a private federation on handwritten digits: the benchmark's results."""

from pathlib import Path

import pandas as pd

from analysis.figures import ResultsFigure
from analysis.tables.studies import study_reports
from dpcomp.lab.federated_benchmark.methods import METHODS, REFERENCE
from dpcomp.lab.federated_benchmark.outcome import outcomes_of
from dpcomp.lab.federated_benchmark.setting import DIGITS
from dpcomp.lab.federated_benchmark.table import frame_of
from dpcomp.lab.figures.federated_benchmark import draw


def read(source: Path) -> pd.DataFrame:
    """Return what each method reached. Raises ConfigError."""
    return frame_of(outcomes_of(study_reports(source), METHODS, DIGITS), REFERENCE.name)


FIGURE = ResultsFigure(source="federated_benchmark", read=read, draw=draw)
