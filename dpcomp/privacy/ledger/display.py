"""A ledger in a notebook: what was charged, what it adds up to, and what it may come to."""

from collections.abc import Mapping

from dpcomp.display import html
from dpcomp.display.text import plain
from dpcomp.privacy.guarantee import Guarantee, rounded_up
from dpcomp.privacy.ledger.budget import Budget
from dpcomp.privacy.ledger.ledger_entries import History
from dpcomp.privacy.ledger.ledger_file import LedgerMark
from dpcomp.privacy.plan import Plan


def delta_shown(budget: Budget | None) -> float:
    """Return the δ at which ε is shown: the budget's, or 10⁻⁵."""
    return 1e-5 if budget is None else budget.delta


def as_html(
    title: str,
    mark: LedgerMark,
    histories: Mapping[int, History],
    budget: Budget | None,
    plan: Plan | None,
    guarantee: Guarantee,
    *,
    research: bool,
) -> str:
    """Return a ledger as HTML.

    Args:
        title: Which ledger it is.
        mark: How far it has come.
        histories: What each client has spent.
        budget: The largest (ε, δ) of each client; None for no limit.
        plan: What each client was to release; None for no plan.
        guarantee: The guarantee of all charges.
        research: Whether seeded noise may be charged.
    """
    most = "none" if budget is None else f"ε ≤ {budget.epsilon:g} at δ = {budget.delta:g} for each client"
    bound = f"ε ≤ {rounded_up(guarantee.epsilon)} at δ = {guarantee.delta:g}"
    steps = max((sum(each.spent.values()) for each in histories.values()), default=0)
    pairs = [
        ("spent, largest over clients", bound),
        ("budget", most),
        ("steps", f"{steps:,} of a client, at most"),
        ("clients", f"{len(histories):,}"),
        ("entries", f"{mark.count:,}, the last has digest {mark.digest}"),
        *([] if plan is None else [("plan", f"{plan.steps:,} steps")]),
        *([("research", "noise from a numbered seed may be charged")] if research else []),
        ("guarantee", str(guarantee)),
    ]
    return html.panel(plain(title), html.facts((name, plain(value)) for name, value in pairs))
