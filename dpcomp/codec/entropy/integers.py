"""Integers as bytes, seven bits a byte (LEB128), for the parameters that stand before a coded stream."""

from dpcomp.core.errors import CorruptPayload

LONGEST = 5  # bytes of a number below 2^35: nothing on the wire is larger


class IntegerWriter:
    """Appends integers and raw bytes to a byte string."""

    def __init__(self):
        self._bytes = bytearray()

    def number(self, number: int) -> None:
        """Append an integer from 0, below 2³⁵."""
        while number >= 0x80:
            self._bytes.append(number & 0x7F | 0x80)
            number >>= 7
        self._bytes.append(number)

    def signed(self, number: int) -> None:
        """Append an integer of either sign, with the sign in the lowest bit (zigzag)."""
        self.number(2 * number if number >= 0 else -2 * number - 1)

    def raw(self, part: bytes) -> None:
        """Append bytes unchanged."""
        self._bytes += part

    def finish(self) -> bytes:
        """Return all that was appended."""
        return bytes(self._bytes)


class IntegerReader:
    """Reads integers and raw bytes in the order in which they were written; raises CorruptPayload at the end."""

    def __init__(self, body: bytes | memoryview):
        self._body, self._at = memoryview(body), 0

    def number(self) -> int:
        """Read an integer from 0."""
        number = 0
        for place in range(LONGEST):
            byte = self.raw(1)[0]
            number |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return number
        raise CorruptPayload(f"the body has an integer of more than {LONGEST} bytes, which no sender writes")

    def signed(self) -> int:
        """Read an integer of either sign."""
        number = self.number()
        return -(number + 1) // 2 if number & 1 else number // 2

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
        return len(self._body) - self._at
