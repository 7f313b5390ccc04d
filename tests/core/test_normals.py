"""Release noise is normal: moments, tails, seams of the ziggurat's layers, and independence of places and lags."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.special import erfc, ndtr
from scipy.stats import binom, chi2

import dpcomp as dp
from dpcomp.core import normals
from tests.core.test_randomness import first_block_of_chacha20

KEY = 2**255 + 4  # its first two blocks have two numbers of the tail, one of them tried twice
LAGS = (1, 2, 7, normals.BLOCK - 1, normals.BLOCK)
TAILS = (0.1, 1.0, 2.0, 3.0, 4.0, normals.TAIL, 4.5, 5.0, 5.5, 6.0)
GAUSSIAN_MOMENTS = {1: 0, 2: 1, 3: 0, 4: 3, 6: 15, 8: 105}
VARIANCES = {1: 1, 2: 2, 3: 15, 4: 96, 6: 10170, 8: 2016000}  # of a power: m(2k) − m(k)²


def sums_of(chunks):
    """The number of draws, and sums of powers, of products at lags, of products of two chunks, and tail counts."""
    n, before, sums = 0, None, Counter()
    for x in chunks:
        n += len(x)
        squares = x * x
        sums["power", 1] += x.sum()
        sums["power", 2] += squares.sum()
        sums["power", 3] += squares @ x
        sums["power", 4] += squares @ squares
        eighth, sixth = squares * squares, squares * squares
        sixth *= squares
        eighth *= eighth
        sums["power", 6] += sixth.sum()
        sums["power", 8] += eighth.sum()
        squares -= 1
        for lag in LAGS:
            sums["lag", lag] += x[:-lag] @ x[lag:]
            sums["lag of squares", lag] += squares[:-lag] @ squares[lag:]
        if before is not None:
            sums["place", 0] += before @ x
            sums["pairs of places", 0] += len(x)
        size = np.abs(x)
        for tail in TAILS:
            sums["above", tail] += np.count_nonzero(x > tail)
            sums["beyond", tail] += np.count_nonzero(size > tail)
        before = x
    return n, sums


def hold_to_the_normal_law(n, sums):
    for power, moment in GAUSSIAN_MOMENTS.items():
        score = (sums["power", power] - n * moment) / math.sqrt(n * VARIANCES[power])
        assert abs(score) < 6, f"moment {power} is {score:.1f} standard deviations off"
    for lag in LAGS:
        assert abs(sums["lag", lag]) < 6 * math.sqrt(n), lag
        assert abs(sums["lag of squares", lag]) < 6 * math.sqrt(4 * n), lag
    assert abs(sums["place", 0]) <= 6 * math.sqrt(sums["pairs of places", 0])
    for tail in TAILS:
        for name, sides in (("above", 1), ("beyond", 2)):
            law = binom(n, sides * erfc(tail / math.sqrt(2)) / 2)
            count = sums[name, tail]
            assert min(law.cdf(count), law.sf(count - 1)) > 1e-9, f"{count} draws {name} {tail}, {law.mean()} expected"


def test_ten_million_draws_are_normal_and_independent():
    secret, size = dp.SecretSeed(20), 2_500_000
    hold_to_the_normal_law(*sums_of(secret.standard_normal(size, "noise", place) for place in range(4)))


@pytest.mark.slow
def test_a_thousand_million_draws_are_normal_and_independent():
    secret, size = dp.SecretSeed(21), 10_000_000
    n, sums = sums_of(secret.standard_normal(size, "noise", place) for place in range(100))
    assert n == 10**9
    hold_to_the_normal_law(n, sums)


LAYERS = np.unique(np.concatenate([normals._EDGES, -normals._EDGES]))


@pytest.mark.parametrize("edges", [np.linspace(-4, 4, 801), LAYERS], ids=["bins", "layers"])
def test_the_draws_fill_equal_bins_and_each_layer_as_the_density_does(edges):
    x = dp.SecretSeed(22).standard_normal(1_000_000, "noise")
    bins = np.concatenate([[-np.inf], edges[np.abs(edges) < 4.5], [np.inf]])
    expected = len(x) * np.diff(ndtr(bins))
    counts = np.histogram(x, bins)[0]
    wide = expected > 20
    assert chi2(wide.sum() - 1).sf(((counts - expected)[wide] ** 2 / expected[wide]).sum()) > 1e-9


def test_the_tail_has_the_law_of_the_tail():
    """The lowest layer's tail is tried again until it is accepted, never drawn again as a whole."""
    x = np.abs(dp.SecretSeed(23).standard_normal(4_000_000, "noise"))
    beyond = x[x > normals.TAIL]
    uniform = erfc(beyond / math.sqrt(2)) / math.erfc(normals.TAIL / math.sqrt(2))
    counts = np.histogram(uniform, 8, (0, 1))[0]
    assert len(beyond) > 150
    assert chi2(7).sf(((counts - len(beyond) / 8) ** 2 / (len(beyond) / 8)).sum()) > 1e-9


def one_by_one(key, count):
    """The same numbers by plain loops: first a word each, then the undecided in rounds."""
    words = normals._Words(key)

    def next_words(n):
        parts = [words.read_into(np.empty(min(1000, n - start))) for start in range(0, n, 1000)]
        return [word for part in parts for word in part.tolist()]

    def throw(word):
        layer = word % normals.LAYERS
        place = float(word) * (float(normals._EDGES[layer]) * 2.0**-63)
        return layer, place, abs(place) < normals._EDGES[layer + 1]

    numbers, undecided = {}, []
    for place, word in enumerate(next_words(count)):
        layer, numbers[place], inside = throw(word)
        undecided += [] if inside else [(place, layer)]
    while undecided:
        n = len(undecided)
        unsigned = [word % 2**64 for word in next_words(4 * n)]
        words_of = zip(unsigned[: 2 * n], unsigned[2 * n :], strict=True)
        uniform = [(high + (low + 0.5) * 2.0**-64) * 2.0**-64 for low, high in words_of]
        tails, again = [], []
        for (place, layer), first, second in zip(undecided, uniform[:n], uniform[n:], strict=True):
            if layer == 0:
                excess = -math.log(first) / normals.TAIL
                numbers[place] = math.copysign(normals.TAIL + excess, numbers[place])
                tails += [(place, 0)] if -2 * math.log(second) <= excess**2 else []
                continue
            low, high = (math.exp(-0.5 * normals._EDGES[edge] ** 2) for edge in (layer, layer + 1))
            if low + (high - low) * first >= math.exp(-0.5 * numbers[place] ** 2):
                again.append(place)
        undecided = tails
        for place, word in zip(again, next_words(len(again)), strict=True):
            layer, numbers[place], inside = throw(word)
            undecided += [] if inside else [(place, layer)]
    return [numbers[place] for place in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2 * normals.BLOCK + 5])
def test_the_blocks_give_what_plain_loops_give(count):
    drawn = normals.standard_normal(KEY, count)
    assert np.count_nonzero(np.abs(drawn) > normals.TAIL) == (2 if count > normals.BLOCK else 0)
    np.testing.assert_allclose(drawn, one_by_one(KEY, count), rtol=1e-14)


def test_the_words_are_the_little_endian_key_stream_of_chacha20():
    words, memory = normals._Words(KEY), np.empty(8)
    assert words.read_into(memory).view("<u8").tolist() == first_block_of_chacha20(KEY)
    assert memory.tobytes() == np.array(first_block_of_chacha20(KEY), "<u8").tobytes()


def test_uniform_numbers_have_bits_far_below_two_to_the_minus_64(monkeypatch):
    given = iter([[1, 2**63, 2**64 - 1, 0], [0, 0, 2**64 - 1, 0]])  # of each number the low word, then the high one

    def read_into(words, memory):
        memory.view("<u8")[:] = [word for part in given for word in part]
        return memory.view("<i8")

    monkeypatch.setattr(normals._Words, "read_into", read_into)
    drawn = normals._Words(KEY).uniform(4).tolist()
    assert drawn == [1.5 * 2.0**-128, 2.0**-65 + 2.0**-129, 1.0, 2.0**-129]
    assert normals.TAIL - math.log(drawn[3]) / normals.TAIL > 26


def test_the_layers_have_equal_areas_and_end_at_the_top():
    widths, heights = normals._EDGES, np.exp(-0.5 * normals._EDGES**2)
    areas = widths[1:-1] * np.diff(np.expm1(-0.5 * normals._EDGES**2))[1:]
    lowest = widths[1] * heights[1] + math.sqrt(math.pi / 2) * math.erfc(widths[1] / math.sqrt(2))
    np.testing.assert_allclose(areas, lowest, rtol=1e-12)
    assert widths[0] * heights[1] == pytest.approx(lowest, rel=1e-15)
    assert (np.diff(widths) < 0).all()


def test_no_two_places_or_purposes_share_noise_and_none_shares_the_words_of_a_stream():
    secret, n = dp.SecretSeed(5), 1000
    places = [("noise",), ("noise", 0), ("noise", 1), ("noise", 0, 1), ("noise", 1, 0), ("dither", 0)]
    drawn = {value for place in places for value in secret.standard_normal(n, *place).tolist()}
    assert len(drawn) == n * len(places)
    assert drawn == {value for place in places for value in dp.SecretSeed(5).standard_normal(n, *place).tolist()}
    keys = [secret.stream(*place).bit_generator.random_raw(1).item() for place in places]
    words = [normals._Words(secret._key(b"dpcomp normals", place[0], place[1:])) for place in places]
    assert set(keys).isdisjoint(word.read_into(np.empty(1)).view("<u8").item() for word in words)


def test_unseeded_noise_is_fresh_at_every_call():
    secret = dp.SecretSeed()
    assert len({value for _ in range(4) for value in secret.standard_normal(500, "noise", 0).tolist()}) == 2000


def test_more_than_a_key_gives_is_refused():
    with pytest.raises(ValueError, match="draw them in parts"):
        normals.standard_normal(KEY, 2**34 + 1)
