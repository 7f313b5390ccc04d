"""The tables that levels are coded under."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from dpcomp.codec.entropy.alphabet import Alphabet, frequency_bytes, levels_to_symbols, symbols_to_levels
from dpcomp.codec.entropy.integers import IntegerReader, IntegerWriter
from dpcomp.core.errors import CorruptPayload

TOP = 2**15 - 1


@pytest.mark.parametrize("leading", range(1, 17))
def test_a_symbol_and_its_low_bits_are_the_level(leading):
    levels = np.arange(-TOP, TOP + 1)
    symbols, below = levels_to_symbols(levels, leading)
    smallest, open_bits = symbols_to_levels(symbols, leading)
    np.testing.assert_array_equal(open_bits, below)
    lower = np.abs(levels) & ((1 << below) - 1)
    np.testing.assert_array_equal(smallest + np.sign(smallest) * lower, levels)
    assert (np.diff(symbols) >= 0).all()
    assert np.unique(symbols).tolist() == list(range(int(symbols.min()), int(symbols.max()) + 1))


@settings(max_examples=200, deadline=None)
@given(counts=st.dictionaries(st.integers(-TOP, TOP), st.integers(1, 10**6), min_size=1, max_size=40))
def test_a_table_is_read_as_it_was_written(counts):
    present = np.array(sorted(counts))
    alphabet = Alphabet.fit(present, np.array([counts[level] for level in present]))
    writer = IntegerWriter()
    alphabet.write(writer)
    reader = IntegerReader(writer.finish())
    read = Alphabet.read(reader, TOP)
    assert reader.left == 0
    assert (read.leading, read.lowest) == (alphabet.leading, alphabet.lowest)
    np.testing.assert_array_equal(read.table, alphabet.table)
    symbols = levels_to_symbols(present, alphabet.leading)[0] - alphabet.lowest
    assert (read.weights[symbols] > 0).all()


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 10**7), min_size=1, max_size=300).filter(any))
def test_a_byte_a_level_costs_below_a_hundredth_of_a_bit(counts):
    occurrences = np.array(counts)
    weights = Alphabet(16, 0, frequency_bytes(occurrences)).weights
    assert ((weights > 0) == (occurrences > 0)).all()
    assert entropy(occurrences, weights, base=2) < 0.002


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30), st.integers(0, TOP))
def test_a_table_of_garbage_is_sound_or_corrupt(garbage, largest):
    try:
        alphabet = Alphabet.read(IntegerReader(garbage), largest)
    except CorruptPayload:
        return
    reach = symbols_to_levels(np.array([alphabet.lowest, alphabet.lowest + len(alphabet.table) - 1]), alphabet.leading)[
        0
    ]
    assert (np.abs(reach) <= largest).all()
    assert alphabet.weights.any()


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**14, 2**32, 2**35 - 1])
def test_numbers_come_back(number):
    writer = IntegerWriter()
    writer.number(number)
    writer.signed(-(number >> 1))
    writer.signed(number >> 1)
    reader = IntegerReader(writer.finish())
    assert (reader.number(), reader.signed(), reader.signed(), reader.left) == (number, -(number >> 1), number >> 1, 0)
