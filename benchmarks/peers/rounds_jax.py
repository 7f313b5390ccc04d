"""Federated rounds by hand in JAX: one compiled program a round, without bytes, ledger or memory of what was dropped.

The model is `experiments.data.models.fashion_cnn`, written as products of patches with weights: XLA's own convolutions
are several times slower on a CPU.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.peers.federation import FederationSettings, Images

ROOM = 1.75  # rows of a padded batch ÷ its expected size; a larger batch, one in 10⁵, is cut
EVALUATED_AT_ONCE = 500

Weights = Mapping[str, Array]


def jax_rounds(
    first: Mapping[str, np.ndarray], images: Images, settings: FederationSettings
) -> Callable[[int], Weights]:
    """Make a function that plays rounds: a scan over local steps, a loop over clients, noise by JAX's own generator.

    Args:
        first: The state dict of the CNN, as arrays.
        images: Of all clients, in order of the clients; and those to evaluate on.
        settings: Clients, steps, batches, clip and noise.

    Returns:
        A function of the number of rounds, which evaluates the model after the last of them, and returns its weights
        as `logits` takes them.
    """
    inputs, labels = jnp.asarray(images.inputs[:, 0]), jnp.asarray(images.labels)
    test_inputs, test_labels = jnp.asarray(images.test_inputs[:, 0]), jnp.asarray(images.test_labels)
    room, rng = round(ROOM * settings.batch_size), np.random.default_rng(0)
    state = {"weights": _rearranged(first), "key": jax.random.key(0)}

    def loss(weights: Weights, image: Array, label: Array) -> Array:
        return -jax.nn.log_softmax(logits(weights, image[None])[0])[label]

    def local_step(weights: Weights, drawn: Any) -> tuple[Weights, None]:
        positions, present, key = drawn
        rows = jax.vmap(jax.grad(loss), (None, 0, 0))(weights, inputs[positions], labels[positions])
        squares = sum(jnp.sum(part**2, axis=tuple(range(1, part.ndim))) for part in jax.tree.leaves(rows))
        factors = present * jnp.minimum(1.0, settings.clip_norm / jnp.sqrt(squares + 1e-12))
        keys = dict(zip(weights, jax.random.split(key, len(weights)), strict=True))
        scale = settings.clip_norm * settings.noise_multiplier

        def stepped(name: str) -> Array:
            summed = jnp.tensordot(factors, rows[name], 1)
            noise = scale * jax.random.normal(keys[name], summed.shape)
            return weights[name] - settings.learning_rate / settings.batch_size * (summed + noise)

        return {name: stepped(name) for name in weights}, None

    @jax.jit
    def play_round(weights: Weights, positions: Array, present: Array, key: Array) -> Weights:
        keys = jax.random.split(key, positions.shape[:2])
        trained = jax.lax.map(lambda client: jax.lax.scan(local_step, weights, client)[0], (positions, present, keys))
        return jax.tree.map(lambda parts: parts.mean(0), trained)

    @jax.jit
    def correct(weights: Weights, some: Array, truth: Array) -> Array:
        return (logits(weights, some).argmax(1) == truth).sum()

    def play(rounds: int) -> Weights:
        for _ in range(rounds):
            positions = np.zeros((settings.together, settings.local_steps, room), dtype=np.int32)
            present = np.zeros(positions.shape, dtype=np.float32)
            for place, client in enumerate(settings.draw_clients(rng)):
                for step in range(settings.local_steps):
                    batch = settings.draw_batch(int(client), rng)[:room]
                    positions[place, step, : len(batch)], present[place, step, : len(batch)] = batch, 1.0
            state["key"], key = jax.random.split(state["key"])
            state["weights"] = play_round(state["weights"], jnp.asarray(positions), jnp.asarray(present), key)
        for start in range(0, len(test_labels), EVALUATED_AT_ONCE):
            some = slice(start, start + EVALUATED_AT_ONCE)
            correct(state["weights"], test_inputs[some], test_labels[some]).block_until_ready()
        return state["weights"]

    return play


def logits(weights: Weights, images: Array) -> Array:
    """Return the (n, 10) logits of (n, 28, 28) images."""
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
    hidden = _pooled(jnp.tanh(_convolved(padded, weights["convolution_1"], 8) + weights["bias_1"]))
    hidden = _pooled(jnp.tanh(_convolved(hidden, weights["convolution_2"], 4) + weights["bias_2"]))
    flat = hidden.transpose(0, 3, 1, 2).reshape(len(images), -1)
    hidden = jnp.tanh(flat @ weights["hidden"] + weights["bias_3"])
    return hidden @ weights["output"] + weights["bias_4"]


def _convolved(images: Array, weights: Array, size: int) -> Array:
    """Convolve (n, h, w, c) images with (size² · c, outputs) weights at stride 2; h, w and the size are even.

    A patch is put together of blocks of 2 × 2 pixels, so that the slices have long runs in memory.
    """
    n, high, wide, channels = images.shape
    blocks = images.reshape(n, high // 2, 2, wide // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(n, high // 2, wide // 2, 4 * channels)
    across = size // 2
    rows, columns = high // 2 - across + 1, wide // 2 - across + 1
    slices = [blocks[:, i : i + rows, j : j + columns] for i in range(across) for j in range(across)]
    by_block = weights.reshape(across, 2, across, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return jnp.concatenate(slices, axis=-1) @ by_block.reshape(-1, weights.shape[1])


def _pooled(images: Array) -> Array:
    """Take maxima of 2 × 2 pixels at stride 1."""
    rows = jnp.maximum(images[:, 1:], images[:, :-1])
    return jnp.maximum(rows[:, :, 1:], rows[:, :, :-1])


def _rearranged(state: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """Return the weights of the torch model as `logits` takes them."""
    made = {}
    for number in (1, 2):
        kernel = state[f"convolution_{number}.weight"]
        made[f"convolution_{number}"] = kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))
        made[f"bias_{number}"] = state[f"convolution_{number}.bias"]
    made |= {"hidden": state["hidden.weight"].T, "bias_3": state["hidden.bias"]}
    made |= {"output": state["output.weight"].T, "bias_4": state["output.bias"]}
    return {name: jnp.asarray(part) for name, part in made.items()}
