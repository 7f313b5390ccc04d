"""A network that loses, repeats, delays and damages messages, at configured rates and by a seed."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from dpcomp.core.checks import real_number, whole_number


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults of a simulated federation, each with its probability. The default has none.

    Time is counted in ticks. A tick is the unit of simulated time: the time that a message takes from sender to
    recipient if nothing delays it. It has no length in seconds.

    Args:
        drop: Probability that a message is lost.
        duplicate: Probability that a message is sent twice.
        corrupt: Probability that a message arrives with a flipped bit, or cut short.
        reorder: Probability that a message is delayed, so that later ones overtake it.
        delay: The longest such delay in ticks; the delay is drawn uniformly from 1 to this number.
        crash: Probability that a client crashes in a round, at one of four moments: as the round begins, before it
            saves its update, before it sends it, or after.
        absence: Probability that a client leaves in a round.
        absence_rounds: The longest such absence in rounds.
        server_restart: Probability that the server restarts before a round, from what it had saved.
        patience: Ticks that a round waits for updates, and again for its broadcast to be followed.
        retry: Ticks after which a client without a reply sends again.

    Raises:
        TypeError, ValueError: A probability is not in [0, 1], or a number of ticks or rounds is no whole number from 1
            on.

    Examples:
        >>> from dpcomp.simulation import Faults
        >>> Faults(drop=0.3, crash=0.01).patience
        12
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
            probability = getattr(self, name)
            if not 0 <= real_number(probability, f"Faults({name})", "a probability in [0, 1]") <= 1:
                raise ValueError(f"Faults({name}) is {probability!r}: give a probability in [0, 1]")
        for name in ("delay", "absence_rounds", "patience", "retry"):
            object.__setattr__(self, name, whole_number(getattr(self, name), f"Faults({name})", least=1))

    @property
    def on_network(self) -> bool:
        """Whether messages may be lost, repeated, damaged or delayed."""
        return any((self.drop, self.duplicate, self.corrupt, self.reorder))


class Network:
    """Carries messages, and loses, repeats, delays and damages some of them; without faults one takes one tick.

    A tick is the unit of simulated time, as `Faults` says; the time stands still until `tick` is called.

    Args:
        faults: The probabilities of `drop`, `duplicate`, `corrupt` and `reorder`, and the longest `delay` in ticks.
        stream: The generator that faults are drawn from.
    """

    def __init__(self, faults: Faults, stream: np.random.Generator):
        self._faults, self._stream = faults, stream
        self._arrivals: deque[list[tuple[int, int, bytes]]] = deque()  # the first entry arrives at the next tick

    def send(self, sender: int, recipient: int, message: bytes) -> None:
        """Send a message, which may be lost, repeated, delayed or damaged.

        Args:
            sender: The number of the client that sends, or `SERVER`.
            recipient: The number of the client that shall receive it, or `SERVER`.
            message: The bytes.
        """
        faults = self._faults
        for _ in range(1 + self._happens(faults.duplicate)):
            if self._happens(faults.drop):
                continue
            ticks = 1 + (int(self._stream.integers(1, faults.delay + 1)) if self._happens(faults.reorder) else 0)
            while len(self._arrivals) < ticks:
                self._arrivals.append([])
            arriving = damaged(message, self._stream) if self._happens(faults.corrupt) else message
            self._arrivals[ticks - 1].append((sender, recipient, arriving))

    def tick(self) -> list[tuple[int, int, bytes]]:
        """Advance the clock by one tick, and return what arrives: (sender, recipient, message)."""
        return self._arrivals.popleft() if self._arrivals else []

    @property
    def idle(self) -> bool:
        """Whether no message is under way."""
        return not any(self._arrivals)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._stream.random() < probability


def damaged(message: bytes, stream: np.random.Generator) -> bytes:
    """Return a message with one flipped bit, or, once in five times, cut short."""
    if len(message) and stream.random() < 0.2:
        return message[: stream.integers(len(message))]
    bytes_ = bytearray(message)
    bytes_[stream.integers(len(bytes_))] ^= 1 << int(stream.integers(8))
    return bytes(bytes_)
