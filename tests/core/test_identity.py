from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest

from dpcomp.core.identity import Composition, Dictionaries, Dictionary


@dataclass(frozen=True)
class Part:
    number: int = 1
    inner: Any = None
    names: list[str] = field(default_factory=list)

    @cached_property
    def echo(self) -> int:
        return self.number


def function() -> None: ...


def values() -> list[Any]:
    return [
        (1, ("a", frozenset({2.5}))),
        [1, [2, 3]],
        deque([1]),
        {1, 2},
        {"a": 1, "b": [1, 2]},
        Part(2, Part(3, (1, 2)), ["x"]),
    ]


def test_nothing_changed():
    noted = Composition(values())
    assert noted.tells_all
    assert noted.same()


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v[1].append(3),
        lambda v: v[1][1].__setitem__(0, 5),
        lambda v: v[1][1].reverse(),
        lambda v: v[2].append(1),
        lambda v: v[3].add(7),
        lambda v: v[3].remove(2) or v[3].add(7),
        lambda v: v[4].update(a=2),
        lambda v: v[4].update(c=1),
        lambda v: v[4].pop("a"),
        lambda v: v[4].update(c=v[4].pop("a")),
        lambda v: v[4]["b"].pop(),
        lambda v: object.__setattr__(v[5], "number", 7),
        lambda v: object.__setattr__(v[5].inner, "number", 7),
        lambda v: object.__setattr__(v[5], "more", 7),
        lambda v: v[5].names.append("y"),
    ],
)
def test_a_change_is_seen(change: Any):
    held = values()
    noted = Composition(held)
    change(held)
    assert not noted.same()


def test_a_cached_property_is_no_change():
    part = Part()
    noted = Composition([part])
    assert part.echo == 1
    assert noted.same()


def test_what_can_change_unseen_is_not_told():
    assert not Composition([object()]).tells_all
    assert not Composition([[Part(inner=[object()])]]).same()


def test_attributes_of_a_function_are_seen():
    noted = Composition([function])
    assert noted.same()
    function.limit = 3  # pyright: ignore[reportFunctionMemberAccess]
    try:
        assert not noted.same()
        function.limit = held = [3]  # pyright: ignore[reportFunctionMemberAccess]
        noted = Composition([function])
        assert noted.same()
        held.append(4)
        assert not noted.same()
        function.limit = object()  # pyright: ignore[reportFunctionMemberAccess]
        assert not Composition([function]).tells_all
    finally:
        del function.limit  # pyright: ignore[reportFunctionMemberAccess]


def test_what_refers_to_itself_ends():
    held: list[Any] = [1]
    held.append(held)
    noted = Composition([held])
    assert noted.same()
    held[0] = 2
    assert not noted.same()


def test_a_key_that_may_come_and_go_hides_no_other():
    held = {"kept": 1, "sometimes": 2}
    noted = Dictionaries([Dictionary(held, ["kept"], ["sometimes"])])
    del held["sometimes"]
    assert noted.same()
    held["other"] = 3
    assert not noted.same()
    del held["other"], held["kept"]
    assert not noted.same()


class Counts:
    """Has a method that reads one of its attributes."""

    def __init__(self):
        self.limit, self.unread = 1, 1

    def over(self, value: int) -> bool:
        return value > self._limit()

    def _limit(self) -> int:
        return self.limit


class Named(dict[str, int]):
    """A mapping with an attribute."""


def test_what_a_function_reads_around_it_is_seen():
    limit = 1

    def over(value: int) -> bool:
        return value > limit

    noted = Composition([over])
    assert noted.same()
    limit = 2
    assert not noted.same()


def test_attributes_that_a_method_names_are_seen():
    one, other = Counts(), Counts()
    noted = Composition([one.over, other.over])
    one.unread = 2
    assert noted.same()
    other.limit = 2
    assert not noted.same()


def test_functions_that_refer_to_each_other_end():
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n > 0 and even(n - 1)

    assert Composition([even]).same()


def test_attributes_of_a_mapping_are_seen():
    held = Named(a=1)
    noted = Composition([held])
    assert noted.same()
    held.scale = 2  # pyright: ignore[reportAttributeAccessIssue]
    assert not noted.same()


def with_defaults(value: int = 1, *, limit: list[int] | None = None) -> bool:
    return limit is not None and value in limit


@pytest.mark.parametrize(
    "change",
    [
        {"__defaults__": (2,)},
        {"__defaults__": None},
        {"__kwdefaults__": {"limit": [1]}},
        {"__kwdefaults__": None},
    ],
)
def test_other_defaults_of_a_function_are_seen(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    noted = Composition([with_defaults])
    assert noted.same()
    for name, value in change.items():
        monkeypatch.setattr(with_defaults, name, value)
    assert not noted.same()


def test_a_default_by_name_that_is_written_in_place_is_seen(monkeypatch: pytest.MonkeyPatch):
    noted, defaults = Composition([with_defaults]), with_defaults.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "limit", [1])
    assert not noted.same()


def test_a_key_that_takes_the_place_of_one_that_may_come_and_go_is_seen():
    held = {"kept": 1, "sometimes": 2}
    noted = Dictionaries([Dictionary(held, ["kept"], ["sometimes"])])
    del held["sometimes"]
    held["other"] = 2
    assert not noted.same()
