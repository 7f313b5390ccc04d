"""The test that an audit counts: a linear score of all that is observed, and a threshold, both of training runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.linalg import solve

from dpcomp.audit.bounds import lower_bounds
from dpcomp.audit.claims import AuditedClaim

SCREENED = (1, 4, 16, 64, 256)  # how many features a score may have, those that differ most; each is tried
RIDGES = (1e-4, 0.01, 1.0)  # added to the variances of standardised features; each is tried
CONSTANT = 1e-12  # a deviation this far below the largest value is rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearTest:
    """A test for the canary: it is taken to be there if Σ weightⱼ · featureⱼ lies above the threshold.

    Attributes:
        columns: (k,) the features that are used, as positions among all.
        weights: (k,) their weights.
        heights: (k,) each weight times the feature's deviation, which says how much the feature matters.
        threshold: What the score must exceed.
    """

    columns: Int64[np.ndarray, "k"]
    weights: Float64[np.ndarray, "k"]
    heights: Float64[np.ndarray, "k"]
    threshold: float = 0.0

    def scores(self, features: Float64[np.ndarray, "runs features"]) -> Float64[np.ndarray, "runs"]:
        """Return the score of each run."""
        return features[:, self.columns] @ self.weights

    def detections(self, features: Float64[np.ndarray, "runs features"]) -> int:
        """Count the runs in which the canary is taken to be there."""
        return int(np.count_nonzero(self.scores(features) > self.threshold))

    def heaviest(self, names: Sequence[str], count: int) -> tuple[str, ...]:
        """Return the names of the features that matter most.

        Args:
            names: The names of all features.
            count: How many are wanted, at most.
        """
        order = np.argsort(-np.abs(self.heights), kind="stable")[:count]
        return tuple(names[int(self.columns[place])] for place in order)


def trained_test(
    present: Float64[np.ndarray, "runs features"],
    absent: Float64[np.ndarray, "runs features"],
    claim: AuditedClaim,
    confidence: float,
) -> LinearTest:
    """Train a score on the first half of the runs, and choose its threshold on the second half.

    Scores are Fisher's linear discriminants (regularised: Friedman 1989) on the features whose means differ most. Of
    several numbers of features and strengths of regularisation, and of all thresholds, the one counts that would show
    most. The runs that are counted must be others: then nothing that was tried here needs a correction.

    Args:
        present: Features of runs with the canary.
        absent: Features of as many runs without it.
        claim: What is audited; it says how much a pair of rates shows.
        confidence: That of the bounds.
    """
    half = len(present) // 2
    best, best_key = None, (-np.inf, -np.inf)
    for candidate in _discriminants(present[:half], absent[:half]):
        chosen, key = _with_threshold(candidate, present[half:], absent[half:], claim, confidence)
        if best is None or key > best_key:
            best, best_key = chosen, key
    assert best is not None
    return best


def _discriminants(
    present: Float64[np.ndarray, "runs features"], absent: Float64[np.ndarray, "runs features"]
) -> list[LinearTest]:
    """Return a linear score for each number of features and each strength of regularisation."""
    everything = np.concatenate([present, absent])
    deviations = everything.std(axis=0)
    varying = deviations > CONSTANT * np.abs(everything).max(axis=0)
    columns = np.flatnonzero(varying)
    if not len(columns):
        return [LinearTest(columns=np.zeros(1, np.int64), weights=np.zeros(1), heights=np.zeros(1))]
    scales = deviations[columns]
    inside = np.concatenate([present - present.mean(axis=0), absent - absent.mean(axis=0)])[:, columns] / scales
    difference = (present.mean(axis=0) - absent.mean(axis=0))[columns] / scales
    separation = np.abs(difference) / np.sqrt(inside.var(axis=0) + 1e-9)
    order = np.argsort(-separation, kind="stable")
    found = []
    for kept in sorted({min(count, len(order)) for count in SCREENED}):
        used = np.sort(order[:kept])
        covariance = inside[:, used].T @ inside[:, used] / len(inside)
        for ridge in RIDGES if kept > 1 else RIDGES[-1:]:
            weights = solve(covariance + ridge * np.eye(kept), difference[used], assume_a="pos")
            found.append(LinearTest(columns=columns[used], weights=weights / scales[used], heights=weights))
    return found


def _with_threshold(
    test: LinearTest,
    present: Float64[np.ndarray, "runs features"],
    absent: Float64[np.ndarray, "runs features"],
    claim: AuditedClaim,
    confidence: float,
) -> tuple[LinearTest, tuple[float, float]]:
    """Return the test with its best threshold, and how much it shows: larger pairs are better."""
    found, false = np.sort(test.scores(present)), np.sort(test.scores(absent))
    runs = len(found)
    levels = np.unique(np.concatenate([found, false]))
    # Between two levels, so that a run that repeats one of them lies on the same side on every machine.
    thresholds = np.concatenate([[levels[0] - 1], (levels[1:] + levels[:-1]) / 2])
    bounds = lower_bounds(runs, confidence)
    detected = bounds[runs - np.searchsorted(found, thresholds, side="right")]
    alarmed = 1 - bounds[np.searchsorted(false, thresholds, side="right")]
    shown = claim.strength(detected, alarmed)
    shown = np.where(np.isnan(shown), -np.inf, shown)
    best = int(np.lexsort((detected - alarmed, shown))[-1])
    chosen = LinearTest(
        columns=test.columns, weights=test.weights, heights=test.heights, threshold=float(thresholds[best])
    )
    return chosen, (float(shown[best]), float(detected[best] - alarmed[best]))
