"""TensorBoard: logs the rows of a run to a folder that TensorBoard shows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpcomp.simulation.callbacks.callback import Callback, RunInProgress
from dpcomp.simulation.callbacks.log import imported, logged
from dpcomp.simulation.run import Run


@dataclass(kw_only=True)
class TensorBoard(Callback):
    """Log each row to a folder for TensorBoard, and the guarantee at the end; needs `pip install tensorboard`.

    **Privacy:** columns that depend on clean data (`Run.probed`) are left out, unless they are named.

    Args:
        folder: Where the log is written.
        columns: The columns; None for all that may be published.
    """

    folder: str | Path
    columns: tuple[str, ...] | None = None
    _writer: Any = field(default=None, init=False, repr=False)

    def start(self, run: RunInProgress) -> None:
        """Open the log.

        Raises:
            MissingExtra: TensorBoard is not installed.
        """
        tool = imported("torch.utils.tensorboard", package="tensorboard", for_whom="TensorBoard")
        self._writer = tool.SummaryWriter(str(self.folder), purge_step=len(run.rows) + 1)

    def round(self, run: RunInProgress) -> None:
        """Log the last row."""
        for name, value in logged(run, self.columns).items():
            self._writer.add_scalar(name, value, len(run.rows))
        self._writer.flush()

    def end(self, run: Run) -> None:
        """Log the guarantee, and close the log."""
        self._writer.add_text("guarantee", str(run.guarantee))
        self._writer.close()
