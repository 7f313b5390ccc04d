"""Adaptive clipping: a clip norm that follows a quantile of the norms of the units, by a noisy count."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from dpcomp.core.checks import real_number
from dpcomp.core.errors import NotPrivate
from dpcomp.core.public_context import PublicContext
from dpcomp.privacy.claim import BoundedWithCount, Claim, Unbounded
from dpcomp.privacy.clip import LARGEST_NORM, SMALLEST_NORM, Clip, unit_norms
from dpcomp.privacy.gaussian import on_public_grid
from dpcomp.privacy.units.factored_units import FactoredUnits
from dpcomp.privacy.units.unit_gradients import Total, Units

UNIT_CLIP = Clip(1.0)
COUNT_NOISE = 5.0  # noise multipliers of the release: the count then takes 1 % of its privacy


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """Clip each client's update to a norm that follows a quantile of the clients' norms, round by round.

    Before the first round the norm C is `initial`. In each round the server also counts the clients whose update is no
    longer than C, adds noise to the count, and moves C for the next round by the noisy share b̄ of such clients:
    C ← C·exp(−η·(b̄ − γ)), with γ for `quantile` and η for `learning_rate`. With an expected cohort of m clients, b̄ is
    ½ + (∑ᵢ(bᵢ − ½) + N(0, σ²)) ÷ m, where bᵢ is 1 for a client within C, else 0.

    It stands directly before `Gaussian`, under a trusted server that clips. The server's memory holds C, and the column
    `clip_norm` of a simulation shows it: it is made of released counts and public numbers alone.

    Source: Andrew, Thakkar, McMahan & Ramaswamy 2021, "Differentially Private Learning with Adaptive Clipping",
    Algorithm 1 and Theorem 1 (arXiv 1905.03871).

    **Privacy:** adding or removing one client moves the sum of the updates ÷ C, clipped to 1, by at most 1 + 10⁻⁵, and
    ∑ᵢ(bᵢ − ½) by ½. Noise of multiplier z_Δ on the first and of standard deviation σ on the second are one Gaussian
    mechanism with 1/z² = 1/z_Δ² + 1/(2σ)². The pipeline's `Gaussian(z)` is that mechanism: z is what is charged, once a
    round, before either is drawn, and z_Δ = (z⁻² − (2σ)⁻²)^(−½) is the noise on the sum. Both see the same clients, so
    they are amplified once, as one (PRIVACY_RULES hazard 15). Since the sum is divided by C before it is clipped, what
    is charged does not depend on C, and the rounds are a fixed sequence of events although C follows from earlier ones.
    No part of C depends on a value without noise: the cohort that divides the count is the expected one.

    Args:
        initial: C before the first round, from 10⁻²⁰ to 10²⁰; a public number.
        quantile: γ, in [0, 1]: the share of clients that are to be no longer than C.
        learning_rate: η, from 10⁻⁹ to 10: C moves by a factor of at most about e^η a round.
        count_noise: σ, the standard deviation of the noise on the count, in clients; more than half the noise
            multiplier. The paper takes a twentieth of the expected cohort. None: five noise multipliers.

    Raises:
        TypeError: An argument is not a number.
        ValueError: A number lies outside its range.

    Examples:
        The count's share of the noise costs the sum half a percent:

        >>> import dpcomp as dp
        >>> from dpcomp.privacy.adaptive_clip import sum_multiplier
        >>> mechanism = (dp.AdaptiveClip(initial=0.1, count_noise=5.0), dp.Gaussian(1.0))
        >>> pipeline = dp.Pipeline(mechanism=mechanism, unit="client", trust="server", sampling=dp.Poisson(0.1))
        >>> round(sum_multiplier(1.0, 5.0), 3)
        1.005
        >>> plain = dp.Pipeline(
        ...     mechanism=(dp.Clip(0.1), dp.Gaussian(1.0)), unit="client", trust="server", sampling=dp.Poisson(0.1)
        ... )
        >>> pipeline.guarantee(100, 1e-5).epsilon == plain.guarantee(100, 1e-5).epsilon
        True
    """

    initial: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self):
        for name, least, most in (
            ("initial", SMALLEST_NORM, LARGEST_NORM),
            ("quantile", 0.0, 1.0),
            ("learning_rate", 1e-9, 10.0),
            ("count_noise", 1e-9, 1e9),
        ):
            value = getattr(self, name)
            if (name, value) == ("count_noise", None):
                continue
            allowed = f"a number from {least:g} to {most:g}"
            number = real_number(value, f"AdaptiveClip({name})", allowed)
            if not least <= number <= most:
                raise ValueError(f"AdaptiveClip({name}) is {value!r}: give {allowed}")
            object.__setattr__(self, name, number)

    def claim(self, before: Claim, where: str) -> Claim:
        """Return `BoundedWithCount(l2=1)` for units that nothing bounds.

        Raises:
            ValueError: The units were clipped before, or their support is not public.
        """
        if not isinstance(before, Unbounded) or not before.support_is_public:
            raise ValueError(f"{where} meets a sum: units are clipped once, before they are added up")
        return BoundedWithCount(l2=1.0, count_noise=self.count_noise)

    def apply(self, value: Units | FactoredUnits | Total, context: PublicContext) -> Total:
        """Divide each unit by C, clip it to 1, sum the units, and count those that were no longer than C.

        Raises:
            ValueError: `value` is a sum already.
            NotPrivate: The memory holds no clip norm.
        """
        if isinstance(value, Total):
            raise ValueError(f"{self} meets a sum: units are clipped once, before they are added up")
        if context.clip_norm is None:
            raise NotPrivate(
                f"{self} clips at a trusted server alone, whose memory holds the norm: give the ServerMemory of "
                "pipeline.init_server"
            )
        rows = value.rows() if isinstance(value, FactoredUnits) else value
        scaled = tuple(np.asarray(layer, dtype=np.float64) / context.clip_norm for layer in rows.layers)
        total = UNIT_CLIP.apply(replace(rows, layers=scaled), context)
        return replace(total, within=int(np.count_nonzero(unit_norms(scaled) <= 1)))

    def noisy_count(self, total: Total, stddev: float, standard_normal: Float64[np.ndarray, "1"]) -> float:
        """Return ∑ᵢ(bᵢ − ½) with noise, rounded to the public grid.

        Args:
            total: The sum of this stage; it is private.
            stddev: σ, the standard deviation of the noise.
            standard_normal: One draw of N(0, 1), which nothing else has.
        """
        return float(on_public_grid(total.within - total.units / 2 + stddev * standard_normal, stddev)[0])

    def norm_after(self, norm: float, noisy_count: float, expected: float) -> float:
        """Return the clip norm of the next round.

        Args:
            norm: C in this round.
            noisy_count: What `noisy_count` returned: ∑ᵢ(bᵢ − ½) with noise.
            expected: m, the expected number of clients in a round, a public constant.
        """
        share = noisy_count / expected + 0.5
        # Beyond the ends of the range no update could be clipped or released; in the exponent, since e^1000 is none.
        logarithm = math.log(norm) - self.learning_rate * (share - self.quantile)
        return math.exp(min(max(logarithm, math.log(SMALLEST_NORM)), math.log(LARGEST_NORM)))


def count_stddev(noise_multiplier: float, count_noise: float | None) -> float:
    """Return σ, the standard deviation of the noise on the count.

    Args:
        noise_multiplier: z, of the pair.
        count_noise: σ where it is given; None for five noise multipliers.
    """
    return COUNT_NOISE * noise_multiplier if count_noise is None else count_noise


def sum_multiplier(noise_multiplier: float, count_noise: float | None) -> float:
    """Return z_Δ = (z⁻² − (2σ)⁻²)^(−½), the noise multiplier of the sum.

    Source: Andrew et al. 2021, Theorem 1.

    Args:
        noise_multiplier: z, of the pair.
        count_noise: σ, the standard deviation of the noise on the count; None for five noise multipliers.

    Raises:
        ValueError: The noise on the count alone is too little for z.
    """
    sigma = count_stddev(noise_multiplier, count_noise)
    left = 1 - (noise_multiplier / (2 * sigma)) ** 2
    if not left > 1e-6:
        raise ValueError(
            f"AdaptiveClip(count_noise={count_noise:g}) before Gaussian({noise_multiplier:g}): the count moves by ½, "
            f"so its noise is a multiplier of {2 * sigma:g}, which leaves nothing to the sum. Give a count_noise well "
            f"above {noise_multiplier / 2:g}, such as {COUNT_NOISE * noise_multiplier:g}, or None"
        )
    return noise_multiplier / math.sqrt(left)
