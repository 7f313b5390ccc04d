"""Batches of a round as arrays of one shape, so that the program that takes them is compiled once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from dpcomp.core.randomness import SecretSeed
from dpcomp.privacy import Poisson
from dpcomp.training.trainer import LocalWork


class Batches:
    """Draws the batches of local steps, and gives them as positions of examples under a common width.

    The width is a whole number of chunks. It starts where a batch of the largest client is longer once in a billion
    steps or so, and doubles when a batch is longer still: no batch is cut, and few programs are compiled.

    Args:
        sampling: How a batch is drawn.
        parts: The positions of each client's examples, by client.
        secret: Where batches are drawn from.
        chunk: The number of examples of a chunk.
    """

    def __init__(self, sampling: Poisson, parts: Sequence[Int64[np.ndarray, "_"]], secret: SecretSeed, chunk: int):
        self._sampling, self._parts, self._secret = sampling, parts, secret
        largest = max(map(len, parts), default=0)
        expected = largest * sampling.rate
        self.width = _rounded_up(min(largest, int(expected + 6 * np.sqrt(expected) + 6)), chunk)

    def draw(
        self, work: Sequence[LocalWork], steps: int
    ) -> tuple[Int32[np.ndarray, "clients steps width"], Int32[np.ndarray, "clients steps"]]:
        """Draw the batches of all steps of a round for some clients.

        Args:
            work: What the clients do.
            steps: The number of steps of each.

        Returns:
            The positions of the examples, filled with the first of each batch; and the lengths of the batches.
        """
        batches = [[self._batch(each, step) for step in range(steps)] for each in work]
        counts = np.array([[len(batch) for batch in client] for client in batches], dtype=np.int32)
        while counts.max(initial=0) > self.width:
            self.width *= 2
        positions = np.zeros((len(work), steps, self.width), dtype=np.int32)
        for i, client in enumerate(batches):
            for step, batch in enumerate(client):
                if len(batch):
                    positions[i, step] = batch[0]
                    positions[i, step, : len(batch)] = batch
        return positions, counts

    def _batch(self, work: LocalWork, step: int) -> Int64[np.ndarray, "_"]:
        place, mine = work.memory.address, self._parts[work.client]
        stream = self._secret.stream("sample", place.run, place.client, place.round, step)
        return mine[self._sampling.draw(len(mine), stream)]


def _rounded_up(number: int, chunk: int) -> int:
    return max(1, -(-number // chunk)) * chunk


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is no smaller than a number from 1 on."""
    return 1 << (number - 1).bit_length()


def filled(array: Any, rows: int) -> Any:
    """Return an array with rows of zeros added up to a number of rows."""
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
