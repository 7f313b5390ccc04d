"""Addresses: where in a run a random stream, a charge or a message belongs."""

from dataclasses import dataclass

from dpcomp.core.checks import whole_number

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
            number = whole_number(getattr(self, name), f"Address.{name}", least=0, most=limit - 1)
            object.__setattr__(self, name, number)
