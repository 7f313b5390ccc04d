"""Gaussian noise on a bounded sum."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from dp_accounting import GaussianDpEvent  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
from jaxtyping import Float, Float32, Float64

from dpcomp.core.address import Address
from dpcomp.core.checks import real_number
from dpcomp.core.errors import NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.privacy.claim import ROUNDING, Bounded, Claim, Released, Unbounded

SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-9, 1e9  # beyond, no accountant's arithmetic is sound
BLOCK = 2**14  # coordinates that are released at a time: their temporary arrays stay in the processor's cache
GRID_BITS = 20  # the public grid is about the noise's standard deviation times 2^-20
SMALLEST_STDDEV, LARGEST_STDDEV = 2.0**-106, 2.0**100  # float32 holds the grid, and sums far beyond the noise


@dataclass(frozen=True)
class Gaussian:
    """Add N(0, (z·C)²) to each coordinate of the sum, where z is `noise_multiplier` and C the sum's L2 sensitivity.

    It is the last stage of a mechanism. The pipeline draws the noise, so that each release has a permit of the ledger,
    and rounds the noised sum to a public grid of about z·C·2⁻²⁰ (`on_public_grid`).

    Source: Dwork & Roth 2014, "The Algorithmic Foundations of Differential Privacy", Appendix A; Balle & Wang 2018.

    **Privacy:** adding or removing one unit moves the sum by at most C(1 + 10⁻⁵), the 10⁻⁵ for floating point, so this
    is the Gaussian mechanism with noise multiplier z/(1 + 10⁻⁵), and its event says so. On a support that was chosen
    from private data it has no guarantee (PRIVACY_RULES 1, 2 and 4).

    **What is idealised.** The proof is about real numbers and exact Gaussians. The noise is drawn in float64 from a
    stream of ChaCha20 (RFC 8439), which is pseudorandom: the guarantee is against observers who cannot break it. Its
    tail is not cut, and its values are exact but for rounding to about 50 bits
    (`dpcomp.core.normals.standard_normal`). The low bits of such sums can depend on the data (Mironov 2012, "On
    Significance of the Least Significant Bits for Differential Privacy"; Haney et al. 2022, "Precision-based Attacks
    and Interval Refining"). Rounding to a grid far above those bits removes what these attacks read, and adds a
    variance below 10⁻¹³ of the noise's (PRIVACY_RULES hazard 42); it does not make the sampler exact, as the discrete
    Gaussian is (Canonne, Kamath & Steinke 2020). The time that the draw takes is not hidden.

    Args:
        noise_multiplier: z, the noise's standard deviation ÷ C, from 10⁻⁹ to 10⁹; 0 inside `dp.unsafe` alone.

    Raises:
        TypeError: `noise_multiplier` is not a number.
        ValueError: `noise_multiplier` lies outside its range.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(0.5), dp.Gaussian(2.0)))
        >>> pipeline.cost.event  # doctest: +ELLIPSIS
        GaussianDpEvent(noise_multiplier=1.99998...)
    """

    noise_multiplier: float

    def __post_init__(self):
        allowed = f"0, or a number from {SMALLEST_MULTIPLIER:g} to {LARGEST_MULTIPLIER:g}"
        multiplier = real_number(self.noise_multiplier, "Gaussian(noise_multiplier)", allowed)
        if not (multiplier == 0 or SMALLEST_MULTIPLIER <= multiplier <= LARGEST_MULTIPLIER):
            raise ValueError(
                f"{self}: the noise multiplier is 0, or lies between {SMALLEST_MULTIPLIER:g} and {LARGEST_MULTIPLIER:g}"
            )
        object.__setattr__(self, "noise_multiplier", multiplier)

    def claim(self, before: Claim, where: str) -> Claim:
        """Return `Released(event=GaussianDpEvent(noise_multiplier / (1 + 10⁻⁵)))` for a bounded sum.

        Raises:
            NotPrivate: The sum is unbounded, its support private, or the noise multiplier 0.
            ValueError: The value is released already.
        """
        if isinstance(before, Unbounded):
            raise NotPrivate(f"{before.because}, so {where} gives no guarantee. {before.remedy}")
        if not isinstance(before, Bounded):
            raise ValueError(f"{where} meets a value that is released already: noise is added once")
        if not before.support_is_public:
            raise NotPrivate(
                f"the support before {where} was chosen from private data, and noise on the values does not hide it. "
                "Choose it from public or released values, or mask each unit before Clip"
            )
        if self.noise_multiplier == 0:
            raise NotPrivate(
                f"{where} has noise multiplier 0 and adds no noise: ε = ∞. Give it one above 0, or study the "
                "mechanism as dp.unsafe(why, *stages)"
            )
        return Released(event=GaussianDpEvent(self.noise_multiplier / (1 + ROUNDING)))

    def add(self, total: Float[Any, "k"], standard_normal: Float[Any, "k"], l2: float) -> Float[Any, "k"]:
        """Return total + z·l2·noise. The noise is an argument, so that a traced function draws it anew each time.

        Args:
            total: The (k,) sum.
            standard_normal: (k,) independent draws of N(0, 1).
            l2: The sum's L2 sensitivity.
        """
        return total + (self.noise_multiplier * l2) * standard_normal

    def release(
        self, total: Float64[np.ndarray, "k"], standard_normal: Float64[np.ndarray, "k"], l2: float
    ) -> Float32[np.ndarray, "k"]:
        """Return total + z·l2·noise, rounded to the public grid and then to float32.

        Args:
            total: The (k,) sum.
            standard_normal: (k,) independent draws of N(0, 1).
            l2: The sum's L2 sensitivity.

        Raises:
            ValueError: z·l2 is neither 0 nor a standard deviation that float32 releases can hold.
        """
        released, stddev = np.empty(len(total), np.float32), self.noise_multiplier * l2
        for start in range(0, len(total), BLOCK):
            part = slice(start, start + BLOCK)
            noised = self.add(total[part], standard_normal[part], l2)
            released[part] = on_public_grid(noised, stddev) if stddev else noised
        return released


def noise_of_step(secret: SecretSeed, address: Address, step: int, count: int) -> Float64[np.ndarray, "count"]:
    """Draw the noise of a release, before it is scaled.

    Args:
        secret: The source of the noise.
        address: Of the permit.
        step: Of the permit, from 0.
        count: The number of coordinates.

    Returns:
        (count,) draws of N(0, 1), which no other release has.
    """
    return secret.standard_normal(count, "noise", address.run, address.client, address.round, step)


def public_grid(stddev: float) -> float:
    """Return the step of the grid of released values: the largest power of two up to stddev, times 2⁻²⁰.

    Args:
        stddev: σ, the standard deviation of the noise.

    Raises:
        ValueError: σ lies outside [2⁻¹⁰⁶, 2¹⁰⁰], where float32 cannot hold the release.
    """
    if not SMALLEST_STDDEV <= stddev <= LARGEST_STDDEV:
        raise ValueError(
            f"the noise has standard deviation {stddev:g}, which lies outside of what float32 releases can hold, "
            f"{SMALLEST_STDDEV:.2g} to {LARGEST_STDDEV:.2g}: scale the loss, or choose a clip norm near the gradients'"
        )
    return math.ldexp(1.0, math.frexp(stddev)[1] - 1 - GRID_BITS)


def on_public_grid(values: Float64[np.ndarray, "k"], stddev: float) -> Float64[np.ndarray, "k"]:
    """Return noised values rounded to the nearest multiple of `public_grid(stddev)`.

    **Privacy:** a post-processing of the noised values, after which their low bits tell nothing: two values of a grid
    cell give the same result, zero without a sign included, and so does its cast to float32.

    Args:
        values: (k,) values with noise.
        stddev: σ, the standard deviation of the noise.

    Raises:
        ValueError: As `public_grid` does.
    """
    return on_grid_of(values, public_grid(stddev))


def on_grid_of(values: Float64[np.ndarray, "k"], step: float) -> Float64[np.ndarray, "k"]:
    """Return values rounded to the nearest multiple of a step, zero without a sign.

    Args:
        values: (k,) values.
        step: A power of two.
    """
    on_grid = values * (1 / step)  # exact, as both are powers of two
    np.rint(on_grid, out=on_grid)
    on_grid *= step
    on_grid += 0.0  # makes -0.0, the negative half of a cell, to 0.0
    return on_grid
