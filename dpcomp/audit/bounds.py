"""Bounds on rates from counts (Clopper & Pearson 1934), and what (ε, δ) they contradict."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.special import betaincinv, ndtri


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The detections and false alarms of a test in equally many runs with and without the canary, and their bounds.

    Each bound is one-sided and exact (Clopper & Pearson 1934), at half of the error probability, so both hold at once
    with the confidence.

    Args:
        detections: Runs with the canary in which the test said so.
        false_alarms: Runs without it in which the test said that it was there.
        runs: The runs with the canary, and as many without it.
        confidence: The probability with which both bounds hold, at least.

    Raises:
        ValueError: A count lies outside 0 to `runs`, or the confidence outside (0, 1).

    Examples:
        >>> rates = Rates(detections=2000, false_alarms=0, runs=2000, confidence=0.99999)
        >>> round(rates.detection_at_least, 4), round(rates.false_alarm_at_most, 4)
        (0.9939, 0.0061)
    """

    detections: int
    false_alarms: int
    runs: int
    confidence: float

    def __post_init__(self):
        check_confidence(self.confidence)
        if not (0 <= self.detections <= self.runs and 0 <= self.false_alarms <= self.runs and self.runs > 0):
            raise ValueError(f"{self}: a count lies between 0 and the number of runs, which is at least 1")

    @property
    def detection_at_least(self) -> float:
        """The lower bound of the probability of a detection."""
        return _lower_bound(self.detections, self.runs, self.confidence)

    @property
    def false_alarm_at_most(self) -> float:
        """The upper bound of the probability of a false alarm."""
        return 1.0 - _lower_bound(self.runs - self.false_alarms, self.runs, self.confidence)

    @property
    def mu(self) -> float:
        """The largest μ that the bounds contradict: the releases are not μ-GDP for any smaller one. At least 0.

        Source: Dong, Roth & Su 2022, section 2.2; Nasr et al. 2023, section 4.
        """
        return max(0.0, float(ndtri(self.detection_at_least) - ndtri(self.false_alarm_at_most)))

    def epsilon(self, delta: float) -> float:
        """Return the largest ε at which the bounds contradict (ε, δ)-DP of any mechanism whatever; at least 0.

        Source: Kairouz, Oh & Viswanath 2015, theorem 2.1; Jagielski et al. 2020, section 4.

        Args:
            delta: δ, in (0, 1).
        """
        found, false = self.detection_at_least, self.false_alarm_at_most
        pairs = ((found - delta, false), (1 - false - delta, 1 - found))
        return max([0.0, *(math.log(more / less) for more, less in pairs if more > 0 and less > 0)])


def check_confidence(confidence: object) -> None:
    """Refuse a value that is no confidence.

    Raises:
        ValueError: The value is not a number in (0, 1).
    """
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: give a probability in (0, 1), such as 1 - 1e-5")


def lower_bounds(runs: int, confidence: float) -> Float64[np.ndarray, "runs_plus_one"]:
    """Return the lower bound of a probability for every count of successes, at half of the error probability.

    The upper bound for c successes is 1 minus the lower bound for `runs` − c.

    Args:
        runs: The number of runs.
        confidence: The probability with which two such bounds hold together.
    """
    counts = np.arange(1, runs + 1, dtype=np.float64)
    return np.concatenate([[0.0], betaincinv(counts, runs - counts + 1, (1 - confidence) / 2)])


def _lower_bound(count: int, runs: int, confidence: float) -> float:
    return float(betaincinv(count, runs - count + 1, (1 - confidence) / 2)) if count else 0.0
