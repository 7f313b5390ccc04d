"""Measures what allocating bits by layer is worth on real gradients: python -m benchmarks.codec.allocation

Gradients of the CIFAR-10 CNN, early, middle and late in training, are encoded under both rules; the table shows the
ratio of squared errors at equal payload bytes, mean over rounds. Small differences in size are corrected for: a bit a
coordinate is worth a factor of four in the error (6.02 dB). Then what DP noise does to it, and what blocks finer than
the layer gain.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int64
from rich.console import Console
from rich.table import Table

import dpcomp as dp
from benchmarks.codec.gradients import recorded_gradients
from dpcomp.codec.error_curves import WIDTHS, error_curves
from dpcomp.codec.magnitudes import magnitudes_of
from dpcomp.codec.wiener import mean_squares
from dpcomp.core.layout import Layout, split_by_counts
from dpcomp.core.public_context import PublicContext

BITS = (2, 3, 4)


def encoded(
    codec: dp.Codec, values: Float32[np.ndarray, "d"], layout: Layout
) -> tuple[float, Float32[np.ndarray, "d"]]:
    """Encode and decode values: the bits a coordinate on the wire, and the decoded vector."""
    body, decoded = codec.encode(values, dp.Everywhere(), PublicContext(layout=layout))
    return 8 * len(body) / len(values), decoded


def error_ratio(first: dp.Codec, second: dp.Codec, rounds: Float32[np.ndarray, "r d"], layout: Layout) -> float:
    """Compute the squared error of the first codec ÷ that of the second at equal bytes, mean over rounds."""
    ratios = []
    for values in rounds:
        (first_bits, first_decoded), (second_bits, second_decoded) = (
            encoded(codec, values, layout) for codec in (first, second)
        )
        errors = [float(np.sum((values - decoded) ** 2.0)) for decoded in (first_decoded, second_decoded)]
        ratios.append(errors[0] / errors[1] * 4.0 ** (first_bits - second_bits))
    return float(np.mean(ratios))


def coding_gain(rounds: Float32[np.ndarray, "r d"], layout: Layout) -> float:
    """Compute the weighted arithmetic mean ÷ the geometric mean of the layers' variances, mean over rounds."""
    shares, gains = np.array(layout.sizes) / layout.size, []
    for values in rounds:
        powers = mean_squares(values, layout)
        gains.append((shares @ powers) / np.exp(shares @ np.log(powers)))
    return float(np.mean(gains))


def side_bytes(codec: dp.Codec, layout: Layout) -> int:
    """Count the bytes that describe the blocks on the wire, beside their levels and the tables of those."""
    return codec.quantizer.side_bytes(np.array(layout.sizes), PublicContext(layout=layout))


def by_channel(layout: Layout) -> Layout:
    """Make every output channel of a weight a layer of its own, before the layers that have no channels."""
    wide = {name: shape for name, shape in layout.shapes if len(shape) > 1}
    rest = {name: shape for name, shape in layout.shapes if len(shape) <= 1}
    return Layout.of({f"{name}[{channel}]": s[1:] for name, s in wide.items() for channel in range(s[0])} | rest)


def channel_order(layout: Layout) -> Int64[np.ndarray, "d"]:
    """Give the position in the layout of each coordinate of `by_channel`."""
    spans = [np.arange(start, stop) for start, stop in pairwise(layout.edges)]
    shapes = [shape for _, shape in layout.shapes]
    first = [span for span, shape in zip(spans, shapes, strict=True) if len(shape) > 1]
    return np.concatenate(first + [span for span, shape in zip(spans, shapes, strict=True) if len(shape) <= 1])


@dataclass(frozen=True)
class SameWidths:
    """Equal widths, with the best step for each layer: separates what the steps are worth from what the widths are."""

    bits: int

    def widths_and_steps(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Give every layer the same width, and the step of least error."""
        column = int(np.flatnonzero(self.bits == WIDTHS)[0])
        layers = split_by_counts(values, counts)
        _, steps = error_curves(magnitudes_of(layers), np.full(len(layers), self.bits))
        return (self.bits,) * len(layers), tuple(steps[:, column].tolist())

    def steps(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """Give the same steps to an entropy coder."""
        return self.widths_and_steps(values, counts)[1]


def under_noise(bits: float, share: float, rounds: Float32[np.ndarray, "r d"], layout: Layout) -> float:
    """Compute the excess error over the MMSE of the classic rule ÷ that of the noise-aware one, at equal bytes.

    Both rules decode with the same Wiener factors, from s² averaged over the phase's rounds, as a client can track it.

    Args:
        bits: Rate of the allocator, a coordinate.
        share: σ of the noise ÷ the median layer's root mean square.
        rounds: Clean gradients.
        layout: Of a gradient.
    """
    rng, signal = np.random.default_rng(0), np.mean([mean_squares(values, layout) for values in rounds], axis=0)
    sigma = share * float(np.sqrt(np.median(signal)))
    factors = np.repeat(signal / (signal + sigma**2), layout.sizes).astype(np.float32)
    ratios = []
    fill = dp.Codec(quantize=dp.Uniform(dp.Waterfill(bits)))
    for values in rounds:
        noisy = values + (sigma * rng.standard_normal(len(values))).astype(np.float32)
        least = float(np.sum((factors * noisy - values) ** 2.0))
        bits_classic, classic = encoded(fill, noisy, layout)
        bits_aware, aware = encoded(fill, factors * noisy, layout)
        excess = [float(np.sum((estimate - values) ** 2.0)) - least for estimate in (factors * classic, aware)]
        ratios.append(excess[0] / excess[1] * 4.0 ** (bits_classic - bits_aware))
    return float(np.mean(ratios))


def main() -> None:
    """Measure, and print the tables."""
    layout, phases = recorded_gradients()
    console, channels = Console(width=132), by_channel(layout)
    table = Table(title="error ÷ error of Waterfill at equal bytes")
    columns = (
        "coding gain",
        "Equal, coded",
        "÷ gain",
        "one step",
        "Equal, packed",
        "at best steps",
        "by channel",
        "ideal",
        "bytes more",
    )
    for column in ("phase", "bits", *columns):
        table.add_column(column)
    for phase, rounds in phases.items():
        gain, order = coding_gain(rounds, layout), channel_order(layout)
        finer_gain = coding_gain(rounds[:, order], channels) / gain
        for bits in BITS:
            equal, fill = (dp.Codec(quantize=dp.Uniform(rule(bits))) for rule in (dp.Equal, dp.Waterfill))
            step = dp.Waterfill(bits).steps(rounds[0], np.array(layout.sizes))[0]
            one_step = error_ratio(dp.Codec(quantize=dp.Uniform(dp.FixedStep(step))), fill, rounds[:1], layout)
            plain, fitted, packed = (
                dp.Codec(quantize=dp.Uniform(rule), entropy=dp.FixedWidth())
                for rule in (bits, SameWidths(bits), dp.Waterfill(bits))
            )
            coded_gain = error_ratio(equal, fill, rounds, layout)
            by_layer, finer = (
                np.mean([encoded(fill, values, cut)[0] for values in given])
                for given, cut in ((rounds, layout), (rounds[:, order], channels))
            )
            errors = (
                np.mean([np.sum((values - encoded(fill, values, cut)[1]) ** 2.0) for values in given])
                for given, cut in ((rounds, layout), (rounds[:, order], channels))
            )
            coarse_error, fine_error = errors
            row = (
                *(gain, coded_gain, coded_gain / gain, one_step),
                *(error_ratio(rule, packed, rounds, layout) for rule in (plain, fitted)),
                *(float(coarse_error / fine_error) * 4.0 ** float(by_layer - finer), finer_gain),
            )
            more = side_bytes(fill, channels) - side_bytes(fill, layout)
            table.add_row(phase, str(bits), *(f"{number:.3f}" for number in row), f"{more:,}")
    console.print(table)
    finer = f"{len(channels.shapes)} blocks (output channels, and layers that have none)"
    console.print(f"by channel: {finer} for {len(layout.shapes)} layers of {layout.size:,} values")
    console.print("bytes more: the steps of those blocks, which the gain on the wire pays for")
    noise = Table(title="excess error over the MMSE, classic ÷ noise-aware, 2 bits, same Wiener decoder")
    for column in ("phase", "σ = 1 × median signal", "2 ×", "4 ×"):
        noise.add_column(column)
    for phase, rounds in phases.items():
        noise.add_row(phase, *(f"{under_noise(2, share, rounds, layout):.2f}" for share in (1.0, 2.0, 4.0)))
    console.print(noise)


if __name__ == "__main__":
    main()
