"""The guarantee of a whole run, and the columns of its rows that are not covered by it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from dpcomp.pipeline import Pipeline
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.simulation.round_outcome import BITS_OF, REFUSED
from dpcomp.simulation.simulated_federation import expected_participants


def run_guarantee(
    pipeline: Pipeline,
    ledger: Ledger,
    delta: float,
    *,
    clients: int,
    units: int,
    assumptions: tuple[str, ...],
    forgone: int = 0,
) -> Guarantee:
    """Return the guarantee of a run: the largest ε of those who were charged.

    A run that was stopped by its results is a part of the run of all rounds, whose ε it therefore has; the ε of the
    rounds that came would take their number for a public constant (PRIVACY_RULES 23).

    Args:
        pipeline: What was run.
        ledger: What the clients, or the server, were charged.
        delta: δ, in (0, 1).
        clients: The number of clients.
        units: The public number of units N.
        assumptions: What the trainer assumes.
        forgone: The number of rounds that were asked for and not played, since a callback stopped the run.
    """
    guarantee = ledger.guarantee(delta, units)
    if forgone:
        # In each round that did not come, a client may have been charged as much as it was for any round.
        steps = guarantee.steps + forgone * max(1, ledger.most_steps)
        all_rounds = pipeline.guarantee(steps, delta, units)
        clauses = dict.fromkeys((*all_rounds.assumptions, *guarantee.assumptions))
        guarantee = replace(all_rounds, assumptions=tuple(clauses))
        assumptions = (f"the ε is that of all rounds, of which {forgone:,} did not come", *assumptions)
    elif guarantee.steps == 0:  # an empty ledger does not know the unit and trust of the pipeline
        guarantee = pipeline.guarantee(0, delta, units)
    if not pipeline.trust_model.releases_local_steps:
        divisor = expected_participants(pipeline, clients)
        assumptions = (*assumptions, f"the divisor {divisor:g} and the number of clients, {clients:,}, are public")
    return replace(guarantee, assumptions=tuple(dict.fromkeys((*guarantee.assumptions, *assumptions))))


def epsilon_column(ledger: Ledger, delta: float) -> dict[str, float]:
    """Return the column of ε so far, the largest over those who were charged; none where there is no guarantee.

    Args:
        ledger: What the clients, or the server, were charged.
        delta: δ, in (0, 1).
    """
    spent = ledger.guarantee(delta).epsilon
    return {"epsilon": spent} if math.isfinite(spent) else {}


def columns_of_clean_data(
    pipeline: Pipeline, rows: Iterable[Mapping[str, float]], watched_columns: Iterable[str]
) -> tuple[str, ...]:
    """Return the sorted names of the columns that depend on data which was never released.

    These are the columns of probes, and the time that training took. Where the server is trusted, they are also the
    sizes of secret cohorts and the lengths and refusals of clean messages.

    Args:
        pipeline: What was run.
        rows: The rows of the run.
        watched_columns: The columns that the probes filled.
    """
    clean = {"seconds", *watched_columns}
    if pipeline.trust_model.server_sees_clean:
        clean |= {"participants", "payload_bytes", "compression_ratio"}
        clean |= {"uplink_bytes", "downlink_bytes", "control_bytes"}  # the length of a reply depends on its question
        clean |= {column for row in rows for column in row if column.startswith((BITS_OF, REFUSED))}
    return tuple(sorted(clean))
