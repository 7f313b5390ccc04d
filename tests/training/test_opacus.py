"""Opacus' facts, one by one: what the private optimiser adds up, leaves behind, refuses and releases."""

import contextlib
import copy
import itertools

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.utils.data import TensorDataset

import dpcomp as dp
from dpcomp.training.batches import poisson_loader
from dpcomp.training.opacus import PrivateOptimizer, hooks_on_inputs, private_model
from dpcomp.training.parameters import read, trainable
from experiments.models import fashion_cnn, logistic_regression

torch.set_num_threads(1)
DIVISOR = 8.0


def clean(norm: float) -> dp.Pipeline:
    """The clip and no noise: what is released is the clipped sum itself."""
    return dp.Pipeline(mechanism=dp.unsafe("tests look at the sum", dp.Clip(norm)), sampling=dp.Poisson(0.5))


def noisy(norm: float = 0.5, *, rate: float = 0.5, first: tuple = ()) -> dp.Pipeline:
    return dp.Pipeline(mechanism=(*first, dp.Clip(norm), dp.Gaussian(1.0)), sampling=dp.Poisson(rate))


class Client:
    """A model, its private optimiser, and an open round."""

    def __init__(self, pipeline, module, shape, *, steps=8, divisor=DIVISOR, secret=None, number=0, **sgd):
        self.model = private_model(module, torch.zeros(shape))
        inner = torch.optim.SGD(self.model.parameters(), **({"lr": 1.0} | sgd))
        secret = dp.SecretSeed(7) if secret is None else secret
        self.optimizer = PrivateOptimizer(inner, self.model, pipeline, secret=secret, expected_batch_size=divisor)
        self.memory = pipeline.init(self.optimizer.layout, seed=dp.PublicSeed(1), client=number)
        self.ledger = dp.Ledger()
        self.permit = self.ledger.charge(pipeline, self.memory.address, steps=steps)
        self.optimizer.begin(self.memory, self.permit)
        self.gradients: list[torch.Tensor] = []
        self.optimizer.attach_step_hook(lambda _: self.gradients.append(self.gradient()))

    def gradient(self) -> torch.Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in trainable(self.model).values()])

    def backward(self, inputs, targets) -> None:
        with hooks_on_inputs():
            nn.functional.cross_entropy(self.model(inputs), targets).backward()

    def step(self, inputs, targets, *, skip: bool = False) -> None:
        self.backward(inputs, targets)
        if skip:
            self.optimizer.signal_skip_step(do_skip=True)
        self.optimizer.step()

    def sums(self) -> list[torch.Tensor]:
        return [gradient * DIVISOR for gradient in self.gradients]

    def parameters(self) -> np.ndarray:
        return read(self.model)


def linear(pipeline=None, **kwargs) -> Client:
    module = logistic_regression(inputs=6, classes=3, seed=0)
    return Client(noisy() if pipeline is None else pipeline, module, (6,), **kwargs)


def examples(n: int, *, seed: int = 0, shape: tuple = (6,), classes: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn((n, *shape), generator=generator),
        torch.randint(0, classes, (n,), generator=generator),
    )


def leftovers(model: nn.Module) -> list[str]:
    """Where anything of the data still hangs on a model."""
    names = ("grad", "grad_sample", "summed_grad", "_current_grad_sample")
    found = [
        f"{at}.{name}" for at, p in model.named_parameters() for name in names if getattr(p, name, None) is not None
    ]
    return found + [f"{at}.activations" for at, layer in model.named_modules() if vars(layer).get("activations")]


def relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(mine.double() - theirs.double()) / torch.linalg.vector_norm(theirs.double()))


class TestTheClippedSum:
    CUTS = (1, 5, 2, 9, 4, 3, 8)  # seven uneven micro-batches

    def stock(self, norm: float, inputs, targets) -> torch.Tensor:
        model = GradSampleModule(fashion_cnn(seed=0))
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = DPOptimizer(inner, noise_multiplier=0.0, max_grad_norm=norm, expected_batch_size=1)
        with hooks_on_inputs():
            nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.pre_step()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    @pytest.mark.parametrize("norm", [0.1, 3.0, 100.0])
    @pytest.mark.parametrize("way", ["one batch", "seven steps", "seven backward passes"])
    def test_is_stock_opacus(self, norm, way):
        inputs, targets = examples(sum(self.CUTS), shape=(1, 28, 28), classes=10)
        client = Client(clean(norm), fashion_cnn(seed=0), (1, 28, 28))
        chunks = list(zip(inputs.split(self.CUTS), targets.split(self.CUTS), strict=True))
        if way == "one batch":
            client.step(inputs, targets)
        elif way == "seven steps":
            for number, chunk in enumerate(chunks, start=1):
                client.step(*chunk, skip=number < len(chunks))
        else:
            for chunk in chunks:
                client.backward(*chunk)
            client.optimizer.step()
        (total,) = client.sums()
        assert relative(total, self.stock(norm, inputs, targets)) <= 1e-6

    def test_is_what_the_pipeline_clips(self):
        inputs, targets = examples(20)
        client = linear(clean(0.3))
        client.backward(inputs, targets)
        block = tuple(parameter.grad_sample for parameter in client.model.parameters())
        expected = client.optimizer.pipeline.clip(block, client.memory).vector()
        client.optimizer.step()
        np.testing.assert_allclose(client.sums()[0].numpy(), expected, rtol=1e-6)

    def test_a_closure_is_a_batch_too(self):
        inputs, targets = examples(20)
        one, two = linear(clean(0.3)), linear(clean(0.3))
        one.step(inputs, targets)
        two.optimizer.step(lambda: two.backward(inputs, targets))
        assert torch.equal(one.sums()[0], two.sums()[0])

    def test_zero_grad_between_forward_and_backward_changes_nothing(self):
        inputs, targets = examples(20)
        one, two = linear(clean(0.3)), linear(clean(0.3))
        one.step(inputs, targets)
        loss = nn.functional.cross_entropy(two.model(inputs), targets)
        two.optimizer.zero_grad()
        with hooks_on_inputs():
            loss.backward()
        two.optimizer.step()
        assert torch.equal(one.sums()[0], two.sums()[0])

    def test_zero_grad_drops_what_was_not_stepped(self):
        client = linear(clean(0.3))
        client.backward(*examples(5, seed=1))
        client.optimizer.zero_grad()
        client.optimizer.step()
        assert not client.sums()[0].any()

    def test_tied_weights_are_one_parameter(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.output = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
                self.output.weight = self.embedding.weight

            def forward(self, tokens):
                return self.output(self.embedding(tokens).mean(dim=1))

        module = Tied()
        model = private_model(copy.deepcopy(module), torch.zeros(3, dtype=torch.int64))
        pipeline = clean(0.2)
        optimizer = PrivateOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1
        )
        assert optimizer.layout.size == 20
        memory = pipeline.init(optimizer.layout, seed=dp.PublicSeed(0), client=0)
        optimizer.begin(memory, dp.Ledger().charge(pipeline, memory.address))
        tokens, targets = torch.tensor([[0, 1, 2], [4, 4, 3]]), torch.tensor([1, 2])
        expected = torch.zeros(5, 4)
        for row, target in zip(tokens, targets, strict=True):
            module.zero_grad()
            nn.functional.cross_entropy(module(row[None]), target[None]).backward()
            gradient = module.embedding.weight.grad
            expected += gradient * min(1.0, 0.2 / float(gradient.norm() + 1e-6))
        with hooks_on_inputs():
            nn.functional.cross_entropy(model(tokens), targets).backward()
        optimizer.step()
        assert relative(-torch.tensor(optimizer.update().dense()), expected.flatten()) < 1e-5


class TestTheDivisor:
    @pytest.mark.parametrize("passes", [1, 2, 5])
    def test_is_the_public_constant_however_many_passes(self, passes):
        inputs, targets = examples(10)
        client = linear(clean(0.3))
        for part, truth in zip(inputs.chunk(passes), targets.chunk(passes), strict=True):
            client.backward(part, truth)
        client.optimizer.step()
        whole = linear(clean(0.3), divisor=1.0)
        whole.step(inputs, targets)
        torch.testing.assert_close(client.gradients[0] * DIVISOR, whole.gradients[0])

    def test_is_above_zero(self):
        with pytest.raises(ValueError, match="expected_batch_size"):
            linear(divisor=0.0)

    @pytest.mark.parametrize("name", ["noise_multiplier", "max_grad_norm", "expected_batch_size", "loss_reduction"])
    def test_and_what_was_charged_for_are_frozen(self, name):
        client = linear()
        held = getattr(client.optimizer, name)
        with pytest.raises(AttributeError, match=name):
            setattr(client.optimizer, name, 0.001)
        assert getattr(client.optimizer, name) == held

    def test_reads_like_opacus(self):
        optimizer = linear(noisy(0.25)).optimizer
        assert (optimizer.noise_multiplier, optimizer.max_grad_norm, optimizer.expected_batch_size) == (1.0, 0.25, 8.0)


class TestPureNoise:
    def test_is_released_where_no_backward_pass_was(self):
        client = linear()
        client.optimizer.step()
        fresh = client.optimizer.pipeline.release(
            [], client.memory, dp.SecretSeed(7), dp.Ledger().charge(client.optimizer.pipeline, client.memory.address)
        )
        np.testing.assert_allclose(client.sums()[0].numpy(), fresh.values, rtol=1e-6)
        assert client.permit.used == 1

    def test_is_released_for_a_batch_without_examples(self):
        empty, none = linear(), linear()
        empty.step(*examples(0))
        none.optimizer.step()
        assert torch.equal(empty.sums()[0], none.sums()[0])

    def test_differs_between_steps_clients_and_restarts(self):
        one, other = linear(), linear(number=1)
        fresh = [linear(secret=dp.SecretSeed()) for _ in range(2)]
        for client in (one, one, other, *fresh):
            client.optimizer.step()
        drawn = [*one.gradients, *other.gradients, *fresh[0].gradients, *fresh[1].gradients]
        assert len(drawn) == 5
        assert all(not torch.isclose(a, b).any() for a, b in itertools.combinations(drawn, 2))

    def test_has_the_deviation_that_was_charged(self):
        module = logistic_regression(inputs=2_000, classes=10, seed=0)
        client = Client(noisy(0.25), module, (2_000,), divisor=1.0)
        client.optimizer.step()
        drawn = client.gradients[0].numpy()
        assert abs(drawn.std() / 0.25 - 1) < 0.03
        assert abs(drawn.mean()) < 0.01


class TestNothingRemains:
    def frozen(self) -> Client:
        module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        module[0].bias.requires_grad_(False)
        return Client(noisy(), module, (6,))

    def test_after_a_step(self):
        client = self.frozen()
        bias = dict(client.model.named_parameters())["_module.0.bias"]
        bias.grad = bias.summed_grad = torch.ones_like(bias)
        client.step(*examples(9))
        assert leftovers(client.model) == []

    def test_after_a_micro_batch_that_was_skipped(self):
        client = self.frozen()
        client.step(*examples(9), skip=True)
        assert leftovers(client.model) == []
        assert client.gradients == []

    def test_after_a_forward_pass_that_nothing_followed(self):
        client = self.frozen()
        client.model(examples(9)[0])
        assert leftovers(client.model) != []
        client.optimizer.step()
        assert leftovers(client.model) == []

    def test_after_a_step_that_failed(self):
        client = linear(steps=1)
        client.optimizer.step()
        client.step(*examples(4), skip=True)
        with pytest.raises(dp.BudgetExhausted):
            client.step(*examples(5))
        assert leftovers(client.model) == []
        alone = linear()
        for either in (client, alone):  # as begin would, but for what begin discards
            permit = either.ledger.charge(either.optimizer.pipeline, dp.Address(1, 0, 1))
            either.optimizer._open = (either.memory, permit)
            either.optimizer.step()
        assert torch.equal(client.gradients[-1], alone.gradients[-1])

    def test_and_a_frozen_parameter_stays_where_it_is(self):
        client = self.frozen()
        bias = dict(client.model.named_parameters())["_module.0.bias"]
        before = bias.clone()
        bias.requires_grad_(True)  # what a script may do in between; the optimiser never trained it
        with pytest.raises(ValueError, match="does not fit"):
            client.step(*examples(9))
        assert torch.equal(bias, before)
        assert leftovers(client.model) == []

    def test_a_parameter_slipped_into_the_optimiser_is_not_moved_by_raw_gradients(self):
        temperature = nn.Parameter(torch.ones(()), requires_grad=False)
        model = private_model(logistic_regression(inputs=6, classes=3, seed=0), torch.zeros(6))
        inner = torch.optim.SGD([*model.parameters(), temperature], lr=1.0)
        pipeline = noisy()
        optimizer = PrivateOptimizer(inner, model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1)
        memory = pipeline.init(optimizer.layout, seed=dp.PublicSeed(0), client=0)
        optimizer.begin(memory, dp.Ledger().charge(pipeline, memory.address))
        temperature.requires_grad_(True)
        inputs, targets = examples(9)
        with hooks_on_inputs():
            nn.functional.cross_entropy(model(inputs) * temperature, targets).backward()
        assert temperature.grad is not None
        optimizer.step()
        assert temperature.grad is None
        assert temperature.item() == 1.0

    def test_of_optimiser_state_from_before_the_round(self):
        inputs, targets = examples(9)
        model = private_model(logistic_regression(inputs=6, classes=3, seed=0), torch.zeros(6))
        inner = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
        with hooks_on_inputs():
            nn.functional.cross_entropy(model(inputs), targets).backward()
        inner.step()  # raw gradients are in its momentum now
        pipeline = noisy()
        optimizer = PrivateOptimizer(inner, model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1)
        memory = pipeline.init(optimizer.layout, seed=dp.PublicSeed(0), client=0)
        optimizer.begin(memory, dp.Ledger().charge(pipeline, memory.address))
        before = read(model)
        optimizer.step()
        noise = pipeline.release([], memory, dp.SecretSeed(0), dp.Ledger().charge(pipeline, memory.address))
        np.testing.assert_array_equal(read(model), before - noise.values)


class TestNoExampleCountsTwice:
    def test_a_forward_pass_for_looking_does_not_mix_with_the_next(self):
        client = linear(clean(0.3))
        client.model(examples(9, seed=1)[0])
        with pytest.raises(dp.NotPrivate, match="no backward pass"):
            client.backward(*examples(9))
        client.optimizer.discard()
        client.step(*examples(9))
        alone = linear(clean(0.3))
        alone.step(*examples(9))
        assert torch.equal(client.sums()[0], alone.sums()[0])

    def test_looking_without_gradients_is_free(self):
        client = linear(clean(0.3))
        inputs, targets = examples(9)
        outputs = client.model(inputs)
        with torch.no_grad():
            client.model(examples(4, seed=1)[0])
        with hooks_on_inputs():
            nn.functional.cross_entropy(outputs, targets).backward()
        client.optimizer.step()
        alone = linear(clean(0.3))
        alone.step(inputs, targets)
        assert torch.equal(client.sums()[0], alone.sums()[0])

    def test_two_forward_passes_and_one_backward_pass_are_refused(self):
        client = linear(clean(0.3))
        client.model(examples(9)[0])
        with pytest.raises(dp.NotPrivate, match="added up"):
            client.model(examples(9, seed=1)[0])

    def test_branches_are_not_clipped_across_batches(self):
        class Branches(nn.Module):
            """One branch or the other, by the sign of a public switch."""

            def __init__(self):
                super().__init__()
                self.left, self.right, self.go_left = nn.Linear(6, 3), nn.Linear(6, 3), True

            def forward(self, inputs):
                return self.left(inputs) if self.go_left else self.right(inputs)

        client = Client(clean(0.3), Branches(), (6,))
        client.backward(*examples(5))
        client.model._module.go_left = False
        with pytest.raises(dp.NotPrivate, match="missed some parameters"):
            client.backward(*examples(5, seed=1))
        client.optimizer.discard()
        client.model._module.go_left = True
        client.step(*examples(5), skip=True)
        client.model._module.go_left = False
        client.step(*examples(5, seed=1))
        norms = [float(torch.linalg.vector_norm(half)) for half in client.sums()[0].split(21)]
        assert max(norms) <= 5 * 0.3 * (1 + 1e-5)

    def test_a_weight_used_twice_in_a_pass_that_half_reached_the_loss_is_refused(self):
        class Half(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.lost = nn.Linear(6, 6), torch.zeros(())

            def forward(self, inputs):
                self.lost = self.layer(inputs * 2).detach() if self.training and self.forget else self.lost
                return self.layer(inputs)

            forget = False

        module = Half()
        client = Client(clean(0.3), module, (6,))
        module.forget = True
        client.backward(*examples(5))
        with pytest.raises(dp.NotPrivate, match="backward pass"):
            client.optimizer.step()
        assert leftovers(client.model) == []

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
    @pytest.mark.parametrize("kind", ["linear", "cnn"])
    def test_a_broken_example_moves_the_release_by_at_most_one_clip_norm(self, bad, kind):
        shape = (6,) if kind == "linear" else (1, 28, 28)
        module = logistic_regression(inputs=6, classes=3, seed=0) if kind == "linear" else fashion_cnn(seed=0)
        inputs, targets = examples(7, shape=shape)
        inputs[3] = bad
        with_it, without = (Client(noisy(0.5), copy.deepcopy(module), shape) for _ in range(2))
        with_it.step(inputs, targets)
        keep = torch.arange(7) != 3
        without.step(inputs[keep], targets[keep])
        assert torch.isfinite(with_it.gradients[0]).all()
        moved = torch.linalg.vector_norm(with_it.sums()[0].double() - without.sums()[0].double())
        assert moved <= 0.5 * (1 + 1e-5)
        assert np.isfinite(with_it.parameters()).all()

    def test_an_ordinary_example_moves_it_by_at_most_one_clip_norm_too(self):
        inputs, targets = examples(7)
        for i in range(7):
            with_it, without = linear(), linear()
            with_it.step(inputs * 50, targets)
            keep = torch.arange(7) != i
            without.step(inputs[keep] * 50, targets[keep])
            assert torch.linalg.vector_norm(with_it.sums()[0] - without.sums()[0]) <= 0.5 * (1 + 1e-5)


class TestBatchMemoryManager:
    def train(self, client: Client, *, physical: int | None, passes: int = 1, n: int = 30) -> None:
        loader = poisson_loader(TensorDataset(*examples(n)), client.optimizer, steps=4)
        for _ in range(passes):
            if physical is None:
                self.walk(client, loader)
            else:
                arguments = {"data_loader": loader, "max_physical_batch_size": physical}
                with BatchMemoryManager(**arguments, optimizer=client.optimizer) as cut:
                    self.walk(client, cut)

    def walk(self, client: Client, loader) -> None:
        for inputs, targets in loader:
            client.optimizer.zero_grad()
            client.backward(inputs, targets)
            client.optimizer.step()

    def test_gives_what_whole_batches_give(self):
        whole, cut = linear(momentum=0.5), linear(momentum=0.5)
        self.train(whole, physical=None, passes=2)
        self.train(cut, physical=4, passes=2)
        assert len(whole.gradients) == len(cut.gradients) == 8
        np.testing.assert_allclose(cut.parameters(), whole.parameters(), rtol=1e-5, atol=1e-6)
        assert cut.permit.used == whole.permit.used == 8
        assert leftovers(cut.model) == []

    def test_releases_noise_for_empty_batches(self):
        client = linear(noisy(rate=0.02))
        self.train(client, physical=2, passes=2, n=20)
        assert len(client.gradients) == 8

    @pytest.mark.parametrize("way", ["begin", "a new pass"])
    def test_carries_nothing_over_from_a_step_that_was_broken_off(self, way):
        pipeline = dp.Pipeline(mechanism=dp.unsafe("tests", dp.Clip(0.3)))
        client = linear(pipeline)
        dataset = TensorDataset(*examples(30))
        loader = poisson_loader(dataset, client.optimizer, steps=1)
        manager = BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=client.optimizer)
        with manager as cut, contextlib.suppress(MemoryError):
            for number, (inputs, targets) in enumerate(cut):
                loss = nn.functional.cross_entropy(client.model(inputs), targets)
                if number == 2:
                    raise MemoryError
                with hooks_on_inputs():
                    loss.backward()
                client.optimizer.step()
        if way == "begin":
            client.optimizer.begin(client.memory, client.permit)
        with manager as cut:
            self.walk(client, cut)
        alone = linear(pipeline)
        alone.step(*dataset[:])
        assert len(client.gradients) == 1
        torch.testing.assert_close(client.sums()[0], alone.sums()[0])

    def test_a_micro_batch_that_is_passed_over_is_an_error(self):
        """Else `if not len(inputs): continue` would shift every later batch by one micro-batch."""
        client = linear(noisy(rate=0.02))
        loader = poisson_loader(TensorDataset(*examples(20)), client.optimizer, steps=8)
        manager = BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=client.optimizer)
        with manager as cut, pytest.raises(dp.NotPrivate, match="not stepped"):
            self.step_where_there_are_examples(client, cut)

    def step_where_there_are_examples(self, client: Client, loader) -> None:
        for inputs, targets in loader:
            if len(inputs):
                client.step(inputs, targets)


class TestPermits:
    def test_are_charged_before_the_first_step(self):
        client = linear(steps=3)
        assert client.ledger.guarantee(1e-5).steps == 3
        assert client.gradients == []

    def test_used_up_the_model_stays_as_it_is(self):
        client = linear(steps=2)
        client.step(*examples(5))
        client.step(*examples(5))
        before = client.parameters()
        with pytest.raises(dp.BudgetExhausted, match="used up"):
            client.step(*examples(5))
        np.testing.assert_array_equal(client.parameters(), before)
        assert leftovers(client.model) == []

    def test_of_another_pipeline_open_nothing(self):
        client = linear()
        other = dp.Ledger().charge(noisy(0.5, rate=0.25), client.memory.address)
        client.optimizer.begin(client.memory, other)
        before = client.parameters()
        with pytest.raises(dp.BudgetExhausted, match="charged for"):
            client.step(*examples(5))
        np.testing.assert_array_equal(client.parameters(), before)

    def test_are_asked_for(self):
        model = private_model(logistic_regression(inputs=6, classes=3, seed=0), torch.zeros(6))
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = PrivateOptimizer(inner, model, noisy(), secret=dp.SecretSeed(0), expected_batch_size=1)
        inputs, targets = examples(5)
        with hooks_on_inputs():
            nn.functional.cross_entropy(model(inputs), targets).backward()
        with pytest.raises(dp.BudgetExhausted, match="no round is open"):
            optimizer.step()
        assert leftovers(model) == []

    def test_skipped_micro_batches_cost_nothing(self):
        client = linear()
        for _ in range(5):
            client.step(*examples(2), skip=True)
        assert client.permit.used == 0


class TestRandomness:
    @pytest.mark.parametrize("secret", [dp.SecretSeed(3), None])
    def test_owes_nothing_to_global_seeds(self, secret):
        drawn = []
        for seed in (11, 11, 12):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            client = linear(secret=dp.SecretSeed() if secret is None else secret)
            client.optimizer.step()
            drawn.append(client.gradients[0])
        assert torch.equal(drawn[0], drawn[1]) == (secret is not None)
        assert torch.equal(drawn[1], drawn[2]) == (secret is not None)

    def test_a_round_leaves_the_global_generators_as_they_were(self):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        client = linear(secret=dp.SecretSeed())
        TestBatchMemoryManager().train(client, physical=4)
        client.optimizer.update()
        after = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        np.testing.assert_equal(before[1], after[1])


class TestTheUpdate:
    def test_is_what_the_round_did(self):
        client = linear()
        start = client.parameters()
        client.step(*examples(5))
        update = client.optimizer.update()
        np.testing.assert_array_equal(update.dense(), client.parameters() - start)
        assert isinstance(update.claim, dp.Released)
        assert update.address == client.memory.address

    def test_needs_a_release(self):
        client = linear()
        client.step(*examples(5), skip=True)
        with pytest.raises(dp.BudgetExhausted, match="nothing was released"):
            client.optimizer.update()

    @pytest.mark.parametrize("sgd", [{"momentum": 0.9}, {"weight_decay": 0.3}, {"momentum": 0.9, "weight_decay": 0.3}])
    def test_of_a_support_before_the_noise_lies_on_it(self, sgd):
        pipeline = noisy(first=(dp.RandomK(0.2),))
        client = linear(pipeline, **sgd)
        for seed in range(3):
            client.step(*examples(9, seed=seed))
        update = client.optimizer.update()
        support = dp.RandomK(0.2).support(client.memory.layout.size, client.memory.mask_key)
        assert update.support == support
        assert set(np.flatnonzero(update.dense())) <= set(support.indices(21))
        payload, _ = pipeline.send(update, client.memory)
        server = pipeline.init_server(client.memory.layout, seed=dp.PublicSeed(1))
        received, _ = pipeline.receive(payload, server)
        assert received.support == support

    def test_holds_trainable_parameters_and_never_buffers(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.tensor(2.0))

            def forward(self, inputs):
                return inputs * self.scale

        module = nn.Sequential(Scaled(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        module[1].weight.requires_grad_(False)
        client = Client(noisy(), module, (6,))
        assert [name for name, _ in client.optimizer.layout.shapes] == ["1.bias", "3.weight", "3.bias"]
        before = module[1].weight.clone()
        client.step(*examples(5))
        assert client.optimizer.update().dense().shape == (4 + 12 + 3,)
        assert torch.equal(module[1].weight, before)


class TestRefusals:
    def model(self):
        return private_model(logistic_regression(inputs=6, classes=3, seed=0), torch.zeros(6))

    def build(self, model, inner, pipeline) -> PrivateOptimizer:
        return PrivateOptimizer(inner, model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1)

    @pytest.mark.parametrize(("unit", "trust"), [("client", "nobody"), ("client", "server")])
    def test_another_unit_or_trust(self, unit, trust):
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), unit=unit, trust=trust)
        model = self.model()
        with pytest.raises(dp.NotPrivate, match="each local step"):
            self.build(model, torch.optim.SGD(model.parameters(), lr=1.0), pipeline)

    def test_a_model_that_nobody_inspected(self):
        model = GradSampleModule(logistic_regression(inputs=6, classes=3, seed=0))
        with pytest.raises(dp.NotPrivate, match="private_model"):
            self.build(model, torch.optim.SGD(model.parameters(), lr=1.0), noisy())

    def test_an_optimiser_of_other_parameters(self):
        model = self.model()
        some, more = list(model.parameters())[:1], [*model.parameters(), nn.Parameter(torch.ones(1))]
        for parameters in (some, more):
            with pytest.raises(ValueError, match=r"model\.parameters"):
                self.build(model, torch.optim.SGD(parameters, lr=1.0), noisy())

    def test_a_memory_of_another_model(self):
        client = linear()
        memory = client.optimizer.pipeline.init(22, seed=dp.PublicSeed(1), client=0)
        with pytest.raises(ValueError, match=r"optimizer\.layout"):
            client.optimizer.begin(memory, client.permit)
