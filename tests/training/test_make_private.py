"""Scripts as Opacus' users write them: model, optimiser and loader of make_private, and the loop as it was."""

import itertools

import numpy as np
import pytest
import torch
from opacus.layers import DPLSTM, DPMultiheadAttention
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dpcomp as dp
from dpcomp.simulation import simulate
from dpcomp.training.pytorch import Isolated, Opacus, PyTorch, make_private
from dpcomp.training.pytorch.inspection import hooks_on_inputs
from tests.training.private_client import examples, leftovers, noisy
from tests.training.test_sensitivity import CASES, Adapted, Attention, Function, dcgan_loss, in_dict, logits_loss

torch.set_num_threads(1)
OF_OPACUS = ("Opacus' mnist", "language model", "Opacus' imdb", "Opacus' char-lstm", "frozen trunk")
WORKERS_AND_ENGINES = pytest.mark.parametrize(
    ("workers", "engine"),
    [
        pytest.param(0, Isolated(), id="0-Isolated"),
        pytest.param(0, Opacus(), id="0-Opacus"),
        pytest.param(2, Isolated(), id="2-Isolated"),
        pytest.param(2, Opacus(), id="2-Opacus", marks=pytest.mark.slow),
    ],
)
ENGINES = pytest.mark.parametrize("engine", [Isolated(), Opacus()], ids=["Isolated", "Opacus"])


class Script:
    """A client whose round is open."""

    def __init__(self, module, dataset, loss, *, rate=0.2, steps=3, inner=torch.optim.SGD, **arguments):
        self.pipeline, self.loss = noisy(rate=rate), loss
        self.model, self.optimizer, self.loader = make_private(
            module,
            inner([parameter for parameter in module.parameters() if parameter.requires_grad], lr=0.1),
            dataset,
            self.pipeline,
            loss=loss,
            secret=dp.SecretSeed(5),
            expected_batch_size=rate * len(dataset),
            steps=steps,
            **arguments,
        )
        self.memory = self.pipeline.init_client(self.optimizer.layout, seed=dp.PublicSeed(0), client=0)
        self.permit = dp.Ledger().charge(self.pipeline.cost, self.memory.address, steps=steps)
        self.optimizer.begin(self.memory, self.permit)
        self.sizes: list[int] = []

    def loop(self, loader) -> None:
        for inputs, targets in loader:
            self.sizes.append(len(targets))
            self.optimizer.zero_grad()
            with hooks_on_inputs():
                self.loss(self.model(inputs), targets).backward()
            self.optimizer.step()

    def run(self) -> "Script":
        self.loop(self.loader)
        return self


class Ragged(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.randint(1, 11, (3 + i % 5,), generator=torch.Generator().manual_seed(i)), i % 3


def padded(batch):
    return pad_sequence([tokens for tokens, _ in batch], batch_first=True), torch.tensor([label for _, label in batch])


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, Isolated()) for name in OF_OPACUS),
        *((name, Opacus()) for name in OF_OPACUS[:2]),
        *(pytest.param(name, Opacus(), marks=pytest.mark.slow) for name in OF_OPACUS[2:]),
    ],
)
def test_opacus_examples_run_as_they_are(name, engine):
    make, inputs, targets, loss = CASES[name]
    dataset = TensorDataset(inputs.repeat(4, *(1,) * (inputs.ndim - 1)), targets.repeat(4, *(1,) * (targets.ndim - 1)))
    script = Script(make(), dataset, loss, engine=engine, inner=torch.optim.Adam).run()
    assert script.permit.used == 3
    assert leftovers(script.model) == []


@WORKERS_AND_ENGINES
def test_ragged_examples_are_padded_by_collate_fn(workers, engine):
    network = Function(
        lambda self, x: self.o(self.r(self.e(x))[0][:, 0]),
        e=nn.Embedding(11, 4),
        r=DPLSTM(4, 6, batch_first=True),
        o=nn.Linear(6, 3),
    )
    script = Script(
        network,
        Ragged(),
        functional.cross_entropy,
        rate=0.05,
        steps=8,
        collate_fn=padded,
        num_workers=workers,
        engine=engine,
    )
    script.run()
    assert script.permit.used == 8
    assert 0 in script.sizes


@WORKERS_AND_ENGINES
def test_batch_memory_manager_gives_what_whole_batches_give(workers, engine):
    moves = []
    for physical in (None, 3):
        torch.manual_seed(0)
        script = Script(
            nn.Linear(6, 3), TensorDataset(*examples(60)), functional.cross_entropy, num_workers=workers, engine=engine
        )
        if physical is None:
            script.run()
        else:
            manager = BatchMemoryManager(
                data_loader=script.loader, max_physical_batch_size=physical, optimizer=script.optimizer
            )
            with manager as cut:
                script.loop(cut)
        moves.append(script.optimizer.update().dense())
        assert script.permit.used == 3
    np.testing.assert_allclose(*moves, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_workers_may_be_spawned():
    script = Script(
        nn.Linear(6, 3),
        TensorDataset(*examples(20)),
        functional.cross_entropy,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    script.run()
    assert script.permit.used == 3


def given_up(script: Script, way: str) -> None:
    """Look at a batch, and not step it."""
    for inputs, targets in script.loader:
        if way == "discard":
            script.optimizer.discard()
        elif way == "backward":
            script.loss(script.model(inputs), targets).backward()
        elif way == "refused":
            with pytest.raises(dp.NotPrivate):
                script.optimizer.step()
        break
    if way == "begin":
        script.optimizer.begin(script.memory, script.permit)


class TestABatchThatWasDeliveredAndNotStepped:
    """To wait for a batch that is not empty, not small or of small loss is to choose by clean data, uncharged."""

    def script(self, *, workers: int = 0, rate: float = 0.2, steps: int = 6) -> Script:
        dataset = TensorDataset(*examples(60))
        return Script(nn.Linear(6, 3), dataset, functional.cross_entropy, rate=rate, num_workers=workers, steps=steps)

    @pytest.mark.parametrize(
        ("way", "workers"),
        [
            *((way, 0) for way in ("a new pass", "discard", "backward", "refused", "begin")),
            ("a new pass", 2),
            *(pytest.param(way, 2, marks=pytest.mark.slow) for way in ("discard", "backward", "refused", "begin")),
        ],
    )
    def test_closes_the_round(self, way, workers):
        script = self.script(workers=workers)
        given_up(script, way)
        with pytest.raises(dp.NotPrivate, match=r"delivered and not stepped.*empty ones too.*at the next address"):
            script.run()
        assert script.permit.used == 0

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("physical", [None, 3])
    def test_closes_the_round_though_it_was_empty(self, physical, workers):
        script = self.script(rate=1e-9, workers=workers)
        loader = script.loader
        if physical is not None:
            manager = BatchMemoryManager(
                data_loader=loader, max_physical_batch_size=physical, optimizer=script.optimizer
            )
            loader = manager.__enter__()
        next(iter(loader))
        with pytest.raises(dp.NotPrivate, match="delivered and not stepped"):
            script.loop(loader)
        assert script.permit.used == 0

    def test_closes_the_round_in_the_middle_of_a_pass(self):
        script = self.script()
        batches = iter(script.loader)
        script.loop(itertools.islice(batches, 2))
        next(batches)
        script.optimizer.discard()
        with pytest.raises(dp.NotPrivate, match="delivered and not stepped"):
            script.loop(batches)
        assert script.permit.used == 2
        assert script.optimizer.update().dense().any()

    def test_is_no_matter_to_the_next_round(self):
        script = self.script()
        given_up(script, "discard")
        ledger = dp.Ledger()
        script.optimizer.begin(script.memory, ledger.charge(script.pipeline.cost, dp.Address(0, 0, 1), steps=6))
        script.run()
        assert script.optimizer.update().dense().any()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_no_matter_if_it_was_the_last(self, workers):
        script = self.script(workers=workers)
        for number, (inputs, targets) in enumerate(script.loader):
            if number == 3:
                break
            script.loss(script.model(inputs), targets).backward()
            script.optimizer.step()
        assert script.permit.used == 3
        assert script.optimizer.update().dense().any()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_none_that_was_only_prefetched(self, workers):
        script = self.script(workers=workers)
        for _ in range(6):
            for inputs, targets in script.loader:
                script.loss(script.model(inputs), targets).backward()
                script.optimizer.step()
                script.optimizer.discard()
                break
        assert script.permit.used == 6


class TestTheNumberOfSteps:
    CLAUSE = "the number of steps was not chosen by a look at clean values"

    @pytest.mark.parametrize(("charged", "assumed"), [(3, False), (4, True)])
    def test_is_assumed_to_be_chosen_without_a_look_where_it_is_not_what_was_charged(self, charged, assumed):
        script = Script(nn.Linear(6, 3), TensorDataset(*examples(40)), functional.cross_entropy, steps=3)
        ledger = dp.Ledger()
        script.optimizer.begin(script.memory, ledger.charge(script.pipeline.cost, script.memory.address, steps=charged))
        script.run().optimizer.update()
        assert (self.CLAUSE in ledger.guarantee(1e-5).assumptions) == assumed


def test_settings_of_the_optimiser_are_assumed_not_to_come_from_clean_values():
    script = Script(nn.Linear(6, 3), TensorDataset(*examples(40)), functional.cross_entropy)
    clause = "learning rates and other settings of the optimiser were not computed from clean values"
    assert clause in script.optimizer.assumptions


@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_with_masks_takes_its_inputs_by_name(adapted):
    class Sentences(Dataset):
        def __len__(self):
            return 28

        def __getitem__(self, i):
            return {name: part[i % 7] for name, part in in_dict.items()} | {"labels": torch.tensor(i % 3)}

    network = Attention(adapted)
    script = Script(network, Sentences(), logits_loss)
    for batch in script.loader:
        labels = batch.pop("labels")
        logits_loss(script.model(**batch), labels).backward()
        script.optimizer.step()
    assert script.permit.used == 3


@ENGINES
def test_a_gan_declares_its_fakes(engine):
    """Opacus' dcgan with two backward calls: real images, then fakes; then a step of the generator through both."""
    discriminator, generator = (
        nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(), nn.Linear(4, 1), nn.Flatten(0)),
        nn.Linear(2, 6),
    )
    script = Script(discriminator, TensorDataset(examples(40)[0]), dcgan_loss, engine=engine)
    of_generator = torch.optim.Adam(generator.parameters())
    for (real,) in script.loader:
        script.optimizer.zero_grad()
        fake = generator(torch.randn(len(real), 2))
        with hooks_on_inputs():
            dcgan_loss(script.model(real), None).backward()
            with script.model.public_rows():
                outputs = script.model(fake.detach())
                functional.binary_cross_entropy_with_logits(outputs, torch.zeros_like(outputs)).backward()
        script.optimizer.step()
        of_generator.zero_grad()
        before = generator.weight.clone()
        dcgan_loss(script.model(fake), None).backward()
        of_generator.step()
        assert len(real) == 0 or not torch.equal(before, generator.weight)
    assert script.permit.used == 3


@ENGINES
@pytest.mark.parametrize("inner", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_other_optimisers_and_schedules_work(inner, engine):
    script = Script(nn.Linear(6, 3), TensorDataset(*examples(40)), functional.cross_entropy, inner=inner, engine=engine)
    schedule = torch.optim.lr_scheduler.StepLR(script.optimizer, 1, 0.5)
    for inputs, targets in script.loader:
        script.loss(script.model(inputs), targets).backward()
        script.optimizer.step()
        script.optimizer.zero_grad()
        schedule.step()
    assert script.optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)
    assert script.optimizer.update().noise_stddev is None


@pytest.mark.parametrize("gamma", [0.1, 3.0])
def test_the_noise_in_an_update_is_right_under_a_schedule(gamma):
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(1e-9))
    network = nn.Linear(2000, 10)
    inner = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.3)
    dataset = TensorDataset(torch.randn(4, 2000), torch.arange(4))
    model, optimizer, loader = make_private(
        network,
        inner,
        dataset,
        pipeline,
        loss=functional.cross_entropy,
        secret=dp.SecretSeed(1),
        expected_batch_size=1,
        steps=3,
    )
    memory = pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(0), client=0)
    optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address, steps=3))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma)
    for inputs, targets in loader:
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        schedule.step()
    update = optimizer.update()
    assert update.noise_stddev == pytest.approx(float(update.values.std()), rel=0.03)


EMPTY = [
    "DPMultiheadAttention",
    "InstanceNorm",
    "ConvTranspose2d",
    "weight norm",
    "EmbeddingBag",
    "Opacus' imdb",
    "GroupNorm",
    "attention with a mask",
]


@pytest.mark.parametrize("name", EMPTY)
def test_empty_batches_release_noise_whatever_the_layers(name):
    make, inputs, targets, loss = CASES[name]

    class Data(Dataset):
        def __len__(self):
            return 7

        def __getitem__(self, i):
            some = {key: part[i] for key, part in inputs.items()} if isinstance(inputs, dict) else inputs[i]
            return some, targets[i]

    script = Script(make(), Data(), loss, rate=1e-9)
    for some, truth in script.loader:
        outputs = script.model(**some) if isinstance(some, dict) else script.model(some)
        script.loss(outputs, truth).backward()
        script.optimizer.step()
    assert script.permit.used == 3
    assert len(truth) == 0


def test_another_loader_is_refused_though_all_else_is_right():
    """A data set of 1,000 in every step, where Poisson 0.01 is charged: ε ≤ 0.46 was said, and 28.4 was right."""
    dataset = TensorDataset(*examples(1000))
    script = Script(nn.Linear(6, 3), dataset, functional.cross_entropy, rate=0.01)
    with pytest.raises(dp.NotPrivate, match="no batch was drawn"):
        script.loop(DataLoader(dataset, batch_size=1000))
    for inputs, _ in script.loader:
        other, targets = dataset[: len(inputs)]
        with pytest.raises(dp.NotPrivate, match="not one of the batch that was drawn"):
            script.loop([(other, targets)])
        break
    assert script.permit.used == 0


def test_the_engine_stands_among_the_assumptions():
    for engine, clause in ((Isolated(), "alone"), (Opacus(), "checked, not proven")):
        script = Script(nn.Linear(6, 3), TensorDataset(*examples(9)), functional.cross_entropy, engine=engine)
        assert any(clause in assumption for assumption in script.optimizer.assumptions)


class OwnModes(nn.Module):
    """A model whose own `train` and `eval` have no arguments, as many scripts write them."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))

    def train(self):
        super().train(True)
        self.body.eval()

    def eval(self):
        super().train(False)
        self.head.train()
        return self


def test_the_own_train_and_eval_of_a_model_are_called():
    module = OwnModes()
    module.train()
    script = Script(module, TensorDataset(*examples(30)), functional.cross_entropy, engine=Isolated())
    layers = script.model, module.body, module.head
    assert script.model.eval() is script.model
    assert [layer.training for layer in layers] == [False, False, True]
    assert script.model.train() is script.model
    assert [layer.training for layer in layers] == [True, False, True]
    assert script.run().permit.used == 3


class Task:
    name, population = "task", 60

    def __init__(self, make, inputs=None):
        self.make, (self.inputs, self.targets) = make, examples(60)
        self.inputs = self.inputs if inputs is None else inputs

    def train(self):
        return self.inputs, self.targets

    def test(self):
        return self.inputs, self.targets

    def model(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, inputs):
        return torch.fft.irfft(torch.fft.rfft(inputs) * self.w, n=6)


class TestSimulation:
    BY_CLIENT = dp.Pipeline(
        mechanism=(dp.Clip(10.0), dp.Gaussian(0.01)), sampling=dp.Poisson(1.0), unit="client", trust="server"
    )

    def run(self, make, pipeline, **trainer):
        return simulate(Task(make), pipeline, clients=2, rounds=1, trainer=PyTorch(**trainer), progress=False, seed=0)

    @pytest.mark.parametrize(
        "layer",
        [lambda: nn.BatchNorm1d(6, affine=False), lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))],
    )
    def test_running_statistics_that_are_never_sent_are_refused(self, layer):
        with pytest.raises(dp.NotPrivate, match=r"are never sent.*GroupNorm.*track_running_stats=False"):
            self.run(lambda: nn.Sequential(layer(), nn.Linear(6, 3)), self.BY_CLIENT)

    def test_batch_norm_without_statistics_trains_by_client(self):
        normal = lambda: nn.BatchNorm1d(6, track_running_stats=False)  # noqa: E731
        assert self.run(lambda: nn.Sequential(normal(), nn.Linear(6, 3)), self.BY_CLIENT).layout.size == 33

    @pytest.mark.parametrize("pipeline", [BY_CLIENT, noisy()])
    @pytest.mark.parametrize(
        "make", [lambda: nn.Sequential(Spectral(), nn.Linear(6, 3)), lambda: nn.Linear(6, 3).bfloat16()]
    )
    def test_parameters_that_no_update_holds_are_refused(self, make, pipeline):
        with pytest.raises(ValueError, match=r"parameter '(0.w|weight)' is torch"):
            self.run(make, pipeline)

    def test_what_opacus_cannot_train_is_trained_in_isolation(self):
        make = lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))  # noqa: E731
        with pytest.raises(dp.NotPrivate, match=r"inplace=False.*Isolated"):
            self.run(make, noisy(), engine=Opacus())
        run = self.run(make, noisy(), engine=Isolated())
        assert "each example's gradient was taken alone" in run.guarantee.assumptions

    def test_all_engines_give_the_same_run(self):
        engines = (Isolated(), Opacus(), "auto")
        first, *others = [self.run(lambda: nn.Linear(6, 3), noisy(), engine=engine) for engine in engines]
        for other in others:
            np.testing.assert_allclose(first.model, other.model, rtol=1e-4, atol=1e-6)


@ENGINES
def test_a_low_rank_adapter_trains_alone(engine):
    network = nn.Sequential(Adapted(nn.Linear(6, 6), 6, 6), nn.Tanh(), nn.Linear(6, 3).requires_grad_(False))
    script = Script(network, TensorDataset(*examples(40)), functional.cross_entropy, engine=engine).run()
    assert [name for name, _ in script.optimizer.layout.shapes] == ["0.a.weight", "0.b.weight"]


def test_a_transformer_with_dropout_trains_in_isolation():
    class Sentences(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.a, self.o = nn.Embedding(11, 8), nn.TransformerEncoderLayer(8, 2, 8), nn.Linear(8, 3)

        def forward(self, tokens):
            return self.o(self.a(self.e(tokens).transpose(0, 1)).mean(0))

    data = TensorDataset(torch.randint(0, 11, (40, 5)), torch.arange(40) % 3)
    assert Script(Sentences(), data, functional.cross_entropy).run().permit.used == 3


def test_attention_of_opacus_trains_in_sequence_order():
    """Opacus' layers may take the batch as their second axis inside; the model's own first axis is what counts."""

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.a, self.o = nn.Embedding(11, 8), DPMultiheadAttention(8, 2), nn.Linear(8, 3)

        def forward(self, tokens):
            hidden = self.e(tokens).transpose(0, 1)
            return self.o(self.a(hidden, hidden, hidden)[0].mean(0))

    data = TensorDataset(torch.randint(0, 11, (40, 5)), torch.arange(40) % 3)
    script = Script(SequenceFirst(), data, functional.cross_entropy).run()
    assert script.permit.used == 3
