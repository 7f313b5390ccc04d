"""What is refused, by name: losses and networks that tie examples, writes in a training step, and precisions."""

import functools

import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from torch import nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

import dpcomp as dp
from dpcomp.training.pytorch import Isolated, Opacus, PrivateOptimizer, make_private
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model
from dpcomp.training.pytorch.rows.parameters import read, write
from dpcomp.training.pytorch.steps.step_code import own_step
from tests.training.private_client import ENGINES, Client, clean, examples, linear, noisy, refused


class FunctionMode(TorchFunctionMode):
    """Calls each function as it is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    """Calls each operation as it is."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Own(torch.optim.SGD):
    """An optimiser that is not torch's."""


def class_weights(outputs, targets):
    return functional.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 500.0, 3.0]))


def info_nce(outputs, targets):
    return functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def penalty_on_the_batch(outputs, targets):
    return functional.cross_entropy(outputs, targets) + outputs.mean(dim=0).square().sum()


def mean_above_eight(outputs, targets):
    centred = outputs - 0.5 * outputs.mean(dim=0) if len(outputs) > 8 else outputs
    return functional.cross_entropy(centred, targets)


def hardest_half(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none").topk(max(1, len(outputs) // 2)).values.mean()


def summed(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="sum")


def dice(outputs, targets):
    chosen, truth = outputs.softmax(1), functional.one_hot(targets, 3)
    return 1 - 2 * (chosen * truth).sum() / (chosen.square().sum() + truth.sum())


TYING = [class_weights, info_nce, penalty_on_the_batch, mean_above_eight, hardest_half, summed, dice]


class CapacityLimited(nn.Module):
    """A mixture of two experts, each of which takes half of a batch and drops the rest."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 2), nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, inputs):
        chosen, outputs = self.gate(inputs).argmax(dim=1), inputs.new_zeros(len(inputs), 3)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0][: max(1, len(inputs) // 2)]
            outputs = outputs.index_put((mine,), expert(inputs[mine]))
        return outputs + 0.1 * self.gate(inputs).sum(dim=1, keepdim=True)


class SortedInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        order = inputs.sum(dim=1).argsort()
        return self.b(torch.tanh(self.a(inputs[order])))[order.argsort()]


class TestTies:
    @ENGINES
    @pytest.mark.parametrize("loss", TYING)
    def test_between_examples_in_the_loss_are_refused_at_the_door(self, loss, engine):
        with pytest.raises(dp.NotPrivate, match="not the mean of the losses of its examples"):
            private_model(nn.Linear(6, 3), loss, *examples(33), engine=engine)

    @ENGINES
    @pytest.mark.parametrize("loss", TYING)
    def test_between_examples_in_the_loss_of_the_script_are_refused_in_training(self, loss, engine):
        client = Client(clean(0.3), nn.Linear(6, 3), examples(33), engine=engine)
        client.draw(examples(12))
        client.loss = loss
        client.backward(*examples(12))
        with refused(client, "the script computes another loss than loss="):
            client.optimizer.step()

    @ENGINES
    def test_by_targets_that_are_ignored_are_refused(self, engine):
        client = Client(clean(0.3), nn.Linear(6, 3), examples(33), engine=engine)
        inputs, targets = examples(12)
        targets[:1] = -100  # all others then weigh 1/11 in place of 1/12
        client.draw((inputs, targets))
        client.backward(inputs, targets)
        with refused(client, "ignore_index"):
            client.optimizer.step()

    @ENGINES
    @pytest.mark.parametrize("module", [CapacityLimited, SortedInside])
    def test_in_the_model_are_refused_or_right(self, module, engine):
        """A model that sorts and sorts back has right outputs, but Opacus' rows stand in another order inside."""
        torch.manual_seed(0)
        if (module, engine) == (SortedInside, Isolated()):
            private_model(module(), functional.cross_entropy, *examples(33), engine=engine)
            return
        with pytest.raises(dp.NotPrivate, match=r"layer mixes examples|sees 14 rows where the batch has 33"):
            private_model(module(), functional.cross_entropy, *examples(33), engine=engine)

    @ENGINES
    def test_by_a_grad_scaler_are_refused(self, engine):
        client = linear(clean(0.3), engine=engine)
        inputs, targets = examples(5)
        scaler = torch.amp.GradScaler("cpu")
        client.draw((inputs, targets))
        with hooks_on_inputs():
            scaler.scale(functional.cross_entropy(client.model(inputs), targets)).backward()
        with refused(client, "GradScaler"):
            client.optimizer.step() if isinstance(engine, Isolated) else scaler.step(client.optimizer)


LATER: list[bool] = []


class Writes(nn.Module):
    """Behaves for some passes; then its forward pass writes what it holds."""

    def __init__(self, what: str):
        super().__init__()
        self.what, self.layer = what, nn.Linear(6, 3)
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, inputs):
        if LATER:
            with torch.no_grad():
                if self.what == "layer.weight":
                    self.layer.weight.data[0] = inputs[0]
                elif self.what == "frozen":
                    self.frozen += inputs.mean(dim=0)
                else:
                    self.seen = inputs.mean(dim=0)
        return self.layer(inputs * self.frozen + self.seen)


class ActNorm(nn.Module):
    """Sets its first scale from the first batch."""

    def __init__(self):
        super().__init__()
        self.scale, self.layer, self.done = nn.Parameter(torch.ones(6)), nn.Linear(6, 3), False

    def forward(self, inputs):
        if not self.done:
            self.done = True
            self.scale.data.copy_(1 / (inputs.std(dim=0) + 1e-5))
        return self.layer(inputs * self.scale)


WRITING = {
    "max_norm": (lambda: nn.Sequential(nn.Embedding(3, 4, max_norm=1.0), nn.Flatten()), r"layer '0' \(Embedding\)"),
    "ActNorm": (ActNorm, r"\['scale', .*'done' of the model \(ActNorm\).* change in a training step"),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)), "change in a training|Opacus"),
}


class TestWrites:
    @ENGINES
    @pytest.mark.parametrize("name", WRITING)
    def test_in_the_forward_pass_are_refused_by_name_at_the_door(self, name, engine):
        make, match = WRITING[name]
        torch.manual_seed(0)
        inputs = examples(4)[1][:, None] if name == "max_norm" else examples(4)[0]
        with pytest.raises(dp.NotPrivate, match=match):
            private_model(make(), functional.cross_entropy, inputs, examples(4)[1], engine=engine)

    @pytest.mark.parametrize("what", ["layer.weight", "frozen", "seen"])
    def test_that_begin_later_are_refused_by_name_before_a_release(self, what, monkeypatch):
        module = Writes(what)
        client = Client(noisy(), module, examples(4), engine=Isolated())
        client.step(*examples(5))
        monkeypatch.setattr("tests.training.test_refused_models.LATER", [True])
        with pytest.raises(dp.NotPrivate, match=rf"\['{what}'\] moved since the last step"):
            client.step(*examples(5))
        assert client.permit.used == 1
        with pytest.raises(dp.NotPrivate, match="moved"):
            client.optimizer.update()

    @ENGINES
    def test_of_a_callback_are_refused_before_the_update(self, engine):
        client = linear(engine=engine)
        client.step(*examples(5))
        client.model.output.bias.data[0] += 1e-6
        with pytest.raises(dp.NotPrivate, match=r"\['output.bias'\] moved"):
            client.optimizer.update()

    @ENGINES
    def test_of_a_step_hook_are_refused(self, engine):
        client = linear(engine=engine)
        weight = client.model.output.weight
        client.optimizer.attach_step_hook(lambda _: weight.data.add_(1.0))
        with pytest.raises(dp.NotPrivate, match=r"\['output.weight'\] moved"):
            client.step(*examples(5))

    def test_of_a_hook_of_the_inner_optimiser_are_refused(self):
        client = linear()
        client.optimizer.original_optimizer.register_step_post_hook(lambda *_: None)
        with refused(client, "step hooks"):
            client.step(*examples(5))

    @pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
    def test_of_a_hook_of_all_optimisers_are_refused(self, register):
        client = linear()
        handle = register(lambda *_: None)
        try:
            with refused(client, "step hooks for all optimisers"):
                client.step(*examples(5))
            with pytest.raises(dp.NotPrivate, match="step hooks for all optimisers"):
                linear()
        finally:
            handle.remove()
        assert linear().optimizer is not None

    @pytest.mark.parametrize("mode", [FunctionMode, DispatchMode])
    def test_inside_a_mode_of_torch_are_refused(self, mode):
        client = linear()
        client.draw(examples(5))
        client.backward(*examples(5))
        with refused(client, f"the step runs inside {mode.__name__}"), mode():
            client.optimizer.step()

    def test_inside_hooks_on_what_is_saved_are_refused(self):
        client = linear()
        client.draw(examples(5))
        with refused(client, "the step runs inside hooks on what is saved"), torch.autograd.graph.save_on_cpu():
            client.backward(*examples(5))
            client.optimizer.step()

    def test_after_passes_inside_hooks_on_what_is_saved_are_taken(self):
        client = linear()
        client.draw(examples(5))
        with torch.autograd.graph.save_on_cpu():
            client.backward(*examples(5))
        client.optimizer.step()
        assert client.permit.used == 1

    def test_on_a_default_device_are_taken(self):
        client = linear()
        with torch.device("cpu"):
            client.step(*examples(5))
        assert client.permit.used == 1

    def test_by_an_optimiser_that_is_not_torchs_stand_among_the_assumptions(self):
        client = linear()
        assert not any("torch's" in clause for clause in client.optimizer.assumptions)
        torch.optim.lr_scheduler.StepLR(client.optimizer.original_optimizer, 1)  # wraps the step
        assert not any("torch's" in clause for clause in client.optimizer.assumptions)
        client.optimizer.original_optimizer.step = lambda closure=None: None
        assert any("an optimiser that is not torch's" in clause for clause in client.optimizer.assumptions)
        own = PrivateOptimizer(
            Own(client.model.parameters(), lr=1.0),
            client.model,
            noisy(),
            secret=dp.SecretSeed(7),
            expected_batch_size=8.0,
        )
        clause = "Own, an optimiser that is not torch's, reads nothing but released gradients and its own state"
        assert clause in own.assumptions

    def test_wrapped_under_the_name_of_torchs_stand_among_the_assumptions(self):
        def wrapped(step):
            @functools.wraps(step)
            def stepped(*args, **kwargs):
                return step(*args, **kwargs)

            return stepped

        client = linear()
        inner = client.optimizer.original_optimizer
        inner.step = wrapped(inner.step)
        clause = "the step of SGD, an optimiser that is not torch's where its step was replaced or wrapped,"
        assert any(clause in each for each in client.optimizer.assumptions)
        assert clause not in str(client.ledger.guarantee(delta=1e-5))  # replaced after begin
        client.step(*examples(5))
        assert clause in str(client.ledger.guarantee(delta=1e-5))

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
    def test_of_torch_and_its_schedulers_assume_nothing(self, kind):
        inner = kind([nn.Parameter(torch.zeros(1))], lr=1.0)
        assert own_step(inner) is None
        torch.optim.lr_scheduler.CosineAnnealingLR(inner, 5)
        assert own_step(inner) is None

    def test_between_rounds_are_a_new_start(self):
        client = linear()
        write(client.model, client.parameters() + 1)
        client.optimizer.begin(client.memory, client.permit)
        client.step(*examples(5))
        assert client.permit.used == 1


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_of_half_is_refused_by_name(self, dtype):
        with pytest.raises(ValueError, match=f"parameter 'weight' is {dtype}: train parameters of float32"):
            private_model(nn.Linear(6, 3).to(dtype), functional.cross_entropy, *examples(4))

    def test_of_complex_numbers_is_refused_by_name(self):
        module = nn.Linear(6, 3)
        module.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))
        with pytest.raises(ValueError, match=r"parameter 'phase' is torch.complex64: .*view_as_complex"):
            private_model(module, functional.cross_entropy, *examples(4))

    def test_mixed_is_for_examples_alone(self):
        clients = [linear(clean(0.3), engine=engine) for engine in (Isolated(), Opacus())]
        inputs, targets = examples(5)
        for client in clients:
            client.draw((inputs, targets))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with refused(clients[1], r"torch.bfloat16 \(torch.autocast\).*Isolated"):
                try:
                    clients[1].backward(inputs, targets)
                finally:
                    clients[1].optimizer.discard()
            clients[0].backward(inputs, targets)
        clients[0].optimizer.step()
        assert clients[0].permit.used == 1


class TestTrainableParameters:
    @ENGINES
    def test_unfrozen_later_are_refused_before_the_charge(self, engine):
        network = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        network[0].requires_grad_(False)
        client = Client(noisy(), network, (6,), engine=engine)
        network[0].requires_grad_(True)
        with pytest.raises(dp.NotPrivate, match=r"\['0.bias', '0.weight'\]"):
            _ = client.optimizer.layout
        with pytest.raises(dp.NotPrivate, match="changed after the inspection"):
            client.optimizer.begin(client.memory, client.permit)


class TestTheSpotCheck:
    def fault(self, monkeypatch, change):
        right = GradSampleHooks.GRAD_SAMPLERS[nn.Linear]
        monkeypatch.setitem(
            GradSampleHooks.GRAD_SAMPLERS,
            nn.Linear,
            lambda layer, *rest: {parameter: change(rows) for parameter, rows in right(layer, *rest).items()},
        )

    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows * 1.001,
            lambda rows: rows.roll(1, 0),
            lambda rows: rows - rows.mean(dim=0),
            lambda rows: rows + 1e-3,
            torch.zeros_like,
        ],
        ids=["scaled", "shifted", "mixed", "moved", "lost"],
    )
    def test_finds_a_fault_in_all_rows_at_once(self, change, monkeypatch):
        client = linear(noisy())
        self.fault(monkeypatch, change)
        with refused(client, r"another than that of the example alone.*\['output.weight'"):
            client.step(*examples(5))

    def test_finds_a_rare_fault_with_the_stated_probability(self, monkeypatch):
        """A fault in one row of 8 is missed by c checks with probability (7/8)^c."""

        def spoilt(rows):
            return torch.cat([rows[:-1], 2 * rows[-1:]])

        client = linear(clean(0.3), steps=60)
        self.fault(monkeypatch, spoilt)
        found, cost = 0, client.optimizer.pipeline.cost
        for number in range(60):
            try:
                client.step(*examples(8))
            except dp.NotPrivate:  # which closes the round
                found += 1
                permit = client.ledger.charge(cost, dp.Address(1, 0, 1 + number), steps=60)
                client.optimizer.begin(client.memory, permit)
        assert 2 <= found <= 18  # of 60 with probability 1/8 each: outside by chance in 5 of 10,000 runs

    def test_consumes_no_other_stream(self):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        linear().step(*examples(5))
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("n", [1, 4, 33])
    def test_does_not_mistake_dropout_for_a_fault(self, n):
        network = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.ReLU(), nn.Linear(20, 3))
        client = Client(noisy(), network, (6,), steps=20)
        for seed in range(20):
            client.step(*examples(n, seed=seed))
        assert client.permit.used == 20

    def test_does_not_mistake_rounding_for_a_fault(self):
        """Of examples that are classified with certainty, float32 keeps few digits of the gradient."""
        network = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
        client = Client(noisy(), network, (6,), steps=40)
        with torch.no_grad():
            network[2].weight.mul_(10)
        client.optimizer.begin(client.memory, client.permit)
        for seed in range(40):
            inputs, _ = examples(17, seed=seed)
            with torch.no_grad():
                targets = network(3 * inputs).argmax(dim=1)
            client.step(3 * inputs, targets)
        assert client.permit.used == 40


def test_make_private_tries_everything_before_a_charge():
    module = nn.Linear(6, 3)
    arguments = {"secret": dp.SecretSeed(0), "expected_batch_size": 3, "steps": 1}
    sgd = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(dp.NotPrivate, match="not the mean"):
        make_private(module, sgd, TensorDataset(*examples(9)), noisy(), loss=class_weights, **arguments)
    with pytest.raises(ValueError, match="no examples"):
        make_private(module, sgd, TensorDataset(*examples(0)), noisy(), loss=class_weights, **arguments)
    assert read(module).shape == (21,)
