"""One copy of the arithmetic: NumPy, torch, JAX and JAX under jit give the same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dpcomp as dp

CHAINS = pytest.mark.parametrize(
    "stages",
    [
        (dp.Clip(0.9),),
        (dp.RandomK(0.4), dp.Clip(0.9)),
        (dp.Clip(0.9), dp.RandomK(0.4)),
        (dp.TopK(0.2), dp.Clip(0.9)),
        (dp.TopK(0.2), dp.RandomK(0.4), dp.Clip(0.9)),
    ],
    ids=str,
)
FRAMEWORKS = pytest.mark.parametrize("array", [torch.from_numpy, jnp.asarray], ids=["torch", "jax"])
LAYOUT = {"weight": (20, 31), "bias": (5,), "scale": ()}


def setting(stages):
    pipeline = dp.Pipeline(mechanism=(*stages, dp.Gaussian(1.1)))
    return pipeline, pipeline.init_client(LAYOUT, seed=dp.PublicSeed(1), client=0)


def block():
    rng = np.random.default_rng(0)
    layers = [rng.standard_normal((8, *shape)).astype(np.float32) for shape in LAYOUT.values()]
    layers[0][1] *= 1e-3  # one that is short enough
    layers[1][2, 0] = np.nan
    layers[0][3, 0, 0] = np.inf
    return tuple(layers)


def halves(array):
    return [tuple(array(layer[rows]) for layer in block()) for rows in (slice(0, 4), slice(4, 8))]


def flat(layers):
    return np.concatenate([np.asarray(layer, dtype=np.float64) for layer in layers])


@CHAINS
@FRAMEWORKS
def test_frameworks_agree(stages, array):
    pipeline, memory = setting(stages)
    for half, in_numpy in zip(halves(array), halves(np.asarray), strict=True):
        expected = flat(pipeline.clip(in_numpy, memory).layers)
        assert np.count_nonzero(expected) > 0
        np.testing.assert_allclose(flat(pipeline.clip(half, memory).layers), expected, rtol=1e-5, atol=1e-6)


@CHAINS
def test_jax_agrees_under_jit_with_noise_as_an_argument(stages):
    pipeline, memory = setting(stages)
    expected = flat(pipeline.clip(block(), memory).layers)

    @jax.jit
    def release(layers, noise):
        total = pipeline.clip(layers, memory)
        edges = np.cumsum([0, *(len(layer) for layer in total.layers)])
        return [
            dp.Gaussian(1.1).add(layer, noise[start:stop], 0.9)
            for layer, start, stop in zip(total.layers, edges[:-1], edges[1:], strict=True)
        ]

    layers = tuple(map(jnp.asarray, block()))
    for seed in (1, 2):
        noise = np.random.default_rng(seed).standard_normal(len(expected)).astype(np.float32)
        found = flat(release(layers, jnp.asarray(noise)))
        np.testing.assert_allclose(found, expected + 1.1 * 0.9 * noise, rtol=1e-5, atol=2e-6)


@CHAINS
@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy, jnp.asarray], ids=["numpy", "torch", "jax"])
def test_micro_batches_add_up(stages, array):
    pipeline, memory = setting(stages)
    whole = pipeline.clip(block(), memory)
    first, second = (pipeline.clip(half, memory) for half in halves(array))
    total = first + second
    assert total.support == whole.support
    np.testing.assert_allclose(flat(total.layers), flat(whole.layers), rtol=1e-5, atol=1e-6)


@CHAINS
@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy, jnp.asarray], ids=["numpy", "torch", "jax"])
def test_every_framework_releases(stages, array):
    pipeline, memory = setting(stages)
    permits = [dp.Ledger().charge(pipeline.cost, memory.address) for _ in range(2)]
    update = pipeline.release(halves(array), memory, dp.SecretSeed(2), permits[0])
    expected = pipeline.release([block()], memory, dp.SecretSeed(2), permits[1])
    assert update.support == expected.support
    np.testing.assert_allclose(update.values, expected.values, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy, jnp.asarray], ids=["numpy", "torch", "jax"])
def test_gaussian_add_agrees(array):
    total, noise = np.linspace(-1, 1, 50, dtype=np.float32), np.linspace(3, -2, 50, dtype=np.float32)
    found = dp.Gaussian(0.7).add(array(total), array(noise), 2.0)
    np.testing.assert_allclose(np.asarray(found), total + 1.4 * noise, rtol=1e-6, atol=1e-6)


def test_totals_of_different_supports_or_layouts_do_not_add_up():
    pipeline, memory = setting((dp.RandomK(0.4), dp.Clip(0.9)))
    other_round = pipeline.init_client(LAYOUT, seed=dp.PublicSeed(2), client=0)
    with pytest.raises(ValueError, match="different support"):
        pipeline.clip(block(), memory) + pipeline.clip(block(), other_round)
    with pytest.raises(ValueError, match="different layout"):
        pipeline.empty_total(memory) + pipeline.empty_total(pipeline.init_client(4, seed=dp.PublicSeed(1), client=0))
