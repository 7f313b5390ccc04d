"""Allocators give the rate they promise, and spend it where it takes off most error."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpcomp as dp
from dpcomp.codec.rate import rate_at_step, step_for_rate
from dpcomp.codec.widths import best_columns, best_widths
from dpcomp.core.public_context import PublicContext
from dpcomp.wire.update import with_claim

CODERS = (dp.RangeCoder(), dp.FixedWidth())
SIZES = (864, 32, 9216, 0, 18_432, 64, 40_000, 640, 10)
LAYOUT = dp.Layout.of({str(number): (size,) for number, size in enumerate(SIZES)})
COMMON = PublicContext(layout=LAYOUT)
SHARES = np.array(SIZES) / sum(SIZES)


def layered(law, seed=0, spread=1.0):
    """Values whose layers have scales decades apart, and the coding gain: arithmetic over geometric mean variance."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(0, spread, len(SIZES)))
    draw = {"normal": rng.standard_normal, "laplace": lambda n: rng.laplace(size=n)}[law]
    values = np.concatenate([draw(n) * scale for n, scale in zip(SIZES, scales, strict=True)]).astype(np.float32)
    return values, (SHARES @ scales**2) / np.exp(SHARES @ np.log(scales**2))


def bits_and_error(codec, values):
    body, decoded = codec.encode(values, dp.Everywhere(), COMMON)
    found, _ = codec.decode(body, COMMON)
    assert found.tobytes() == decoded.tobytes()
    return 8 * len(body) / len(values), float(np.sum((values - decoded.astype(np.float64)) ** 2))


@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
class TestWithAnEntropyCoder:
    @pytest.mark.parametrize("allocator", [dp.Equal, dp.Waterfill])
    def test_the_rate_is_what_was_asked_for(self, law, bits, allocator):
        values, _ = layered(law)
        spent, _ = bits_and_error(dp.Codec(quantize=dp.Uniform(allocator(bits))), values)
        assert spent == pytest.approx(bits, rel=0.02)

    def test_water_filling_takes_the_coding_gain(self, law, bits):
        values, gain = layered(law)
        equal, filled = (
            bits_and_error(dp.Codec(quantize=dp.Uniform(allocator(bits))), values)
            for allocator in (dp.Equal, dp.Waterfill)
        )
        at_equal_bytes = equal[1] / filled[1] * 4.0 ** (filled[0] - equal[0])
        assert at_equal_bytes >= 0.95 * gain

    def test_it_is_one_step_for_all_layers(self, law, bits):
        values, _ = layered(law)
        steps = dp.Waterfill(bits).steps(values, np.array(SIZES))
        spent, error = bits_and_error(dp.Codec(quantize=dp.Uniform(dp.Waterfill(bits))), values)
        same, baseline = bits_and_error(dp.Codec(quantize=dp.Uniform(dp.FixedStep(steps[0]))), values)
        assert len(set(steps)) == 1
        assert (spent, error) == (same, pytest.approx(baseline))


@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("bits", [2, 2.5, 3, 4, 5, 8])
def test_packed_bits_stay_within_the_budget_and_are_never_worse_than_equal_ones(law, bits):
    values, _ = layered(law)
    packed = {"entropy": dp.FixedWidth()}
    spent, error = bits_and_error(dp.Codec(quantize=dp.Uniform(dp.Waterfill(bits)), **packed), values)
    side_bits = 8 * (5 + 2 * len(SIZES) + 5 + len(SIZES))  # support, steps, widths, and layers end on whole bytes
    assert spent * len(values) <= bits * len(values) + side_bits
    plain_bits, plain = bits_and_error(dp.Codec(quantize=dp.Uniform(int(bits)), **packed), values)
    assert plain_bits <= spent + 0.01 or bits > int(bits)
    assert error <= 1.001 * plain


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rows=st.integers(1, 4), budget=st.integers(0, 60))
def test_the_choice_is_as_good_as_the_best_of_all(data, rows, budget):
    numbers = st.lists(st.integers(0, 20), min_size=3, max_size=3)
    errors = np.array([sorted(data.draw(numbers), reverse=True) for _ in range(rows)], dtype=np.float64)
    costs = np.array(
        [[0, *sorted(data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=2)))] for _ in range(rows)]
    )
    chosen, lines = best_columns(errors, costs, budget), np.arange(rows)
    assert costs[lines, chosen].sum() <= budget
    every = (np.array(columns) for columns in product(range(3), repeat=rows))
    best = min(errors[lines, columns].sum() for columns in every if costs[lines, columns].sum() <= budget)
    assert errors[lines, chosen].sum() == best


def test_a_giant_layer_does_not_leave_the_budget_unused():
    rng = np.random.default_rng(0)
    layers = [rng.laplace(size=n).astype(np.float32) for n in (100_000, 50, 50)]
    for bits in (2, 3, 4, 7):
        assert best_widths(layers, bits)[0][0] == bits


def test_the_best_widths_are_no_worse_than_equal_ones_that_use_up_the_budget():
    rng = np.random.default_rng(6)  # widths of 6 for both use it up, and 9,414 values leave no bit to round up
    layers = [rng.laplace(size=9_414).astype(np.float32), rng.standard_t(2, size=34).astype(np.float32)]
    assert best_widths(layers, 6)[0][0] == 6


@pytest.mark.parametrize("rounding", [dp.Nearest(), dp.Stochastic(), dp.Dithered()], ids=str)
def test_a_layer_without_bits_is_decoded_as_zero_under_any_rounding(rounding):
    values = np.concatenate([np.random.default_rng(0).standard_normal(1000), np.full(1000, 1e-3)]).astype(np.float32)
    context = PublicContext(layout=dp.Layout.of({"loud": (1000,), "silent": (1000,)}), dither_key=3)
    codec = dp.Codec(quantize=dp.Uniform(dp.Waterfill(2), rounding=rounding), entropy=dp.FixedWidth())
    body, decoded = codec.encode(values, dp.Everywhere(), context)
    assert codec.layer_bits(body, context).tolist() == [4, 0]
    assert decoded[:1000].any()
    assert not decoded[1000:].any()


def test_a_layer_without_bits_is_decoded_as_zero_and_comes_back_when_it_matters():
    values = np.concatenate([np.random.default_rng(0).standard_normal(1000), np.full(1000, 1e-6)]).astype(np.float32)
    layout = dp.Layout.of({"loud": (1000,), "silent": (1000,)})
    codec = dp.Codec(quantize=dp.Uniform(dp.Waterfill(2)), entropy=dp.FixedWidth())
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a test of the codec"), codec=codec)
    memory, heard = pipeline.init_client(layout, dp.PublicSeed(0), client=0), np.zeros(2000)
    for _ in range(3):
        update = with_claim(dp.Update(values=values, layout=layout, address=memory.address), pipeline.claim)
        _, memory = pipeline.send(update, memory)
        assert memory.residual is not None
        heard = 3 * values - memory.residual
    assert not heard[1000:].any()  # a millionth of the other's size: its residual waits
    loud = np.where(np.arange(2000) < 1000, 0, 1).astype(np.float32)
    update = with_claim(dp.Update(values=loud, layout=layout, address=memory.address), pipeline.claim)
    _, after = pipeline.send(update, memory)
    assert after.residual is not None
    assert np.abs(after.residual[1000:]).max() < 0.5


@pytest.mark.parametrize("values", [[0.0] * 9, [1.0] * 9, [1e-45, -1e-45, 0], [3e38, -3e38, 1], [5.0], []])
@pytest.mark.parametrize(
    ("bits", "coder"),
    [
        *((bits, coder) for bits in (dp.Equal(3), dp.Waterfill(3), dp.Waterfill(0.5)) for coder in CODERS),
        (dp.FixedStep(0.25), dp.RangeCoder()),
    ],
    ids=str,
)
def test_odd_values_are_coded_too(values, bits, coder):
    layout = dp.Layout.of({"a": (max(1, len(values)),), "none": (0,)})
    support = dp.Listed(np.arange(len(values)))
    codec, common = dp.Codec(quantize=dp.Uniform(bits), entropy=coder), PublicContext(layout=layout)
    sent = np.array(values, np.float32)
    body, decoded = codec.encode(sent, support, common)
    assert codec.decode(body, common)[0].tobytes() == decoded.tobytes()
    assert np.isfinite(decoded).all()


def test_a_fixed_step_wants_an_entropy_coder():
    with pytest.raises(ValueError, match="RangeCoder"):
        dp.Codec(quantize=dp.Uniform(dp.FixedStep(0.1)), entropy=dp.FixedWidth())


@pytest.mark.parametrize("make", [lambda: dp.Waterfill(0), lambda: dp.Waterfill(17)])
def test_a_budget_that_is_none_is_refused_at_birth(make):
    with pytest.raises(ValueError, match="mean rate"):
        make()


@pytest.mark.parametrize("wrong", ["4", None, True])
def test_what_is_no_number_is_refused_by_the_name_of_the_argument(wrong):
    with pytest.raises(TypeError, match=r"Waterfill\(bits\) is .*: give a mean rate above 0, up to 16 bits a value"):
        dp.Waterfill(wrong)
    with pytest.raises(TypeError, match=r"FixedStep\(size\) is .*: give a finite number above 0"):
        dp.FixedStep(wrong)
    with pytest.raises(TypeError, match=r"Uniform\(bits=.*\): give a whole number from 2 to 16, or an allocator"):
        dp.Uniform(wrong)


def test_the_class_of_an_allocator_is_no_allocator():
    with pytest.raises(TypeError, match=r"allocator such as dp.Waterfill\(4\), with the methods widths_and_steps and"):
        dp.Uniform(dp.Waterfill)


@pytest.mark.parametrize(("clients", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_a_mean_over_no_whole_number_of_clients_is_refused(clients, error):
    with pytest.raises(error, match="clients"):
        dp.Waterfill(2, clients=clients)


@pytest.mark.parametrize("size", [0, -1.0, np.inf, np.nan])
def test_a_step_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="step"):
        dp.FixedStep(size)


@pytest.mark.parametrize("bits", [1, 2, 5, 9])
def test_a_step_has_the_rate_it_was_searched_for(bits):
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    assert rate_at_step(values, step_for_rate([values], bits)) == pytest.approx(bits, rel=0.01)


@pytest.mark.parametrize("coder", CODERS, ids=str)
@pytest.mark.parametrize("bits", [dp.Equal(3), dp.Waterfill(3)])
def test_what_a_body_spends_on_each_layer_adds_up_to_the_body(coder, bits):
    values, _ = layered("laplace")
    codec = dp.Codec(quantize=dp.Uniform(bits), entropy=coder)
    body, _ = codec.encode(values, dp.Everywhere(), COMMON)
    spent = codec.layer_bits(body, COMMON)
    assert spent[3] == 0  # the empty layer
    assert spent @ SIZES == pytest.approx(8 * len(body), rel=0.01)
    if isinstance(bits, dp.Equal) and isinstance(coder, dp.FixedWidth):
        assert set(spent) == {0.0, 3.0}
