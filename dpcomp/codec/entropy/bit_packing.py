"""Whole numbers in a fixed number of bits each, least significant bit first, packed by 64-bit words.

Eight numbers of b bits are b bytes. In memory they are eight lanes of 8, 16 or 32 bits, the smallest that hold b; lanes
are joined in pairs, until a word holds as many numbers as fit, and the words are shifted together. The bytes are
those of packing bit by bit.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Int, Shaped, UInt8

PACK_CHUNK = 2**15  # numbers that are packed at once, in a core's own cache; a multiple of 8: a chunk ends on a byte
WORD = np.uint64


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that so many numbers take, the last one filled up."""
    return (count * bits + 7) // 8


def pack(numbers: Int[np.ndarray, "m"], lowest: int, bits: int) -> UInt8[np.ndarray, "bytes"]:
    """Pack the differences of whole numbers from the lowest one.

    Args:
        numbers: The (m,) numbers, each from `lowest` to `lowest` + 2^bits − 1.
        lowest: What is subtracted from them.
        bits: The bits of a difference, from 1 to 32.

    Returns:
        ⌈m·bits ÷ 8⌉ bytes.
    """
    if (bits, lowest, numbers.itemsize) == (1, 0, 1):
        return np.packbits(numbers.view(np.uint8), bitorder="little")
    packed, lane = np.empty(packed_bytes(len(numbers), bits), dtype=np.uint8), _lane(bits)
    room = np.empty(min(PACK_CHUNK, -(-len(numbers) // 8) * 8), dtype=lane)
    offset = np.array(lowest).astype(lane)  # lanes wrap, and the difference fits into one
    for start in range(0, len(numbers), PACK_CHUNK):
        chunk = numbers[start : start + PACK_CHUNK]
        differences = room[: -(-len(chunk) // 8) * 8]
        np.subtract(chunk, offset, out=differences[: len(chunk)], dtype=lane, casting="unsafe")
        differences[len(chunk) :] = 0
        first = start // 8 * bits
        here = packed[first : first + len(differences) // 8 * bits]
        here[:] = _squeezed(differences, bits)[: len(here)]
    return packed


def unpack(packed: UInt8[np.ndarray, "bytes"], lowest: int, bits: int, out: Int[np.ndarray, "m"]) -> None:
    """Unpack numbers, and add the lowest one: the inverse of `pack`.

    Args:
        packed: The bytes.
        lowest: What is added to the numbers.
        bits: The bits of a number, from 1 to 32.
        out: The (m,) array that the numbers are written to. Where its type does not hold one, it wraps.
    """
    offset = np.array(lowest).astype(out.dtype)
    for start in range(0, len(out), PACK_CHUNK):
        here = out[start : start + PACK_CHUNK]
        groups, first = -(-len(here) // 8), start // 8 * bits
        numbers = _spread(packed[first : first + groups * bits], groups, bits)[: len(here)]
        np.add(numbers, offset, out=here, dtype=out.dtype, casting="unsafe")


def _lane(bits: int) -> type[np.unsignedinteger]:
    return np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32


def _squeezed(numbers: Shaped[np.ndarray, "m"], bits: int) -> UInt8[np.ndarray, "bytes"]:
    """Return the bytes of numbers in lanes, a multiple of eight of them, without the gaps between."""
    if bits == 1:
        return np.packbits(numbers, bitorder="little")
    if bits in (8, 16, 32):
        return numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    if bits in (2, 4):
        for width in (2, 4)[bits // 4 :]:  # a byte of two numbers out of two bytes
            pairs = numbers.view("<u2")
            numbers = (pairs | pairs >> np.uint16(8 - width)).astype(np.uint8)
        return numbers
    words, width = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).view("<u8"), 8 * numbers.itemsize
    span = bits
    while width < 64:
        low = _lanes(span, 2 * width)
        words = words & low | words >> WORD(width - span) & low << WORD(span)
        width, span = 2 * width, 2 * span
    parts = words.reshape(-1, 8 * bits // span)  # a row holds eight numbers
    row = np.zeros((len(parts), -(-bits // 8)), dtype="<u8")
    for number in range(parts.shape[1]):
        place, shift = divmod(number * span, 64)
        row[:, place] |= parts[:, number] << WORD(shift)
        if shift + span > 64:
            row[:, place + 1] |= parts[:, number] >> WORD(64 - shift)
    return row.view(np.uint8)[:, :bits].reshape(-1)


def _spread(packed: UInt8[np.ndarray, "bytes"], groups: int, bits: int) -> Shaped[np.ndarray, "m"]:
    """Return eight numbers in lanes for each group of `bits` bytes; bytes that are missing at the end are zeros."""
    if bits == 1:
        return np.unpackbits(packed, count=8 * groups, bitorder="little")
    if len(packed) < groups * bits:
        packed = np.concatenate([packed, np.zeros(groups * bits - len(packed), dtype=np.uint8)])
    if bits in (8, 16, 32):
        return packed.view(f"<u{bits // 8}")
    if bits in (2, 4):
        for width in (4, 2)[: 4 // bits]:
            pairs = packed.astype("<u2")
            pairs |= pairs << np.uint16(8 - width)
            pairs &= np.uint16(((1 << width) - 1) * 0x0101)
            packed = pairs.view(np.uint8)
        return packed
    row = np.zeros((groups, -(-bits // 8) * 8), dtype=np.uint8)
    row[:, :bits] = packed.reshape(groups, bits)
    row, lane = row.view("<u8"), 8 * np.dtype(_lane(bits)).itemsize
    span = bits * 64 // lane
    parts = np.empty((groups, 8 * bits // span), dtype="<u8")
    mask = WORD((1 << span) - 1)
    for number in range(parts.shape[1]):
        place, shift = divmod(number * span, 64)
        parts[:, number] = row[:, place] >> WORD(shift)
        if shift + span > 64:
            parts[:, number] |= row[:, place + 1] << WORD(64 - shift)
        parts[:, number] &= mask
    words, width = parts.reshape(-1), 64
    while width > lane:
        width, span = width // 2, span // 2
        low = _lanes(span, 2 * width)
        words = words & low | (words & low << WORD(span)) << WORD(width - span)
    return words.view(f"<u{lane // 8}")


@lru_cache(maxsize=256)
def _lanes(span: int, width: int) -> np.uint64:
    """Return a word whose lanes of `width` bits have their lowest `span` bits set."""
    return WORD(sum(((1 << span) - 1) << place for place in range(0, 64, width)))
