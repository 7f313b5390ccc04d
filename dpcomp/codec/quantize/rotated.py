"""Rotated: one to four bits a value of a randomly rotated vector."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int, Int8, Int64
from randomgen import ChaCha

from dpcomp.codec.quantize.bfloat16 import read_scales, round_to_bfloat16
from dpcomp.codec.quantize.quantizer import Bounds, equal_bounds
from dpcomp.core.checks import whole_number
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import PublicContext

LARGEST_BLOCK = 2**16  # the block whose decoded integers float32 just holds, see `_hadamard`
# The values above zero of the levels, by bits: those that are optimal for a Gaussian (Max 1960, Table I) stand to
# each other as these whole numbers do, within 1 % of the largest.
CENTROIDS = {1: (1,), 2: (3, 10), 3: (9, 28, 50, 80), 4: (6, 18, 31, 44, 59, 76, 97, 128)}
UNITS = {2: 0.151, 3: 0.0269, 4: 0.02135}  # of these numbers, in standard deviations
SMALLEST_BLOCK = 2**6  # below it the rotations are too few: at n = 8 the mean is off by up to a tenth
SIGNS_OF_BYTE = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(
    np.float32
)  # of a byte's bits


@dataclass(frozen=True)
class Rotated:
    """Rotate the values at random, and send each in a few bits, with a scale (DRIVE and EDEN, Vargaftik et al.).

    The values of all layers are cut into blocks of n = 2^16 and, of the rest, descending powers of two down to
    2^6. A block x is rotated by R = H D₂ H D₁/n: D are public random signs, H is Hadamard's matrix. It is decoded as
    S Rᵀ Q(R x): Q takes each value to the nearest of the 2ᵇ that suit a Gaussian best, with one bit to its sign, and
    S = ‖x‖²/⟨R x, Q(R x)⟩ (Vargaftik et al. 2021, §4; 2022, §3). The last values, fewer than 64, are blocks of one and
    therefore exact. The scale of a block takes two bytes: a bfloat16, by which all of a block is off by up to 1/256.
    ‖error‖² is close to 0.571, 0.133, 0.036 and 0.010 of ‖x‖² for 1 to 4 bits and any x (π/2 − 1 for one bit); where
    the magnitudes of layers differ, the error of the large ones is spread over the small ones. `Sign` has a smaller
    error than one bit (36 % of a Gaussian), but shortens x: ⟨decoded, x⟩ is 64 % of ‖x‖².

    Over *all* rotations the mean of the decoded block would be x (ibid.); over these it nearly is, so `unbiased` is not
    claimed. Its component along x is right at every draw, but for the rounded scale. Across x, measured from n = 64 on,
    the mean is off by 0.2/n of ‖x‖; and where one value, or a few equal ones, are much larger than all others, by up to
    1.3/√n: 0.5 % in a full block. The source's single H D loses what is orthogonal to such a value whatever n is, up to
    30 % of ‖x‖.

    **Privacy:** post-processing of a release. The signs are public, so they hide nothing (PRIVACY_RULES 16).

    Attributes:
        bits: Bits a value, from 1 to 4.

    Raises:
        TypeError: `bits` is not a whole number.
        ValueError: `bits` lies outside [1, 4].

    Examples:
        >>> import dpcomp as dp
        >>> values = np.random.default_rng(0).standard_normal(1024).astype(np.float32)
        >>> context = dp.PublicContext(layout=dp.Layout.of(1024), dither_key=dp.PublicSeed(0).key("dither", 0))
        >>> codec = dp.Codec(quantize=dp.Rotated(), entropy=dp.FixedWidth())
        >>> body, decoded = codec.encode(values, dp.Everywhere(), context)
        >>> len(body)  # 1,024 bits, a scale, and a byte for the support
        131
    """

    bits: int = 1
    unbiased = False
    side_holds_values = False
    narrow_levels = True

    def __post_init__(self):
        object.__setattr__(self, "bits", whole_number(self.bits, "Rotated(bits)", least=1, most=max(CENTROIDS)))

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return two bytes a block, its scale, and four for each of the values that are exact."""
        k = int(counts.sum())
        return 2 * sum(size > 1 for size in block_sizes(k)) + 4 * (k % SMALLEST_BLOCK)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """Return 0, for the least of the values, and 2ᵇ − 1."""
        return equal_bounds(len(context.layout.shapes), 0, 2**self.bits - 1)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int8[np.ndarray, "k"], bytes]:
        """Return which of the 2ᵇ values is nearest to each rotated one, and the scale of each block."""
        levels, scales = (values >= 0).view(np.int8) * np.int8(2**self.bits - 1), []
        for block, signs in _blocks(len(values), context.dither_key):
            levels[block], scale = _nearest(values[block], signs, self.bits)
            scales.append(scale)
        exact = np.abs(values[len(values) - len(values) % SMALLEST_BLOCK :])
        halves = round_to_bfloat16(np.array(scales, dtype=np.float64)).astype("<u2")
        return levels, halves.tobytes() + exact.astype("<f4").tobytes()

    def values(
        self, levels: Int[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Return the values of the levels, rotated back, times the scale, and clipped to the range of float32."""
        cut = len(side) - 4 * (len(levels) % SMALLEST_BLOCK)
        scales, magnitudes = read_scales(side[:cut]), np.frombuffer(side[cut:], dtype="<f4").astype(np.float32)
        if np.signbit(magnitudes).any() or not np.isfinite(magnitudes).all():
            raise CorruptPayload("a magnitude is negative or not finite, which no sender writes")
        values = _of_levels(self.bits)[levels]
        exact = slice(len(values) - len(magnitudes), None)
        values[exact] = np.sign(values[exact]) * magnitudes
        with np.errstate(over="ignore"):
            for scale, (block, signs) in zip(scales, _blocks(len(values), context.dither_key), strict=True):
                np.multiply(_rotate_back(values[block], signs), scale, out=values[block])
        largest = np.finfo(np.float32).max
        return np.clip(values, -largest, largest, out=values)


def block_sizes(k: int) -> list[int]:
    """Return the sizes of the blocks into which k values are cut, each of which is rotated and has a scale of its own.

    They add up to k: 2^16 as often as it goes, then descending powers of two down to 2^6, then ones.
    """
    rest = k % LARGEST_BLOCK
    powers = [1 << bit for bit in range(15, -1, -1) if 1 << bit >= SMALLEST_BLOCK and rest & 1 << bit]
    return [LARGEST_BLOCK] * (k // LARGEST_BLOCK) + powers + [1] * (rest % SMALLEST_BLOCK)


def _blocks(k: int, dither_key: int) -> Iterator[tuple[slice, Float32[np.ndarray, "2 n"]]]:
    """Yield where each block of more than one value lies, and its public random signs."""
    stream, start = ChaCha(key=dither_key, rounds=20), 0
    for n in block_sizes(k):
        if n > 1:
            words = np.asarray(stream.random_raw(2 * n // 64)).astype("<u8")
            yield slice(start, start + n), np.take(SIGNS_OF_BYTE, words.view(np.uint8), axis=0).reshape(2, n)
            start += n


def _nearest(
    block: Float32[np.ndarray, "n"], signs: Float32[np.ndarray, "2 n"], bits: int
) -> tuple[Int8[np.ndarray, "n"], float]:
    """Return the levels of R x, and S ÷ 2^⌈m/2⌉, with n = 2^m.

    The values of levels are whole numbers, none of them zero, so S ≤ ‖x‖, and what is sent is at most the root of the
    mean square, which a float32 holds.
    """
    n = len(block)
    exponent = int(np.frexp(np.abs(block).max())[1])
    scaled = np.ldexp(block, -exponent)  # within 1, whatever the values are
    rows = 1 << (n.bit_length() - 1) // 2
    rotated = _hadamard(signs[1] * _hadamard(signs[0] * scaled, rows), rows)  # n R x
    energy = float(np.square(scaled, dtype=np.float64).sum())
    if bits == 1:
        levels, along = (rotated >= 0).view(np.int8), float(np.abs(rotated).sum(dtype=np.float64)) / n
    else:
        values, unit = _of_levels(bits).astype(np.float64), UNITS[bits] * math.sqrt(n * energy)
        levels = np.searchsorted(unit * (values[1:] + values[:-1]) / 2, rotated, side="right").astype(np.int8)
        along = float(values[levels] @ rotated) / n
    if along <= 0:
        return levels, 0.0
    return levels, float(np.ldexp(energy / along, exponent - n.bit_length() // 2))


@lru_cache(maxsize=8)
def _of_levels(bits: int) -> Float32[np.ndarray, "levels"]:
    """Return the values of the levels, ascending."""
    above = np.array(CENTROIDS[bits], dtype=np.float32)
    return np.concatenate([-above[::-1], above])


def _rotate_back(block: Float32[np.ndarray, "n"], signs: Float32[np.ndarray, "2 n"]) -> Float32[np.ndarray, "n"]:
    """Return 2^⌈m/2⌉ Rᵀ of a block of values of levels; of ±1, whole numbers over 2^⌊m/2⌋ with no rounding."""
    rows = 1 << len(block).bit_length() // 2
    return signs[0] * _hadamard(signs[1] * _hadamard(block, rows), rows) * np.float32(rows / len(block))


def _hadamard(block: Float32[np.ndarray, "n"], rows: int) -> Float32[np.ndarray, "n"]:
    """Return Hadamard's transform of a block without its 1/√n; the block is a matrix, and the result its transpose.

    H of n = rows × columns is H of the rows, times H of the columns. Transposed between the two, the sums run over
    long stretches of memory; the inverse is the same with the columns as rows, ÷ n. Twice, from a block of ±1 and
    with signs changed between: entries and partial sums are whole and, by their norm, at most n^{3/2} ≤ 2^24,
    where float32 is exact. Other levels may be rounded; sums of two float32 numbers in this order, they are the same
    at both ends.
    """
    columns = len(block) // rows
    halved = _hadamard_of_rows(block, rows)
    return _hadamard_of_rows(np.ascontiguousarray(halved.reshape(rows, columns).T).reshape(-1), columns)


def _hadamard_of_rows(block: Float32[np.ndarray, "n"], rows: int) -> Float32[np.ndarray, "n"]:
    """Multiply the block, as a matrix of so many rows, by H of the rows, unscaled."""
    spare = [np.empty_like(block), np.empty_like(block)]
    for step in range(rows.bit_length() - 1):
        pairs = block.reshape(1 << step, 2, -1)
        block = spare[step % 2]
        sums = block.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
    return block
