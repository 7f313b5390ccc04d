"""Addresses: where in a run a random stream, a charge or a message belongs."""

from dataclasses import dataclass

import numpy as np

SERVER = 2**32 - 1  # stands where a client's number stands, when the server acts


@dataclass(frozen=True)
class Address:
    """(run, client, round): every random stream, charge and frame is identified by it.

    A memory's is (the number of its public seed, its client or `SERVER`, the broadcasts so far).

    Raises:
        TypeError, ValueError: run is no whole number below 2⁶⁴, or client or round none below 2³².
    """

    run: int
    client: int
    round: int

    def __post_init__(self):
        for name, limit in (("run", 2**64), ("client", 2**32), ("round", 2**32)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
                raise TypeError(f"Address.{name} is {number!r}: it must be a whole number")
            if not 0 <= number < limit:
                raise ValueError(f"Address.{name} is {number}: it must lie in [0, {limit})")
            object.__setattr__(self, name, int(number))
