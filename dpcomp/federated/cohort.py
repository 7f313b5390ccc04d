"""Cohort: which clients a server asks for an update in a round."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dpcomp.core.address import SERVER
from dpcomp.core.randomness import SecretSeed
from dpcomp.privacy import Poisson
from dpcomp.wire.memory import ServerMemory


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Draws the clients of each round: each of them independently, with a public probability.

    The server draws once a round, keeps the draw, and refuses the update of a client that was not drawn.

    **Privacy:** the draw amplifies only where nobody but a trusted server knows it, and where the server takes updates
    of nobody else (PRIVACY_RULES 22, hazards 14 and 35). There it comes from a secret seed. Where the server is not
    trusted, it sees who sends, so the draw may be public, and amplifies nothing (PRIVACY_RULES 21).

    Args:
        sampling: The probability of each client.
        secret: Where the draw comes from; None draws it from the run's public seed, so that anybody can repeat it.
    """

    sampling: Poisson
    secret: SecretSeed | None = None

    def draw(self, clients: int, memory: ServerMemory) -> Int64[np.ndarray, "chosen"]:
        """Draw the clients of the present round.

        Args:
            clients: The number of clients.
            memory: The server's memory, whose address places the draw.

        Returns:
            Their numbers, ascending; sometimes none.
        """
        place = memory.address
        if self.secret is None:
            return self.sampling.draw(clients, memory.seed.stream("cohort", place.round))
        return self.sampling.draw(clients, self.secret.stream("cohort", place.run, SERVER, place.round))
