"""Naive servers: each takes what a trusted server must refuse, or divides by what it must not show."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

import dpcomp as dp
from dpcomp.audit import ClaimOfReleases, Serving
from experiments.studies.audit.case import Case
from experiments.studies.audit.shipped import OTHER_UPDATES, UPDATE, trusted


@dataclass(eq=False)
class CountsAll:
    """Counts every payload that it can decode: of whoever sends it, and as often as it arrives.

    Attributes:
        pipeline: Clips, sums and adds noise.
        memory: Of the server, before the only round.
        clients: How many there are.
        divisor: A public constant; None for the number of payloads.
    """

    pipeline: dp.Pipeline
    memory: dp.ServerMemory
    clients: int
    divisor: float | None
    updates: list[dp.Update] = field(default_factory=list)

    def cohort(self) -> list[int]:
        """Draw the clients to invite."""
        sampling = self.pipeline.sampling or dp.Poisson(1.0)
        return sampling.draw(self.clients, dp.SecretSeed().stream("cohort")).tolist()

    def handle(self, message: bytes, sender: int) -> None:
        """Take a payload."""
        self.updates.append(self.pipeline.receive(message, self.memory)[0])

    def close_round(self) -> bytes:
        """Release the sum, and broadcast it by the divisor."""
        permit = dp.Ledger().charge(self.pipeline.cost, self.memory.address)
        blocks = [update.dense()[None] for update in self.updates]
        released = self.pipeline.release(blocks, self.memory, dp.SecretSeed(), permit)
        divisor = max(1, len(self.updates)) if self.divisor is None else self.divisor
        return self.pipeline.broadcast(released.derive(released.dense() / divisor), self.memory)[0]


def counts_all(pipeline: dp.Pipeline, layout: dp.Layout, seed: dp.PublicSeed, clients: int) -> CountsAll:
    """Open a server that counts all payloads, and divides by a public constant."""
    return CountsAll(pipeline, pipeline.init_server(layout, seed), clients, divisor=float(clients))


def divides_by_senders(pipeline: dp.Pipeline, layout: dp.Layout, seed: dp.PublicSeed, clients: int) -> CountsAll:
    """Open a server that divides by the number of payloads."""
    return CountsAll(pipeline, pipeline.init_server(layout, seed), clients, divisor=None)


def server_cases() -> Iterator[Case]:
    """Return the cases of naive servers."""
    everyone = trusted(None)
    drawn = replace(everyone, sampling=dp.Poisson(0.1))
    yield case("server: a payload from two threads counts twice", serving(everyone, counts_all, copies=2, threads=4))
    yield case("server: takes a client that was not drawn", serving(drawn, counts_all, uninvited=True))
    against = np.tile(-UPDATE, (1, 4, 1))
    yield case("server: divides by the number of senders", serving(everyone, divides_by_senders, others=against))


def serving(
    pipeline: dp.Pipeline,
    open_server: Callable[[dp.Pipeline, dp.Layout, dp.PublicSeed, int], CountsAll],
    *,
    others: np.ndarray = OTHER_UPDATES,
    copies: int = 1,
    threads: int = 1,
    uninvited: bool = False,
) -> Serving:
    """Return the door of a server, with the canary of the shipped cases."""
    return Serving(
        pipeline=pipeline,
        canaries=UPDATE,
        others=others,
        copies=copies,
        threads=threads,
        uninvited=uninvited,
        open_server=open_server,
    )


def case(name: str, door: Serving) -> Case:
    """Return the case of a server."""
    return Case(name=name, kind="naive", door=door, claim=ClaimOfReleases(cost=door.pipeline.cost))
