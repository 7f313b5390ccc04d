"""The page about the client's state machine has the transitions of the code."""

from pathlib import Path

from dpcomp.federated.phases import TRANSITIONS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "client.md"


def rows():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| from |"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            return table
        table.append([cell.strip().strip("*") for cell in line.strip().removeprefix("|").removesuffix("|").split("|")])
    return table


def test_the_page_draws_the_transitions_that_there_are():
    (_, *events), _, *found = rows()
    expected = {}
    for phase, reactions in TRANSITIONS.items():
        by_name = {event.__name__: ", ".join(after.value for after in phases) for event, phases in reactions.items()}
        assert set(by_name) <= set(events)
        expected[phase.value] = [by_name.get(event, "") for event in events]
    assert {phase: cells for phase, *cells in found} == expected


def test_the_page_explains_every_phase_and_every_event():
    text = PAGE.read_text(encoding="utf-8")
    for name in (*(phase.value for phase in TRANSITIONS), *rows()[0][1:]):
        assert f"\n| {name} | " in text
