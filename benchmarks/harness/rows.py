"""Rows: dpcomp's figure, that of a peer or a limit, their ratio with its spread, and a goal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

Figures = Sequence[float]  # one a turn


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of figures, with the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, figures: Figures) -> "Spread":
        """Summarise figures, to six digits."""
        low, middle, high = (float(f"{value:.6g}") for value in (min(figures), median(figures), max(figures)))
        return cls(median=middle, lowest=low, highest=high)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a median has to reach.

    Args:
        of: The median that is meant: "ratio", or "figure" for that of dpcomp alone.
        least: The least value; None for no lower bound.
        most: The largest value; None for no upper bound.

    Raises:
        ValueError: There is no bound, or there are two.
    """

    of: Literal["ratio", "figure"] = "ratio"
    least: float | None = None
    most: float | None = None

    def __post_init__(self):
        if (self.least is None) == (self.most is None):
            raise ValueError(f"{self!r}: give least= or most=, and not both")

    def is_met(self, value: float) -> bool:
        """Return whether a median reaches the goal."""
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)

    def __str__(self) -> str:
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement beside that of a peer or limit.

    Args:
        what: What is measured, in words.
        unit: Of both figures.
        figure: dpcomp's; None where there is none, and `note` says why.
        peer: The name of the peer or limit; empty without one.
        peer_figure: The figure of the peer.
        ratio: dpcomp's figure ÷ the peer's in the same turn.
        goal: What has to be reached; None for a row that only compares.
        settings: What tells the rows of one benchmark apart, such as the batch size.
        turns: The number of turns.
        note: What a reader must know of this row.
    """

    what: str
    unit: str
    figure: Spread | None = None
    peer: str = ""
    peer_figure: Spread | None = None
    ratio: Spread | None = None
    goal: Goal | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    turns: int = 0
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal. What was not measured meets none."""
        if self.goal is None:
            return None
        reached = self.ratio if self.goal.of == "ratio" else self.figure
        return reached is not None and self.goal.is_met(reached.median)

    def to_table(self) -> dict[str, Any]:
        """Return plain types, for JSON: the fields, and whether the goal is met."""
        return asdict(self) | {"settings": dict(self.settings), "met": self.met}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Row":
        """Make the row that `to_table` described."""
        made = {key: value for key, value in table.items() if key != "met"}
        for key in ("figure", "peer_figure", "ratio"):
            made[key] = None if table[key] is None else Spread(**table[key])
        made["goal"] = None if table["goal"] is None else Goal(**table["goal"])
        return cls(**made)


def compared(
    what: str,
    unit: str,
    figures: Figures,
    peer: str,
    peer_figures: Figures,
    *,
    goal: Goal | None = None,
    settings: Mapping[str, Any] | None = None,
    note: str = "",
) -> Row:
    """Make the row of figures that were measured in turns.

    Args:
        what: What is measured.
        unit: Of both figures.
        figures: dpcomp's, one a turn.
        peer: The name of the peer.
        peer_figures: The peer's in the same turns.
        goal: What has to be reached.
        settings: What tells the rows of one benchmark apart.
        note: What a reader must know.

    Raises:
        ValueError: Their numbers of turns differ.
    """
    return Row(
        what=what,
        unit=unit,
        figure=Spread.of(figures),
        peer=peer,
        peer_figure=Spread.of(peer_figures),
        ratio=Spread.of([ours / theirs for ours, theirs in zip(figures, peer_figures, strict=True)]),
        goal=goal,
        settings=settings or {},
        turns=len(figures),
        note=note,
    )
