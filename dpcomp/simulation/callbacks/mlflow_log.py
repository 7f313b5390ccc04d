"""MLflow: logs the rows of a run to MLflow."""

from dataclasses import dataclass, field
from typing import Any

from dpcomp.simulation.callbacks.callback import Callback, RunInProgress
from dpcomp.simulation.callbacks.log import imported, logged
from dpcomp.simulation.run import Run


@dataclass(kw_only=True)
class MLflow(Callback):
    """Log each row as metrics of a run of MLflow, and the guarantee as its tag; needs `pip install mlflow`.

    Where MLflow has an active run, it is used and left open; else one is started, and ended with the simulation.

    **Privacy:** columns that depend on clean data (`Run.probed`) are left out, unless they are named.

    Args:
        experiment: The name of MLflow's experiment; None for the active one.
        run_name: The name of the run; None for the name of the task.
        columns: The columns; None for all that may be published.
    """

    experiment: str | None = None
    run_name: str | None = None
    columns: tuple[str, ...] | None = None
    _tool: Any = field(default=None, init=False, repr=False)
    _own: bool = field(default=False, init=False, repr=False)

    def start(self, run: RunInProgress) -> None:
        """Begin a run of MLflow, unless one is active.

        Raises:
            MissingExtra: MLflow is not installed.
        """
        self._tool = imported("mlflow", package="mlflow", for_whom="MLflow")
        self._own = self._tool.active_run() is None
        if self._own:
            if self.experiment is not None:
                self._tool.set_experiment(self.experiment)
            self._tool.start_run(run_name=run.task if self.run_name is None else self.run_name)

    def round(self, run: RunInProgress) -> None:
        """Log the last row."""
        # MLflow refuses spaces at the ends and most signs: "bits of 0.weight" is allowed.
        self._tool.log_metrics(logged(run, self.columns), step=len(run.rows))

    def end(self, run: Run) -> None:
        """Log the guarantee, and end the run that was begun."""
        self._tool.set_tag("guarantee", str(run.guarantee))
        if self._own:
            self._tool.end_run()
