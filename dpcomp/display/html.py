"""Values as HTML for notebooks: everything is escaped, and colours are the reader's own, light or dark.

Styles stand in the elements, since notebooks that are not trusted drop style sheets and scripts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

_EDGE = "1px solid rgba(128, 128, 128, 0.6)"
_CELL = "padding:0.15em 0.6em; text-align:right; background:transparent; color:inherit"
_COLOURS = {"clean": "#d97706", "released": "#0d9488", "none": "#dc2626"}  # beside the word: legible on any ground
_WORDS = {"clean": "clean", "released": "released", "none": "no guarantee"}

State = Literal["clean", "released", "none"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a chain.

    Attributes:
        title: The call that makes the part.
        place: Who does it, such as "client".
        known: What is known of the values after it, a clause each.
        state: Whether the values after it are clean, which are private, or released, or without a guarantee; None where
            that is not known.
    """

    title: str
    place: str
    known: tuple[str, ...]
    state: State | None

    @property
    def words(self) -> str:
        """What is known after it, on one line."""
        return ", ".join((*_said(self.state), *self.known))


def panel(title: str, *parts: str) -> str:
    """Return a framed block.

    Args:
        title: Its heading, as text.
        parts: Its contents, as HTML.
    """
    return (
        f'<div style="border:{_EDGE}; border-radius:4px; padding:0.5em 0.8em; max-width:60em; color:inherit">'
        f'<div style="font-weight:bold">{escape(title)}</div>{"".join(parts)}</div>'
    )


def paragraph(words: str) -> str:
    """Return text as a paragraph of HTML."""
    return f'<div style="margin:0.2em 0; overflow-wrap:anywhere">{escape(words)}</div>'


def curve(name: str, bars: str, ends: str) -> str:
    """Return a curve of one line.

    Args:
        name: What it shows.
        bars: The bars, as `sparkline` returns them.
        ends: Its first and last value, as text.
    """
    return (
        f'<div style="margin:0.2em 0">{escape(name)} <span style="font-family:monospace; white-space:pre">'
        f"{escape(bars)}</span> {escape(ends)}</div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, as text."""
    style = "padding:0.1em 0.6em 0.1em 0; text-align:left; background:transparent; color:inherit; vertical-align:top"
    rows = (
        f'<tr style="background:transparent"><th style="{style}; font-weight:normal; opacity:0.75">{escape(name)}</th>'
        f'<td style="{style}; overflow-wrap:anywhere">{escape(value)}</td></tr>'
        for name, value in pairs
    )
    return f'<table style="border-collapse:collapse; margin:0.2em 0">{"".join(rows)}</table>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table.

    Args:
        header: The names of the columns, as text.
        rows: The cells of each row, as text.
    """
    head = "".join(f'<th style="{_CELL}; border-bottom:{_EDGE}">{escape(name)}</th>' for name in header)
    body = "".join(f'<tr style="background:transparent">{"".join(_cell(cell) for cell in row)}</tr>' for row in rows)
    return (
        f'<table style="border-collapse:collapse; margin:0.3em 0"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def chain(steps: Sequence[Step]) -> str:
    """Return steps as boxes from left to right, with what is known after each."""
    boxes = '<div style="align-self:center; opacity:0.75">→</div>'.join(map(_box, steps))
    return f'<div style="display:flex; flex-wrap:wrap; gap:0.4em; margin:0.4em 0">{boxes}</div>'


def _cell(text: str) -> str:
    return f'<td style="{_CELL}">{escape(text)}</td>'


def _said(state: State | None) -> tuple[str, ...]:
    return () if state is None else (_WORDS[state],)


def _box(step: Step) -> str:
    colour = "currentColor" if step.state is None else _COLOURS[step.state]
    known = "".join(f"<div>{escape(clause)}</div>" for clause in (*_said(step.state), *step.known))
    return (
        f'<div style="border:{_EDGE}; border-top:3px solid {colour}; border-radius:4px; padding:0.3em 0.6em; '
        f'max-width:16em; overflow-wrap:anywhere"><div style="opacity:0.75">{escape(step.place)}</div>'
        f'<div style="font-family:monospace">{escape(step.title)}</div>'
        f'<div style="font-size:90%">{known}</div></div>'
    )
