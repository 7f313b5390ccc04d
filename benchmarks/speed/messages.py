"""Messages: sending and receiving an update, in copies of the vector, and in microseconds where the vector is small.

A copy is `np.copyto` into a warm buffer. All messages are those of a second round, when both ends know each other. The
pipeline has no noise, since the codec comes after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

import dpcomp as dp
from benchmarks.harness.rows import Goal, Row, compared
from benchmarks.harness.turns import Effort, take_turns
from benchmarks.round_trip import RoundTrip
from dpcomp.core.layout import Layout
from dpcomp.training.pytorch.rows.parameters import layout_of
from experiments.data.models import fashion_cnn, resnet18_group_norm

COPY = "a copy of the vector"
TOP_K = dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4), entropy=dp.RangeCoder())
PACKED = dp.Codec(quantize=dp.Uniform(4), entropy=dp.FixedWidth())
FILLED = dp.Codec(quantize=dp.Uniform(dp.Waterfill(4)), entropy=dp.FixedWidth())


@dataclass(frozen=True, kw_only=True)
class Case:
    """A codec, and what sending and receiving have to reach; None where the table has no goal."""

    name: str
    codec: dp.Codec
    feedback: bool
    send: float | None
    receive: float | None


LARGE = (
    Case(name="top-k 1 %, 4 bits", codec=TOP_K, feedback=True, send=6, receive=3),
    Case(name="dense float32", codec=dp.Codec(), feedback=False, send=10, receive=None),
    Case(name="dense, 4 bits packed", codec=PACKED, feedback=False, send=10, receive=10),
    Case(name="sign", codec=dp.Codec(quantize=dp.Sign()), feedback=True, send=8, receive=8),
)
SMALL = (
    Case(name="top-k 1 %, 4 bits, range coder", codec=TOP_K, feedback=True, send=200, receive=100),
    Case(name="water-filling, 4 bits packed", codec=FILLED, feedback=False, send=1500, receive=None),
)


def large_messages(effort: Effort) -> list[Row]:
    """Measure messages of a ResNet-18's 11,173,962 parameters, in copies."""
    make = effort.size(resnet18_group_norm, fashion_cnn)
    return [row for case in LARGE for row in _rows(case, layout_of(make(seed=0)), effort, small=False)]


def small_messages(effort: Effort) -> list[Row]:
    """Measure messages of a CNN's 26,010 parameters, in microseconds."""
    return [row for case in SMALL for row in _rows(case, layout_of(fashion_cnn(seed=0)), effort, small=True)]


def laplace_rounds(layout: Layout) -> list[Float32[np.ndarray, "d"]]:
    """Draw Laplace values of two rounds, with log-normal scales a layer (standard deviation: an octave)."""
    rng = np.random.default_rng(0)
    scales = np.repeat(np.exp2(rng.standard_normal(len(layout.sizes))), layout.sizes).astype(np.float32)
    return [rng.laplace(size=layout.size).astype(np.float32) * scales for _ in range(2)]


def _rows(case: Case, layout: Layout, effort: Effort, *, small: bool) -> Iterator[Row]:
    """Measure both ends; the goals of small messages are microseconds, those of others are copies."""
    rounds = laplace_rounds(layout)
    trip = RoundTrip(case.codec, rounds, layout, feedback=case.feedback, second=True)
    payload, buffer = trip.send(), rounds[1].copy()
    works = {
        "send": trip.send,
        "receive": lambda: trip.receive(payload),
        COPY: lambda: np.copyto(buffer, rounds[1]),
    }
    scale, unit = (1e6, "µs") if small else (1e3, "ms")
    times = {name: [scale * each for each in turns] for name, turns in take_turns(works, effort).items()}
    for name, most in (("send", case.send), ("receive", case.receive)):
        yield compared(
            f"{name}, {case.name}, {layout.size:,} parameters",
            unit,
            times[name],
            COPY,
            times[COPY],
            goal=None if most is None else Goal(of="figure" if small else "ratio", most=most),
            settings={"codec": case.name, "parameters": layout.size, "bytes": len(payload)},
        )
