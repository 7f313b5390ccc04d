"""Rotated: one bit a value of a randomly rotated vector."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int8, Int64
from randomgen import ChaCha

from dpcomp.codec.quantize.bfloat16 import read_scales, round_to_bfloat16
from dpcomp.codec.quantize.quantizer import Bounds, equal_bounds
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import PublicContext

LARGEST_BLOCK = 2**16  # the block whose decoded integers float32 just holds, see `_hadamard`
SMALLEST_BLOCK = 2**6  # below it the rotations are too few: at n = 8 the mean is off by up to a tenth
SIGNS_OF_BYTE = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(
    np.float32
)  # of a byte's bits


@dataclass(frozen=True)
class Rotated:
    """Rotate the values at random, and send the sign of each, with a scale (Vargaftik et al. 2021, DRIVE, §4).

    The values of all layers are cut into blocks of n = 2^16 and, of the rest, descending powers of two down to
    2^6. A block x is rotated by R = H D₂ H D₁/n: D are public random signs, H is Hadamard's matrix. It is decoded as
    S Rᵀ sign(R x), with S = ‖x‖²/‖R x‖₁. The last values, fewer than 64, are blocks of one and therefore exact. A
    value takes one bit, the scale of a block two bytes: a bfloat16, by which all of a block is off by up to 1/256.
    ‖error‖² is close to (π/2 − 1)‖x‖² for any x; where the magnitudes of layers differ, the error of the large ones is
    spread over the small ones. `Sign` has a smaller error (36 % of a Gaussian), but shortens x: ⟨decoded, x⟩ is 64 % of
    ‖x‖².

    Over *all* rotations the mean of the decoded block would be x (ibid.); over these it nearly is, so `unbiased` is not
    claimed. Its component along x is right at every draw, but for the rounded scale. Across x, measured from n = 64 on,
    the mean is off by 0.2/n of ‖x‖; and where one value, or a few equal ones, are much larger than all others, by up to
    1.3/√n: 0.5 % in a full block. The source's single H D loses what is orthogonal to such a value whatever n is, up to
    30 % of ‖x‖.

    **Privacy:** post-processing of a release. The signs are public, so they hide nothing (PRIVACY_RULES 16).

    Examples:
        >>> import dpcomp as dp
        >>> values = np.random.default_rng(0).standard_normal(1024).astype(np.float32)
        >>> context = dp.PublicContext(layout=dp.Layout.of(1024), dither_key=dp.PublicSeed(0).key("dither", 0))
        >>> codec = dp.Codec(quantize=dp.Rotated(), entropy=dp.FixedWidth())
        >>> body, decoded = codec.encode(values, dp.Everywhere(), context)
        >>> len(body)  # 1,024 bits, a scale, and a byte for the support
        131
    """

    unbiased = False
    side_holds_values = False
    narrow_levels = True

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return two bytes a block, its scale, and four for each of the values that are exact."""
        k = int(counts.sum())
        return 2 * sum(size > 1 for size in block_sizes(k)) + 4 * (k % SMALLEST_BLOCK)

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """Return 0 (negative) and 1 (positive)."""
        return equal_bounds(len(context.layout.shapes), 0, 1)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int8[np.ndarray, "k"], bytes]:
        """Return whether each rotated value is positive, and the scale of each block."""
        levels, scales = (values >= 0).view(np.int8), []
        for block, signs in _blocks(len(values), context.dither_key):
            rotated, scale = _rotate(values[block], signs)
            levels[block] = rotated >= 0
            scales.append(scale)
        exact = np.abs(values[len(values) - len(values) % SMALLEST_BLOCK :])
        halves = round_to_bfloat16(np.array(scales, dtype=np.float64)).astype("<u2")
        return levels, halves.tobytes() + exact.astype("<f4").tobytes()

    def values(
        self, levels: Int[np.ndarray, "k"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Float32[np.ndarray, "k"]:
        """Return plus or minus the scale, rotated back, and clipped to the range of float32."""
        cut = len(side) - 4 * (len(levels) % SMALLEST_BLOCK)
        scales, magnitudes = read_scales(side[:cut]), np.frombuffer(side[cut:], dtype="<f4").astype(np.float32)
        if np.signbit(magnitudes).any() or not np.isfinite(magnitudes).all():
            raise CorruptPayload("a magnitude is negative or not finite, which no sender writes")
        values = levels.astype(np.float32)
        values *= 2
        values -= 1
        with np.errstate(over="ignore"):
            for scale, (block, signs) in zip(scales, _blocks(len(values), context.dither_key), strict=True):
                np.multiply(_rotate_back(values[block], signs), scale, out=values[block])
        values[len(values) - len(magnitudes) :] *= magnitudes
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


def _rotate(
    block: Float32[np.ndarray, "n"], signs: Float32[np.ndarray, "2 n"]
) -> tuple[Float32[np.ndarray, "n"], float]:
    """Return R x up to a positive factor, and S ÷ 2^⌈m/2⌉, with n = 2^m.

    S ≤ ‖x‖, so what is sent is at most the root of the mean square, which a float32 holds.
    """
    n = len(block)
    exponent = int(np.frexp(np.abs(block).max())[1])
    scaled = np.ldexp(block, -exponent)  # within 1, whatever the values are
    rows = 1 << (n.bit_length() - 1) // 2
    rotated = _hadamard(signs[1] * _hadamard(signs[0] * scaled, rows), rows)
    norm = float(np.abs(rotated).sum(dtype=np.float64)) / n
    if norm == 0:
        return rotated, 0.0
    scale = float(np.square(scaled, dtype=np.float64).sum()) / norm
    return rotated, float(np.ldexp(scale, exponent - n.bit_length() // 2))


def _rotate_back(block: Float32[np.ndarray, "n"], signs: Float32[np.ndarray, "2 n"]) -> Float32[np.ndarray, "n"]:
    """Return 2^⌈m/2⌉ Rᵀ of a block of ±1: whole numbers over 2^⌊m/2⌋, with no rounding."""
    rows = 1 << len(block).bit_length() // 2
    return signs[0] * _hadamard(signs[1] * _hadamard(block, rows), rows) * np.float32(rows / len(block))


def _hadamard(block: Float32[np.ndarray, "n"], rows: int) -> Float32[np.ndarray, "n"]:
    """Return Hadamard's transform of a block without its 1/√n; the block is a matrix, and the result its transpose.

    H of n = rows × columns is H of the rows, times H of the columns. Transposed between the two, the sums run over
    long stretches of memory; the inverse is the same with the columns as rows, ÷ n. Twice, from a block of ±1 and
    with signs changed between: entries and partial sums are whole and, by their norm, at most n^{3/2} ≤ 2^24,
    where float32 is exact. So both ends decode the same bits in whichever order a machine adds.
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
