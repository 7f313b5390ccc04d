"""The top-k of noisy vectors, drawn many times: recall, overlap and captured energy with standard errors.

It holds the closed forms of analysis.theory to account, and runs on CPU or GPU. The noise is JAX's, from a key that the
caller gives; no privacy rests on it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Key

BYTES_PER_DRAW = 52  # a coordinate: of two copies the noise, the keys and the shares, and what the generator holds
SHARED_BYTES = 24  # a coordinate: the clean vector, its top-k and its energies
SUM_BLOCK = 2**12  # terms of a float32 sum: the blocks, then their sums, are each short enough to lose at most 10⁻⁶


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over draws and its standard error, the standard deviation of the draws ÷ √draws."""

    mean: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class RetentionEstimate:
    """A `gaussian_top_k.TopKRetention` estimated from draws, each of two noisy copies of one clean vector."""

    recall: Estimate
    overlap: Estimate
    captured_energy: Estimate
    draws: int


def vector_retention(
    vector: Float[np.ndarray, "d"],
    *,
    k: int,
    noise_stddev: float,
    draws: int,
    key: Key[Array, ""],
    memory_bytes: int = 2**28,
) -> RetentionEstimate:
    """Estimate what Gaussian noise leaves of the top k of one clean vector, in float32.

    Draw i has the i-th of `draws` keys that are split from the key, whatever the memory. Of equal magnitudes at the
    threshold (zeros, say) each counts by its chance to be drawn into the top k, in every copy anew, so that the result
    without noise is the limit of that with little noise.

    Args:
        vector: The clean vector (d,), finite and not all zero.
        k: Size of the support, 0 < k < d.
        noise_stddev: σ, in the vector's unit, at least 0.
        draws: Number of draws, at least 2.
        key: Key of the noise.
        memory_bytes: Bound of the memory: chunks of draws that fit, at 52 bytes a coordinate and draw and 24 a
            coordinate, run one after the other.

    Raises:
        ValueError: An argument is outside of its range, or one draw does not fit into the memory.
    """
    largest = float(np.max(np.abs(vector), initial=0))
    if not 0 < largest < np.inf:
        raise ValueError(
            f"vector_retention: the largest of {len(vector)} magnitudes is {largest}; give finite values, not all zero"
        )
    clean = jnp.asarray(vector / largest, dtype=jnp.float32)  # their squares stay within float32's range
    _refuse_impossible(d=len(vector), k=k, noise_stddev=noise_stddev, draws=draws)
    chunks = _chunks(len(vector), draws, BYTES_PER_DRAW, memory_bytes)
    return _estimate(lambda keys: _vector_draws(keys, clean, k, noise_stddev / largest), key, draws, chunks)


def sampled_retention(
    sampler: Callable[[Key[Array, ""]], Float32[Array, "d"]],
    *,
    k: int,
    noise_stddev: float,
    draws: int,
    key: Key[Array, ""],
    memory_bytes: int = 2**28,
) -> RetentionEstimate:
    """Estimate what noise leaves of the top k of clean vectors that are themselves drawn; else as `vector_retention`.

    Args:
        sampler: Makes a clean vector (d,) from a key, under jit and vmap. It is compiled once for each function object:
            give the same one again rather than a new one.
        k: Size of the support, 0 < k < d.
        noise_stddev: σ, in the vectors' unit, at least 0.
        draws: Number of draws, at least 2.
        key: Key of the vectors and the noise.
        memory_bytes: Bound of the memory, at 76 bytes a coordinate and draw; what the sampler holds beside its vector
            comes on top.

    Raises:
        ValueError: An argument is outside of its range, or one draw does not fit into the memory.
    """
    d = math.prod(jax.eval_shape(sampler, key).shape)
    _refuse_impossible(d=d, k=k, noise_stddev=noise_stddev, draws=draws)
    chunks = _chunks(d, draws, BYTES_PER_DRAW + SHARED_BYTES, memory_bytes)  # every draw has a clean vector of its own
    return _estimate(lambda keys: _sampled_draws(keys, k, noise_stddev, sampler=sampler), key, draws, chunks)


def _refuse_impossible(*, d: int, k: int, noise_stddev: float, draws: int) -> None:
    if not 0 < k < d or not noise_stddev >= 0 or draws < 2:
        raise ValueError(
            f"k = {k} of d = {d}, noise_stddev = {noise_stddev}, draws = {draws}; "
            "give 0 < k < d, noise_stddev ≥ 0, and at least two draws, for a standard error"
        )


def _chunks(d: int, draws: int, bytes_a_draw: int, memory_bytes: int) -> int:
    """Compute the number of chunks into which the draws must be cut for each to fit."""
    at_once = (memory_bytes // d - SHARED_BYTES) // bytes_a_draw
    if at_once < 1:
        needed = d * (SHARED_BYTES + bytes_a_draw)
        raise ValueError(f"memory_bytes = {memory_bytes} does not hold one draw of d = {d}: give at least {needed}")
    return math.ceil(draws / at_once)


def _estimate(
    draw_chunk: Callable[[Key[Array, "n"]], Float32[Array, "n 3"]], key: Key[Array, ""], draws: int, chunks: int
) -> RetentionEstimate:
    """Average over all draws; all chunks have one length, so that one compiled program runs them all."""
    size = math.ceil(draws / chunks)
    keys = jax.random.split(key, size * chunks).reshape(chunks, size)
    drawn = np.concatenate([np.asarray(draw_chunk(part)) for part in keys])[:draws].astype(np.float64)
    means, errors = drawn.mean(axis=0), drawn.std(axis=0, ddof=1) / math.sqrt(draws)
    recall, overlap, captured_energy = (
        Estimate(mean=float(mean), standard_error=float(error)) for mean, error in zip(means, errors, strict=True)
    )
    return RetentionEstimate(recall=recall, overlap=overlap, captured_energy=captured_energy, draws=draws)


@jax.jit
def _vector_draws(
    keys: Key[Array, "n"], clean: Float32[Array, "d"], k: Any, noise_stddev: Any
) -> Float32[Array, "n 3"]:
    return jax.vmap(lambda key: _draw(key, clean, k, noise_stddev))(keys)


@partial(jax.jit, static_argnames="sampler")
def _sampled_draws(keys: Key[Array, "n"], k: Any, noise_stddev: Any, *, sampler: Callable) -> Float32[Array, "n 3"]:
    def draw(key: Key[Array, ""]) -> Float32[Array, "3"]:
        of_clean, of_noise = jax.random.split(key)
        return _draw(of_noise, sampler(of_clean), k, noise_stddev)

    return jax.vmap(draw)(keys)


def _draw(key: Key[Array, ""], clean: Float32[Array, "d"], k: Any, noise_stddev: Any) -> Float32[Array, "3"]:
    """Draw two noisy copies: recall (mean of the two), overlap of the two, and captured energy (mean of the two)."""
    energy = clean**2
    one, two = (
        _top_shares(clean + noise_stddev * jax.random.normal(part, clean.shape), k) for part in jax.random.split(key)
    )
    kept = (one + two) / 2
    return jnp.stack(
        [_total(kept * _top_shares(clean, k)) / k, _total(one * two) / k, _total(kept * energy) / _total(energy)]
    )


def _top_shares(values: Float32[Array, "d"], k: Any) -> Float32[Array, "d"]:
    """Give 1 above the k-th magnitude and 0 below; values equal to it share the places that are left.

    The k-th magnitude is searched bit by bit, from the highest, by counting: without a sign the floats' bits rank as
    the magnitudes do. 31 passes over the vector are ten times faster than a sort or top_k of XLA on a CPU.
    """
    keys = jax.lax.bitcast_convert_type(jnp.abs(values), jnp.uint32)

    def next_bit(place: Any, prefix: Any) -> Any:
        candidate = prefix | (jnp.uint32(1) << (30 - place).astype(jnp.uint32))
        return jnp.where(jnp.sum(keys >= candidate, dtype=jnp.int32) >= k, candidate, prefix)

    kth = jax.lax.fori_loop(0, 31, next_bit, jnp.uint32(0))
    above, ties = keys > kth, keys == kth
    places = k - jnp.sum(above, dtype=jnp.int32)
    return above + ties * (places / jnp.sum(ties, dtype=jnp.int32))


def _total(values: Float32[Array, "d"]) -> Float32[Array, ""]:
    blocks = jnp.pad(values, (0, -len(values) % SUM_BLOCK)).reshape(-1, SUM_BLOCK)
    return blocks.sum(axis=1).sum()
