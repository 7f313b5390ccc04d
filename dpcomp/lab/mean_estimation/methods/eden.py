"""EDEN: one to four bits a coordinate of the rotated, noisy vector, at the centroids of a Gaussian."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtr, ndtri

from dpcomp.codec.quantize.rotated import block_sizes
from dpcomp.lab.mean_estimation.method import Plan, Round, gaussian_error, padded, planned, released
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.trust import Trust

STEPS = 3000  # of Lloyd's iteration, which then stands still
TINY = float(np.finfo(np.float32).tiny)  # stands for the length of a block of zeros


@dataclass(frozen=True, kw_only=True)
class Eden:
    """Add Gaussian noise, rotate, and send the nearest centroid of each coordinate, with one scale.

    The vector, which zeros fill up to a multiple of 64, is cut into blocks of powers of two, as `dp.Rotated` cuts it.
    The rotation of a block is Hadamard's, behind public random signs. The centroids c are those of Lloyd and Max for
    N(0, 1). A block x is decoded as S·Rᵀc with S = ‖x‖²/⟨R x, c⟩, the
    scale that makes the estimate unbiased over all rotations.

    **Privacy:** post-processing of the Gaussian release (PRIVACY_RULES 1).

    Attributes:
        bits: A coordinate, from 1 to 4.
    """

    bits: int
    unbiased = True
    paired = True
    source = "Vargaftik et al. 2022, EDEN (2108.08842)"

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        return "nobody"

    @property
    def family(self) -> str:
        """The line of a figure."""
        return "EDEN"

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"EDEN, {self.bits} bit{'s' if self.bits > 1 else ''}"

    def plan(self, setting: Setting) -> Plan:
        """Return the noise of the Gaussian mechanism."""
        return planned(setting, self.trust)

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return a float32 a block, its scale, and the number of each coordinate's centroid, packed."""
        noisy = np.zeros(padded(len(vector)))
        noisy[: len(vector)] = released(vector, 1.0, round.client_noise(client), round.plan)
        borders, centroids = lloyd_max(self.bits)
        scales, levels, signs = [], [], _signs(len(noisy), client, round)
        for block in _blocks(len(noisy)):
            rotated = _hadamard(signs[block] * noisy[block])
            unit = max(float(np.linalg.norm(rotated)), TINY) / math.sqrt(len(rotated))
            levels.append(np.searchsorted(borders, rotated / unit))
            scales.append(len(rotated) * unit**2 / (rotated @ centroids[levels[-1]] or 1.0))
        bits = np.concatenate(levels)[:, None] >> np.arange(self.bits) & 1
        return np.array(scales, "<f4").tobytes() + np.packbits(bits.astype(np.uint8)).tobytes()

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the mean of the decoded vectors."""
        d = round.plan.setting.dimensions
        size, total, blocks = padded(d), np.zeros(padded(d)), list(_blocks(padded(d)))
        for client, body in enumerate(bodies):
            scales = np.frombuffer(body, "<f4", len(blocks))
            packed = np.frombuffer(body, np.uint8, offset=4 * len(blocks))
            bits = np.unpackbits(packed, count=size * self.bits).reshape(size, self.bits).astype(np.int64)
            centroids = lloyd_max(self.bits)[1][(bits << np.arange(self.bits)).sum(axis=1)]
            signs = _signs(size, client, round)
            for block, scale in zip(blocks, scales, strict=True):
                total[block] += scale * signs[block] * _hadamard(centroids[block])
        return total[:d] / len(bodies)

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return the noise's error, and D/(1 − D) of the energy of the noisy vectors, of which d coordinates count.

        D is the least squared error of N(0, 1) in so many bits.
        """
        borders, centroids = lloyd_max(self.bits)
        kept = float(np.square(centroids) @ np.diff(ndtr([-math.inf, *borders, math.inf])))
        energy = plan.setting.dimensions * plan.noise_multiplier**2 + np.square(vectors).sum(axis=1).mean()
        share = plan.setting.dimensions / padded(plan.setting.dimensions)
        return gaussian_error(plan) + (1 / kept - 1) * energy * share / plan.setting.clients


@lru_cache(maxsize=8)
def lloyd_max(bits: int) -> tuple[Float64[np.ndarray, "borders"], Float64[np.ndarray, "centroids"]]:
    """Return the borders and the centroids of the best quantiser of N(0, 1) in 2ᵇ levels (Max 1960, Table I)."""
    centroids = ndtri((np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(STEPS):
        borders = (centroids[1:] + centroids[:-1]) / 2
        edges = np.array([-math.inf, *borders, math.inf])
        centroids = -np.diff(np.exp(-np.square(edges) / 2)) / math.sqrt(2 * math.pi) / np.diff(ndtr(edges))
    return (centroids[1:] + centroids[:-1]) / 2, centroids


def _blocks(size: int) -> Iterator[slice]:
    """Yield where each block of a vector lies, whose length is a multiple of 64."""
    edges = np.cumsum([0, *block_sizes(size)])
    return (slice(start, stop) for start, stop in pairwise(edges))


def _signs(size: int, client: int, round: Round) -> Float64[np.ndarray, "size"]:
    """Draw the public signs of a client's rotation."""
    return 1.0 - 2.0 * round.seed.stream("signs", round.number, client).integers(0, 2, size)


def _hadamard(vector: Float64[np.ndarray, "size"]) -> Float64[np.ndarray, "size"]:
    """Return Hadamard's orthonormal transform of a vector, which is its own inverse."""
    block = vector[None, :]
    while block.shape[1] > 1:
        pairs = block.reshape(len(block), 2, -1)
        block = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1, pairs.shape[2])
    return block[:, 0] / math.sqrt(len(vector))
