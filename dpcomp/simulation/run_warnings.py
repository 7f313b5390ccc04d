"""What is wrong with a run although it ended: what its numbers must not be read without."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from dpcomp.core.errors import DpcompWarning
from dpcomp.privacy.guarantee import delta_note
from dpcomp.simulation.probes import Watched
from dpcomp.simulation.round_outcome import REFUSED

DIVERGED = 2.0  # times the loss of the first model
MOST_ZERO = 0.5  # of the updates; some clients of a partition have no examples


def run_warnings(
    rows: Sequence[Mapping[str, float]],
    first: Mapping[str, float],
    watched: Watched,
    *,
    delta: float,
    units: int,
    model: Float32[np.ndarray, "d"],
) -> tuple[str, ...]:
    """Say what is wrong with a run.

    Args:
        rows: The rows of the run.
        first: What the trainer measured of the first model.
        watched: The pipeline of the run, which has counted its units.
        delta: δ of the guarantee.
        units: The public number of units N.
        model: The last model, as a (d,) vector.

    Returns:
        A sentence for each of: δ is not below 1/N; no client took part, in some rounds or all; messages were refused;
        gradients were not finite; most updates of clients were zero; a loss or a metric was never finite; the training
        diverged.
    """
    found: list[str] = []
    if delta * units >= 1:
        found.append(delta_note(delta, units))
    empty = sum(not row["participants"] for row in rows)
    if empty == len(rows):
        found.append(
            f"no client took part in any of the {len(rows)} rounds, so nothing was learned: raise the sampling rate, "
            "the number of clients or of rounds"
        )
    elif empty:
        found.append(
            f"no client took part in {empty:,} of the {len(rows):,} rounds: their steps are noise or nothing. Raise "
            "the sampling rate or the number of clients"
        )
    refused: Counter[str] = Counter()
    for row in rows:
        refused.update({name.removeprefix(REFUSED): int(row[name]) for name in row if name.startswith(REFUSED)})
    if refused:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(refused.items()))
        found.append(
            f"the server refused {refused.total():,} messages ({reasons}): the columns {REFUSED}… say in which rounds"
        )
    not_finite, all_units = watched.not_finite
    if not_finite:
        found.append(
            f"{not_finite:,} of {all_units:,} clipped gradients or updates were not finite and counted as zero: look "
            "for NaN in the examples of train(), an overflow, a division by zero or a large learning rate. The number "
            "is private: do not publish it"
        )
    if watched.zero > MOST_ZERO * all_units:
        found.append(
            f"{watched.zero:,} of {all_units:,} updates of clients were zero: those clients have no examples, or drew "
            "none in all local steps of a round. Raise the sampling rate of local steps, "
            "PyTorch(local_sampling=dp.Poisson(rate)). The number is private: do not publish it"
        )
    last = rows[-1]
    if never := [name for name in first if not (math.isfinite(first[name]) or math.isfinite(last[name]))]:
        found.append(
            f"{', '.join(never)} is not finite, neither of the first model nor of the last: look for NaN in the "
            "examples that it is measured on, and for a metric that is not defined on so few of them"
        )
    if unmeasurable := [name for name in first if math.isfinite(first[name]) and not math.isfinite(last[name])]:
        sound = math.isfinite(last.get("test_loss", math.nan)) and np.isfinite(model).all()
        found.append(
            f"the last {', '.join(unmeasurable)} is not finite"
            + (
                ", although test_loss is: it failed, or is not defined on the outputs of this model"
                if sound
                else ": the training diverged. Lower the learning rate"
            )
        )
    elif not np.isfinite(model).all():
        found.append("the last model holds values that are not finite: the training diverged. Lower the learning rate")
    elif last.get("test_loss", 0.0) > DIVERGED * first.get("test_loss", math.inf):
        others = [name for name in first if name.startswith("test_") and name != "test_loss"]
        moved = ", ".join(f"{name} {first[name]:.3g} → {last[name]:.3g}" for name in others)
        found.append(
            f"the last test_loss is {last['test_loss']:.3g}, that of the first model {first['test_loss']:.3g}: the "
            "training diverged"
            + (f", or its outputs grew too large for the loss alone, if the metrics improved ({moved})" * bool(moved))
            + ". Lower the learning rate, or use less noise"
        )
    return tuple(found)


def warn_of(sentences: Sequence[str]) -> None:
    """Warn of each of these, at the caller of `simulate`."""
    for sentence in sentences:
        warnings.warn(sentence, DpcompWarning, stacklevel=3)
