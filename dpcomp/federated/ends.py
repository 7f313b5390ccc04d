"""How the ends of a federation are built, and what they do with what comes late or has been away."""

import os
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from dpcomp.federated.absence import AfterAbsence, Keep
from dpcomp.federated.aggregate import ServerOptimizer
from dpcomp.federated.late import Late, Reject
from dpcomp.federated.participant import Participant
from dpcomp.federated.server import Releasing, Server
from dpcomp.ledger import Ledger
from dpcomp.memory import ClientMemory, ServerMemory
from dpcomp.pipeline import Pipeline


class Ends(Protocol):
    """Builds both."""

    def server(
        self,
        pipeline: Pipeline,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        optimizer: ServerOptimizer,
        releasing: Releasing | None,
        folder: str | os.PathLike[str] | None,
    ) -> Server:
        """The server."""
        ...

    def participant(
        self, pipeline: Pipeline, memory: ClientMemory, model: Float32[np.ndarray, "d"], ledger: Ledger
    ) -> Participant:
        """A client."""
        ...


@dataclass(frozen=True, kw_only=True)
class Versioned:
    """Ends that check version, digest and link of all that they hear."""

    late: Late = field(default_factory=Reject)
    after_absence: AfterAbsence = field(default_factory=Keep)

    def server(
        self,
        pipeline: Pipeline,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        optimizer: ServerOptimizer,
        releasing: Releasing | None,
        folder: str | os.PathLike[str] | None,
    ) -> Server:
        """A server with this policy for what comes late."""
        return Server(pipeline, memory, model, optimizer=optimizer, late=self.late, releasing=releasing, folder=folder)

    def participant(
        self, pipeline: Pipeline, memory: ClientMemory, model: Float32[np.ndarray, "d"], ledger: Ledger
    ) -> Participant:
        """A client with this policy for its residual."""
        return Participant(pipeline, memory, model, ledger, after_absence=self.after_absence)
