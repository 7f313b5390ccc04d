"""Random numbers before the clip: from the secret, fresh, and nobody's who knows torch's seed."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset, get_worker_info

import dpcomp as dp
from dpcomp.core import randomness
from dpcomp.simulation import simulate
from dpcomp.training.pytorch import BookKeeping, Isolated, Opacus, PyTorch, make_private
from dpcomp.training.pytorch.rows import generators
from dpcomp.training.pytorch.rows.generators import lent_generators, lent_torch_generators, random_states
from tests.training.private_client import Client, examples, noisy

torch.set_num_threads(1)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
ENGINES = [BookKeeping(), Isolated(), Opacus()]
N, PUBLIC = 40, 0
TRIED = 33  # examples that make_private looks at


def features() -> torch.Tensor:
    return torch.rand((N, 8), generator=torch.Generator().manual_seed(1))


def dropout_network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))


def trained(secret, *, make=dropout_network, data=None, engine="auto", workers=0, steps=2, views=1, physical=None):
    """Train with next to no noise after torch.manual_seed(0), and return the released sums."""
    torch.manual_seed(PUBLIC)
    network = make()
    data = TensorDataset(features(), torch.arange(N) % 2) if data is None else data
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1e-9)), sampling=dp.Poisson(1.0))
    model, optimizer, loader = make_private(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        data,
        pipeline,
        loss=nn.functional.cross_entropy,
        secret=secret,
        expected_batch_size=N,
        steps=steps,
        engine=engine,
        num_workers=workers,
        views=views,
    )
    memory, ledger = pipeline.init_client(optimizer.layout, dp.PublicSeed(0), client=0), dp.Ledger()
    optimizer.begin(memory, ledger.charge(pipeline.cost, memory.address, steps=steps))
    released = []
    optimizer.attach_step_hook(lambda o: released.append(o._released.dense()))
    if physical is not None:
        loader = physical_batches(loader, physical, optimizer)
    for inputs, targets in loader:
        for _ in range(views):
            nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return np.stack(released)


def physical_batches(loader, size, optimizer):
    from opacus.utils.batch_memory_manager import wrap_data_loader

    return wrap_data_loader(data_loader=loader, max_batch_size=size, optimizer=optimizer)


def apart(one, two) -> float:
    return float(np.abs(one - two).max())


class Augmented(Dataset):
    """Examples that are flipped and moved by numbers of a global generator."""

    def __init__(self, draw):
        self.features, self.draw = features(), draw

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.features[i] + self.draw(), i % 2


DRAWS = {
    "torch": lambda: torch.randn(8),
    "NumPy": lambda: torch.from_numpy(np.random.normal(size=8).astype(np.float32)),  # noqa: NPY002
    "Python": lambda: random.gauss(0, 1),
}


SEEDS = {
    "torch": lambda: torch.manual_seed(987),
    "NumPy": lambda: np.random.seed(987),  # noqa: NPY002
    "Python": lambda: random.seed(987),
}


@pytest.fixture
def few_drawn(monkeypatch):
    """Look for a seed among few numbers, which takes less time."""
    monkeypatch.setattr(generators, "MOST_DRAWN", 2**16)


class SeedsOnce:
    """Seeds a global generator when a number of draws were made, as augmentation does that is set up when needed."""

    def __init__(self, seed, draw, *, at):
        self.seed, self.draw, self.at, self.drawn = seed, draw, at + TRIED * bool(at), 0

    def __call__(self):
        if self.drawn == self.at:
            self.seed()
        self.drawn += 1
        return self.draw()


class WorkerSeed:
    """The seed of the worker process, in part: a float32 holds 24 bits."""

    def __call__(self):
        info = get_worker_info()
        return torch.full((8,), 0.0 if info is None else float(info.seed % 2**20))


def plain_network() -> nn.Module:
    return nn.Linear(8, 2)


def forked(x):
    with torch.random.fork_rng():
        torch.manual_seed(PUBLIC)
        return x * (torch.rand(len(x), 1) < 0.9)


def own_generator():
    return torch.Generator().manual_seed(PUBLIC)


KNOWN = {
    "a seed in fork_rng": forked,
    "rand of an own generator": lambda x: x * (torch.rand(len(x), 1, generator=own_generator()) < 0.9),
    "bernoulli_ of an own generator": lambda x: x * x.new_empty(len(x), 1).bernoulli_(0.9, generator=own_generator()),
}
LENT = {
    "dropout": lambda x: nn.functional.dropout(x, 0.1),
    "stochastic depth": lambda x: x * x.new_empty(len(x), 1).bernoulli_(0.9).div_(0.9),
    "dropout, computed again": lambda x: torch.utils.checkpoint.checkpoint(
        lambda part: nn.functional.dropout(part, 0.1).sin(), x, use_reentrant=False
    ),
}


class WithFunction(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(8, 6), nn.Linear(6, 2), function

    def forward(self, inputs):
        return self.last(self.function(self.first(inputs).relu()))


MASKS: list[torch.Tensor] = []  # a global, since what a model's own objects keep of a pass is refused


class Watched(nn.Dropout):
    """Tells its masks."""

    def forward(self, inputs):
        outputs = super().forward(torch.ones_like(inputs))
        MASKS.append(outputs.detach().clone())
        return inputs * outputs


class TestAPass:
    @pytest.mark.parametrize("engine", ENGINES, ids=["BookKeeping", "Isolated", "Opacus"])
    def test_draws_what_a_public_seed_does_not_tell(self, engine):
        one, two = (trained(dp.SecretSeed(), engine=engine) for _ in range(2))
        assert apart(one, two) > 0.1

    @pytest.mark.parametrize("engine", ENGINES, ids=["BookKeeping", "Isolated", "Opacus"])
    def test_draws_the_same_with_the_same_number(self, engine):
        one, two, other = (trained(dp.SecretSeed(n), engine=engine) for n in (3, 3, 4))
        assert apart(one, two) < 1e-6
        assert apart(one, other) > 0.1

    def test_of_each_step_and_view_draws_other_numbers(self, monkeypatch):
        monkeypatch.setattr("tests.training.test_random_numbers.MASKS", [])

        def network():
            return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), Watched(0.5), nn.Linear(6, 2))

        trained(dp.SecretSeed(1), make=network, views=2)
        of_steps = {mask.numpy().tobytes() for mask in MASKS if mask.shape == (N, 6)}
        assert len(of_steps) >= 4

    def test_of_a_round_further_on_draws_other_numbers(self):
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1e-9)), sampling=dp.Poisson(1.0))
        network, data = dropout_network(), TensorDataset(features(), torch.arange(N) % 2)
        model, optimizer, _ = make_private(
            network,
            torch.optim.SGD(network.parameters(), lr=0.1),
            data,
            pipeline,
            loss=nn.functional.cross_entropy,
            secret=dp.SecretSeed(1),
            expected_batch_size=N,
        )
        outputs = []
        for seed in (0, 1, 0):
            memory = pipeline.init_client(optimizer.layout, dp.PublicSeed(seed), client=0)
            optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address, steps=1))
            outputs.append(model(features()).detach())
        assert not torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])

    @pytest.mark.parametrize("engine", ENGINES, ids=["BookKeeping", "Isolated", "Opacus"])
    def test_leaves_the_generator_where_it_was(self, engine):
        network, data = dropout_network(), TensorDataset(features(), torch.arange(N) % 2)
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(1.0))
        model, optimizer, loader = make_private(
            network,
            torch.optim.SGD(network.parameters(), lr=0.1),
            data,
            pipeline,
            loss=nn.functional.cross_entropy,
            expected_batch_size=N,
            engine=engine,
        )
        memory = pipeline.init_client(optimizer.layout, dp.PublicSeed(0), client=0)
        optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address, steps=1))
        before = torch.get_rng_state()
        for inputs, targets in loader:
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        with pytest.raises(RuntimeError):
            model(torch.ones(3, 9))  # of another shape
        assert torch.equal(before, torch.get_rng_state())

    def test_in_which_a_layer_seeds_the_generator_is_refused(self):
        class Seeds(nn.Module):
            def forward(self, inputs):
                torch.manual_seed(0)
                return nn.functional.dropout(inputs, 0.5, self.training)

        with pytest.raises(dp.NotPrivate, match="seeds torch's global generator"):
            trained(dp.SecretSeed(), make=lambda: nn.Sequential(Seeds(), nn.Linear(8, 2)))

    @pytest.mark.parametrize("engine", ENGINES, ids=["BookKeeping", "Isolated", "Opacus"])
    @pytest.mark.parametrize("source", KNOWN)
    def test_that_draws_known_numbers_is_refused(self, source, engine):
        with pytest.raises(dp.NotPrivate, match=r"with a generator= of its own|after a seed that is set in the pass"):
            trained(dp.SecretSeed(), make=lambda: WithFunction(KNOWN[source]), engine=engine)

    def test_that_draws_known_numbers_in_a_larger_batch_takes_rows_of_examples_alone(self):
        module = WithFunction(lambda x: forked(x) if len(x) > 60 else x)
        client = Client(noisy(), module, (8,), engine=BookKeeping())
        for n, alone in ((40, False), (100, True)):
            batch = examples(n, shape=(8,), classes=2)
            client.draw(batch)
            client.backward(*batch)
            assert client.model.passes[-1].alone == alone
            client.optimizer.step()

    @pytest.mark.parametrize("engine", ENGINES, ids=["BookKeeping", "Isolated", "Opacus"])
    @pytest.mark.parametrize("source", LENT)
    def test_that_draws_from_the_lent_generator_is_taken(self, source, engine):
        released = trained(dp.SecretSeed(1), make=lambda: WithFunction(LENT[source]), engine=engine)
        assert np.isfinite(released).all()

    def test_on_a_device_without_a_lent_generator_is_refused(self):
        model, *_ = made_private()
        with pytest.raises(dp.NotPrivate, match="device of type 'meta'"):
            model(torch.ones(3, 8, device="meta"))

    def test_of_a_copy_of_the_model_has_no_secret(self):
        model, optimizer, pipeline = made_private()
        memory = pipeline.init_client(optimizer.layout, dp.PublicSeed(0), client=0)
        optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address, steps=1))
        assert copy.deepcopy(model)._draws is None

    def test_may_be_computed_again_in_the_backward_pass(self):
        class Again(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.last = dropout_network(), nn.Linear(2, 2)

            def forward(self, inputs):
                return self.last(torch.utils.checkpoint.checkpoint(self.inner, inputs, use_reentrant=False))

        one, two = (trained(dp.SecretSeed(3), make=Again, engine=Isolated()) for _ in range(2))
        assert apart(one, two) < 1e-6


def made_private():
    network = dropout_network()
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(1.0))
    model, optimizer, _ = make_private(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        TensorDataset(features(), torch.arange(N) % 2),
        pipeline,
        loss=nn.functional.cross_entropy,
        expected_batch_size=N,
    )
    return model, optimizer, pipeline


class TestADataSet:
    @pytest.mark.parametrize("draw", DRAWS)
    @pytest.mark.parametrize("workers", [0, 2])
    def test_draws_what_a_public_seed_does_not_tell(self, draw, workers):
        released = []
        for _ in range(2):
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)
            released.append(
                trained(dp.SecretSeed(), make=plain_network, data=Augmented(DRAWS[draw]), workers=workers, steps=1)
            )
        assert apart(*released) > 0.1

    @pytest.mark.parametrize("draw", DRAWS)
    def test_draws_the_same_with_the_same_number_in_any_process(self, draw):
        data = Augmented(DRAWS[draw])
        here, again, workers, other = (
            trained(dp.SecretSeed(n), make=plain_network, data=data, workers=w)
            for n, w in ((3, 0), (3, 0), (3, 2), (4, 0))
        )
        assert apart(here, again) < 1e-6
        assert apart(here, workers) < 1e-6
        assert apart(here, other) > 0.1
        assert apart(here[0], here[1]) > 0.1

    def test_draws_other_numbers_in_each_micro_batch(self):
        asked = []

        def draw():
            asked.append(float(torch.rand(())))
            return asked[-1]

        trained(dp.SecretSeed(3), make=plain_network, data=Augmented(draw), physical=10, steps=2)
        assert len(set(asked[-2 * N :])) == 2 * N

    def test_in_workers_has_seeds_that_only_the_secret_tells(self):
        def seeds(secret, rounds=(0, 1), physical=None):
            _, optimizer, loader = make_private(
                *(network := plain_network(), torch.optim.SGD(network.parameters(), lr=0.1)),
                Augmented(WorkerSeed()),
                pipeline := dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(1.0)),
                loss=nn.functional.cross_entropy,
                secret=secret,
                expected_batch_size=N,
                num_workers=1,
            )
            if physical is not None:
                loader = physical_batches(loader, physical, optimizer)
            found, ledger = [], dp.Ledger()
            memory = pipeline.init_client(optimizer.layout, dp.PublicSeed(0), client=0)
            for number in rounds:
                at = replace(memory, shared=replace(memory.shared, version=number))
                optimizer.begin(at, ledger.charge(pipeline.cost, at.address, steps=1))
                found += [round(float(next(iter(loader))[0][0, 0])) for _ in range(2)]
            return found

        fresh = seeds(dp.SecretSeed()) + seeds(dp.SecretSeed(), physical=10)
        assert len(set(fresh)) == 8
        numbered = seeds(dp.SecretSeed(3))
        assert len(set(numbered)) == 4
        for physical in (None, 10):  # a process that goes on in the second round, and Opacus' BatchMemoryManager
            assert seeds(dp.SecretSeed(3), rounds=(1,), physical=physical) == numbered[2:]

    @pytest.mark.usefixtures("few_drawn")
    @pytest.mark.parametrize("name", SEEDS)
    @pytest.mark.parametrize("workers", [0, 1])
    def test_that_seeds_a_generator_while_a_batch_loads_is_refused(self, name, workers):
        data = Augmented(SeedsOnce(SEEDS[name], DRAWS[name], at=N // 2))
        with pytest.raises(dp.NotPrivate, match=rf"seeds {name}'s global generator.*leave them as they are"):
            trained(dp.SecretSeed(), make=plain_network, data=data, workers=workers, steps=1)

    @pytest.mark.usefixtures("few_drawn")
    @pytest.mark.parametrize("name", SEEDS)
    def test_that_seeds_a_generator_for_each_example_is_refused_before_anything_is_charged(self, name):
        data = Augmented(SeedsOnce(SEEDS[name], DRAWS[name], at=0))
        network = plain_network()
        with pytest.raises(dp.NotPrivate, match=rf"seeds {name}'s global generator"):
            make_private(
                network,
                torch.optim.SGD(network.parameters(), lr=0.1),
                data,
                dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(1.0)),
                loss=nn.functional.cross_entropy,
                expected_batch_size=N,
            )

    @pytest.mark.parametrize("name", SEEDS)
    def test_may_draw_much_and_from_generators_of_its_own(self, name):
        def draw():
            with torch.random.fork_rng():
                torch.manual_seed(3)
                of_example = torch.rand(8, generator=torch.Generator().manual_seed(1)) + torch.rand(8)
            of_example += float(np.random.default_rng(1).normal()) + random.Random(1).random()
            for _ in range(700):
                DRAWS[name]()
            return DRAWS[name]() + of_example

        one, two = (trained(dp.SecretSeed(3), make=plain_network, data=Augmented(draw), steps=1) for _ in range(2))
        assert apart(one, two) < 1e-6

    def test_leaves_the_generators_where_they_were(self):
        data = Augmented(lambda: sum(draw() for draw in DRAWS.values()))
        with lent_generators(dp.SecretSeed(), "test"):  # of any state
            _, _, pipeline = made_private()
            _, optimizer, loader = make_private(
                *(network := plain_network(), torch.optim.SGD(network.parameters(), lr=0.1)),
                data,
                pipeline,
                loss=nn.functional.cross_entropy,
                expected_batch_size=N,
            )
            memory = pipeline.init_client(optimizer.layout, dp.PublicSeed(0), client=0)
            optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address, steps=1))
            np.random.normal()  # noqa: NPY002  # leaves a second number behind, which is a part of the state
            before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
            next(iter(loader))
            after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
            np.testing.assert_equal(after[1:], before[1:])
            assert torch.equal(after[0], before[0])


class TestTheTrainersData:
    @pytest.mark.usefixtures("few_drawn")
    @pytest.mark.parametrize("name", SEEDS)
    def test_that_seeds_a_generator_is_refused_where_each_step_is_released(self, name):
        def draw():
            SEEDS[name]()
            return DRAWS[name]()

        with pytest.raises(dp.NotPrivate, match=rf"seeds {name}'s global generator"):
            TestTheTrainer.run("example", "nobody", Task(data=Augmented(draw)))


class TestTheTrainer:
    """Of 63 secret bits, torch's `manual_seed` kept 32 on the CPU: the masks could be searched."""

    @staticmethod
    def run(unit, trust, task):
        pipeline = dp.Pipeline(
            mechanism=(dp.Clip(1.0), dp.Gaussian(1e-9)), sampling=dp.Poisson(1.0), unit=unit, trust=trust
        )
        trainer = PyTorch(local_steps=1, local_sampling=dp.Poisson(1.0))
        torch.manual_seed(PUBLIC)
        run = simulate(task, pipeline, clients=2, rounds=1, trainer=trainer, seed=0, progress=False)
        return run.model

    @pytest.mark.parametrize("made", [False, True], ids=["arrays", "a data set"])
    @pytest.mark.parametrize(("unit", "trust"), [("example", "nobody"), ("client", "nobody")])
    def test_sets_whole_states(self, monkeypatch, unit, trust, made):
        asked = []
        whole = randomness.SecretSeed.state

        def state(self, size, purpose, *place):
            asked.append((purpose, size))
            return whole(self, size, purpose, *place)

        monkeypatch.setattr(randomness.SecretSeed, "state", state)
        self.run(unit, trust, Task(data=Augmented(DRAWS["torch"]) if made else None))
        assert ("local training", 2496 + 8) in asked
        assert (("local training, host", 64) in asked) == made


class Task:
    name, population = "task", N

    def __init__(self, data=None):
        self.data = data

    def train(self):
        return (features(), torch.arange(N) % 2) if self.data is None else self.data

    def test(self):
        return features(), torch.arange(N) % 2

    def model(self, seed):
        return dropout_network()

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)


class Bits:
    """A secret that gives chosen bytes."""

    def __init__(self, drawn: bytes):
        self.drawn = drawn

    def state(self, size, purpose, *place):
        return self.drawn.ljust(size, b"\0")[:size]


class OfAnotherForm:
    def manual_seed(self, number):
        return self

    def get_state(self):
        return torch.zeros(5056, dtype=torch.uint8)


class TestALentGenerator:
    @pytest.mark.parametrize("name", DEVICES)
    def test_draws_by_its_secret_and_gets_its_own_state_back(self, name):
        torch.rand(1, device=name)
        before, draws = random_states(), []
        for number in (1, 1, 2):
            with lent_torch_generators(dp.SecretSeed(number), "test"):
                draws.append(torch.rand(3, device=name))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert all(map(torch.equal, before, random_states()))

    def test_gets_its_own_state_back_after_an_error(self):
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        with pytest.raises(ZeroDivisionError), lent_generators(dp.SecretSeed(), "test"):
            raise ZeroDivisionError
        after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        np.testing.assert_equal(before[1:], after[1:])

    @pytest.mark.parametrize("byte", [12, 100, 1000, 8 + 4 * 623])
    def test_of_the_cpu_draws_by_every_word_of_its_state(self, byte):
        drawn = []
        for flipped in (0, 1):
            state = bytearray(2504)
            state[byte] ^= 2 * flipped
            with lent_torch_generators(Bits(bytes(state)), "test"):
                drawn.append(torch.randint(2**31, (2000,)))
        assert not torch.equal(*drawn)

    def test_of_the_cpu_draws_what_the_mersenne_twister_draws_from_its_words(self):
        words = np.random.default_rng(0).integers(2**32, size=624, dtype=np.uint32)
        words[0] |= 2**31
        theirs = np.random.MT19937()
        theirs.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
        with lent_torch_generators(Bits(bytes(8) + words.tobytes()), "test"):
            mine = torch.randint(2**32, (2000,)).numpy()
        np.testing.assert_array_equal(mine, theirs.random_raw(4000)[1::2])  # the second of two words is the low one

    def test_of_a_gpu_has_a_secret_seed_and_place(self, monkeypatch):
        class OnGpu:
            def __init__(self):
                self.states = [torch.arange(16, dtype=torch.uint8)]

            def get_state(self):
                return self.states[-1].clone()

            def set_state(self, state):
                self.states.append(state.clone())

        gpus = (OnGpu(), OnGpu())
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "default_generators", gpus)
        for _ in range(2):
            with lent_torch_generators(dp.SecretSeed(), "test"):
                pass
        lent = [gpu.states[step].numpy().view(np.uint64) for gpu in gpus for step in (1, 3)]
        assert len({int(seed) for seed, _ in lent}) == len({int(place) for _, place in lent}) == 4
        assert all(place % 4 == 0 and place < 2**42 for _, place in lent)
        assert all(torch.equal(gpu.states[step], gpu.states[0]) for gpu in gpus for step in (2, 4))

    def test_is_refused_where_torch_keeps_another_form_of_state(self, monkeypatch):
        generators._form_of_cpu_state.cache_clear()
        monkeypatch.setattr(torch, "Generator", OfAnotherForm)
        with pytest.raises(RuntimeError, match="does not know"):
            generators._form_of_cpu_state()
        generators._form_of_cpu_state.cache_clear()


def test_that_other_draws_are_secret_stands_among_the_assumptions():
    _, optimizer, _ = made_private()
    clause = "random numbers before the clip that dpcomp does not draw are fresh, and nobody knows them"
    assert clause in optimizer.assumptions
