import math

import jax
import numpy as np
import pytest
from scipy import stats

from analysis.theory.gaussian_top_k import gaussian_retention, gaussian_top_energy
from analysis.theory.noisy_top_k import distribution_retention, vector_retention
from tests.oracles import monte_carlo

D, DRAWS = 2**15, 24
LARGE = 2**17
PLACES = [(density, snr) for density in (0.001, 0.01, 0.1) for snr in (1e-4, 1e-2, 1.0, 1e2)]
LAWS = {"gaussian": stats.norm(), "laplace": stats.laplace(), "student t": stats.t(5)}
SAMPLERS = {
    "gaussian": lambda key: jax.random.normal(key, (LARGE,)),
    "laplace": lambda key: jax.random.laplace(key, (LARGE,)),
    "student t": lambda key: jax.random.t(key, 5.0, (LARGE,)),
}


def mixture(d):
    """Half exact zeros, the rest of a heavy tail whose scale changes from layer to layer."""
    draws = np.random.default_rng(0)
    layers = np.repeat([0.1, 1.0, 10.0, 0.01], d // 4)
    return (draws.standard_t(3, d) * layers * (draws.random(d) < 0.5)).astype(np.float32)


def clean_vector(name):
    """What stands for a law: its quantiles."""
    return mixture(D) if name == "mixture" else LAWS[name].isf((np.arange(D) + 0.5) / D).astype(np.float32)


def deviation(vector):
    return float(np.sqrt(np.mean(np.square(vector, dtype=np.float64))))


def closed_form(name, density, snr):
    if name == "gaussian":
        return gaussian_retention(density=density, snr=snr)
    return distribution_retention(LAWS[name], density=density, snr=snr)


def deviations(estimate, expected, k):
    """(Mean − expected) ÷ its standard error.

    The error of few draws is itself uncertain, most of all where hits are rare: it does not count for less than
    half of what independent hits would have.
    """
    independent = math.sqrt(expected * (1 - expected) / (k * DRAWS))
    return abs(estimate.mean - expected) / max(estimate.standard_error, independent / 2)


@pytest.mark.parametrize("name", [*LAWS, "mixture"])
def test_closed_forms_agree_with_draws(name):
    vector, keys = clean_vector(name), jax.random.split(jax.random.key([*LAWS, "mixture"].index(name)), len(PLACES))
    for (density, snr), key in zip(PLACES, keys, strict=True):
        k, noise_stddev = round(density * D), deviation(vector) / math.sqrt(snr)
        drawn = monte_carlo.vector_retention(vector, k=k, noise_stddev=noise_stddev, draws=DRAWS, key=key)
        expected = vector_retention(vector, k=k, noise_stddev=noise_stddev)
        assert deviations(drawn.recall, expected.recall, 2 * k) < 4.5, (density, snr)
        assert deviations(drawn.overlap, expected.overlap, k) < 4.5, (density, snr)
        if name in LAWS:
            of_law = closed_form(name, k / D, LAWS[name].var() / noise_stddev**2)
            assert deviations(drawn.recall, of_law.recall, 2 * k) < 4.5, (density, snr)
            assert deviations(drawn.overlap, of_law.overlap, k) < 4.5, (density, snr)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_closed_forms_agree_with_vectors_that_are_drawn_themselves(name):
    keys = jax.random.split(jax.random.key(7), len(PLACES))
    for (density, snr), key in zip(PLACES, keys, strict=True):
        k, noise_stddev = round(density * LARGE), LAWS[name].std() / math.sqrt(snr)
        drawn = monte_carlo.sampled_retention(SAMPLERS[name], k=k, noise_stddev=noise_stddev, draws=DRAWS, key=key)
        expected = closed_form(name, k / LARGE, snr)
        assert deviations(drawn.recall, expected.recall, 2 * k) < 4.5, (density, snr)
        assert deviations(drawn.overlap, expected.overlap, k) < 4.5, (density, snr)


def test_drawn_vectors_and_the_energy_that_is_captured():
    drawn = monte_carlo.sampled_retention(
        SAMPLERS["gaussian"], k=LARGE // 10, noise_stddev=1.0, draws=8, key=jax.random.key(1)
    )
    expected = gaussian_retention(density=0.1, snr=1.0)
    for name in ("recall", "overlap", "captured_energy"):
        estimate = getattr(drawn, name)
        assert abs(estimate.mean - getattr(expected, name)) < 4.5 * estimate.standard_error
        assert 0 < estimate.standard_error < 0.002
    assert drawn.draws == 8


def test_the_energy_that_a_vector_keeps():
    vector = mixture(D)
    for place, noise_stddev in enumerate((0.1, 10.0, 100.0)):
        drawn = monte_carlo.vector_retention(
            vector, k=D // 100, noise_stddev=noise_stddev, draws=DRAWS, key=jax.random.key(place)
        ).captured_energy
        expected = vector_retention(vector, k=D // 100, noise_stddev=noise_stddev).captured_energy
        assert abs(drawn.mean - expected) < 4.5 * drawn.standard_error + 1e-6


def test_without_noise_all_is_found_and_with_noise_alone_by_chance():
    vector, k, key = clean_vector("gaussian"), D // 10, jax.random.key(0)
    clean = monte_carlo.vector_retention(vector, k=k, noise_stddev=0.0, draws=DRAWS, key=key)
    assert (clean.recall.mean, clean.overlap.mean) == pytest.approx((1, 1), abs=1 / k)
    assert clean.captured_energy.mean == pytest.approx(gaussian_top_energy(0.1), abs=1e-3)
    noise = monte_carlo.vector_retention(vector, k=k, noise_stddev=1e6, draws=DRAWS, key=key)
    assert (noise.recall.mean, noise.overlap.mean) == pytest.approx((0.1, 0.1), abs=0.005)


def test_a_vectors_unit_is_of_no_account():
    vector, key = mixture(D), jax.random.key(3)
    one = monte_carlo.vector_retention(vector, k=D // 100, noise_stddev=1.0, draws=DRAWS, key=key)
    tiny = monte_carlo.vector_retention(
        vector * np.float32(2.0**-90), k=D // 100, noise_stddev=2.0**-90, draws=DRAWS, key=key
    )
    assert one == tiny


def test_chunks_change_the_memory_but_not_the_draws():
    """Chunks that repeated one another's noise would have another mean, and a smaller spread."""
    vector, key = clean_vector("laplace"), jax.random.key(0)
    memory = D * (monte_carlo.SHARED_BYTES + 5 * monte_carlo.BYTES_PER_DRAW)  # chunks of 5, 5, 5, 5 and 4
    whole = monte_carlo.vector_retention(vector, k=400, noise_stddev=1.0, draws=DRAWS, key=key)
    parts = monte_carlo.vector_retention(vector, k=400, noise_stddev=1.0, draws=DRAWS, key=key, memory_bytes=memory)
    for name in ("recall", "overlap", "captured_energy"):
        assert getattr(parts, name).mean == pytest.approx(getattr(whole, name).mean, rel=1e-5)
        assert getattr(parts, name).standard_error == pytest.approx(getattr(whole, name).standard_error, rel=1e-3)


def test_every_draw_and_every_key_has_noise_of_its_own():
    clean, seeds = jax.numpy.asarray(clean_vector("laplace")), (0, 1)
    drawn = [
        monte_carlo._vector_draws(jax.random.split(jax.random.key(seed), DRAWS), clean, 400, 1.0) for seed in seeds
    ]
    assert len(np.unique(np.asarray(drawn)[:, :, 2])) == 2 * DRAWS


def test_nothing_is_baked_into_the_program():
    keys, clean = jax.random.split(jax.random.key(0), 2), jax.numpy.asarray(mixture(4096))
    program = jax.make_jaxpr(monte_carlo._vector_draws)(keys, clean, 40, 1.0)
    inner = [value for equation in program.eqns for value in equation.params.values() if hasattr(value, "consts")]
    assert not program.consts and inner and not any(closed.consts for closed in inner)


def bytes_used(compiled):
    used = compiled.memory_analysis()
    return used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes


@pytest.mark.parametrize("draws", [1, pytest.param(16, marks=pytest.mark.slow)])
def test_the_memory_is_what_is_stated(draws):
    keys, clean = jax.random.split(jax.random.key(0), draws), jax.numpy.zeros(LARGE)
    used = bytes_used(monte_carlo._vector_draws.lower(keys, clean, 40, 1.0).compile())
    assert used <= LARGE * (monte_carlo.SHARED_BYTES + draws * monte_carlo.BYTES_PER_DRAW)


@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 16])
def test_and_so_is_that_of_vectors_that_are_drawn_themselves(draws):
    keys = jax.random.split(jax.random.key(0), draws)
    used = bytes_used(monte_carlo._sampled_draws.lower(keys, 40, 1.0, sampler=SAMPLERS["gaussian"]).compile())
    assert used <= LARGE * (monte_carlo.SHARED_BYTES + draws * (monte_carlo.BYTES_PER_DRAW + monte_carlo.SHARED_BYTES))


top_shares = jax.jit(monte_carlo._top_shares)


@pytest.mark.parametrize("k", [1, 37, 500, 999])
def test_the_top_is_exact_and_equal_magnitudes_share_the_last_places(k):
    values = np.random.default_rng(k).integers(-20, 20, size=1000).astype(np.float32)
    shares = np.asarray(top_shares(jax.numpy.asarray(values), k))
    kth = np.sort(np.abs(values))[-k]
    above, ties = np.abs(values) > kth, np.abs(values) == kth
    assert (shares[above] == 1).all() and (shares[~above & ~ties] == 0).all()
    assert shares[ties] == pytest.approx((k - above.sum()) / ties.sum())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": 8}, "d = 8"),
        ({"noise_stddev": -1.0}, "noise_stddev = -1"),
        ({"draws": 1}, "draws = 1"),
        ({"memory_bytes": 100}, "at least 608"),
        ({"vector": np.zeros(8)}, "is 0.0"),
        ({"vector": np.array([1.0] * 7 + [np.nan])}, "is nan"),
    ],
)
def test_impossible_values_are_named(changed, words):
    arguments = {"vector": np.arange(8.0), "k": 2, "noise_stddev": 1.0, "draws": 4, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=words):
        monte_carlo.vector_retention(**(arguments | changed))
