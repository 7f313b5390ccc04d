"""Claims that an audit holds its counts against: how many detections they allow at a rate of false alarms."""

# dp_accounting gives δ of both directions only together, where the trade-off curve needs each.
# pyright: reportPrivateUsage=false

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from dp_accounting import ComposedDpEvent, DpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import privacy_loss_distribution
from jaxtyping import Float64
from scipy.special import ndtr, ndtri

from dpcomp.audit.bounds import Rates
from dpcomp.privacy.accounting.epsilon import epsilon
from dpcomp.privacy.accounting.events import composed, gaussians_in
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.guarantee import Guarantee

LARGEST_FACTOR = 2.0**10  # of the noise multiplier, up to which a bound is searched
FACTOR_ERROR = 0.01  # of the factor that is found
GRID_POINTS = 2**11  # of the losses of one release; a coarser grid makes the curve more pessimistic, never too low
EPSILONS = np.concatenate([np.linspace(0, 2, 41), np.linspace(2.1, 8, 60), np.geomspace(8.5, 60, 30)])


@runtime_checkable
class AuditedClaim(Protocol):
    """What an audit holds its counts against."""

    def epsilon(self, delta: float) -> float:
        """Return the claimed ε at δ; infinity where nothing is claimed."""
        ...

    def most_detections(self, false_alarm_rate: float) -> float:
        """Return the largest probability of a detection that the claim allows for a test with that rate."""
        ...

    def shown_epsilon(self, rates: Rates, delta: float) -> float:
        """Return the lower bound of ε at δ that the rates show, for mechanisms of the claimed kind.

        Args:
            rates: The counts of the audit.
            delta: δ, in (0, 1).
        """
        ...

    def strength(
        self, detection_rates: Float64[np.ndarray, "n"], false_alarm_rates: Float64[np.ndarray, "n"]
    ) -> Float64[np.ndarray, "n"]:
        """Return how much each of n pairs of rates would show, in any unit; the threshold of a test is chosen by it."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClaimOfReleases:
    """The claim that runs are `steps` releases at a cost: with it the whole trade-off curve is claimed.

    Without sampling the curve is that of μ-Gaussian DP (Dong, Roth & Su 2022). With sampling it follows from
    dp_accounting's pessimistic privacy loss distribution of the composed event, at 131 values of ε. So it lies nowhere
    below the true curve, and what exceeds it contradicts the claim.

    `shown_epsilon` is ε of the least noise that the counts contradict, at the claimed number of steps (Nasr et al.
    2023, section 4). As long as the claim is not contradicted, that is at the claimed sampling; a claim that is
    contradicted may be wrong about the sampling too, so then it is without. It bounds ε of mechanisms of that kind,
    closely; `Rates.epsilon` bounds that of any mechanism, loosely.

    Args:
        cost: The cost of a single release: `pipeline.cost`.
        steps: The releases of a run in which the canary may take part, 1 or more.

    Raises:
        TypeError, ValueError: `steps` is not a whole number from 1 on.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> claim = ClaimOfReleases(cost=pipeline.cost)
        >>> round(claim.epsilon(1e-5), 2), round(claim.most_detections(0.05), 3)
        (4.38, 0.26)
    """

    cost: Cost
    steps: int = 1

    def __post_init__(self):
        composed(self.cost.event, self.steps)  # refuses what is no number of steps
        if self.steps == 0:
            raise ValueError("ClaimOfReleases(steps=0): nothing is released, so there is nothing to audit")

    def __str__(self) -> str:
        sampling = "unsampled" if self.cost.sampling == "none" else self.cost.sampling
        return f"one {self.cost.unit}, {sampling} × {self.steps}"

    def epsilon(self, delta: float) -> float:
        """Return the ε that `Cost.guarantee` proves."""
        return self.cost.guarantee(self.steps, delta).epsilon

    def most_detections(self, false_alarm_rate: float) -> float:
        """Return the claimed trade-off curve at a rate of false alarms."""
        return _most_detections(self._key, 1.0, false_alarm_rate)

    def shown_epsilon(self, rates: Rates, delta: float) -> float:
        """Return ε of the least noise that the rates contradict; 0 if they contradict none.

        Args:
            rates: The counts of the audit.
            delta: δ, in (0, 1).
        """
        if math.isinf(self.epsilon(delta)):  # without noise nothing is claimed, and no kind of mechanism either
            return rates.epsilon(delta)

        def contradicted(factor: float) -> bool:
            return rates.detection_at_least > _most_detections(self._key, factor, rates.false_alarm_at_most)

        if contradicted(1.0):
            return epsilon(GaussianDpEvent(1 / rates.mu), delta)[0]
        if not contradicted(LARGEST_FACTOR):
            return 0.0
        return epsilon(_event(self._key, _least_contradicted(contradicted)), delta)[0]

    def strength(
        self, detection_rates: Float64[np.ndarray, "n"], false_alarm_rates: Float64[np.ndarray, "n"]
    ) -> Float64[np.ndarray, "n"]:
        """Return the μ that fits, if the canary is seen in a run with the probability that sampling gives it."""
        seen = 1 - math.prod((1 - rate) ** count for (rate, _), count in self._parts.items())
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (detection_rates - (1 - seen) * false_alarm_rates) / seen
            return ndtri(np.clip(share, 0, 1)) - ndtri(false_alarm_rates)

    @cached_property
    def _parts(self) -> Counter[tuple[float, float]]:
        return gaussians_in(composed(self.cost.event, self.steps))

    @property
    def _key(self) -> "Key":
        return tuple(sorted((rate, noise, count) for (rate, noise), count in self._parts.items()))


@dataclass(frozen=True, kw_only=True)
class ClaimOfGuarantee:
    """The claim of a single pair (ε, δ), of any mechanism whatever.

    Args:
        guarantee: What is claimed.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> claim = ClaimOfGuarantee(guarantee=pipeline.guarantee(steps=1, delta=1e-5))
        >>> round(claim.most_detections(0.01), 2)
        0.8
    """

    guarantee: Guarantee

    def __str__(self) -> str:
        return f"one {self.guarantee.unit}, a single pair (ε, δ)"

    def epsilon(self, delta: float) -> float:
        """Return ε of the guarantee.

        Raises:
            ValueError: The guarantee has another δ.
        """
        if delta != self.guarantee.delta:
            raise ValueError(
                f"the guarantee is at δ = {self.guarantee.delta:g}, the audit at δ = {delta:g}: audit at the "
                "guarantee's δ"
            )
        return self.guarantee.epsilon

    def most_detections(self, false_alarm_rate: float) -> float:
        """Return the largest probability of a detection under (ε, δ)-DP, in both directions."""
        if math.isinf(self.guarantee.epsilon):
            return 1.0
        more = math.exp(min(self.guarantee.epsilon, 700.0))
        upper = more * false_alarm_rate + self.guarantee.delta
        return max(0.0, min(1.0, upper, 1 - (1 - false_alarm_rate - self.guarantee.delta) / more))

    def shown_epsilon(self, rates: Rates, delta: float) -> float:
        """Return the largest ε at which the rates contradict (ε, δ)-DP.

        Args:
            rates: The counts of the audit.
            delta: δ, in (0, 1).
        """
        return rates.epsilon(delta)

    def strength(
        self, detection_rates: Float64[np.ndarray, "n"], false_alarm_rates: Float64[np.ndarray, "n"]
    ) -> Float64[np.ndarray, "n"]:
        """Return the ε that each pair of rates shows."""
        delta, least = self.guarantee.delta, 1e-300
        more = np.log(np.maximum(detection_rates - delta, least) / np.maximum(false_alarm_rates, least))
        less = np.log(np.maximum(1 - false_alarm_rates - delta, least) / np.maximum(1 - detection_rates, least))
        return np.maximum(more, less)


Key = tuple[tuple[float, float, int], ...]  # (sampling rate, noise multiplier, releases) of each kind of release


def _least_contradicted(contradicted: Callable[[float], bool]) -> float:
    """Return a factor above 1 that is contradicted, at most FACTOR_ERROR above one that is not."""
    low, high = 1.0, LARGEST_FACTOR
    while high / low > 1 + FACTOR_ERROR:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if contradicted(middle) else (middle, high)
    return high


def _event(key: Key, factor: float) -> DpEvent:
    """Return the composed event with the noise multipliers times a factor."""
    parts: list[DpEvent] = []
    for rate, noise, count in key:
        gaussian = GaussianDpEvent(noise * factor)
        parts.append(SelfComposedDpEvent(gaussian if rate == 1 else PoissonSampledDpEvent(rate, gaussian), count))
    return parts[0] if len(parts) == 1 else ComposedDpEvent(parts)


def _most_detections(key: Key, factor: float, false_alarm_rate: float) -> float:
    """Return the trade-off curve of releases with the noise multipliers times a factor."""
    if any(noise == 0 for _, noise, _ in key):
        return 1.0
    if all(rate == 1 for rate, _, _ in key):
        mu = math.sqrt(sum(count / (noise * factor) ** 2 for _, noise, count in key))
        return float(ndtr(ndtri(false_alarm_rate) + mu))
    more, (of_removal, of_addition) = np.exp(EPSILONS), _deltas(key, factor)
    # P(S) ≤ e^ε Q(S) + δ, where P is with the canary, and Q(Sᶜ) ≤ e^ε P(Sᶜ) + δ: every ε gives two bounds.
    direct = more * false_alarm_rate + of_removal
    complement = 1 - (1 - false_alarm_rate - of_addition) / more
    return float(min(1.0, direct.min(), complement.min()))


@lru_cache(maxsize=1024)
def _deltas(key: Key, factor: float) -> Float64[np.ndarray, "2 epsilons"]:
    """Return δ at each of EPSILONS, for removing and for adding a unit, by pessimistic privacy loss distributions."""
    steps = [(0.5 / (noise * factor) ** 2 + 9 / (noise * factor)) / GRID_POINTS for _, noise, _ in key]
    composed_losses = None
    with np.errstate(all="ignore"):
        for rate, noise, count in key:
            losses = privacy_loss_distribution.from_gaussian_mechanism(
                noise * factor, value_discretization_interval=max(steps), sampling_prob=rate, use_connect_dots=True
            ).self_compose(count)
            composed_losses = losses if composed_losses is None else composed_losses.compose(losses)
        assert composed_losses is not None
        directions = (composed_losses._pmf_remove, composed_losses._pmf_add)
        return np.array([losses.get_delta_for_epsilon(EPSILONS.tolist()) for losses in directions], dtype=np.float64)
