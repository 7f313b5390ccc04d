"""An audit: runs on two neighbours, a test trained on some of them, and counts of others against the claim."""

import math
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from dpcomp.audit.bounds import Rates, check_confidence
from dpcomp.audit.claims import AuditedClaim
from dpcomp.audit.observations import Door, feature_matrix
from dpcomp.audit.score import trained_test
from dpcomp.core.checks import whole_number
from dpcomp.privacy.accounting.epsilon import check_delta
from dpcomp.privacy.guarantee import rounded_up

CONFIDENCE = 1 - 1e-5  # with it, an audit of a right mechanism is a false alarm once in 100,000 audits, at most
NAMED = 3  # features that a result names


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found.

    Args:
        door: Where the audit entered, in words.
        claim: What was claimed, in words.
        claimed_epsilon: ε that is claimed at δ; infinity where nothing is claimed.
        delta: δ.
        shown_epsilon: The lower bound of ε at δ, for mechanisms of the claimed kind (`AuditedClaim.shown_epsilon`).
        broken: Whether the counts contradict the claim.
        rates: The counts, and the bounds that follow from them.
        most_detections: The probability of a detection that the claim allows at the upper bound of false alarms.
        features: The names of the features that the test gives most weight.

    Examples:
        >>> import dpcomp as dp
        >>> from dpcomp.audit import Blocks, ClaimOfReleases, audit
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> result = audit(Blocks.with_spikes(pipeline), ClaimOfReleases(cost=pipeline.cost), runs=60)
        >>> result.claimed_epsilon >= result.shown_epsilon
        True
    """

    door: str
    claim: str
    claimed_epsilon: float
    delta: float
    shown_epsilon: float
    broken: bool
    rates: Rates
    most_detections: float
    features: tuple[str, ...]

    @property
    def shown_mu(self) -> float:
        """The lower bound of μ: the runs are not μ-GDP for any smaller one."""
        return self.rates.mu

    @property
    def shown_epsilon_of_any(self) -> float:
        """The lower bound of ε at δ, whatever the mechanism is."""
        return self.rates.epsilon(self.delta)

    def __str__(self) -> str:
        rates, claimed = self.rates, self.claimed_epsilon
        verdict = "not contradicted"
        if self.broken:
            verdict = (
                f"BROKEN: finds {rates.detection_at_least:.1%} at least, the claim allows {self.most_detections:.1%}"
            )
        parts = [
            f"claimed {'ε = ∞' if math.isinf(claimed) else f'ε ≤ {rounded_up(claimed)}'}, shown ε ≥ "
            f"{rounded_down(self.shown_epsilon)} (μ ≥ {rounded_down(self.shown_mu)}) at δ = {self.delta:g}",
            verdict,
            f"found in {rates.detections:,} of {rates.runs:,}, false in {rates.false_alarms:,} of {rates.runs:,}",
            f"error probability {1 - rates.confidence:.1g}",
            self.claim,
            self.door,
            f"by {'; '.join(self.features) or 'nothing'}",
        ]
        return " · ".join(parts)


def audit(
    door: Door,
    claim: AuditedClaim,
    *,
    runs: int = 2000,
    training_runs: int | None = None,
    delta: float = 1e-5,
    confidence: float = CONFIDENCE,
) -> AuditResult:
    """Audit a mechanism: run it with a canary and without, and hold what a test tells apart against the claim.

    The score and its threshold come from training runs; other runs are counted. The bounds of both rates are exact
    (Clopper & Pearson 1934) and hold at once with the confidence. So the audit of a mechanism that keeps its claim says
    `broken` with a probability of at most 1 − confidence, whatever is observed and however the test was trained. A
    result that is not broken proves nothing: another canary or score may show more.

    Source: Jagielski et al. 2020; Nasr et al. 2023.

    Args:
        door: Where the audit enters: `Blocks`, `Training`, `Serving`, or one of your own.
        claim: What is claimed of a run of the door: `ClaimOfReleases` or `ClaimOfGuarantee`.
        runs: The runs that are counted, so many with the canary and as many without.
        training_runs: The runs that the test is trained on, likewise; None for half of `runs`.
        delta: δ at which ε is given, in (0, 1).
        confidence: The probability, at least, with which a right claim is not contradicted.

    Returns:
        The claimed and the shown ε, whether the claim is contradicted, the counts, and what told the runs apart.

    Raises:
        TypeError, ValueError: A number lies outside its range.
    """
    runs = whole_number(runs, "audit(runs)", least=20)
    least = max(20, runs // 2) if training_runs is None else training_runs
    training_runs = whole_number(least, "audit(training_runs)", least=20)
    check_delta(delta)
    check_confidence(confidence)
    claimed = claim.epsilon(delta)  # first: what is refused here is refused before the runs
    names, trained_present = feature_matrix(door.observe(True, training_runs))
    other_names, trained_absent = feature_matrix(door.observe(False, training_runs))
    if names != other_names:
        raise ValueError(
            f"{door} observes other features with the canary than without, {sorted({*names} ^ {*other_names})[:3]}: "
            "give a feature in both cases, such as zeros and whether it was sent"
        )
    test = trained_test(trained_present, trained_absent, claim, confidence)
    rates = Rates(
        detections=test.detections(feature_matrix(door.observe(True, runs))[1]),
        false_alarms=test.detections(feature_matrix(door.observe(False, runs))[1]),
        runs=runs,
        confidence=confidence,
    )
    allowed = claim.most_detections(rates.false_alarm_at_most)
    return AuditResult(
        door=str(door),
        claim=str(claim),
        claimed_epsilon=claimed,
        delta=delta,
        shown_epsilon=claim.shown_epsilon(rates, delta),
        broken=rates.detection_at_least > allowed,
        rates=rates,
        most_detections=allowed,
        features=test.heaviest(names, NAMED),
    )


def rounded_down(value: float) -> str:
    """Write a lower bound so that the printed number is never larger: two decimals."""
    return "∞" if math.isinf(value) else str(Decimal(value).quantize(Decimal("0.01"), ROUND_FLOOR))
