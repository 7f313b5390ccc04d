"""Costs and plans as the text in which a ledger's file holds them."""

import json
from functools import lru_cache
from typing import Any

from dpcomp.privacy.accounting.events import read_event, write_event
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.plan import Plan

CostText = tuple[str, str]  # a cost as two columns of a row: its event; and its basis, which is all else


def cost_as_text(cost: Cost) -> CostText:
    """Write a cost as two columns of a row."""
    basis: dict[str, Any] = {
        "unit": cost.unit,
        "trust": cost.trust,
        "sampling": cost.sampling,
        "why_unsafe": cost.why_unsafe,
    }
    if cost.assumed:
        basis["assumed"] = cost.assumed
    return write_event(cost.event), json.dumps(basis, sort_keys=True)


@lru_cache(maxsize=1024)
def cost_from_text(event: str, basis: str) -> Cost:
    """Read a cost that `cost_as_text` wrote."""
    fields = json.loads(basis)
    fields["assumed"] = tuple(fields.get("assumed", ()))
    return Cost(event=read_event(event), **fields)


def plan_as_text(plan: Plan) -> str:
    """Write a plan as a column of a row."""
    return json.dumps([[*cost_as_text(cost), steps] for cost, steps in plan.releases])


def plan_from_text(text: str) -> Plan:
    """Read a plan that `plan_as_text` wrote."""
    return Plan([(cost_from_text(event, basis), steps) for event, basis, steps in json.loads(text)])
