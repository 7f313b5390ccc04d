"""Run: the result of a simulation."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from dpcomp.core.extras import require
from dpcomp.core.layout import Layout
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.simulation.run_display import first_columns_first, run_as_html, run_as_text
from dpcomp.simulation.saving.run_files import read_run, write_run

if TYPE_CHECKING:
    import pandas as pd
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The result of a simulation: a row for each round, the guarantee, and the last model.

    A row is a mapping from column to number:

    | column | meaning |
    |---|---|
    | `round` | from 1 (in an address, rounds count from 0) |
    | `participants` | clients whose updates were accepted |
    | `uplink_bytes` | payloads, summed over clients, as sent, repeats included |
    | `downlink_bytes` | broadcasts, and what brings back clients that were away, summed over clients |
    | `control_bytes` | questions and replies, summed over clients |
    | `payload_bytes`, `compression_ratio` | mean over accepted payloads, if there are any |
    | `epsilon` | ε so far, in evaluated rounds, if there is one; in the last row of a stopped run, that of all rounds |
    | `bits of <layer>` | bits a value that the codec's allocator spends on a layer, mean over clients |
    | `test_<metric>`, `test_loss` | accuracy or the task's own metrics, and loss, in the rounds that are evaluated |
    | `validation_<metric>`, `validation_loss` | the same on the examples that the task holds out, if it does |
    | `tail_<column>` | in the last round: what the trainer measures of `tail_model`, if there is one |
    | `clip_norm` | with `dp.AdaptiveClip`: the norm of the round |
    | `refused_<reason>` | messages that the server refused, by reason, in the rounds in which it refused any |
    | `away` | with faults: clients that were away |
    | `seconds` | wall time of the round |
    | … | the columns of the probes, mean over the round's releases |

    Attributes:
        rows: One row for each round.
        guarantee: What the run cost in privacy; of several ledgers, the largest ε.
        layout: The layers of the model.
        model: The last model as a (d,) vector: that of a client that followed every broadcast.
        tail_model: The average of the models of the last rounds, as `simulate(tail=...)` says; None where none are
            averaged.
        probed: The columns that depend on data that was never released. They are for research and must not be published
            beside the guarantee.
        warnings: What is wrong with the run, a sentence each: `simulate` warns of the same. Some depend on clean data,
            and are for research alone.
        stopped: Why a callback stopped the run before its last round; empty where none did.
    """

    rows: tuple[dict[str, float], ...]
    guarantee: Guarantee
    layout: Layout
    model: Float32[np.ndarray, "d"]
    probed: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    tail_model: Float32[np.ndarray, "d"] | None = None
    stopped: str = ""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the run to a folder, which is made if it is missing: `model.safetensors` and `run.json`.

        `model.safetensors` holds each layer of the model under its name and in its shape, which plain PyTorch and JAX
        read (`safetensors.torch.load_file`); `tail_model.safetensors` likewise, where there is a tail model.

        **Privacy:** `run.json` holds all columns, those of `probed` too.

        Args:
            folder: Where the files are written; those of another run are replaced.

        Raises:
            OSError: They cannot be written.

        Examples:
            >>> import tempfile
            >>> import numpy as np
            >>> import dpcomp as dp
            >>> from dpcomp.simulation import Run
            >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
            >>> run = Run(
            ...     rows=({"round": 1, "test_accuracy": 0.5},),
            ...     guarantee=pipeline.guarantee(steps=1, delta=1e-5),
            ...     layout=dp.Layout.of({"weight": (3, 2)}),
            ...     model=np.zeros(6, np.float32),
            ...     probed=(),
            ... )
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     run.save(folder)
            ...     again = Run.load(folder)
            >>> again.rows == run.rows, again.guarantee == run.guarantee
            (True, True)
        """
        write_run(Path(folder), self)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Run":
        """Read the run that `save` wrote.

        Args:
            folder: Where the files are.

        Raises:
            DpcompError: The folder holds no run, or its files are damaged or of different runs.
        """
        return cls(**read_run(Path(folder)))

    def apply(self, module: "torch.nn.Module") -> None:
        """Write the last model into a PyTorch module, whose other parameters and buffers stay as they are.

        Args:
            module: A module with the trainable parameters of the task's model.

        Raises:
            ValueError: Its trainable parameters have other names or shapes.
        """
        from dpcomp.training.pytorch.rows.parameters import layout_of, write  # here: a run needs no torch

        if (layout := layout_of(module)) != self.layout:
            mine, theirs = dict(self.layout.shapes), dict(layout.shapes)
            differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
            said = "; ".join(f"{name} is {theirs.get(name)}, and {mine.get(name)} in the run" for name in differing[:3])
            raise ValueError(
                f"the module is not the one that was trained: of its parameters, {said or 'the order differs'}. Give "
                "a module as the task's model(seed) makes it"
            )
        write(module, self.model)

    def __repr__(self) -> str:
        return run_as_text(self.rows, self.guarantee, self.layout, self.probed, self.warnings)

    def _repr_html_(self) -> str:
        return run_as_html(self.rows, self.guarantee, self.layout, self.probed, self.warnings)

    def table(self) -> "pd.DataFrame":
        """Return the rows as a pandas DataFrame, one row for each round: accuracy, bytes and ε come first.

        Examples:
            Two rounds as a simulation would have made them:

            >>> import numpy as np
            >>> import dpcomp as dp
            >>> from dpcomp.simulation import Run
            >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
            >>> run = Run(
            ...     rows=({"round": 1, "payload_bytes": 120.0}, {"round": 2, "payload_bytes": 118.0}),
            ...     guarantee=pipeline.guarantee(steps=2, delta=1e-5),
            ...     layout=dp.Layout.of(3),
            ...     model=np.zeros(3, np.float32),
            ...     probed=(),
            ... )
            >>> float(run.table()["payload_bytes"].mean())
            119.0
        """
        require("lab", "pandas")
        from dpcomp.simulation.run_table import RunTable

        names = first_columns_first(dict.fromkeys(name for row in self.rows for name in row))
        return RunTable(list(self.rows), columns=names)
