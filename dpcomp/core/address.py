"""Addresses: the place in a run of a random stream, a privacy charge or a message."""

from dataclasses import dataclass

from dpcomp.core.checks import whole_number

SERVER = 2**32 - 1  # the client number of what the server sends


@dataclass(frozen=True)
class Address:
    """Identify what happens in a run by run, client and round.

    An address is the key by which a repeated message or charge is recognised. Random streams are derived from its
    numbers, a ledger charges it once, and a frame carries it. The address of a memory is the number of its public seed,
    its client (or `dp.SERVER`), and how many broadcasts it has followed.

    Attributes:
        run: The number of the run's public seed, below 2⁶⁴.
        client: The number of the client, below 2³²; `dp.SERVER` is the largest.
        round: The round, from 0, below 2³².

    Raises:
        TypeError: One of the three is not a whole number.
        ValueError: One of the three lies outside its range.

    Examples:
        >>> Address(run=7, client=3, round=0)
        Address(run=7, client=3, round=0)
    """

    run: int
    client: int
    round: int

    def __post_init__(self):
        if (
            type(self.run) is type(self.client) is type(self.round) is int
            and 0 <= self.run < 2**64
            and 0 <= self.client < 2**32
            and 0 <= self.round < 2**32
        ):
            return  # as a rule: every message has an address
        for name, limit in (("run", 2**64), ("client", 2**32), ("round", 2**32)):
            number = whole_number(getattr(self, name), f"Address.{name}", least=0, most=limit - 1)
            object.__setattr__(self, name, number)


def client_number(value: object, name: str) -> int:
    """Check that a value is the number of a client or of the server, and return it as Python's int.

    Args:
        value: The argument to check.
        name: What the error calls it, such as `"within(client)"`.

    Raises:
        TypeError: The value is not a whole number.
        ValueError: The value lies outside the range of an `Address`.
    """
    return whole_number(value, name, least=0, most=SERVER)


def address_of_all_rounds(run_id: bytes, client: int) -> Address:
    """Return where a client's ledger is charged for all rounds of a trusted server.

    The run is the run id, since two federations of one public seed are two, and the rounds of that seed are the
    addresses of updates, which the client has not released.

    Args:
        run_id: The 8 bytes that name the federation.
        client: The client's number.
    """
    return Address(int.from_bytes(run_id, "big"), client, 0)
