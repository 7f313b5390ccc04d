"""What `dpcomp federation status` prints: where a federation stands, as text and JSON. It changes nothing."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpcomp.core.address import SERVER
from dpcomp.core.database.kind import HEADER_BYTES
from dpcomp.core.errors import DpcompError
from dpcomp.federated.status import ClientStatus, ServerStatus, states_in
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.display import delta_shown
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.ledger_file import KIND
from dpcomp.privacy.ledger.ledger_record import LedgerRecord
from dpcomp.terms import FederationTerms

COLUMNS, MARGIN = 100, 11  # of a terminal, and before what a line says
TERMS = "federation.toml"
DEPTH = 3  # levels of folders that are looked at


@dataclass(frozen=True, kw_only=True)
class FederationReport:
    """Where the federations stand of which a folder holds something.

    Attributes:
        folder: The folder.
        terms: The terms that lie in it, by their run id.
        states: The states of servers and clients in it.
        ledgers: The ledgers in it, each with its guarantee.
    """

    folder: Path
    terms: dict[bytes, FederationTerms]
    states: list[ServerStatus | ClientStatus]
    ledgers: list[tuple[LedgerRecord, Guarantee]]

    @classmethod
    def read(cls, folder: Path, delta: float | None = None) -> "FederationReport":
        """Read a folder, which may be in use.

        Args:
            folder: The folder of a server or of a client, or one that holds several.
            delta: δ, in (0, 1); None for that of each ledger's budget, or 10⁻⁵.

        Raises:
            DpcompError: Nothing of a federation is in it, or something is damaged.
            ValueError: `delta` lies outside its range.
        """
        if not folder.is_dir():
            raise DpcompError(f"{folder} is no folder: give that of a server or of a client")
        terms = [FederationTerms.read(path) for path in _files(folder, TERMS)]
        records = [Ledger.read(path) for path in _files(folder, "*.db") if _is_ledger(path)]
        report = cls(
            folder=folder,
            terms={each.run_id: each for each in terms},
            states=sorted(states_in(folder, DEPTH), key=lambda state: isinstance(state, ClientStatus)),
            ledgers=[(each, each.guarantee(delta_shown(each.budget) if delta is None else delta)) for each in records],
        )
        if not (report.terms or report.states or report.ledgers):
            raise DpcompError(
                f"{folder} holds nothing of a federation: no {TERMS}, no journal.db of a server, no checkpoints of a "
                "client and no ledger. Give the folder that Server or Participant was given, or one above it"
            )
        return report

    def charged_ahead(self, state: ServerStatus) -> list[int]:
        """Return the rounds that a trusted server has not closed, although a ledger in the folder was charged for them.

        Args:
            state: A state in the folder.
        """
        charged = [record.charged_rounds(state.run, SERVER) for record, _ in self.ledgers]
        return sorted(number for number in frozenset().union(*charged) if number >= state.version)


def text(report: FederationReport) -> str:
    """Return the report as lines of at most 100 columns."""
    lines: list[str] = []
    for terms in report.terms.values():
        cost = f"{terms.rounds:,} rounds of {terms.steps:,} releases, {terms.clients:,} clients"
        lines += _said("terms", f"run id {terms.run_id.hex()} · {cost} · {terms.parameters:,} parameters")
        lines += [*_said("", str(terms.guarantee(1e-5))), ""]
    for state in report.states:
        of = report.terms.get(state.run_id)
        version = f"version {state.version:,}" + ("" if of is None else f" of {of.rounds:,}")
        where = f"{state.folder} · run id {state.run_id.hex()} · {version} · saved {state.saved:%Y-%m-%d %H:%M} UTC"
        if isinstance(state, ServerStatus):
            lines += [*_said("server", where), *_of_server(state, of, report.charged_ahead(state)), ""]
        else:
            lines += [*_said(f"client {state.client}", where), *_of_client(state), ""]
    for record, guarantee in report.ledgers:
        spent = f"{record.name} · charges: {len(record.entries):,}, of {_numbers(record.histories, 'client')}"
        lines += [*_said("ledger", spent), *_said("", str(guarantee)), ""]
    return "\n".join(lines[:-1])


def _of_server(state: ServerStatus, terms: FederationTerms | None, ahead: list[int]) -> list[str]:
    enrolled = "" if terms is None else f" of {terms.clients:,}"
    behind = [client for client in state.last_rounds if client not in state.current]
    refusals = ", ".join(f"{reason} {count:,}" for reason, count in sorted(state.refusals.items()))
    withdrawn = ", ".join(f"client {client} ({reason})" for client, reason in state.withdrawn.items())
    traffic = state.traffic
    lines = [
        *_said("round", f"{state.updates:,} updates accepted since"),
        *_said("clients", f"{len(state.last_rounds):,}{enrolled} have sent"),
        *_said("", f"in the last closed round {_numbers(state.current, 'client')}"),
        *(_said("", f"not in it {_numbers(behind, 'client')}") if behind else []),
        *_said("withdrawn", withdrawn or "nobody"),
        *_said("refused", refusals or "nothing"),
        *_said("bytes", f"{traffic.received_bytes:,} in {traffic.messages:,} messages; {traffic.sent_bytes:,} replied"),
    ]
    if state.forfeited:
        lines += _said("forfeited", f"{_numbers(state.forfeited, 'round')}, closed without a release")
    if ahead:
        spent = f"the ledger was charged already for {_numbers(ahead, 'round')}"
        lines += _said("charged", f"{spent}; unless a server is closing it now, a round is closed without a release")
    if terms is not None and terms.pipeline.trust_model.server_sees_clean:
        lines += _said("", "counts of a trusted server depend on clean messages: tell nobody")
    return lines


def _of_client(state: ClientStatus) -> list[str]:
    pending = "none" if state.pending is None else f"one of round {state.pending.round:,}, which has no reply yet"
    return [
        *_said("updates", f"{state.accepted:,} accepted; pending: {pending}"),
        *(_said("", "a question to the server has no reply yet") if state.asking else []),
    ]


def json_text(report: FederationReport) -> str:
    """Return the report as JSON; ε without a bound is null."""
    said: dict[str, Any] = {
        "folder": str(report.folder),
        "terms": [{"run_id": run_id.hex(), **terms.to_table()} for run_id, terms in report.terms.items()],
        "states": [_as_json(state, report) for state in report.states],
        "ledgers": [
            {
                "ledger": record.name,
                "charges": len(record.entries),
                "clients": list(record.histories),
                "epsilon": guarantee.epsilon if guarantee.epsilon < float("inf") else None,
                "delta": guarantee.delta,
                "guarantee": str(guarantee),
            }
            for record, guarantee in report.ledgers
        ],
    }
    return json.dumps(said, ensure_ascii=False, indent=2)


def _as_json(state: ServerStatus | ClientStatus, report: FederationReport) -> dict[str, Any]:
    said = {"is": "server" if isinstance(state, ServerStatus) else "client", **vars(state)}
    said |= {"folder": str(state.folder), "run_id": state.run_id.hex(), "saved": state.saved.isoformat()}
    if isinstance(state, ServerStatus):
        ahead = report.charged_ahead(state)
        return said | {"traffic": vars(state.traffic), "current": list(state.current), "charged_ahead": ahead}
    return said | {"pending": None if state.pending is None else state.pending.round}


def _said(what: str, words: str) -> list[str]:
    """Return a line, folded below itself where it is too long."""
    folded = textwrap.wrap(words, COLUMNS - MARGIN) or [""]
    return [f"{what if number == 0 else '':{MARGIN}}{line}" for number, line in enumerate(folded)]


def _numbers(numbers: Iterable[int], name: str) -> str:
    """Write numbers as a count and, where they are few ranges, the ranges."""
    ordered = sorted(numbers)
    if not ordered:
        return f"no {name}"
    begins = [place for place, number in enumerate(ordered) if place == 0 or number != ordered[place - 1] + 1]
    ends = [*[place - 1 for place in begins[1:]], len(ordered) - 1]
    ranges = [
        str(ordered[begin]) if begin == end else f"{ordered[begin]:,}-{ordered[end]:,}"
        for begin, end in zip(begins, ends, strict=True)
    ]
    shown = ", ".join(ranges[:8]) + (", …" if len(ranges) > 8 else "")
    return f"{len(ordered):,} {name}{'s' * (len(ordered) != 1)}: {shown}"


def _files(folder: Path, name: str) -> list[Path]:
    """Return the files of a name in a folder and the levels below it that are looked at."""
    return sorted(path for level in range(DEPTH + 1) for path in folder.glob("*/" * level + name) if path.is_file())


def _is_ledger(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)[68:72] == KIND.application_id.to_bytes(4, "big")
