"""A network that loses, repeats, holds back and damages messages, as a seed says."""

from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, each with its probability.

    A message: `drop`, `duplicate`, `corrupt`; `reorder` holds it back for up to `delay` ticks, in which others
    overtake it. A client, in a round: `crash` at a moment of its own; `absence`, for 1 to `absence_rounds` rounds. The
    server, in a round: `server_restart`, from what it had written. A round waits `patience` ticks for its updates, and
    as long for its broadcast; who has no answer asks again after `retry`.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    delay: int = 3
    crash: float = 0.0
    absence: float = 0.0
    absence_rounds: int = 1
    server_restart: float = 0.0
    patience: int = 12
    retry: int = 3

    def __post_init__(self):
        for name in ("drop", "duplicate", "corrupt", "reorder", "crash", "absence", "server_restart"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Faults({name}={getattr(self, name)!r}): it is a probability, in [0, 1]")
        for name in ("delay", "absence_rounds", "patience", "retry"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Faults({name}={value!r}): it is a whole number, at least 1")


class Network:
    """Messages on their way, in ticks; without faults each arrives at the next, in order."""

    def __init__(self, faults: Faults, stream: np.random.Generator):
        self._faults, self._stream = faults, stream
        self._coming: deque[list[tuple[int, int, bytes]]] = deque()

    def send(self, sender: int, recipient: int, message: bytes) -> None:
        """Put a message on its way."""
        faults = self._faults
        for _ in range(1 + self._happens(faults.duplicate)):
            if self._happens(faults.drop):
                continue
            ticks = 1 + (int(self._stream.integers(1, faults.delay + 1)) if self._happens(faults.reorder) else 0)
            while len(self._coming) < ticks:
                self._coming.append([])
            arrives = damaged(message, self._stream) if self._happens(faults.corrupt) else message
            self._coming[ticks - 1].append((sender, recipient, arrives))

    def tick(self) -> list[tuple[int, int, bytes]]:
        """What arrives now: (sender, recipient, message)."""
        return self._coming.popleft() if self._coming else []

    @property
    def quiet(self) -> bool:
        """Whether nothing is on its way."""
        return not any(self._coming)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._stream.random() < probability


def damaged(message: bytes, stream: np.random.Generator) -> bytes:
    """A message with a bit turned, or without its end."""
    if len(message) and stream.random() < 0.2:
        return message[: stream.integers(len(message))]
    bytes_ = bytearray(message)
    bytes_[stream.integers(len(bytes_))] ^= 1 << int(stream.integers(8))
    return bytes(bytes_)
