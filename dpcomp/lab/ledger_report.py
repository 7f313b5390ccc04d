"""What `dpcomp ledger` prints and draws: a ledger as text, JSON, CSV and a figure. It reads, and charges nothing."""

import ast
import csv
import io
import json
import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from dp_accounting import DpEvent  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types

import dpcomp as dp
from dpcomp.core.errors import ConfigError
from dpcomp.privacy.accounting.events import gaussians_in
from dpcomp.privacy.claim import ROUNDING
from dpcomp.privacy.cost import NOT_TUNED, SEEDED
from dpcomp.privacy.guarantee import rounded_up
from dpcomp.privacy.ledger.cost_text import cost_from_text
from dpcomp.privacy.ledger.ledger_entries import utc
from dpcomp.privacy.ledger.outlook import Outlook, Spending, largest_spendings, what_if

COLUMNS = 100  # of a terminal
MARGIN = 11  # before what a line says
MOMENTS = 24  # at which the figure computes ε
MOST_RANGES = 4  # of clients' numbers in a line
SAME = 1e-11  # relative, of noise multipliers: 12 digits are printed


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """A charge that is asked about.

    Args:
        mechanism: What makes a release, as text: "Gaussian(1.1)", with the noise multiplier.
        steps: The number of releases, 1 or more.
        rate: The probability with which a unit is sampled, in (0, 1]; 1 for no sampling.
        client: Whom to charge; None for every client of the ledger.

    Raises:
        ConfigError: `mechanism` says something else.
        ValueError: A number lies outside its range.
    """

    mechanism: str
    steps: int = 1
    rate: float = 1.0
    client: int | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"--steps {self.steps}: give a whole number, 1 or more")
        if self.client is not None:
            dp.Address(0, self.client, 0)
        _ = self.gaussian, dp.Poisson(self.rate)

    @property
    def gaussian(self) -> dp.Gaussian:
        """The noise."""
        try:
            call = ast.parse(self.mechanism.strip(), mode="eval").body
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Gaussian":
                named = [each.value for each in call.keywords if each.arg == "noise_multiplier"]
                if len(call.args) + len(call.keywords) == 1 and (values := [*call.args, *named]):
                    return dp.Gaussian(ast.literal_eval(values[0]))
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise self._refusal(f" ({_plain(str(error))})") from error
        raise self._refusal("")

    def cost_in(self, record: dp.LedgerRecord) -> dp.Cost:
        """Return the cost of a release, with the unit and the trust that the ledger has.

        Args:
            record: What the ledger holds. A cost of its plan or its charges with the same noise, to the digits that the
                report prints, is that cost.

        Raises:
            ConfigError: The ledger's unit and trust have no amplification, and a sampling rate was given.
        """
        planned = [] if record.plan is None else [cost for cost, _ in record.plan.releases]
        known = [*planned, *(cost_from_text(*text) for text in record.entries.costs)]
        model = known[0].trust_model if known else dp.TrustModel()
        if self.rate < 1 and not model.amplified:
            raise ConfigError(
                f"--rate {self.rate:g}: {record.name} charges for unit={model.unit!r} with trust={model.trust!r}, "
                "where sampling amplifies nothing, since the server sees who sends: leave --rate away"
            )
        cost = dp.Pipeline(
            mechanism=(dp.Clip(1.0), self.gaussian),
            sampling=None if self.rate == 1 else dp.Poisson(self.rate),
            unit=model.unit,
            trust=model.trust,
        ).cost
        alike = [each for each in known if each.trust_model == cost.trust_model and _same_noise(each.event, cost.event)]
        return alike[0] if alike else cost

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"--what-if {_plain(self.mechanism)!r} is no mechanism{why}: give the noise multiplier as "
            "'Gaussian(1.1)', and the sampling rate as --rate"
        )


@dataclass(frozen=True, kw_only=True)
class LedgerReport:
    """What is said about a ledger; `LedgerReport.of` makes it.

    Attributes:
        record: What the ledger holds.
        delta: δ of each ε.
        guarantee: The guarantee of all charges: the largest over clients.
        spendings: What clients have spent, the largest ε first.
        question: A charge that was asked about, if one was.
        outlook: What that charge would do.
    """

    record: dp.LedgerRecord
    delta: float
    guarantee: dp.Guarantee
    spendings: tuple[Spending, ...]
    question: WhatIf | None
    outlook: Outlook | None

    @staticmethod
    def of(
        record: dp.LedgerRecord, *, delta: float | None = None, most: int | None = 10, question: WhatIf | None = None
    ) -> "LedgerReport":
        """Compute the report.

        Args:
            record: What the ledger holds.
            delta: δ, in (0, 1); None for the budget's, or 10⁻⁵.
            most: How many histories are listed, 1 or more; None for all.
            question: A charge to ask about.

        Raises:
            ConfigError: The question doesn't fit the ledger.
            ValueError: `delta` or `most` lies outside its range.
        """
        if most is not None and most < 1:
            raise ValueError(f"--most {most}: give a whole number, 1 or more")
        delta = _delta(record, delta)
        outlook = None
        if question is not None:
            outlook = what_if(record, question.cost_in(record), question.steps, delta, question.client)
        return LedgerReport(
            record=record,
            delta=delta,
            guarantee=record.guarantee(delta),
            spendings=largest_spendings(record, delta, most),
            question=question,
            outlook=outlook,
        )


def text(report: LedgerReport) -> str:
    """Return the report as lines of at most 100 columns."""
    record, entries = report.record, report.record.entries
    lines = [
        *_said("ledger", f"{record.name} · created {_moment(record.created)}"),
        *_said("chain", f"verified: {record.mark.count:,} entries, the last has digest {record.mark.digest}"),
        *_said("charges", _charges(record)),
        *_said("budget", _budget(record)),
        *_said("plan", _planned(record)),
        *_said("tuning", f"the ledger records none: its ε holds if {NOT_TUNED}"),
        *_said("seeds", _seeds(record)),
    ]
    for clause in record.assumed:
        lines += _said("assumed", clause)
    lines += _said("guarantee", str(report.guarantee))
    if entries:
        lines += ["", *_table(report)]
    if report.question is not None and report.outlook is not None:
        asked, outlook = report.question, report.outlook
        whom = "each client" if asked.client is None else f"client {asked.client}"
        sampling = "unsampled" if asked.rate == 1 else f"sampled at rate {asked.rate:g}"
        lines += ["", *_said("what if", f"{asked.steps:,} more steps of {asked.gaussian}, {sampling}, for {whom}")]
        lines += _said(
            "", f"the ledger's {_epsilon(outlook.before)} would become {_epsilon(outlook.after)}; nothing was charged"
        )
        lines += _said("", str(outlook.after))
        if record.incomplete:
            lines += _said("", "the ledger is incomplete, and refuses every charge")
        elif record.budget is not None:
            refused = f"refused for {_counted(len(outlook.refused), 'client')}: {_numbers(outlook.refused)}"
            lines += _said("", f"the budget: {refused if outlook.refused else 'allows it'}")
    return "\n".join(lines)


def json_text(report: LedgerReport) -> str:
    """Return the report as JSON; ε without a bound is null."""
    record = report.record
    times = record.entries.times
    said: dict[str, Any] = {
        "ledger": record.name,
        "created": record.created.isoformat(),
        "chain": {"verified": True, "entries": record.mark.count, "digest": record.mark.digest},
        "charges": len(record.entries),
        "clients": len(record.histories),
        "first": utc(int(times[0])).isoformat() if len(times) else None,
        "last": utc(int(times[-1])).isoformat() if len(times) else None,
        "budget": None if record.budget is None else {"epsilon": record.budget.epsilon, "delta": record.budget.delta},
        "plan": None if record.plan is None else [[*_cost(cost), steps] for cost, steps in record.plan.releases],
        "tuning": None,
        "research": record.research,
        "seeded": record.seeded,
        "assumed": list(record.assumed),
        "guarantee": _as_json(report.guarantee),
        "histories": [
            {
                "clients": list(spending.clients),
                "epsilon": _finite(spending.guarantee.epsilon),
                "steps": spending.steps,
                "spent": [
                    {
                        "mechanism": _cost(cost_from_text(*cost))[0],
                        "sampling": _cost(cost_from_text(*cost))[1],
                        "steps": n,
                    }
                    for cost, n in spending.history.spent.items()
                ],
                "left": None
                if spending.left is None
                else [
                    {"mechanism": _cost(cost)[0], "sampling": _cost(cost)[1], "steps": n}
                    for cost, n in spending.left.items()
                ],
            }
            for spending in report.spendings
        ],
    }
    if report.question is not None and report.outlook is not None:
        said["what_if"] = {
            "mechanism": str(report.question.gaussian),
            "steps": report.question.steps,
            "rate": report.question.rate,
            "client": report.question.client,
            "before": _as_json(report.outlook.before),
            "after": _as_json(report.outlook.after),
            "refused": list(report.outlook.refused),
        }
    return json.dumps(said, indent=2, allow_nan=False)


def csv_of_clients(report: LedgerReport) -> Iterator[str]:
    """Yield the lines of a CSV file with a row for each client of the report's histories, the largest ε first."""
    yield _row(["client", "steps", "epsilon", "delta", "accountant", "steps_left"])
    for spending in report.spendings:
        left = "" if spending.left is None else min(spending.left.values(), default="")
        shared = spending.steps, spending.guarantee.epsilon, report.delta, spending.guarantee.accountant, left
        for client in spending.clients:
            yield _row([client, *shared])


def csv_of_entries(record: dp.LedgerRecord) -> Iterator[str]:
    """Yield the lines of a CSV file with a row for each charge, in their order.

    Args:
        record: What the ledger holds.
    """
    yield _row(["time", "run", "client", "round", "steps", "mechanism", "sampling"])
    entries = record.entries
    costs = [_cost(cost_from_text(*cost)) for cost in entries.costs]
    columns = (entries.times, entries.run_places, entries.clients, entries.rounds, entries.steps, entries.cost_places)
    for when, run, client, number, steps, cost in zip(*(column.tolist() for column in columns), strict=True):
        yield _row([utc(when).isoformat(), entries.runs[run], client, number, steps, *costs[cost]])


def figure(record: dp.LedgerRecord, delta: float | None, path: Path) -> None:
    """Draw ε over time, with the budget; between two moments it is drawn at the later one's ε, never below the truth.

    Args:
        record: What the ledger holds.
        delta: δ, in (0, 1); None for the budget's, or 10⁻⁵.
        path: A PNG, PDF or SVG file; one that is there is replaced.

    Raises:
        ConfigError: The ledger has no charges, or the file cannot be written.
        ValueError: `delta` lies outside its range.
    """
    import matplotlib.pyplot as plt
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

    from dpcomp.lab.figures.style import use_style

    delta, count = _delta(record, delta), len(record.entries)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--figure {path}: the name of a figure ends with .png, .pdf or .svg")
    if path.absolute() == Path(record.name).absolute():
        raise ConfigError(f"--figure {path} is the ledger: give another path")
    if record.incomplete:
        raise ConfigError(f"--figure: {record.name} is incomplete, so its ε is ∞ at all times: {record.incomplete}")
    if not count:
        raise ConfigError(f"--figure: {record.name} has no charges, so there is nothing to draw")
    moments = np.unique(np.linspace(1, count, min(count, MOMENTS)).round().astype(int)).tolist()
    values = [record.guarantee_after(moment, delta).epsilon for moment in moments]
    times = [record.entries[moment - 1].time for moment in moments]
    use_style()
    drawing, axes = plt.subplots(figsize=(4.5, 2.8))
    try:
        dates = date2num([record.created, *times])
        axes.step(dates, [0.0, *values], where="pre", marker=".", label="spent, largest over clients")
        if record.budget is not None and record.budget.delta == delta:
            axes.axhline(record.budget.epsilon, color="black", linestyle="--", label="budget")
        axes.set(xlabel="time (UTC)", ylabel=f"ε at δ = {delta:g}", ylim=(0, None))
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.legend()
        drawing.savefig(path)
    except OSError as error:
        raise ConfigError(f"--figure {path} cannot be written: {error}") from error
    finally:
        plt.close(drawing)


def _delta(record: dp.LedgerRecord, delta: float | None) -> float:
    return delta if delta is not None else 1e-5 if record.budget is None else record.budget.delta


def _charges(record: dp.LedgerRecord) -> str:
    entries = record.entries
    if not entries:
        return "none"
    counts = f"{len(entries):,} for {_counted(len(record.histories), 'client')} in {_counted(len(entries.runs), 'run')}"
    first, last = (_moment(utc(int(entries.times[place]))) for place in (0, -1))
    return f"{counts}, from {first} to {last}"


def _budget(record: dp.LedgerRecord) -> str:
    if record.budget is None:
        return "none: any charge is accepted"
    return (
        f"ε ≤ {record.budget.epsilon:g} at δ = {record.budget.delta:g} for each client; a charge beyond it is refused"
    )


def _planned(record: dp.LedgerRecord) -> str:
    if record.plan is None:
        return "none"
    on_plan = sum(history.followed is not None for history in record.histories.values())
    steps = f"{record.plan.steps:,} steps in {len(record.plan.releases):,} parts, recorded before the first charge"
    return f"{steps}; followed by {on_plan:,} of {len(record.histories):,} clients"


def _seeds(record: dp.LedgerRecord) -> str:
    if record.seeded:
        return SEEDED
    return "no noise from a number was noted" + ("; the ledger is for research, and would allow it" * record.research)


def _table(report: LedgerReport) -> Iterator[str]:
    clients = len(report.record.histories)
    yield f"{'ε':>10} {'steps':>15} {'steps left':>15} {'clients':>9}  which clients, and what each was charged"
    for spending in report.spendings:
        left = "-" if not spending.left else f"{min(spending.left.values()):,}"
        epsilon = rounded_up(spending.guarantee.epsilon)
        alike = f"{len(spending.clients):>9,}  {_numbers(spending.clients)}"
        yield f"{epsilon:>10} {spending.steps:>15,} {left:>15} {alike}"
        for cost, steps in list(spending.history.spent.items())[:MOST_RANGES]:
            more = cost_from_text(*cost)
            mixed = spending.left is not None and more in spending.left and len(spending.left) > 1
            room = f", {spending.left[more]:,} left" if spending.left is not None and mixed else ""
            yield from _wrapped(f"{' '.join(_cost(more))} × {steps:,}{room}", 54)
        if (others := len(spending.history.spent) - MOST_RANGES) > 0:
            yield from _wrapped(f"and {others:,} other costs", 54)
    listed = sum(len(spending.clients) for spending in report.spendings)
    if listed < clients:
        yield f"{_counted(clients - listed, 'client')} more, with less; --most lists more, --csv all."


def _numbers(clients: Iterable[int]) -> str:
    """Write clients' numbers as ranges, the first few of them."""
    ranges: list[list[int]] = []
    for client in sorted(clients):
        if ranges and client == ranges[-1][1] + 1:
            ranges[-1][1] = client
        else:
            ranges.append([client, client])
    words = [
        "the server" if first == dp.SERVER else str(first) if first == last else f"{first}-{last}"
        for first, last in ranges[:MOST_RANGES]
    ]
    return ", ".join(words + (["..."] if len(ranges) > MOST_RANGES else []))


def _same_noise(one: DpEvent, other: DpEvent) -> bool:
    (first, *more), (second, *others) = gaussians_in(one).items(), gaussians_in(other).items()
    (rate, noise), count = first
    (other_rate, other_noise), other_count = second
    alike = (rate, count) == (other_rate, other_count) and math.isclose(noise, other_noise, rel_tol=SAME)
    return alike and not more and not others


def _cost(cost: dp.Cost) -> tuple[str, str]:
    """Return the mechanism and its sampling in words."""
    if cost.why_unsafe:
        return f"unsafe ({_plain(cost.why_unsafe)})", _plain(cost.sampling)
    event = getattr(cost.event, "event", cost.event)
    noise = getattr(event, "noise_multiplier", 0.0)
    sampling = "unsampled" if cost.sampling == "none" else _plain(cost.sampling)
    return f"Gaussian({noise * (1 + ROUNDING):.12g})", sampling  # as a pipeline and --what-if take it


def _epsilon(guarantee: dp.Guarantee) -> str:
    return "ε = ∞" if math.isinf(guarantee.epsilon) else f"ε ≤ {rounded_up(guarantee.epsilon)}"


def _as_json(guarantee: dp.Guarantee) -> dict[str, Any]:
    return {
        "epsilon": _finite(guarantee.epsilon),
        "delta": guarantee.delta,
        "unit": guarantee.unit,
        "trust": guarantee.trust,
        "accountant": guarantee.accountant,
        "steps": guarantee.steps,
        "text": str(guarantee),
    }


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def _said(name: str, words: str) -> list[str]:
    return [
        f"{name:<{MARGIN}}".ljust(MARGIN) + line.lstrip() if not number else line
        for number, line in enumerate(_wrapped(words, MARGIN))
    ]


def _wrapped(words: str, margin: int) -> list[str]:
    indent = " " * margin
    return textwrap.wrap(
        _plain(words), COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _plain(words: str) -> str:
    """Return text without control characters: what a file holds does not steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _row(values: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
