from typing import Protocol

import numpy as np
import pytest

from dpcomp.core.checks import missing_members, real_number, whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_of_any_kind_becomes_an_int(value):
    assert whole_number(value, "rounds", least=1, most=3) == 3
    assert type(whole_number(value, "rounds")) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, np.array([3])])
def test_anything_else_is_refused_with_its_name_and_value(value):
    with pytest.raises(TypeError, match=r"rounds is .*: give a whole number from 1 on"):
        whole_number(value, "rounds", least=1)


@pytest.mark.parametrize(
    ("least", "most", "words"), [(4, None, "from 4 on"), (None, 2, "up to 2"), (4, 9, "from 4 to 9")]
)
def test_bounds_are_named(least, most, words):
    with pytest.raises(ValueError, match=f"rounds is 3: give a whole number {words}"):
        whole_number(3, "rounds", least=least, most=most)


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int64(3)])
def test_a_number_of_any_kind_becomes_a_float(value):
    assert type(real_number(value, "Clip(norm)", "a number")) is float


@pytest.mark.parametrize("value", [True, "3", None, np.array([3.0]), float])
def test_what_is_no_number_is_refused_with_its_name_and_what_it_must_be(value):
    with pytest.raises(TypeError, match=r"Clip\(norm\) is .*: give a number above 0"):
        real_number(value, "Clip(norm)", "a number above 0")


def test_missing_members_are_those_of_the_whole_protocol():
    class Wider(Protocol):
        width: int

        def narrow(self) -> None: ...

    class Widest(Wider, Protocol):
        def widen(self) -> None: ...

    assert set(missing_members(object(), Widest)) == {"width", "narrow", "widen"}
