"""Integers as bytes, seven bits a byte (LEB128), for the parameters that stand before a coded stream."""

from collections.abc import Sequence

from dpcomp.core.errors import CorruptPayload

LONGEST = 5  # bytes of a number below 2^35: nothing on the wire is larger
COPIED_BYTES = 2**12  # up to which raw bytes are copied among the integers; longer ones may be as long as the vector


class IntegerWriter:
    """Appends integers and raw bytes to a byte string."""

    def __init__(self):
        self._parts: list[bytes | bytearray | memoryview] = []
        self._bytes = bytearray()  # the last part

    def number(self, number: int) -> None:
        """Append an integer from 0, below 2³⁵."""
        while number >= 0x80:
            self._bytes.append(number & 0x7F | 0x80)
            number >>= 7
        self._bytes.append(number)

    def signed(self, number: int) -> None:
        """Append an integer of either sign, with the sign in the lowest bit (zigzag)."""
        self.number(2 * number if number >= 0 else -2 * number - 1)

    def raw(self, part: bytes | memoryview) -> None:
        """Append bytes unchanged."""
        if len(part) <= COPIED_BYTES:
            self._bytes += part
            return
        self._parts += (self._bytes, part)
        self._bytes = bytearray()

    def parts(self) -> Sequence[bytes | bytearray | memoryview]:
        """Return all that was appended, in parts; long raw bytes are a part of their own, and not copied."""
        return (*self._parts, self._bytes)

    def finish(self) -> bytes:
        """Return all that was appended."""
        return b"".join(self.parts())


class IntegerReader:
    """Reads integers and raw bytes in the order in which they were written; raises CorruptPayload at the end."""

    def __init__(self, body: bytes | memoryview):
        self._body, self._length, self._at = memoryview(body), len(body), 0

    def number(self) -> int:
        """Read an integer from 0."""
        number = 0
        for place in range(LONGEST):
            if self._at == self._length:
                raise CorruptPayload("the body ends a byte early")
            byte = self._body[self._at]
            self._at += 1
            number |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return number
        raise CorruptPayload(f"the body has an integer of more than {LONGEST} bytes, which no sender writes")

    def skipped(self, number: int) -> bool:
        """Return whether a number below 2⁷ comes next, which is then read."""
        if not self.left or self._body[self._at] != number:
            return False
        self._at += 1
        return True

    def signed(self) -> int:
        """Read an integer of either sign."""
        number = self.number()
        return -(number + 1) // 2 if number & 1 else number // 2

    def byte(self) -> int:
        """Read one byte."""
        if self._at == self._length:
            raise CorruptPayload("the body ends a byte early")
        self._at += 1
        return self._body[self._at - 1]

    def raw(self, length: int) -> memoryview:
        """Read bytes, as a view of the body."""
        part = self._body[self._at : self._at + length]
        if len(part) < length:
            raise CorruptPayload(f"the body ends {length - len(part)} bytes early")
        self._at += length
        return part

    @property
    def left(self) -> int:
        """The number of bytes that were not read yet."""
        return self._length - self._at
