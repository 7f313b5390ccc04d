"""SharedNoise: the noise of a release that is made of the errors of the clients' codecs, a share each."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from dp_accounting import GaussianDpEvent  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
from jaxtyping import Float64

from dpcomp.core.errors import NotPrivate
from dpcomp.core.public_context import share_grid
from dpcomp.privacy.claim import ROUNDING, Stage
from dpcomp.privacy.clip import Clip
from dpcomp.privacy.gaussian import Gaussian, on_grid_of, public_grid
from dpcomp.privacy.sampling import Poisson
from dpcomp.privacy.trust import TrustModel
from dpcomp.privacy.unsafe import Unsafe

LEAST_GRIDS = 100  # in a share's standard deviation: then rounding to the grid is independent of what is rounded
ADDED_STEPS = 8  # of the grid, that the noise which is always added to shares has as its standard deviation


class MakesShares(Protocol):
    """A quantiser whose error is a client's share of the noise, such as `ExactGaussian`."""

    @property
    def cohort(self) -> int:
        """The most clients of a round."""
        ...

    @property
    def colluding(self) -> int:
        """The most clients that pool what they know of their own errors."""
        ...

    @property
    def hidden(self) -> float:
        """The part of the noise variance that clients which collude do not know."""
        ...

    def share(self, stddev: float) -> float:
        """Return the standard deviation of one client's error, of noise with this standard deviation."""
        ...


@dataclass(frozen=True)
class SharedNoise:
    """The noise of a release that is made of the errors of the clients' codecs, of which the server adds what misses.

    **Privacy:** the proof stands in docs/guides/quantiser-noise.md; `SharedNoise.of` refuses what it does not cover.

    Args:
        quantizer: The quantiser whose error is a client's share.
        clip: The clip of each client's update.
        gaussian: The noise of the release.
    """

    quantizer: MakesShares
    clip: Clip
    gaussian: Gaussian

    @classmethod
    def of(
        cls, quantizer: MakesShares, mechanism: tuple[Stage, ...] | Unsafe, trust_model: TrustModel
    ) -> "SharedNoise":
        """Return the noise of a mechanism that the clients' errors make.

        Args:
            quantizer: The quantiser whose error is a client's share.
            mechanism: The stages of the private side, or an unsafe mechanism.
            trust_model: Who may see values before the noise.

        Raises:
            NotPrivate: The errors would not hide a client under this mechanism and this trust.
        """
        if (trust_model.unit, trust_model.trust) != ("client", "server"):
            raise NotPrivate(
                f"{quantizer} under unit={trust_model.unit!r} and trust={trust_model.trust!r}: its error hides a "
                "client's update from the readers of the released model, not from the server, which knows the dither, "
                "and not an example. Use unit='client' and trust='server'"
            )
        stages = () if isinstance(mechanism, Unsafe) else mechanism
        clip, gaussian = stages if len(stages) == 2 else (None, None)
        if type(clip) is not Clip or type(gaussian) is not Gaussian:
            raise NotPrivate(
                f"{quantizer} beside the mechanism {mechanism}: its error is noise on each coordinate of a clipped "
                "update, so the mechanism is (dp.Clip(norm), dp.Gaussian(noise_multiplier)), without a support"
            )
        noise = cls(quantizer, clip, gaussian)
        if not noise.stddev:
            raise NotPrivate(f"{quantizer} beside {gaussian}: there is no noise that the clients could share")
        if noise.share < LEAST_GRIDS * noise.grid:
            raise NotPrivate(
                f"{quantizer} beside {gaussian}: the share of a client, of standard deviation {noise.share:g}, is too "
                f"small beside the clip norm {clip.norm:g} for float32 to hold both. Use more noise, or a smaller "
                "cohort"
            )
        return noise

    @property
    def event(self) -> GaussianDpEvent:
        """The event of a release, which counts what clients that collude leave of the noise."""
        hidden = self.gaussian.noise_multiplier * math.sqrt(self.quantizer.hidden)
        return GaussianDpEvent(hidden / (1 + ROUNDING))

    @property
    def stddev(self) -> float:
        """The standard deviation of the noise of a release."""
        return self.gaussian.noise_multiplier * self.clip.norm

    @property
    def share(self) -> float:
        """The standard deviation of one client's error."""
        return self.quantizer.share(self.stddev)

    @property
    def grid(self) -> float:
        """The step of the grid of the clients' values."""
        return share_grid(self.clip.norm, self.share)

    def assumed(self, sampling: Poisson | None) -> tuple[str, ...]:
        """Return what a guarantee assumes besides, in clauses that it prints.

        Args:
            sampling: How clients are sampled; None for all in each round.
        """
        quantizer = self.quantizer
        clauses = [
            "the error of the clients' codec is the noise: it hides a client from readers of the released model who "
            f"know the dither of at most {quantizer.colluding} client{'s' * (quantizer.colluding > 1)}",
            "a client clips by its own honest code",
        ]
        if sampling is not None and sampling.rate < 1:
            clauses.append(
                f"of more than {quantizer.cohort} clients a round is drawn anew, which alters the draw with a "
                "probability below 2⁻⁶⁴ unless so many are enrolled"
            )
        return tuple(clauses)

    def check_cohort(self, clients: int) -> None:
        """Refuse a release of more clients than the noise was shared among.

        Raises:
            NotPrivate: There are more.
        """
        if clients > self.quantizer.cohort:
            raise NotPrivate(
                f"{clients} clients in a release, of {self.quantizer}: with more, the noise would tell how many came. "
                "Draw no more, or make a pipeline of a larger cohort"
            )

    def completed(
        self, total: Float64[np.ndarray, "k"], clients: int, standard_normal: Float64[np.ndarray, "k"]
    ) -> Float64[np.ndarray, "k"]:
        """Return a sum of updates that have their shares of the noise, with the shares of those that are missing.

        Args:
            total: (k,) the sum.
            clients: How many clients are in it.
            standard_normal: (k,) independent draws of N(0, 1).
        """
        missing = missing_variance(self.stddev, self.share, self.grid, self.quantizer.cohort - clients)
        return on_grid_of(total + math.sqrt(missing) * standard_normal, released_grid(self.stddev, self.grid))


def missing_variance(stddev: float, share: float, grid: float, missing: int) -> float:
    """Return the variance of the noise that a server adds to a sum of updates with a share of the noise each.

    The sum has the shares of all clients that came, and their roundings to a grid; what is added makes the variance
    the same whoever came, so that the noise does not tell how many did. A little is always added, so that the last
    rounding hides what the sum was rounded to before.

    Args:
        stddev: σ, the standard deviation of the noise of a release.
        share: The standard deviation of a client's share.
        grid: The step of the grid of the clients' values; with `released_grid`, it says how much is always added.
        missing: How many clients fewer than the largest cohort came, from 0 on.
    """
    return missing * (share**2 + grid**2 / 12) + (ADDED_STEPS * released_grid(stddev, grid)) ** 2


def released_grid(stddev: float, grid: float) -> float:
    """Return the step of the grid of a release that is made of shares of the noise.

    Args:
        stddev: σ, the standard deviation of the noise of a release.
        grid: The step of the grid of the clients' values.
    """
    return max(grid, public_grid(stddev))
