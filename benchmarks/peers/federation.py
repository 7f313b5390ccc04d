"""What federated rounds have in common, whoever plays them: the clients' images, and how clients and batches are drawn.

Images are made up, in the shape of Fashion-MNIST: no figure here depends on what they show.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """One federation: its clients, its local steps, and its privacy.

    Args:
        clients: The number of clients.
        examples: Of each client.
        together: The clients of a round.
        local_steps: Of a client in a round.
        batch_size: The expected one: batches are Poisson draws.
        clip_norm: Of a gradient.
        noise_multiplier: Noise standard deviation ÷ clip norm.
        learning_rate: Of the local steps.
    """

    clients: int = 100
    examples: int = 600
    together: int = 10
    local_steps: int = 19
    batch_size: int = 32
    clip_norm: float = 0.1
    noise_multiplier: float = 1.0
    learning_rate: float = 0.1

    @property
    def rate(self) -> float:
        """The sampling rate of an example."""
        return self.batch_size / self.examples

    def draw_clients(self, rng: np.random.Generator) -> Int64[np.ndarray, "n"]:
        """Draw the clients of a round."""
        return rng.choice(self.clients, self.together, replace=False)

    def draw_batch(self, client: int, rng: np.random.Generator) -> Int64[np.ndarray, "n"]:
        """Draw a Poisson batch of a client: positions among the images of all."""
        return client * self.examples + np.flatnonzero(rng.random(self.examples) < self.rate)


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Images and labels to train on, in order of the clients, and others to evaluate on."""

    inputs: Float32[np.ndarray, "n 1 28 28"]
    labels: Int64[np.ndarray, "n"]
    test_inputs: Float32[np.ndarray, "m 1 28 28"]
    test_labels: Int64[np.ndarray, "m"]

    @classmethod
    def drawn(cls, number: int, test_number: int) -> "Images":
        """Draw uniform pixels and labels."""
        rng = np.random.default_rng(0)
        return cls(
            inputs=rng.random((number, 1, 28, 28), dtype=np.float32),
            labels=rng.integers(0, 10, number),
            test_inputs=rng.random((test_number, 1, 28, 28), dtype=np.float32),
            test_labels=rng.integers(0, 10, test_number),
        )
