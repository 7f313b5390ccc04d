"""Releases inside a compiled program: the same numbers as on the host, and no way around clip, charge or noise."""

import copy
import pickle
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpcomp as dp
from dpcomp.privacy.gaussian import public_grid
from dpcomp.privacy.traced.noise import StepNoise
from dpcomp.privacy.traced.release import TracedRelease, rounded_in_trace

LAYOUT = dp.Layout.of({"weight": (7, 3), "bias": (5,)})
CHAINS = {
    "clip": (dp.Clip(0.9),),
    "support": (dp.RandomK(0.3), dp.Clip(0.9)),
    "top, support": (dp.TopK(0.2, per="layer"), dp.RandomK(0.4), dp.Clip(0.9)),
    "support, top": (dp.RandomK(0.4), dp.TopK(0.2), dp.Clip(0.9)),
    "support after": (dp.Clip(0.9), dp.RandomK(0.3)),
}
STEPS = 2


def setting(stages=CHAINS["clip"], z=1.1, client=3, seed=0):
    pipeline = dp.Pipeline(mechanism=(*stages, dp.Gaussian(z)))
    memory = pipeline.init_client(LAYOUT, dp.PublicSeed(seed), client=client)
    permit = dp.Ledger().charge(pipeline.cost, memory.address, steps=STEPS)
    return pipeline, memory, permit


def blocks():
    """Three blocks of six rows, some of which are no units, and one of which is not finite."""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((3, 6, *shape)).astype(np.float32) for _, shape in LAYOUT.shapes]
    rows[0][1, 2, 1, 1] = np.nan
    for layer in rows:
        layer[0, 3] *= 1e-2  # one that is short enough
    present = np.ones((3, 6), dtype=bool)
    present[2, 4:], present[0, 1] = False, False
    rows[1][2, 5] = np.inf  # a row that only fills its block
    return rows, present


def positions_of(pipeline, memory):
    positions = pipeline.public_positions(memory)
    return None if positions is None else positions.astype(np.int32)


def program_of(pipeline, step=None):
    """Return a compiled program that releases the same blocks in each step."""

    def run(rows, present, noise, positions):
        def one(state, step_noise):
            def block_at(i):
                return tuple(layer[i] for layer in rows), present[i]

            return state, pipeline.release_in_trace(block_at, len(present), step_noise, LAYOUT, positions)

        return jax.lax.scan(step or one, 0.0, noise)[1]

    return jax.jit(run)


def last(releases):
    return jax.tree.map(lambda array: np.asarray(array)[-1], releases)


def released(pipeline, memory, drawn):
    with jax.enable_x64(True):
        return program_of(pipeline)(*blocks(), drawn.noise, positions_of(pipeline, memory))


@pytest.mark.parametrize("name", CHAINS)
def test_a_program_releases_what_the_host_releases(name):
    pipeline, memory, permit = setting(CHAINS[name])
    _, _, again = setting(CHAINS[name])
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(5), permit, STEPS)
    assert permit.used == STEPS
    out = released(pipeline, memory, drawn)
    rows, present = blocks()
    for step in range(STEPS):
        parts = [tuple(layer[i][present[i]] for layer in rows) for i in range(3)]
        expected = pipeline.release(parts, memory, dp.SecretSeed(5), again)
        # A cell of the grid may differ, where the norm was computed in another order.
        np.testing.assert_allclose(out.values[step], expected.values, atol=2 * public_grid(0.99))
        assert (out.units[step], out.not_finite[step]) == (15, 1 if name == "clip" else out.not_finite[step])
    update = pipeline.released(last(out), drawn)
    assert (update.address, update.support, update.claim) == (permit.address, expected.support, pipeline.claim)
    assert update.noise_stddev == expected.noise_stddev
    np.testing.assert_array_equal(update.values, out.values[-1])


def test_a_program_rounds_to_the_public_grid():
    pipeline, memory, permit = setting(z=3.7)
    out = released(pipeline, memory, pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS))
    cells = np.asarray(out.values, np.float64) / public_grid(3.7 * 0.9)
    np.testing.assert_array_equal(cells, np.rint(cells))
    with jax.enable_x64(True):
        zero = rounded_in_trace(jnp.asarray([-1e-9, 1e-9]), public_grid(1.0))
    assert not np.signbit(zero).any()


def test_a_batch_without_examples_releases_pure_noise():
    pipeline, memory, permit = setting()
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(5), permit, STEPS)
    rows, present = blocks()
    with jax.enable_x64(True):
        out = program_of(pipeline)(rows, np.zeros_like(present), drawn.noise, None)
    np.testing.assert_allclose(out.values, 0.99 * drawn.noise.standard_normal, atol=public_grid(0.99))
    assert not np.asarray(out.units).any()


def test_noise_is_drawn_for_a_permit_alone():
    pipeline, memory, permit = setting()
    with pytest.raises(dp.BudgetExhausted, match="does not allow 3 more"):
        pipeline.draw_noise(memory, dp.SecretSeed(), permit, 3)
    assert permit.used == 0
    pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)
    with pytest.raises(dp.BudgetExhausted):
        pipeline.draw_noise(memory, dp.SecretSeed(), permit, 1)
    other, _, _ = setting(z=0.1)
    with pytest.raises(dp.VersionMismatch):
        other.draw_noise(memory, dp.SecretSeed(), permit, 1)
    server = pipeline.init_server(LAYOUT, dp.PublicSeed(0))
    with pytest.raises(dp.NotPrivate, match="on the client"):
        pipeline.draw_noise(server, dp.SecretSeed(), permit, 1)
    with pytest.raises(TypeError, match="SecretSeed"):
        pipeline.draw_noise(memory, 3, permit, 1)


def test_noise_of_another_mechanism_is_refused():
    pipeline, memory, permit = setting()
    small, small_memory, small_permit = setting(z=0.01)
    drawn = small.draw_noise(small_memory, dp.SecretSeed(), small_permit, STEPS)
    with jax.enable_x64(True), pytest.raises(dp.NotPrivate, match="another mechanism"):
        program_of(pipeline)(*blocks(), drawn.noise, None)
    out = released(small, small_memory, drawn)
    mine = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)
    with pytest.raises(dp.NotPrivate, match="another mechanism"):
        pipeline.released(last(out), mine)


def test_arrays_are_no_noise_and_no_release():
    pipeline, memory, permit = setting()
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)
    with jax.enable_x64(True), pytest.raises(TypeError, match="StepNoise"):
        program_of(pipeline)(*blocks(), np.zeros((STEPS, LAYOUT.size)), None)
    with pytest.raises(TypeError, match="TracedRelease"):
        pipeline.released(np.ones(LAYOUT.size, np.float32), drawn)


def test_a_clipped_sum_of_a_trace_is_not_released():
    pipeline, memory, permit = setting()
    kept = []
    jax.jit(lambda rows: kept.append(pipeline.clip(rows, memory)) or 0.0)(np.ones((2, LAYOUT.size), np.float32))
    with pytest.raises(dp.NotPrivate, match="not made by this pipeline's clip"):
        pipeline.noise(kept[0], memory, dp.SecretSeed(), permit)


def test_a_release_is_taken_with_its_own_noise_and_once():
    pipeline, memory, permit = setting()
    _, other_memory, other_permit = setting(client=4)
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)
    other = pipeline.draw_noise(other_memory, dp.SecretSeed(), other_permit, STEPS)
    out = released(pipeline, memory, drawn)
    with pytest.raises(dp.NotPrivate, match="not made with this noise"):
        pipeline.released(last(out), other)
    pipeline.released(last(out), drawn)
    with pytest.raises(dp.NotPrivate, match="not made with this noise"):
        pipeline.released(last(out), drawn)
    with pytest.raises(dp.NotPrivate, match="not made with this noise"):
        pipeline.released(jax.tree.map(lambda array: np.asarray(array)[0], out), drawn)


def releases(pipeline, noise):
    return pipeline.release_in_trace(
        lambda i: ((jnp.ones((2, LAYOUT.size), jnp.float32),), jnp.ones(2, bool)), 1, noise, LAYOUT
    )


def test_the_noise_of_a_step_is_used_once():
    pipeline, memory, permit = setting()
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)

    def twice(state, noise):
        return state, releases(pipeline, noise).values - releases(pipeline, noise).values

    def outer(noise):
        first = jax.tree.map(lambda array: array[0], noise)
        return jax.lax.scan(lambda state, _: (state, releases(pipeline, first).values), 0.0, jnp.arange(3))[1]

    def for_all_clients(noise):
        first = jax.tree.map(lambda array: array[0], noise)

        def one(scale):
            rows = (scale * jnp.ones((2, LAYOUT.size), jnp.float32),)
            return pipeline.release_in_trace(lambda i: (rows, jnp.ones(2, bool)), 1, first, LAYOUT).values

        return jax.vmap(one)(jnp.arange(3, dtype=jnp.float32))

    def handed_on(noise):
        first = jax.tree.map(lambda array: array[0], noise)
        return jax.lax.scan(lambda same, _: (same, releases(pipeline, same).values), first, jnp.arange(3))[1]

    def handed_on_in_a_loop(noise):
        first = jax.tree.map(lambda array: array[0], noise)

        def turn(_, state):
            total, same = state
            return total + releases(pipeline, same).values, same

        return jax.lax.fori_loop(0, 3, turn, (jnp.zeros(LAYOUT.size, jnp.float32), first))[0]

    def in_order(noise):
        return jax.lax.scan(twice, 0.0, noise)[1]

    with jax.enable_x64(True):
        for program in (in_order, outer, for_all_clients, handed_on, handed_on_in_a_loop):
            with pytest.raises(dp.NotPrivate, match="added to several sums"):
                jax.jit(program)(drawn.noise)


def test_a_trace_without_float64_is_refused():
    pipeline, memory, permit = setting()
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)
    with pytest.raises(TypeError, match="no float64"):
        program_of(pipeline)(*blocks(), drawn.noise, None)


def test_a_changed_pipeline_releases_nothing():
    pipeline, memory, permit = setting((dp.Clip(0.9),))
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)
    out = released(pipeline, memory, drawn)
    object.__setattr__(pipeline.mechanism[0], "norm", 100.0)
    with jax.enable_x64(True), pytest.raises(dp.NotPrivate, match="changed after"):
        program_of(pipeline)(*blocks(), drawn.noise, None)
    with pytest.raises(dp.NotPrivate):
        pipeline.released(last(out), drawn)


def test_a_stage_of_ones_own_cannot_be_compiled():
    @dataclass(frozen=True)
    class Own:
        def claim(self, before, where):
            return before

        def apply(self, value, context):
            return value

    for stages in ((Own(), dp.Clip(1.0)), (dp.RandomK(0.5), dp.TopK(0.5, per="layer"), dp.Clip(1.0))):
        with pytest.raises(TypeError, match="compiled program"):
            dp.Pipeline(mechanism=(*stages, dp.Gaussian(1.0))).refuse_untraceable()


def test_noise_stays_in_its_process():
    pipeline, memory, permit = setting()
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)
    for leaves in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="stays in the process"):
            leaves(drawn)


def test_noises_of_several_clients_are_stacked():
    pipeline, memory, permit = setting()
    small, small_memory, small_permit = setting(z=0.01)
    noise = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS).noise
    together = StepNoise.stacked([noise, noise], rows=4)
    assert together.standard_normal.shape == (4, STEPS, LAYOUT.size)
    np.testing.assert_array_equal(together.standard_normal[1], noise.standard_normal)
    assert not together.standard_normal[2:].any()
    other = small.draw_noise(small_memory, dp.SecretSeed(), small_permit, STEPS).noise
    with pytest.raises(ValueError, match="mechanisms"):
        StepNoise.stacked([noise, other], rows=2)


def test_what_a_program_computes_of_a_release_is_derived():
    pipeline, memory, permit = setting()
    drawn = pipeline.draw_noise(memory, dp.SecretSeed(), permit, STEPS)
    out = last(released(pipeline, memory, drawn))
    update = pipeline.released(out, drawn).derive(-0.5 * np.asarray(out.values))
    assert update.claim == pipeline.claim
    assert isinstance(replace(out, units=3), TracedRelease)
