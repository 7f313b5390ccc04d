"""The JAX trainer gives what the PyTorch trainer gives, and what plain loops give, for both units."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import dpcomp as dp
from dpcomp.simulation import simulate
from dpcomp.training import CohortTrainer, Federation, LocalWork
from dpcomp.training.jax import JAX
from dpcomp.training.pytorch import PyTorch
from tests.training.jax.tasks import JaxImages, TorchImages

EXAMPLE = {"unit": "example"}
CLIENT = {"unit": "client"}
SERVER = {"unit": "client", "trust": "server"}
MECHANISMS = {
    "clip": (dp.Clip(0.7),),
    "support": (dp.RandomK(0.3), dp.Clip(0.7)),
    "own top": (dp.TopK(0.3), dp.Clip(0.7)),
}
CLIENTS = 3


def pipeline_of(stages=MECHANISMS["clip"], z=0.05, rate=0.4, **who):
    return dp.Pipeline(mechanism=(*stages, dp.Gaussian(z)), sampling=dp.Poisson(rate), **who)


def run(task, pipeline, trainer, rounds=2):
    return simulate(task, pipeline, clients=CLIENTS, rounds=rounds, trainer=trainer, seed=3, delta=1e-3, progress=False)


def trainer_of(pipeline, config=JAX(local_steps=3), task=JaxImages(), secret=dp.SecretSeed(4)):
    def split(labels):
        return np.array_split(np.random.default_rng(0).permutation(len(labels)), CLIENTS)

    seed = dp.PublicSeed(3)
    federation = Federation(task=task, pipeline=pipeline, clients=CLIENTS, split=split, seed=seed, secret=secret)
    return config.make_trainer(federation)


def work_of(trainer, pipeline, client, ledger=None, seed=3):
    memory = pipeline.init_client(trainer.layout, dp.PublicSeed(seed), client=client)
    ledger = dp.Ledger() if ledger is None else ledger
    return LocalWork(client=client, start=trainer.initial_model, memory=memory, ledger=ledger)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_jax_and_torch_agree_on_the_same_weights_draws_and_noise(name, momentum):
    if momentum and name != "clip":
        return
    pipeline = pipeline_of(MECHANISMS[name])
    options = {"local_steps": 3, "learning_rate": 0.5, "momentum": momentum}
    in_torch = run(TorchImages(), pipeline, PyTorch(**options))
    in_jax = run(JaxImages(), pipeline, JAX(**options, physical_batch_size=4))
    start = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in JaxImages().parameters(3)])
    moved = np.linalg.norm(in_torch.model - start)
    assert moved > 0.1
    assert np.linalg.norm(in_jax.model - in_torch.model) <= 1e-5 * moved
    assert in_jax.guarantee.epsilon == in_torch.guarantee.epsilon
    assert in_jax.rows[-1]["test_accuracy"] == pytest.approx(in_torch.rows[-1]["test_accuracy"])
    assert in_jax.rows[-1]["test_loss"] == pytest.approx(in_torch.rows[-1]["test_loss"], rel=1e-4)


@pytest.mark.parametrize("who", [CLIENT, SERVER], ids=["nobody", "server"])
def test_jax_and_torch_agree_where_a_client_is_the_unit(who):
    pipeline = pipeline_of(rate=1.0, **who)
    options = {"local_steps": 4, "learning_rate": 0.3, "momentum": 0.5, "local_sampling": dp.Poisson(0.05)}
    in_torch = run(TorchImages(), pipeline, PyTorch(**options))
    in_jax = run(JaxImages(), pipeline, JAX(**options, physical_batch_size=4))
    start = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in JaxImages().parameters(3)])
    moved = np.linalg.norm(in_torch.model - start)
    assert moved > 0.01
    assert np.linalg.norm(in_jax.model - in_torch.model) <= 1e-5 * moved


def test_a_cohort_is_trained_as_its_clients_are_one_by_one():
    pipeline = pipeline_of()
    trainer = trainer_of(pipeline)
    assert isinstance(trainer, CohortTrainer)
    together = trainer.train_cohort([work_of(trainer, pipeline, client) for client in (2, 0, 1)])
    for update, client in zip(together, (2, 0, 1), strict=True):
        alone = work_of(trainer, pipeline, client)
        expected = trainer.train(client, alone.start, alone.memory, alone.ledger)
        np.testing.assert_array_equal(update.dense(), expected.dense())
        assert (update.address, update.claim, update.noise_stddev) == (
            expected.address,
            pipeline.claim,
            expected.noise_stddev,
        )
    assert trainer.train_cohort([]) == []


def test_noise_in_parts_gives_the_same_as_at_once(monkeypatch):
    pipeline = pipeline_of()
    updates = []
    for at_once in (2**26, 2 * 271, 100):
        monkeypatch.setattr("dpcomp.training.jax.example_level.NOISE_AT_ONCE", at_once)
        trainer = trainer_of(pipeline, JAX(local_steps=3, momentum=0.5))
        work = [work_of(trainer, pipeline, client) for client in range(3)]
        updates.append([update.dense() for update in trainer.train_cohort(work)])
        assert [each.ledger.guarantee(1e-3).steps for each in work] == [3, 3, 3]
    np.testing.assert_array_equal(updates[0], updates[1])
    np.testing.assert_array_equal(updates[0], updates[2])


def by_hand(trainer, pipeline, task, client, steps, rate, divisor, secret):
    """The round of a client as a plain loop over steps and examples, with `pipeline.release`."""
    work = work_of(trainer, pipeline, client)
    inputs, targets = task.train()
    mine = np.array_split(np.random.default_rng(0).permutation(len(targets)), CLIENTS)[client]
    permit, model = work.ledger.charge(pipeline.cost, work.memory.address, steps=steps), work.start

    def loss(vector, example, target):
        leaves, start = [], 0
        for shape in (shape for _, shape in trainer.layout.shapes):
            leaves.append(vector[start : start + int(np.prod(shape))].reshape(shape))
            start += int(np.prod(shape))
        return task.loss(task.apply(leaves, example), target)

    for step in range(steps):
        place = work.memory.address
        stream = secret.stream("sample", place.run, place.client, place.round, step)
        batch = mine[pipeline.sampling.draw(len(mine), stream)]
        rows = [np.asarray(jax.grad(loss)(model, inputs[i], targets[i])) for i in batch]
        block = np.stack(rows) if rows else np.zeros((0, len(model)), np.float32)
        released = pipeline.release([block], work.memory, secret, permit)
        model = model - np.float32(rate / divisor) * released.dense()
    return model - work.start


def test_the_compiled_program_is_the_plain_loop():
    pipeline = pipeline_of()
    trainer = trainer_of(pipeline, JAX(local_steps=2, learning_rate=0.25, physical_batch_size=5))
    expected = by_hand(trainer, pipeline, JaxImages(), 1, 2, 0.25, 0.4 * 90 / CLIENTS, dp.SecretSeed(4))
    work = work_of(trainer, pipeline, 1)
    update = trainer.train(1, work.start, work.memory, work.ledger)
    assert np.linalg.norm(update.dense() - expected) <= 1e-6 * np.linalg.norm(expected)
    with jax.disable_jit():
        work = work_of(trainer, pipeline, 1)
        eager = trainer.train(1, work.start, work.memory, work.ledger)
    assert np.linalg.norm(eager.dense() - expected) <= 1e-6 * np.linalg.norm(expected)


def test_each_step_each_client_and_each_round_has_noise_of_its_own():
    pipeline = pipeline_of(z=10.0, rate=1e-9)  # empty batches: noise alone
    trainer = trainer_of(pipeline, JAX(local_steps=1, learning_rate=1.0, expected_batch_size=1.0))
    several = trainer_of(pipeline, JAX(local_steps=4, learning_rate=1.0, expected_batch_size=1.0))
    one = [trainer.train_cohort([work_of(trainer, pipeline, c, seed=s)])[0].dense() for c in range(2) for s in range(2)]
    four = several.train_cohort([work_of(several, pipeline, 0)])[0]
    for i, noise in enumerate(one):
        assert np.std(noise) == pytest.approx(7.0, rel=0.15)
        for other in one[i + 1 :]:
            assert abs(np.corrcoef(noise, other)[0, 1]) < 0.25
    assert np.std(four.dense()) == pytest.approx(14.0, rel=0.15)  # four equal draws would give 28
    assert four.noise_stddev == pytest.approx(14.0)


def test_the_noise_in_an_update_with_momentum_is_known():
    pipeline = pipeline_of(z=10.0, rate=1e-9)
    config = JAX(local_steps=5, learning_rate=1.0, momentum=0.8, expected_batch_size=1.0)
    trainer = trainer_of(pipeline, config)
    update = trainer.train_cohort([work_of(trainer, pipeline, 0)])[0]
    assert np.std(update.dense()) == pytest.approx(update.noise_stddev, rel=0.15)


def test_all_clients_are_charged_before_any_noise_is_drawn():
    pipeline = pipeline_of()

    class Secret(dp.SecretSeed):
        drawn = 0

        def stream(self, purpose, *place):
            Secret.drawn += purpose == "noise"
            return super().stream(purpose, *place)

    trainer = trainer_of(pipeline, secret=Secret(4))
    poor = dp.Ledger(budget=dp.Budget(epsilon=0.01, delta=1e-6))
    work = [work_of(trainer, pipeline, 0), work_of(trainer, pipeline, 1, poor), work_of(trainer, pipeline, 2)]
    with pytest.raises(dp.BudgetExhausted):
        trainer.train_cohort(work)
    assert Secret.drawn == 0
    assert [each.ledger.guarantee(1e-3).steps for each in work] == [3, 0, 0]


def test_an_example_that_is_not_finite_counts_as_zero_and_is_told():
    class Broken(JaxImages):
        def train(self):
            inputs, targets = super().train()
            inputs[::7] = np.inf
            return inputs, targets

    with pytest.warns(dp.DpcompWarning, match="not finite"):
        done = run(Broken(), pipeline_of(), JAX(local_steps=2))
    assert np.isfinite(done.model).all()


@pytest.mark.parametrize(
    "config", [{"local_steps": 0}, {"learning_rate": -1.0}, {"momentum": 1.0}, {"expected_batch_size": 0.0}]
)
def test_numbers_out_of_range_are_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        JAX(**config)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="only unit='example' has such sums"):
        trainer_of(pipeline_of(**CLIENT), JAX(expected_batch_size=3.0))
    with pytest.raises(TypeError, match="no parameters and no apply"):
        trainer_of(pipeline_of(), task=TorchImages())
    probed = replace(pipeline_of())
    object.__setattr__(probed, "probes", (1,))
    with pytest.raises(ValueError, match="probes"):
        trainer_of(probed)


def test_a_task_without_float32_parameters_is_refused():
    class Counts(JaxImages):
        def parameters(self, seed):
            return {"layer": {"weight": np.ones(3, np.float32), "count": np.int32(3)}}

    with pytest.raises(TypeError, match=r"layer\.count is int32"):
        trainer_of(pipeline_of(), task=Counts())
