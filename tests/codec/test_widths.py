"""The widths of layers have the least squared error within the budget, whatever the values are."""

import numpy as np
import pytest

from dpcomp.codec.error_curves import STEPS, TOPS, WIDTHS, error_curves
from dpcomp.codec.magnitudes import FRACTIONS, LONG, magnitudes_of
from dpcomp.codec.widths import best_columns, best_widths

KINDS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(1.2, size=n),
    "one outlier": lambda rng, n: np.concatenate([[10 ** rng.uniform(1, 4)], rng.standard_normal(n - 1)]),
    "sparse": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.01),
    "periodic": lambda rng, n: rng.standard_normal(n) * np.where(np.arange(n) % rng.integers(2, 9), 1, 10),
    "constant": lambda rng, n: np.full(n, rng.uniform(0.1, 2)),
    "few values": lambda rng, n: rng.integers(-1, 2, n) * 0.37,
    "lattice": lambda rng, n: rng.integers(-100, 101, n) / 100,
    "zeros": lambda rng, n: np.zeros(n),
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-30,
}


def of_mixed_kinds(rng, sizes):
    """Layers of the given sizes, each of a random kind, whose scales are octaves apart."""
    draws = [KINDS[str(rng.choice(list(KINDS)))](rng, size) for size in sizes]
    return [(draw * 2.0 ** rng.normal(0, 2)).astype(np.float32) for draw in draws]


def error_at(layer, width, step):
    """The squared error of quantising a layer."""
    values, top = layer.astype(np.float64), 2 ** (max(width, 1) - 1) - 1
    levels = np.clip(np.rint(values / step), -top, top) if step else np.zeros(len(values))
    return float(np.sum((values - step * levels) ** 2))


def least_errors(layer):
    """The least squared error at each width: every value is rounded to every step and clipped."""
    ratios = np.abs(layer.astype(np.float64))
    largest = ratios.max(initial=0)
    if not largest:
        return np.zeros(len(WIDTHS))
    levels = np.rint(ratios / largest / STEPS[:, None])
    decoded = np.minimum(levels, TOPS[:, None, None]) * STEPS[:, None]
    return np.sum((ratios / largest - decoded) ** 2, axis=2).min(axis=1) * largest**2


def least_sum(errors, sizes, budget):
    """The least error of all choices of widths within a budget, one bit after the other."""
    unit = int(np.gcd.reduce(sizes))
    least = np.zeros(int(budget // unit) + 1)
    for row, size in zip(errors, sizes, strict=True):
        reached = np.full(len(least), np.inf)
        for error, cost in zip(row, size // unit * WIDTHS, strict=True):
            if cost < len(least):
                np.minimum(reached[cost:], least[: len(least) - cost] + error, out=reached[cost:])
        least = reached
    return float(least[-1])


def assert_best(layers, bits, least, rel):
    """Check that the widths keep to the budget, and that their error on the values is the least."""
    sizes = np.array([len(layer) for layer in layers])
    widths, steps = best_widths(layers, bits)
    assert sizes @ widths <= bits * sizes.sum()
    found = sum(map(error_at, layers, widths, steps))
    negligible = 1e-13 * sum(np.sum(layer.astype(np.float64) ** 2) for layer in layers)
    assert found <= (1 + rel) * least + negligible


@pytest.mark.parametrize("seed", range(60))
def test_the_error_is_the_least_of_all_widths_and_steps(seed):
    rng = np.random.default_rng(seed)
    sizes = (2 ** rng.uniform(0, 10.5, size=rng.integers(1, 9))).astype(int)
    layers, bits = of_mixed_kinds(rng, sizes), rng.choice([0.1, 0.5, 1, 2, 2.5, 3, 4, 6, 9, 15.9, 16])
    least = least_sum([least_errors(layer) for layer in layers], sizes, bits * sizes.sum())
    assert_best(layers, bits, least, rel=5e-4)


@pytest.mark.parametrize("kind", ["heavy tails", "one outlier", "sparse", "periodic", "few values"])
def test_it_is_the_least_for_long_layers_too(kind):
    rng = np.random.default_rng(1)
    layers = [KINDS[kind](rng, LONG + 1).astype(np.float32), (rng.laplace(size=LONG // 2) / 4).astype(np.float32)]
    sizes = np.array([len(layer) for layer in layers])
    widest = np.array([8, 8])
    errors, steps = error_curves(magnitudes_of(layers), widest)
    for layer, of_layer, its_steps in zip(layers, errors, steps, strict=True):
        for column in (0, 1, 2, 4, 7):
            measured = error_at(layer, WIDTHS[column], its_steps[column])
            assert measured == pytest.approx(of_layer[column], rel=0.06, abs=1e-9)
    assert sizes[0] > FRACTIONS  # so that most fractions of the largest magnitude stand for several values


@pytest.mark.parametrize("bits", [0.3, 2, 4.5])
def test_a_thousand_layers_are_as_good_as_the_bound_of_a_multiplier(bits):
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 60, size=1000)
    layers = of_mixed_kinds(rng, sizes)
    errors, costs = np.array([least_errors(layer) for layer in layers]), sizes[:, None] * WIDTHS
    budget, slopes = bits * sizes.sum(), np.geomspace(1e-9, 1e6, 2000) * errors[:, 0].sum() / sizes.sum()
    bound = max((errors + slope * costs).min(axis=1).sum() - slope * budget for slope in slopes)
    assert_best(layers, bits, bound, rel=5e-3)


@pytest.mark.parametrize("seed", range(20))
def test_columns_are_the_best_of_all_where_one_row_has_most_of_the_cost(seed):
    rng = np.random.default_rng(seed)
    sizes = np.array([*rng.integers(1, 40, size=12), 900])[rng.permutation(13)]
    errors = sizes[:, None] * rng.lognormal(0, 2, size=(13, 1)) * 4.0**-WIDTHS * rng.uniform(0.5, 1, (13, len(WIDTHS)))
    budget = float(rng.uniform(0, 10) * sizes.sum())
    costs, rows = sizes[:, None] * WIDTHS, np.arange(13)
    chosen = best_columns(errors, costs, budget)
    assert costs[rows, chosen].sum() <= budget
    assert errors[rows, chosen].sum() <= (1 + 3e-4) * least_sum(errors, sizes, budget)


@pytest.mark.parametrize("n", [40, 300, 512, 8000, 30_000])
@pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, np.random.Generator.laplace])
@pytest.mark.parametrize(("widest", "rel"), [(6, 1e-6), (8, 1e-6), (16, 1e-9)])
def test_the_error_of_a_width_is_that_of_quantising_with_its_step(n, draw, widest, rel):
    layer = draw(np.random.default_rng(n), size=n).astype(np.float32) * np.float32(1e-3)
    errors, steps = error_curves(magnitudes_of([layer]), np.array([widest]))
    assert errors[0, 0] == pytest.approx(np.sum(layer.astype(np.float64) ** 2), rel=rel)
    assert not errors[0, widest:].any()
    for width, error, step in zip(WIDTHS[1:widest], errors[0, 1:], steps[0, 1:], strict=False):
        assert error_at(layer, width, step) == pytest.approx(error, rel=rel)
        for other in (0.5 * step, 0.84 * step, 1.19 * step, 2 * step):
            assert error_at(layer, width, other) > (0.95 if n > 1000 else 0.5) * error


def test_the_curves_of_many_layers_are_those_of_each():
    rng = np.random.default_rng(7)
    sizes = (1, 0, 256, 5, 257, 3_000, 0, 20_000, 9)
    layers = [(rng.laplace(size=size) * 10.0**-power).astype(np.float32) for power, size in enumerate(sizes)]
    layers += [np.zeros(50, np.float32), np.full(70, -2, np.float32)]
    widest = np.array([16, 8, 10, 6, 8, 10, 4, 12, 8, 6, 16])
    errors, steps = error_curves(magnitudes_of(layers), widest)
    for number, layer in enumerate(layers):
        alone, its_steps = error_curves(magnitudes_of([layer]), widest[number : number + 1])
        np.testing.assert_allclose(errors[number], alone[0], rtol=1e-9, atol=1e-20)
        np.testing.assert_allclose(steps[number][1:], its_steps[0][1:])  # without bits, any step gives zeros
    assert not errors[-2].any()
    assert errors[-1][1:].max() < 1e-12
