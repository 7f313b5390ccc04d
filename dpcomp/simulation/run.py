"""Run: what came of a simulation."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float32

from dpcomp.core.layout import Layout
from dpcomp.privacy.guarantee import Guarantee


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What came of a simulation.

    `rows` has a mapping a round: round (from 1; an address counts from 0), participants (whose updates were accepted),
    payload_bytes (mean of an accepted payload), compression_ratio (of those), seconds, and where the round was
    evaluated test_accuracy and test_loss. Sums over clients, as sent, repeats included: uplink_bytes (payloads),
    downlink_bytes (broadcasts, and what brings back who was away), control_bytes (questions and answers). Where an
    allocator spreads the bits, `bits of <layer>`, a value. With faults, `refused_<reason>` and `away`. Last the columns
    of the probes; `probed` names the columns that saw clean data.
    `model` is the last vector of parameters, that of a client that followed every broadcast.
    """

    rows: tuple[dict[str, float], ...]
    guarantee: Guarantee
    layout: Layout
    model: Float32[np.ndarray, "d"]
    probed: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """A tidy frame, one row a round."""
        return pd.DataFrame(list(self.rows))
