"""The JAX trainer gives what the PyTorch trainer gives, and what plain loops give, for both units."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import dpcomp as dp
from dpcomp.privacy.gaussian import noise_of_step
from dpcomp.simulation import simulate
from dpcomp.training import CohortTrainer, Cosine, Federation, LocalWork
from dpcomp.training.jax import JAX
from dpcomp.training.pytorch import PyTorch
from dpcomp.wire.update import with_claim
from tests.training.jax.tasks import JaxImages, JaxLinear, TorchImages, TorchLinear, weights_of

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


def trainer_of(pipeline, config=JAX(local_steps=3), task=JaxLinear(), secret=dp.SecretSeed(4)):
    def split(labels):
        return np.array_split(np.random.default_rng(0).permutation(len(labels)), CLIENTS)

    seed = dp.PublicSeed(3)
    federation = Federation(task=task, pipeline=pipeline, clients=CLIENTS, split=split, seed=seed, secret=secret)
    return config.make_trainer(federation)


def work_of(trainer, pipeline, client, ledger=None, seed=3):
    memory = pipeline.init_client(trainer.layout, dp.PublicSeed(seed), client=client)
    ledger = dp.Ledger() if ledger is None else ledger
    return LocalWork(client=client, start=trainer.initial_model, memory=memory, ledger=ledger)


def assert_agreement(pipeline, in_torch, in_jax, **options):
    """Train both for two rounds, and compare the models that come out."""
    torch_run = run(in_torch, pipeline, PyTorch(**options))
    jax_run = run(in_jax, pipeline, JAX(**options, physical_batch_size=4))
    start = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in weights_of(in_torch.model(3))])
    moved = np.linalg.norm(torch_run.model - start)
    assert moved > 0.01
    assert np.linalg.norm(jax_run.model - torch_run.model) <= 1e-5 * moved
    assert jax_run.guarantee.epsilon == torch_run.guarantee.epsilon
    last, expected = jax_run.rows[-1], torch_run.rows[-1]
    assert last["test_accuracy"] == pytest.approx(expected["test_accuracy"])
    assert last["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-4)


def test_jax_and_torch_agree_on_the_same_weights_draws_and_noise():
    options = {"local_steps": 3, "learning_rate": Cosine(peak=0.5, rounds=3), "momentum": 0.6}
    assert_agreement(pipeline_of(MECHANISMS["support"]), TorchLinear(), JaxLinear(), **options)


@pytest.mark.parametrize(
    ("trainer", "task", "who"),
    [
        *((PyTorch, TorchLinear(), who) for who in (EXAMPLE, CLIENT, SERVER)),
        *(pytest.param(JAX, JaxLinear(), who, marks=pytest.mark.slow) for who in (EXAMPLE, CLIENT, SERVER)),
    ],
)
def test_an_update_says_the_rate_of_a_schedule(trainer, task, who):
    pipeline, schedule = pipeline_of(**who), Cosine(peak=0.5, rounds=4, warm_up=1)
    following = trainer_of(pipeline, trainer(learning_rate=schedule), task)
    memory = pipeline.init_client(following.layout, dp.PublicSeed(3), client=1)
    server = pipeline.init_server(following.layout, dp.PublicSeed(3))
    ledger = dp.Ledger()
    assert following.train(1, following.initial_model, memory, ledger).learning_rate == schedule.rate(0) == 0.25
    nothing = with_claim(
        dp.Update(values=np.zeros(memory.layout.size), layout=memory.layout, address=server.address), pipeline.claim
    )
    memory = pipeline.follow(pipeline.broadcast(nothing, server)[0], memory)
    assert following.train(1, following.initial_model, memory, ledger).learning_rate == schedule.rate(1) == 0.5
    constant = trainer_of(pipeline, trainer(learning_rate=0.5), task)
    assert constant.train(1, constant.initial_model, memory, dp.Ledger()).learning_rate == 1.0


def test_jax_and_torch_agree_on_examples_that_are_held_out():
    class TorchHeldOut(TorchLinear):
        def validation(self):
            inputs, targets = self.train()
            return inputs[:50], targets[:50]

    class JaxHeldOut(JaxLinear):
        def validation(self):
            inputs, targets = self.train()
            return inputs[:50], targets[:50]

    pipeline = pipeline_of()
    in_torch = trainer_of(pipeline, PyTorch(), TorchHeldOut())
    in_jax = trainer_of(pipeline, JAX(), JaxHeldOut())
    found, expected = (dict(each.evaluate(in_torch.initial_model)) for each in (in_jax, in_torch))
    assert found == pytest.approx(expected, rel=1e-4)
    assert list(found) == list(expected) == ["test_accuracy", "test_loss", "validation_accuracy", "validation_loss"]
    assert found["validation_loss"] != pytest.approx(found["test_loss"], rel=1e-4)
    assert in_jax.tested_examples == in_torch.tested_examples == 90


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_cnn_is_trained_alike_in_jax_and_torch(name):
    assert_agreement(pipeline_of(MECHANISMS[name]), TorchImages(), JaxImages(), local_steps=3, learning_rate=0.5)


@pytest.mark.parametrize(
    "who", [CLIENT, pytest.param(SERVER, marks=pytest.mark.slow)], ids=["trusts nobody", "trusts the server"]
)
def test_jax_and_torch_agree_where_a_client_is_the_unit(who):
    options = {"local_steps": 4, "learning_rate": 0.3, "momentum": 0.5, "local_sampling": dp.Poisson(0.05)}
    assert_agreement(pipeline_of(rate=1.0, **who), TorchLinear(), JaxLinear(), **options)


CONFIG = JAX(local_steps=3, learning_rate=0.25, momentum=0.5, physical_batch_size=4)
PIPELINE = pipeline_of()


@pytest.fixture(scope="module")
def trainer():
    """One trainer for several tests: compiling its programs takes seconds."""
    return trainer_of(PIPELINE, CONFIG)


def cohort(trainer, clients, seed=3):
    return [work_of(trainer, PIPELINE, client, seed=seed) for client in clients]


def test_a_cohort_is_trained_as_its_clients_are_one_by_one(trainer):
    assert isinstance(trainer, CohortTrainer)
    together = trainer.train_cohort(cohort(trainer, (2, 0, 1)))
    for update, client in zip(together, (2, 0, 1), strict=True):
        alone = work_of(trainer, PIPELINE, client)
        expected = trainer.train(client, alone.start, alone.memory, alone.ledger)
        np.testing.assert_array_equal(update.dense(), expected.dense())
        assert (update.address, update.noise_stddev) == (expected.address, expected.noise_stddev)
        assert update.claim == PIPELINE.claim
    assert trainer.train_cohort([]) == []


def by_hand(trainer, client):
    """The round of a client as a plain loop over steps and examples, with `pipeline.release`."""
    work, secret, task = work_of(trainer, PIPELINE, client), dp.SecretSeed(4), JaxLinear()
    place, (inputs, targets) = work.memory.address, task.train()
    mine = np.array_split(np.random.default_rng(0).permutation(len(targets)), CLIENTS)[client]
    permit, model = work.ledger.charge(PIPELINE.cost, place, steps=CONFIG.local_steps), work.start
    buffer = np.zeros_like(model)
    row = jax.jit(
        jax.grad(lambda vector, x, y: task.loss(task.apply((vector[:108].reshape(3, 36), vector[108:]), x), y))
    )
    for step in range(CONFIG.local_steps):
        stream = secret.stream("sample", place.run, place.client, place.round, step)
        batch = mine[PIPELINE.sampling.draw(len(mine), stream)]
        block = np.stack([np.asarray(row(model, inputs[i], targets[i])) for i in batch])
        released = PIPELINE.release([block], work.memory, secret, permit)
        buffer = np.float32(CONFIG.momentum) * buffer + released.dense() / np.float32(0.4 * 90 / CLIENTS)
        model = model - np.float32(CONFIG.learning_rate) * buffer
    return model - work.start


def test_the_compiled_program_is_the_plain_loop(trainer):
    expected = by_hand(trainer, 1)
    (update,) = trainer.train_cohort(cohort(trainer, [1]))
    assert np.linalg.norm(update.dense() - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.slow
def test_the_program_gives_the_same_without_compilation(trainer):
    expected = trainer.train_cohort(cohort(trainer, [1]))[0].dense()
    with jax.disable_jit():
        eager = trainer.train_cohort(cohort(trainer, [1]))[0].dense()
    assert np.linalg.norm(eager - expected) <= 1e-6 * np.linalg.norm(expected)


def test_nothing_is_compiled_again_once_cohorts_have_been_as_large(trainer):
    program = trainer._local._program
    trainer.train_cohort(cohort(trainer, (0, 1, 2)))
    compiled = program._cache_size()
    for seed in range(1, 8):
        trainer.train_cohort(cohort(trainer, [(seed + i) % 3 for i in range(3)], seed))  # other batches, other noise
    assert program._cache_size() == compiled


@pytest.mark.slow
def test_noise_in_parts_gives_the_same_as_at_once(trainer, monkeypatch):
    whole = trainer.train_cohort(cohort(trainer, (0, 1, 2)))
    monkeypatch.setattr("dpcomp.training.jax.example_level.NOISE_AT_ONCE", 2 * 111)  # two steps, one client
    work = cohort(trainer, (0, 1, 2))
    for update, expected in zip(trainer.train_cohort(work), whole, strict=True):
        np.testing.assert_array_equal(update.dense(), expected.dense())
    assert [each.ledger.guarantee(1e-3).steps for each in work] == [3, 3, 3]


def test_a_batch_that_is_longer_than_any_before_is_not_cut(trainer):
    (whole,) = trainer.train_cohort(cohort(trainer, [0]))
    batches = trainer._local.batches
    before, batches.width = batches.width, 4  # as if longer ones had been unlikely
    (update,) = trainer.train_cohort(cohort(trainer, [0]))
    np.testing.assert_array_equal(update.dense(), whole.dense())
    assert batches.width == 16
    batches.width = before


def test_the_noise_is_that_of_the_streams_of_address_and_step():
    pipeline = pipeline_of(z=10.0, rate=1e-9)  # empty batches: noise alone
    config = JAX(local_steps=4, learning_rate=1.0, momentum=0.8, expected_batch_size=2.0)
    trainer, secret = trainer_of(pipeline, config), dp.SecretSeed(4)
    work = [work_of(trainer, pipeline, client) for client in (0, 2)]
    for each, update in zip(work, trainer.train_cohort(work), strict=True):
        place, weights = each.memory.address, np.cumsum(0.8 ** np.arange(4))[::-1]
        draws = [noise_of_step(secret, place, step, len(each.start)) for step in range(4)]
        expected = -7.0 / 2.0 * sum(weight * draw for weight, draw in zip(weights, draws, strict=True))
        np.testing.assert_allclose(update.dense(), expected, atol=2e-5)
        assert update.noise_stddev == pytest.approx(7.0 / 2.0 * np.linalg.norm(weights))


def test_all_clients_are_charged_before_any_noise_is_drawn(trainer, monkeypatch):
    drawn = []
    monkeypatch.setattr("dpcomp.privacy.traced.release.noise_of_step", lambda *place: drawn.append(place))
    poor = dp.Ledger(budget=dp.Budget(epsilon=0.01, delta=1e-6))
    work = [work_of(trainer, PIPELINE, 0), work_of(trainer, PIPELINE, 1, poor), work_of(trainer, PIPELINE, 2)]
    with pytest.raises(dp.BudgetExhausted):
        trainer.train_cohort(work)
    assert not drawn
    assert [each.ledger.guarantee(1e-3).steps for each in work] == [3, 0, 0]


def test_an_example_that_is_not_finite_counts_as_zero_and_is_told():
    class Broken(JaxLinear):
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
    class Counts(JaxLinear):
        def parameters(self, seed):
            return {"layer": {"weight": np.ones(3, np.float32), "count": np.int32(3)}}

    with pytest.raises(TypeError, match=r"layer\.count is int32"):
        trainer_of(pipeline_of(), task=Counts())


def norms(outputs):
    return np.linalg.norm(np.asarray(outputs), axis=1)


def test_metrics_of_the_task_are_those_of_torch_and_a_regression_has_no_accuracy():
    class Measured:
        def metrics(self, outputs, targets):
            return {"largest": norms(outputs).max(), "n": len(targets)}

    class Summed:
        def metric_sums(self, outputs, targets):
            return {"norms": norms(outputs).sum(), "n": len(targets)}

        def metrics_of_sums(self, sums):
            return {"mean": sums["norms"] / sums["n"]}

    class Regression(JaxLinear):
        def loss(self, outputs, target):
            return (outputs[0] - target) ** 2

        def train(self):
            inputs, targets = super().train()
            return inputs, targets + 0.5

        test = train

    start = trainer_of(pipeline_of()).initial_model
    for members, names in ((Measured, {"test_largest", "test_n"}), (Summed, {"test_mean"})):
        in_torch = trainer_of(pipeline_of(**CLIENT), PyTorch(), type("T", (members, TorchLinear), {})())
        in_jax = trainer_of(pipeline_of(**CLIENT), JAX(), type("J", (members, JaxLinear), {})())
        found, expected = (dict(each.evaluate(start)) for each in (in_jax, in_torch))
        assert found == pytest.approx(expected, rel=1e-4)
        assert set(found) == {*names, "test_loss"}
    assert list(trainer_of(pipeline_of(**CLIENT), task=Regression()).evaluate(start)) == ["test_loss"]


@pytest.mark.parametrize(
    ("member", "value", "said"),
    [
        (
            "apply",
            lambda self, parameters, example: parameters[0] @ example,
            r"train\(\) with inputs float32 \(1, 6, 6\)",
        ),
        ("train", lambda self: (np.zeros((4, 1, 6, 6)), np.zeros(3, int)), "4 inputs and 3 targets"),
    ],
)
def test_what_does_not_fit_is_named(member, value, said):
    with pytest.raises(ValueError, match=said):
        trainer_of(pipeline_of(**CLIENT), task=type("Wrong", (JaxLinear,), {member: value})())
