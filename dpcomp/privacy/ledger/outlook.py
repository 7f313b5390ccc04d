"""What a ledger's record says to whoever answers for it: who has spent most, what is left, and what a charge would do.

Nothing here charges.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from dp_accounting import DpEvent  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
from jaxtyping import Float64

from dpcomp.core.address import client_number
from dpcomp.core.checks import whole_number
from dpcomp.privacy.accounting.epsilon import check_delta
from dpcomp.privacy.accounting.events import MOST_STEPS, gaussians_in, read_event
from dpcomp.privacy.accounting.renyi import ORDERS, rdp_curve
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.cost_text import CostText, cost_as_text, cost_from_text
from dpcomp.privacy.ledger.ledger_entries import History
from dpcomp.privacy.ledger.ledger_record import LedgerRecord, guarantee_of_histories, within

ROWS = 4096  # histories that are ranked at a time


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What some clients have spent alike.

    Attributes:
        clients: The numbers of these clients.
        history: What each of them has spent.
        guarantee: The guarantee of each of them.
        left: For each cost that they were charged, how many more steps the budget allows at it; for a client that
            follows a plan, how many more steps of the plan. None without a budget.
    """

    clients: tuple[int, ...]
    history: History
    guarantee: Guarantee
    left: Mapping[Cost, int] | None

    @property
    def steps(self) -> int:
        """The number of steps of each of these clients."""
        return sum(self.history.spent.values())


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a further charge would do; nothing was charged.

    Attributes:
        before: The guarantee now: the largest over the clients of the ledger.
        after: The guarantee after the charge: the largest over the same clients, and those that were charged.
        refused: The clients for whom it would be refused: beyond the budget, or since the ledger is incomplete.
    """

    before: Guarantee
    after: Guarantee
    refused: tuple[int, ...]


def largest_spendings(record: LedgerRecord, delta: float, most: int | None = None) -> tuple[Spending, ...]:
    """Return what the clients have spent, one answer for all with the same history, the largest ε first.

    Which histories cost most is decided by Rényi DP, which is cheap; their guarantees are those of the ledger.

    Args:
        record: What a ledger holds.
        delta: δ, in (0, 1).
        most: How many histories; None for all of them.

    Raises:
        TypeError: `delta` is not a number.
        ValueError: `delta` lies outside its range.
    """
    check_delta(delta)
    alike: dict[tuple[frozenset[tuple[CostText, int]], int | None], list[int]] = {}
    for client, history in record.histories.items():
        alike.setdefault((frozenset(history.spent.items()), history.followed), []).append(client)
    groups = [tuple(clients) for clients in alike.values()]
    scores = _rdp_of([record.histories[clients[0]] for clients in groups], delta)
    ranked: list[int] = np.argsort(-scores, kind="stable")[:most].tolist()
    spendings = [
        Spending(
            clients=groups[place],
            history=record.histories[groups[place][0]],
            guarantee=record.guarantee_of(groups[place][0], delta),
            left=_left(record, record.histories[groups[place][0]]),
        )
        for place in ranked
    ]
    return tuple(sorted(spendings, key=lambda spending: -spending.guarantee.epsilon))


def what_if(record: LedgerRecord, cost: Cost, steps: int, delta: float, client: int | None = None) -> Outlook:
    """Return what a charge would do, without charging.

    Args:
        record: What a ledger holds.
        cost: The cost of a single release.
        steps: The number of releases, 1 or more.
        delta: δ, in (0, 1).
        client: Whom to charge; None for every client of the ledger, or for client 0 if it has none.

    Raises:
        TypeError: `steps` or `client` is not a whole number, or `delta` not a number.
        ValueError: A number lies outside its range, or the ledger holds charges for another unit or trust.
    """
    check_delta(delta)
    steps = whole_number(steps, "steps", least=1, most=MOST_STEPS)
    for text in record.entries.costs[:1]:
        held = cost_from_text(*text)
        if held.trust_model != cost.trust_model:
            raise ValueError(
                f"{record.name} holds charges for unit={held.unit!r} with trust={held.trust!r}; this charge is for "
                f"unit={cost.unit!r} with trust={cost.trust!r}. They do not compose: ask the ledger of such charges"
            )
    charged = list(record.histories or [0]) if client is None else [client_number(client, "client")]
    after, text = dict(record.histories), cost_as_text(cost)
    for each in charged:
        before = record.histories.get(each) or History.begin(record.plan)
        after[each] = before.charged(text, steps, record.plan)
    budget, allowed = record.budget, dict[object, bool]()
    refused: list[int] = []
    if record.incomplete:
        refused = list(charged)  # whatever the budget
    for each in charged if budget is not None and not refused else ():
        assert budget is not None
        key = frozenset(after[each].spent.items()), after[each].followed
        if key not in allowed:
            allowed[key] = within(budget, record.plan, after[each])
        if not allowed[key]:
            refused.append(each)
    guarantee = guarantee_of_histories(
        after.values(), delta, record.plan, population=None, seeded=record.seeded, assumed=record.assumed
    )
    return Outlook(before=record.guarantee(delta), after=guarantee, refused=tuple(refused))


def _left(record: LedgerRecord, history: History) -> Mapping[Cost, int] | None:
    budget, plan = record.budget, record.plan
    if record.incomplete:
        return {cost_from_text(*text): 0 for text in history.spent}
    if budget is None:
        return None
    followed = history.followed
    if plan is not None and followed is not None:
        most = plan.steps - followed
        left = _most_allowed(lambda steps: budget.allows_planned(plan, followed + steps), most)
        return {cost_from_text(*text): left for text in list(history.spent)[-1:]}

    def allows(text: CostText) -> Callable[[int], bool]:
        return lambda steps: within(budget, plan, history.charged(text, steps, plan))

    return {cost_from_text(*text): _most_allowed(allows(text), MOST_STEPS) for text in history.spent}


def _most_allowed(allows: Callable[[int], bool], most: int) -> int:
    """Return the largest number of further steps that is allowed, for a test that once it fails fails for all more."""
    if most == 0:
        return 0
    low, high = 0, 1
    while high < most and allows(high):
        low, high = high, min(2 * high, most)
    if high == most and allows(most):
        return most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allows(middle) else (low, middle)
    return low


def _rdp_of(histories: list[History], delta: float) -> Float64[np.ndarray, "histories"]:
    """Return ε of each history by Rényi DP: the conversion of Canonne, Kamath & Steinke 2020, Prop. 12."""
    texts = dict.fromkeys(text for history in histories for text in history.spent)
    events: dict[DpEvent, int] = {}
    for event, _ in texts:
        events.setdefault(read_event(event), len(events))
    orders = np.asarray(ORDERS, dtype=np.float64)
    curves = np.zeros((len(events), len(orders)))
    private = np.ones(len(events), dtype=bool)
    for event, place in events.items():
        for (rate, noise), count in gaussians_in(event).items():
            if noise == 0:
                private[place] = False
            else:
                curves[place] += count * np.asarray(rdp_curve(rate, noise))
    places = {text: events[read_event(text[0])] for text in texts}
    to_epsilon = np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    scores = np.zeros(len(histories))
    for first in range(0, len(histories), ROWS):
        part = histories[first : first + ROWS]
        counts = np.zeros((len(part), len(events)))
        for row, history in enumerate(part):
            for text, steps in history.spent.items():
                counts[row, places[text]] += steps
        found = (counts @ curves + to_epsilon).min(axis=1)
        found[(counts[:, ~private] > 0).any(axis=1)] = math.inf
        scores[first : first + ROWS] = found
    return scores
