"""Whole numbers as bytes, seven bits a byte (LEB128), for what stands before a coded stream."""

from dpcomp.core.errors import CorruptPayload

LONGEST = 5  # bytes of a number below 2^35: nothing on the wire is larger


class IntegerWriter:
    """Gathers numbers and raw bytes."""

    def __init__(self):
        self._bytes = bytearray()

    def number(self, number: int) -> None:
        """A number from 0."""
        while number >= 0x80:
            self._bytes.append(number & 0x7F | 0x80)
            number >>= 7
        self._bytes.append(number)

    def signed(self, number: int) -> None:
        """Any number, the sign in the lowest bit."""
        self.number(2 * number if number >= 0 else -2 * number - 1)

    def raw(self, part: bytes) -> None:
        """Bytes as they are."""
        self._bytes += part

    def finish(self) -> bytes:
        """All of it."""
        return bytes(self._bytes)


class IntegerReader:
    """Reads what a writer gathered, in the same order."""

    def __init__(self, body: bytes | memoryview):
        self._body, self._at = memoryview(body), 0

    def number(self) -> int:
        """A number from 0."""
        number = 0
        for place in range(LONGEST):
            byte = self.raw(1)[0]
            number |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return number
        raise CorruptPayload(f"a number of more than {LONGEST} bytes stands in the body")

    def signed(self) -> int:
        """Any number, the sign in the lowest bit."""
        number = self.number()
        return -(number + 1) // 2 if number & 1 else number // 2

    def raw(self, length: int) -> memoryview:
        """Bytes as they are, and where they are."""
        part = self._body[self._at : self._at + length]
        if len(part) < length:
            raise CorruptPayload(f"the body ends {length - len(part)} bytes early")
        self._at += length
        return part

    @property
    def left(self) -> int:
        """How many bytes were not read."""
        return len(self._body) - self._at
