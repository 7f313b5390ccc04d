"""WeightsAndBiases: logs the rows of a run to Weights & Biases."""

from dataclasses import dataclass, field
from typing import Any

from dpcomp.simulation.callbacks.callback import Callback, RunInProgress
from dpcomp.simulation.callbacks.log import imported, logged
from dpcomp.simulation.run import Run


@dataclass(kw_only=True)
class WeightsAndBiases(Callback):
    """Log each row to a run of Weights & Biases, and the guarantee to its summary; needs `pip install wandb`.

    **Privacy:** columns that depend on clean data (`Run.probed`) are left out, unless they are named: what is logged
    leaves this machine.

    Args:
        project: The name of the project; None for wandb's own choice.
        run_name: The name of the run; None for the name of the task.
        columns: The columns; None for all that may be published.
    """

    project: str | None = None
    run_name: str | None = None
    columns: tuple[str, ...] | None = None
    _run: Any = field(default=None, init=False, repr=False)

    def start(self, run: RunInProgress) -> None:
        """Begin a run.

        Raises:
            MissingExtra: wandb is not installed.
        """
        tool = imported("wandb", package="wandb", for_whom="WeightsAndBiases")
        self._run = tool.init(project=self.project, name=run.task if self.run_name is None else self.run_name)

    def round(self, run: RunInProgress) -> None:
        """Log the last row."""
        self._run.log(logged(run, self.columns), step=len(run.rows))

    def end(self, run: Run) -> None:
        """Log the guarantee, and end the run."""
        self._run.summary["guarantee"] = str(run.guarantee)
        self._run.finish()
