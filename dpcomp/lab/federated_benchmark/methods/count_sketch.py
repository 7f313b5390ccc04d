"""FetchSGD: clients send count-sketches; the server adds them up, and takes the largest coordinates out of the sum."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from dpcomp.codec import Codec
from dpcomp.codec.entropy import FixedWidth
from dpcomp.codec.quantize import Bounds
from dpcomp.codec.quantize.quantizer import equal_bounds
from dpcomp.core.public_context import PublicContext
from dpcomp.core.randomness import PublicSeed
from dpcomp.core.support import Listed
from dpcomp.federated import ServerOptimizer
from dpcomp.federated.server.optimizers import Moments
from dpcomp.lab.federated_benchmark.method import FOUR_BITS, mechanism, percent, sampling
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.pipeline import Pipeline
from dpcomp.sparsify.top_k_indices import top_k_indices
from dpcomp.wire.update import UNKNOWN, Update, with_claim


@dataclass(frozen=True, kw_only=True)
class CountSketch:
    """Send a table of sums instead of a vector: in each row every coordinate is added, with a sign, to one cell.

    Cells and signs are public and the same for all clients of all runs, so the mean of tables is the table of the mean.
    What is decoded is that table, row after row, and zeros up to d: `FetchStep` reads it.

    **Privacy:** post-processing of a release (PRIVACY_RULES 1).

    Attributes:
        rows: The number of independent rows.
        columns: The cells of a row.

    Source: Charikar, Chen & Farach-Colton 2002, section 3.
    """

    rows: int
    columns: int
    unbiased = False
    side_holds_values = True

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return four bytes a cell."""
        return 4 * self.rows * self.columns

    def bounds(self, side: bytes | memoryview, context: PublicContext) -> Bounds:
        """Return equal bounds: there are no levels."""
        return equal_bounds(len(context.layout.shapes), 0, 0)

    def levels(
        self, values: Float32[np.ndarray, "d"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "m"], bytes]:
        """Return no levels, and the table."""
        return np.empty(0, np.int32), self.table(values).astype("<f4").tobytes()

    def values(
        self,
        levels: Int32[np.ndarray, "m"],
        side: bytes | memoryview,
        counts: Int64[np.ndarray, "layers"],
        context: PublicContext,
    ) -> Float32[np.ndarray, "d"]:
        """Return the table, and zeros."""
        vector = np.zeros(int(counts.sum()), np.float32)
        vector[: self.rows * self.columns] = np.frombuffer(side, "<f4")
        return vector

    def table(self, vector: Float32[np.ndarray, "d"]) -> Float32[np.ndarray, "rows columns"]:
        """Return the sketch of a vector."""
        cells, signs = _hashed(self.rows, self.columns, len(vector))
        rows = [np.bincount(cells[row], signs[row] * vector, minlength=self.columns) for row in range(self.rows)]
        return np.array(rows, dtype=np.float32)

    def estimate(self, table: Float32[np.ndarray, "rows columns"], d: int) -> Float32[np.ndarray, "d"]:
        """Return the median over the rows of what the table says of each of d coordinates."""
        cells, signs = _hashed(self.rows, self.columns, d)
        return np.median(signs * np.take_along_axis(table, cells, axis=1), axis=0).astype(np.float32)

    def cells(self, positions: Int64[np.ndarray, "k"], d: int) -> Bool[np.ndarray, "rows columns"]:
        """Return which cells some of d coordinates are added to.

        Args:
            positions: The coordinates.
            d: Their number.
        """
        hit, places = np.zeros((self.rows, self.columns), bool), _hashed(self.rows, self.columns, d)[0]
        np.put_along_axis(hit, places[:, positions], True, axis=1)
        return hit


@lru_cache(maxsize=8)
def _hashed(rows: int, columns: int, d: int) -> tuple[Int64[np.ndarray, "rows d"], Float32[np.ndarray, "rows d"]]:
    """Draw the cell and the sign of each of d coordinates in each row."""
    cells = [PublicSeed(0).stream("cells of a count-sketch", row).integers(0, columns, d) for row in range(rows)]
    signs = [PublicSeed(0).stream("signs of a count-sketch", row).integers(0, 2, d) for row in range(rows)]
    return np.array(cells), (1 - 2 * np.array(signs)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class FetchStep(ServerOptimizer):
    """Add the mean table to a table of what is left, and step by the k coordinates that this has most of.

    u ← ρu + t, e ← e + u, Δ = the k largest of the estimate of e; then the cells of Δ are set to zero in u and e. ρ is
    the base class's `momentum`. Both tables are kept in its velocity, which checkpoints hold.

    Algorithm 1 of the source has e ← e − sketch(Δ) instead; its authors' code notes that the model then diverges, and
    sets cells to zero. So it is here.

    Attributes:
        sketch: The clients' sketch.
        k: Coordinates of a step.

    Source: Rothchild et al. 2020, FetchSGD, Algorithm 1 (2007.07481); the authors' code, CommEfficient.
    """

    sketch: CountSketch
    k: int

    def step(self, mean: Update, moments: Moments) -> tuple[Update, Moments]:
        """Compute the step to broadcast, and the tables after it.

        **Privacy:** all is made of released means alone.

        Args:
            mean: The mean of what the clients' tables decode to.
            moments: The tables u and e, one after the other, and zeros up to d, as the velocity; empty before the
                first step.
        """
        d, shape = mean.layout.size, (self.sketch.rows, self.sketch.columns)
        cells = shape[0] * shape[1]
        kept = moments.get("velocity", np.zeros(d, np.float32))
        momentum = (np.float32(self.momentum) * kept[:cells] + mean.dense()[:cells]).reshape(shape)
        left = kept[cells : 2 * cells].reshape(shape) + momentum
        estimate = self.sketch.estimate(left, d)
        support = Listed(top_k_indices(estimate, self.k))
        stepped = self.sketch.cells(support.indices(d), d)
        momentum[stepped], left[stepped] = 0, 0
        after = np.zeros(d, np.float32)
        after[:cells], after[cells : 2 * cells] = momentum.reshape(-1), left.reshape(-1)
        step = replace(mean, values=estimate[support.indices(d)], support=support, claim=UNKNOWN)
        return with_claim(step, mean.claim), {"velocity": after}


@dataclass(frozen=True, kw_only=True)
class FetchSGD:
    """Send a count-sketch of the noisy update as float32; error feedback is the server's, in the sketch.

    Broadcasts have the k largest coordinates of what the server holds, in four bits; k is a tenth of a row's cells, as
    by default in the authors' code, where 50,000 coordinates are taken out of rows of 500,000.

    Attributes:
        share: The cells of a table ÷ d, about; up to ½, since the server's two tables lie in a vector of d numbers.
        rows: Of a table.
        momentum: ρ, at the server; 0 for none.

    Raises:
        ValueError: The share lies outside (0, ½].
    """

    share: float
    rows: int = 5
    momentum: float = 0.0
    ours = False
    source = "Rothchild et al. 2020, Algorithm 1 (2007.07481)"

    def __post_init__(self):
        if not 0 < self.share <= 0.5:
            raise ValueError(f"{self}: the cells of a table are a share of d above 0, up to 0.5")

    @property
    def first_rate(self) -> float:
        """Where the tuning begins."""
        return 2.0 * (1 - self.momentum)

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"FetchSGD, {percent(self.share)}" + (f", momentum {self.momentum:g}" if self.momentum else "")

    def sketch(self, setting: Setting) -> CountSketch:
        """Return the table of a vector of the setting."""
        return CountSketch(rows=self.rows, columns=int(self.share * setting.dimensions / self.rows))

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return the pipeline with the sketch behind the noise."""
        return Pipeline(
            sampling=sampling(setting),
            mechanism=mechanism(setting, noise_multiplier),
            codec=Codec(quantize=self.sketch(setting), entropy=FixedWidth()),
            downlink=FOUR_BITS,
            feedback=False,
        )

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the step that takes coordinates out of the sum of tables."""
        sketch = self.sketch(setting)
        return FetchStep(momentum=self.momentum, sketch=sketch, k=max(1, sketch.columns // 10))
