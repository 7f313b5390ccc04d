"""Measures what the codecs cost and save beside their peers and the bound: python -m benchmarks.codec

Every codec is run as a whole, `pipeline.send` and `pipeline.receive`, on synthetic Laplace values in the layers of a
ResNet-18 and on a recorded gradient of the CIFAR-10 CNN. The script prints one table, and writes it as
docs/benchmarks/codec.json, and the gradient's rows as docs/benchmarks/rate_distortion.png. The columns:

- ratio: dense float32 bytes ÷ len(payload), headers included; bits: 8 len(payload) ÷ d
- ÷ bound: len(payload) ÷ bound. The bound is (log₂ C(d, k) + k·H) ÷ 8 bytes: log₂ C(d, k) only where a support is
  listed, H the levels' empirical entropy, each layer under its own frequencies, which cost nothing here. In the column
  "by layer" the support is coded by layer too: Σ log₂ C(dᵢ, kᵢ). No codec without memory that knows only the layers
  does better.
- error: ‖decoded − target‖² ÷ ‖target‖², where the target is the vector, with error feedback residual + vector
- encode, decode: to a dense vector, in copies of the dense vector into a warm buffer. Work and copies take turns; what
  counts is the median of the ratios of neighbours.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from statistics import median

import numpy as np
import torch
from jaxtyping import Float32
from rich.console import Console
from rich.table import Table

import dpcomp as dp
from analysis.measures.efficiency import compression_ratio
from analysis.measures.payload_rate import PayloadRate
from benchmarks.codec.gradients import recorded_gradients
from benchmarks.codec.peers import Formula, Peer, formulas, peers
from benchmarks.codec.rate_distortion import draw
from benchmarks.harness.records import FOLDER, machine, today, versions
from benchmarks.harness.turns import Effort, measure_in_turns, seconds
from benchmarks.round_trip import RoundTrip
from dpcomp.core.layout import Layout
from dpcomp.training.pytorch.rows.parameters import layout_of
from experiments.data.tasks.cifar10_resnet import task as cifar10_resnet

EFFORT = Effort(turns=5)
COPIES = 5  # of the vector, in a measurement
CORRELATION = 0.9  # of the synthetic vectors of two rounds

Vector = Float32[np.ndarray, "d"]


@dataclass(frozen=True, kw_only=True)
class CodecCase:
    """A codec, with or without error feedback, in its first round or its second."""

    name: str
    family: str
    codec: dp.Codec
    feedback: bool = False
    second: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one codec on one vector; None where a number has no meaning."""

    vector: str
    name: str
    family: str
    origin: str  # ours, peer, or formula: bytes that were computed and not made
    payload_bytes: float
    compression_ratio: float
    bits_a_coordinate: float
    times_bound: float | None = None
    times_bound_by_layer: float | None = None
    relative_squared_error: float
    encode_copies: float | None = None
    decode_copies: float | None = None


def codec_cases() -> Iterator[CodecCase]:
    """Give the codecs of dpcomp that are measured."""
    packed, waterfill = dp.FixedWidth(), dp.Waterfill
    yield CodecCase(name="float32", family="float", codec=dp.Codec())
    yield CodecCase(name="float16", family="float", codec=dp.Codec(quantize=dp.Float16()))
    yield CodecCase(name="INT8, packed", family="Equal, packed", codec=dp.Codec(quantize=dp.Uniform(8), entropy=packed))
    for bits in (4, 2):
        codec = dp.Codec(quantize=dp.Uniform(dp.Equal(bits)), entropy=packed)
        yield CodecCase(name=f"Equal({bits}), packed", family="Equal, packed", codec=codec)
    for bits in (4, 2):
        codec = dp.Codec(quantize=dp.Uniform(waterfill(bits)), entropy=packed)
        yield CodecCase(name=f"Waterfill({bits}), packed", family="Waterfill, packed", codec=codec)
    for bits in (8, 4):
        yield CodecCase(name=f"Uniform({bits})", family="Uniform", codec=dp.Codec(quantize=dp.Uniform(bits)))
    dithered = dp.Codec(quantize=dp.Uniform(4, rounding=dp.Dithered()))
    yield CodecCase(name="Uniform(4), dithered", family="Uniform, dithered", codec=dithered)
    for bits in (4, 3, 2):
        codec = dp.Codec(quantize=dp.Uniform(waterfill(bits)))
        yield CodecCase(name=f"Waterfill({bits})", family="Waterfill", codec=codec)
    for quantizer in (dp.Ternary(), dp.Rotated(), dp.Sign()):
        name = type(quantizer).__name__
        yield CodecCase(name=name, family=name, codec=dp.Codec(quantize=quantizer))
    sparse = {
        f"top {percent} %, Uniform({bits})": dp.Codec(sparsify=dp.TopK(percent / 100), quantize=dp.Uniform(bits))
        for percent in (10, 1)
        for bits in (8, 4)
    }
    for name, codec in sparse.items():
        yield CodecCase(name=name, family="top k, Uniform", codec=codec, feedback=True)
    top = dp.TopK(0.01)
    filled = dp.Codec(sparsify=top, quantize=dp.Uniform(waterfill(4)))
    yield CodecCase(name="top 1 %, Waterfill(4)", family="top k, Waterfill", codec=filled, feedback=True)
    codec = dp.Codec(sparsify=top, quantize=dp.Uniform(4))
    for feedback in (True, False):
        name = f"… second round{'' if feedback else ', no feedback'}"
        yield CodecCase(name=name, family="second round", codec=codec, feedback=feedback, second=True)
    random = dp.Codec(sparsify=dp.RandomK(0.01), quantize=dp.Uniform(8))
    yield CodecCase(name="random 1 %, Uniform(8)", family="random k", codec=random)


def bounds(trip: RoundTrip, payload: bytes) -> tuple[float, float] | None:
    """Compute the bound in bytes, with the support coded as a whole and by layer; None if there are no levels."""
    rate = PayloadRate.of(trip.pipeline, payload, trip.server)
    if np.isnan(rate.value_entropy_bits):
        return None
    supports = (rate.support_entropy_bits, rate.support_entropy_bits_by_layer)
    return (rate.value_entropy_bits + supports[0]) / 8, (rate.value_entropy_bits + supports[1]) / 8


def measure(case: CodecCase | Peer | Formula, vector: str, rounds: list[Vector], layout: Layout) -> Row:
    """Measure one row of the table.

    Args:
        case: What is measured.
        vector: Name of the vector.
        rounds: The vector, and that of the next round.
        layout: Of both.
    """
    target, times, least = rounds[0], (None, None), None
    if isinstance(case, Formula):
        payload_bytes, decoded = case.payload_bytes, case.decoded
    elif isinstance(case, Peer):
        payload = case.encode()
        payload_bytes, decoded = len(payload), case.decode(payload)
        times = times_in_copies(case.encode, lambda: case.decode(payload), rounds[0])
    else:
        trip = RoundTrip(case.codec, rounds, layout, feedback=case.feedback, second=case.second)
        payload = trip.send()
        payload_bytes, decoded = len(payload), trip.receive(payload).dense()
        times = times_in_copies(trip.send, lambda: trip.receive(payload).dense(), rounds[0])
        target, least = trip.target, bounds(trip, payload)
    lost = float(np.sum(np.square(target - decoded, dtype=np.float64)) / np.sum(np.square(target, dtype=np.float64)))
    return Row(
        vector=vector,
        name=case.name,
        family=case.family,
        origin={CodecCase: "ours", Peer: "peer", Formula: "formula"}[type(case)],
        payload_bytes=payload_bytes,
        compression_ratio=compression_ratio(layout.size, payload_bytes),
        bits_a_coordinate=8 * payload_bytes / layout.size,
        times_bound=payload_bytes / least[0] if least else None,
        times_bound_by_layer=payload_bytes / least[1] if least else None,
        relative_squared_error=lost,
        encode_copies=times[0],
        decode_copies=times[1],
    )


def times_in_copies(encode: Callable[[], object], decode: Callable[[], object], vector: Vector) -> tuple[float, float]:
    """Measure encoding and decoding in copies of the vector; both ran once before."""
    buffer = vector.copy()

    def measured(work: Callable[[], object]) -> float:
        for number in range(64):  # pushes random supports out of the library's memory, so that they are drawn anew
            dp.Seeded(number, 1).indices(2)
        return seconds(work)

    turns = measure_in_turns(
        {
            "encode": lambda: measured(encode),
            "copy": lambda: seconds(lambda: np.copyto(buffer, vector), COPIES),
            "decode": lambda: measured(decode),
        },
        EFFORT.turns,
    )
    encoded, decoded = (
        median(spent / copied for spent, copied in zip(turns[name], turns["copy"], strict=True))
        for name in ("encode", "decode")
    )
    return encoded, decoded


def laplace_rounds() -> tuple[Layout, list[Vector]]:
    """Draw Laplace values of two rounds in the layers of a ResNet-18, with log-normal scales (deviation an octave)."""
    layout, rng = layout_of(cifar10_resnet().model(0)), np.random.default_rng(0)
    scales = np.repeat(np.exp2(rng.standard_normal(len(layout.sizes))), layout.sizes).astype(np.float32)
    first, fresh = (rng.laplace(size=layout.size).astype(np.float32) * scales for _ in range(2))
    return layout, [first, np.float32(CORRELATION) * first + np.float32(np.sqrt(1 - CORRELATION**2)) * fresh]


def measured_rows(vector: str, rounds: list[Vector], layout: Layout) -> Iterator[Row]:
    """Measure all rows of one vector."""
    for cases in (codec_cases(), peers(rounds[0], layout), formulas(rounds[0], layout)):
        for case in cases:
            yield measure(case, vector, rounds, layout)


def printed_table(rows: list[Row], titles: dict[str, str]) -> Table:
    """Lay out both vectors one under the other: our codecs, the peers, and the formulas."""
    table = Table(title="the codecs, beside their peers and the bound")
    table.add_column("", no_wrap=True)
    for column in ("ratio", "bits", "÷ bound", "by layer", "error", "encode", "decode"):
        table.add_column(column, justify="right")
    last = ""
    for row in rows:
        if (section := row.vector + row.origin) != last:
            table.add_section()
            heading = {"ours": titles[row.vector], "peer": "peers: bytes without a header", "formula": "formulas"}
            table.add_row(f"[bold]{heading[row.origin]}[/bold]")
            last = section
        bounds = (row.times_bound, row.times_bound_by_layer)
        times = (row.encode_copies, row.decode_copies)
        table.add_row(
            row.name,
            f"{row.compression_ratio:.2f}",
            f"{row.bits_a_coordinate:.3f}",
            *("–" if value is None else f"{value:.3f}" for value in bounds),
            f"{row.relative_squared_error:.2g}" if row.relative_squared_error else "0",
            *("–" if value is None else f"{value:.1f}" for value in times),
        )
    table.caption = "range-coded unless packed; encode and decode in copies of the dense vector"
    return table


def rounded(row: Row) -> Row:
    """Round the numbers of a row to six digits."""
    numbers = {name: value for name, value in asdict(row).items() if isinstance(value, float)}
    return replace(row, **{name: float(f"{value:.6g}") for name, value in numbers.items()})


def main() -> None:
    torch.set_num_threads(1)
    layout, gradients = recorded_gradients()
    vectors = {"Laplace": laplace_rounds(), "gradient": (layout, [*gradients["middle"][:2]])}
    rows, titles = [], {}
    for name, (layout, rounds) in vectors.items():
        correlation = float(np.corrcoef(*rounds)[0, 1])
        titles[name] = f"{name}: d = {layout.size:,}, ρ of two rounds {correlation:.2f}"
        rows += [rounded(row) for row in measured_rows(name, rounds, layout)]
    Console(width=120).print(printed_table(rows, titles))
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = {
        "format": 2,
        "date": today(),
        "vectors": titles,
        "versions": versions(),
        "machine": machine(),
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (FOLDER / "codec.json").write_text(text + "\n", encoding="utf-8")
    layout, (values, _) = vectors["gradient"]
    points = [asdict(row) for row in rows if row.vector == "gradient"]
    draw(points, values, layout).savefig(FOLDER / "rate_distortion.png")


if __name__ == "__main__":
    main()
