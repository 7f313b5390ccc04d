"""Permit: the right to draw noise, which a ledger gives once a charge is durable."""

import os
import secrets
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dpcomp.core.address import Address
from dpcomp.core.errors import BudgetExhausted
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.ledger.grant import Grant

if TYPE_CHECKING:
    from dpcomp.privacy.ledger.ledger import Ledger


class Permit:
    """The right to draw noise at an address, for a number of steps at a cost; `Ledger.charge` alone gives it.

    A permit is used up step by step, is valid in the process that charged alone, and cannot be copied or pickled. Its
    ledger knows the permits that it gave, so that a permit which was made by mistake is worth nothing.

    Attributes:
        address: Where the noise may be drawn.
        steps: The number of releases that were charged.
        used: The number of releases that were made.
    """

    def __init__(self, ledger: "Ledger", address: Address, cost: Cost, steps: int, token: object):
        if token is not ledger._token:  # pyright: ignore[reportPrivateUsage]
            raise TypeError("a permit is not made but given, by ledger.charge(cost, address, steps)")
        self._ledger, self._process, self._lock = ledger, os.getpid(), threading.Lock()
        self._address, self._cost, self._steps, self._used = address, cost, steps, 0

    @property
    def address(self) -> Address:
        """Where the noise may be drawn."""
        return self._address

    @property
    def steps(self) -> int:
        """The number of releases that were charged."""
        return self._steps

    @property
    def used(self) -> int:
        """The number of releases that were made."""
        return self._used

    def spend(self, cost: Cost, *, seeded: bool) -> int:
        """Use a step of the permit for a release.

        Args:
            cost: The cost of the release; it must be the cost that was charged.
            seeded: Whether the noise comes from a number, which somebody may know; the ledger records it.

        Returns:
            The number of the step, from 0.

        Raises:
            BudgetExhausted: No step is left, another cost was charged, or another process charged.
            NotPrivate: The noise comes from a number, and the ledger is durable and not for research.
            TypeError: The ledger did not give this permit.
        """
        if os.getpid() != self._process:
            raise BudgetExhausted(f"{self} was given to another process: charge the ledger in the process that draws")
        if cost != self._cost:
            raise BudgetExhausted(f"{self} was charged for {self._cost}, not for {cost}: charge for this pipeline")
        self._ledger._confirm(self, seeded)  # pyright: ignore[reportPrivateUsage]
        with self._lock:
            if self._used >= self._steps:
                raise BudgetExhausted(f"{self} is used up: charge more steps at the next address")
            self._used += 1
            return self._used - 1

    def hand_over(self, *, seeded: bool) -> Grant:
        """Exchange this permit, all of it, for the right of another process to make its releases.

        Nothing is left of the permit then, so the releases are made there or not at all.

        Args:
            seeded: Whether the noise will come from a number, which somebody may know; the ledger records it.

        Returns:
            The grant, for the `GrantedLedger` of the other process.

        Raises:
            BudgetExhausted: A step of the permit was used, or another process charged.
            NotPrivate: The noise comes from a number, and the ledger is durable and not for research.
            TypeError: The ledger did not give this permit.
        """
        if os.getpid() != self._process:
            raise BudgetExhausted(f"{self} was given to another process: charge the ledger in the process that grants")
        self._ledger._confirm(self, seeded)  # pyright: ignore[reportPrivateUsage]
        with self._lock:
            if self._used:
                raise BudgetExhausted(f"{self} cannot be handed over any more: charge at the next address")
            self._used = self._steps
        return Grant(address=self._address, cost=self._cost, steps=self._steps, token=secrets.token_hex(16))

    def assume(self, clauses: Iterable[str]) -> None:
        """Record what the guarantee of these releases assumes besides; all later guarantees of the ledger name it.

        Args:
            clauses: What is assumed, such as "the divisor 64 is public".

        Raises:
            DpcompError: The ledger's file cannot be written.
        """
        self._ledger.assume(clauses)

    def __repr__(self) -> str:
        return f"Permit({self.address}, {self.used} of {self.steps} steps used)"

    def __reduce__(self):
        raise TypeError("a permit stays in the process that was charged: charge where the noise is drawn")
