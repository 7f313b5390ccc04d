"""Whole federations in miniature: repeatable, charged for every round, and measured on real bytes."""

import importlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dpcomp as dp
from dpcomp.federated.server.optimizers import ServerOptimizer
from dpcomp.simulation import Dirichlet, Run, simulate
from dpcomp.training.pytorch import PyTorch
from dpcomp.wire import exchange
from experiments.data.models import logistic_regression

torch.set_num_threads(1)
# Runs this small often learn nothing, and `simulate` says so: tests/simulation/test_run_warnings.py.
pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")
TWO_STEPS = PyTorch(local_steps=2)
FEATURES, CLASSES, EXAMPLES = 12, 3, 60
SIZE = (FEATURES + 1) * CLASSES


@dataclass(frozen=True)
class Blobs:
    """Three classes, far enough apart to be told by a line."""

    name: str = "blobs"
    population: int = EXAMPLES
    broken: float | None = None  # what stands in place of one example
    modules: list[nn.Module] = field(default_factory=list)

    def _draw(self, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.arange(EXAMPLES) % CLASSES
        centres = torch.randn((CLASSES, FEATURES), generator=torch.Generator().manual_seed(0))
        return centres[targets] + 0.3 * torch.randn((EXAMPLES, FEATURES), generator=generator), targets

    def train(self) -> tuple[Tensor, Tensor]:
        inputs, targets = self._draw(1)
        if self.broken is not None:
            inputs[5] = self.broken
        return inputs, targets

    def test(self) -> tuple[Tensor, Tensor]:
        return self._draw(2)

    def model(self, seed: int) -> nn.Module:
        self.modules.append(logistic_regression(inputs=FEATURES, classes=CLASSES, seed=seed))
        return self.modules[-1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)


NOISE_FIRST = dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4))
MASK_FIRST = dp.Codec(quantize=dp.Uniform(4))


def pipeline(unit="example", trust="nobody", order="noise first", *, rate: float | None = 0.5, noise=1.0, **kwargs):
    first = (dp.RandomK(0.3),) if order == "mask first" else ()
    return dp.Pipeline(
        mechanism=(*first, dp.Clip(1.0), dp.Gaussian(noise)),
        codec=MASK_FIRST if first else NOISE_FIRST,
        sampling=None if rate is None else dp.Poisson(rate),
        unit=unit,
        trust=trust,
        **kwargs,
    )


def run(chosen: dp.Pipeline, *, clients: int = 4, rounds: int = 3, seed: int = 0, task=None, **kwargs) -> Run:
    given = {"evaluate_every": 1, "progress": False, **kwargs}
    return simulate(Blobs() if task is None else task, chosen, clients=clients, rounds=rounds, seed=seed, **given)


def facts(run: Run) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.rows]


TERMS = [("example", "nobody"), ("client", "nobody"), ("client", "server")]


@pytest.mark.parametrize("order", ["noise first", "mask first"])
@pytest.mark.parametrize(("unit", "trust"), TERMS)
class TestEveryRoad:
    def test_runs_from_end_to_end(self, unit, trust, order):
        done = run(pipeline(unit, trust, order), trainer=TWO_STEPS)
        assert [row["round"] for row in done.rows] == [1, 2, 3]
        assert np.isfinite(done.model).all()
        assert done.model.shape == (SIZE,)
        assert np.isfinite(done.guarantee.epsilon)
        assert (done.guarantee.unit, done.guarantee.trust) == (unit, trust)
        assert all(0 <= row["test_accuracy"] <= 1 for row in done.rows)
        table = done.table()
        assert len(table) == 3
        assert {"uplink_bytes", "downlink_bytes", "test_loss", "seconds", "participants"} <= set(table.columns)

    def test_has_the_same_run_for_the_same_seed_and_another_for_another(self, unit, trust, order):
        one, two, other = (run(pipeline(unit, trust, order), seed=seed, trainer=TWO_STEPS) for seed in (1, 1, 2))
        assert one.model.tobytes() == two.model.tobytes()
        assert facts(one) == facts(two)
        assert one.guarantee == two.guarantee
        assert one.model.tobytes() != other.model.tobytes()

    def test_says_that_its_noise_was_seeded(self, unit, trust, order):
        guarantee = run(pipeline(unit, trust, order, rate=1.0), rounds=1).guarantee
        assert any("SEEDED" in assumption for assumption in guarantee.assumptions)
        assert "SEEDED" in str(guarantee)

    def test_global_seeds_neither_matter_nor_change(self, unit, trust, order):
        torch.manual_seed(1)
        one = run(pipeline(unit, trust, order))
        torch.manual_seed(2)
        np.random.seed(2)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        two = run(pipeline(unit, trust, order))
        assert torch.equal(before[0], torch.get_rng_state())
        np.testing.assert_equal(before[1], np.random.get_state())  # noqa: NPY002
        assert one.model.tobytes() == two.model.tobytes()


class Recorder:
    """Keeps the ledger that the simulation opens, and every payload that it sends."""

    def __init__(self, monkeypatch):
        self.ledgers: list[dp.Ledger] = []  # of all simulations
        self.up: list[int] = []
        self.down: list[int] = []
        send, broadcast = exchange.send, exchange.broadcast

        def opened() -> dp.Ledger:
            self.ledgers.append(dp.Ledger())
            return self.ledgers[-1]

        def sent(channel, update, memory):
            payload, memory = send(channel, update, memory)
            self.up.append(len(payload.message))
            return payload, memory

        def broadcasted(channel, aggregate, memory):
            payload, memory = broadcast(channel, aggregate, memory)
            self.down.append(len(payload.message))
            return payload, memory

        monkeypatch.setattr(importlib.import_module("dpcomp.simulation.simulated_federation"), "Ledger", opened)
        monkeypatch.setattr(exchange, "send", sent)
        monkeypatch.setattr(exchange, "broadcast", broadcasted)

    def steps(self) -> dict[int, int]:
        """The releases that each client, or the server, was charged."""
        (ledger,) = self.ledgers
        return {client: sum(history.spent.values()) for client, history in ledger._histories.items()}


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    return Recorder(monkeypatch)


class TestCharges:
    def test_a_trusted_server_is_charged_every_round_cohort_or_none(self, recorder):
        done = run(pipeline("client", "server", rate=0.05), rounds=8)
        assert 0 in [row["participants"] for row in done.rows]
        assert recorder.steps() == {dp.SERVER: 8}
        assert done.guarantee.steps == 8
        assert np.count_nonzero(done.model) == SIZE

    def test_a_round_without_senders_has_no_mean_payload_but_a_broadcast(self, recorder):
        done = run(pipeline("client", "server", rate=0.05), rounds=8)
        empty = next(row for row in done.rows if not row["participants"])
        assert "payload_bytes" not in empty
        assert empty["uplink_bytes"] == 0
        assert empty["downlink_bytes"] > 0

    def test_each_client_pays_for_its_local_steps(self, recorder):
        done = run(pipeline(), rounds=3, trainer=PyTorch(local_steps=4))
        assert recorder.steps() == dict.fromkeys(range(4), 12)
        assert done.guarantee.steps == 12

    def test_the_federation_is_as_private_as_its_least_private_client(self, recorder):
        done = run(pipeline(), rounds=6, participation=dp.Poisson(0.5))
        epsilons = [pipeline().guarantee(recorder.steps().get(client, 0), 1e-5).epsilon for client in range(4)]
        assert len(set(epsilons)) > 1
        assert done.guarantee.epsilon == max(epsilons)

    def test_client_level_noise_on_the_client_is_paid_by_participation(self, recorder):
        done = run(pipeline("client", "nobody"), rounds=6, trainer=PyTorch(local_steps=3))
        assert sum(recorder.steps().values()) == sum(row["participants"] for row in done.rows)
        assert done.guarantee.steps == max(recorder.steps().values())

    def test_the_guarantee_is_the_pipelines_own(self):
        for unit, trust in TERMS[::2]:
            chosen = pipeline(unit, trust)
            done = run(chosen, rounds=3, trainer=TWO_STEPS)
            steps = 3 if trust == "server" else 6
            assert done.guarantee.epsilon == chosen.guarantee(steps, 1e-5).epsilon

    def test_what_was_assumed_to_be_public_is_said(self):
        said = " ".join(run(pipeline(), rounds=1).guarantee.assumptions)
        assert "divisor 7.5 is public" in said and "the number of examples, 60, is public" in said

    def test_an_unsafe_run_has_no_guarantee(self):
        ceiling = dp.Pipeline(mechanism=dp.unsafe("a ceiling"), sampling=dp.Poisson(1.0))
        done = run(ceiling, rounds=10, trainer=PyTorch(learning_rate=1.0))
        assert done.guarantee.epsilon == float("inf")
        assert done.rows[-1]["test_accuracy"] > 0.95


class TestRefusals:
    def test_a_partition_that_gives_an_example_to_two_clients(self):
        class Windows:
            def part(self, labels, clients, seed):
                return [np.arange(start, start + 30) for start in range(clients)]

        with pytest.raises(ValueError, match="gives an example to two clients"):
            run(pipeline(), partition=Windows())
        assert len(run(pipeline("client", "server"), partition=Windows(), rounds=1).rows) == 1

    @pytest.mark.parametrize("trust", ["nobody", "server"])
    def test_participation_beside_a_client_level_pipeline(self, trust):
        with pytest.raises(dp.NotPrivate, match="participation"):
            run(pipeline("client", trust), participation=dp.Poisson(0.5))

    @pytest.mark.parametrize("name", ["clients", "rounds", "evaluate_every"])
    @pytest.mark.parametrize("count", [0, -1, 1.5, True])
    def test_counts_that_are_no_whole_numbers_above_0(self, name, count):
        error = ValueError if isinstance(count, int) and count < 1 else TypeError
        with pytest.raises(error, match=name):
            run(pipeline(), **{name: count})

    def test_a_task_without_what_the_trainer_asks_for(self):
        with pytest.raises(TypeError, match=r"has no train and no test and no model and no loss: .*SupervisedTask"):
            run(pipeline(), task=SimpleNamespace(name="empty", population=60))

    @pytest.mark.parametrize("trust", ["nobody", "server"])
    def test_a_divisor_of_local_steps_where_the_update_is_the_unit(self, trust):
        with pytest.raises(ValueError, match=r"PyTorch\(expected_batch_size=7\.5\).*unit='client'.*Leave it out"):
            run(pipeline("client", trust), trainer=PyTorch(expected_batch_size=7.5))


class TestBytes:
    @pytest.mark.parametrize(("unit", "trust"), TERMS)
    def test_are_the_lengths_of_real_payloads(self, recorder, unit, trust):
        done = run(pipeline(unit, trust), rounds=4)
        left = list(recorder.up)
        for row, down in zip(done.rows, recorder.down, strict=True):
            mine, left = left[: row["participants"]], left[row["participants"] :]
            assert row["uplink_bytes"] == sum(mine)
            assert row["downlink_bytes"] == 4 * down
            if mine:
                assert row["payload_bytes"] == sum(mine) / len(mine)
                assert row["compression_ratio"] == 4 * SIZE * len(mine) / sum(mine)
        assert left == []

    def test_say_what_compression_saves(self):
        dense = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.5))
        assert run(dense).rows[0]["payload_bytes"] > run(pipeline()).rows[0]["payload_bytes"]


class TestServers:
    def test_the_same_optimizer_serves_many_runs(self):
        optimizer = ServerOptimizer(momentum=0.5, behind_feedback=True)
        first, second = (run(pipeline(), rounds=3, server=optimizer) for _ in range(2))
        np.testing.assert_array_equal(first.model, second.model)
        assert (first.model != run(pipeline(), rounds=3).model).any()


class TestClients:
    @pytest.mark.parametrize(("unit", "trust"), TERMS)
    def test_without_examples_survive(self, unit, trust):
        done = run(pipeline(unit, trust, rate=1.0), clients=9, partition=Dirichlet(0.01), rounds=2, trainer=TWO_STEPS)
        assert all(row["participants"] == 9 for row in done.rows)
        assert np.isfinite(done.model).all()

    @pytest.mark.parametrize(("unit", "trust"), TERMS)
    def test_one_alone_is_a_federation(self, unit, trust):
        done = run(pipeline(unit, trust, rate=1.0), clients=1, rounds=2)
        assert [row["participants"] for row in done.rows] == [1, 1]

    @pytest.mark.parametrize("broken", [float("nan"), float("inf"), 3e38])
    @pytest.mark.parametrize(("unit", "trust"), TERMS)
    def test_with_a_broken_example_release_finite_values(self, unit, trust, broken):
        trainer = PyTorch(local_steps=2, local_sampling=dp.Poisson(1.0))
        done = run(pipeline(unit, trust, rate=1.0), task=Blobs(broken=broken), rounds=3, trainer=trainer)
        assert [row["participants"] for row in done.rows] == [4, 4, 4]
        assert np.isfinite(done.model).all()

    def test_take_micro_batches_of_any_size(self):
        one, cut = (run(pipeline(), trainer=PyTorch(physical_batch_size=size, local_steps=2)) for size in (512, 3))
        np.testing.assert_allclose(one.model, cut.model, atol=1e-5)

    def test_learn(self):
        for unit, trust, kwargs in (
            ("example", "nobody", {"learning_rate": 1.0, "expected_batch_size": 7.5}),
            ("client", "server", {"learning_rate": 0.5, "local_sampling": dp.Poisson(0.5)}),
        ):
            quiet = pipeline(unit, trust, rate=1.0, noise=0.01)
            trainer = PyTorch(local_steps=3, **kwargs)
            done = run(quiet, rounds=12, trainer=trainer, server=ServerOptimizer(momentum=0.5, behind_feedback=True))
            assert done.rows[-1]["test_accuracy"] > 0.9

    @pytest.mark.parametrize("passes", [0, 5])
    def test_that_keep_statistics_in_buffers_are_refused(self, passes):
        class Statistics(nn.Module):
            """Centres by what it saw before, from some pass on."""

            def __init__(self):
                super().__init__()
                self.layer = logistic_regression(inputs=FEATURES, classes=CLASSES, seed=0)
                self.register_buffer("mean", torch.zeros(FEATURES))
                self.passes = 0

            def forward(self, inputs: Tensor) -> Tensor:
                if self.training:
                    self.passes += 1
                    if self.passes > passes:
                        self.mean = 0.5 * self.mean + 0.5 * inputs.detach().mean(dim=0)
                return self.layer(inputs - self.mean)

        class Centred(Blobs):
            def model(self, seed: int) -> nn.Module:
                return Statistics()

        trainer = PyTorch(local_sampling=dp.Poisson(1.0), local_steps=6)
        with pytest.raises(dp.NotPrivate, match=r"(mean|passes).* change in a pass of training, and are never sent"):
            run(pipeline("client", "server", rate=1.0), task=Centred(), rounds=2, trainer=trainer)


class TestEvaluation:
    def test_happens_when_asked_and_at_the_end(self):
        done = run(pipeline(), rounds=5, evaluate_every=3)
        assert [row["round"] for row in done.rows if "test_accuracy" in row] == [3, 5]

    def test_changes_nothing(self):
        seldom, often = run(pipeline(), rounds=4, evaluate_every=4), run(pipeline(), rounds=4)
        assert seldom.model.tobytes() == often.model.tobytes()


class TestAnAllocatorThatSeesTheNoise:
    SEES = dp.Codec(quantize=dp.Uniform(dp.Waterfill(4, clients=3)))

    def chosen(self, unit="example"):
        mechanism = (dp.Clip(1.0), dp.Gaussian(0.5))
        sampling = dp.Poisson(0.5) if unit == "example" else None
        return dp.Pipeline(
            mechanism=mechanism, codec=self.SEES, downlink=dp.Codec(), sampling=sampling, feedback=False, unit=unit
        )

    @pytest.mark.parametrize("unit", ["example", "client"])
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_is_told_how_much_there_is(self, unit, momentum):
        run = simulate(
            Blobs(),
            self.chosen(unit),
            clients=3,
            rounds=4,
            trainer=PyTorch(local_steps=2, momentum=momentum),
            progress=False,
        )
        assert np.isfinite(run.model).all()
        assert run.rows[-1]["payload_bytes"] < 4 * SIZE

    @pytest.mark.parametrize("server", [ServerOptimizer(learning_rate=0.5), ServerOptimizer(momentum=0.9)])
    def test_wants_broadcasts_that_are_means(self, server):
        with pytest.raises(ValueError, match=r"server=ServerOptimizer\(learning_rate=1"):
            simulate(Blobs(), self.chosen(), clients=3, rounds=1, progress=False, server=server)

    @pytest.mark.parametrize(("unit", "trust"), TERMS)
    def test_the_bits_of_each_layer_are_told_round_by_round(self, unit, trust):
        codec = dp.Codec(quantize=dp.Uniform(dp.Waterfill(3)), entropy=dp.FixedWidth())
        mechanism = (dp.Clip(1.0), dp.Gaussian(0.5))
        chosen = dp.Pipeline(mechanism=mechanism, codec=codec, unit=unit, trust=trust)
        run = simulate(Blobs(), chosen, clients=3, rounds=3, progress=False)
        columns = [column for column in run.table() if column.startswith("bits of ")]
        assert len(columns) == len(run.layout.shapes)
        for row in run.rows:
            spent = sum(row[column] * size for column, size in zip(columns, run.layout.sizes, strict=True))
            assert 2 * SIZE <= spent <= 3 * SIZE
        assert (set(columns) <= set(run.probed)) == (trust == "server")


class FromFourToSix:
    """A trainer whose clients move by vectors with norms U(4, 6)."""

    assumptions = ()
    layout, initial_model = dp.Layout.of(8), np.zeros(8, np.float32)

    def make_trainer(self, federation):
        return self

    def train(self, client, start, memory, ledger):
        draw = np.random.default_rng((client, memory.address.round))
        values = draw.normal(size=8)
        values *= draw.uniform(4, 6) / np.linalg.norm(values)
        return dp.Update(values=values, layout=self.layout, address=memory.address)

    def evaluate(self, model):
        return {}


@pytest.mark.parametrize(
    "initial", [0.1, pytest.param(5.0, marks=pytest.mark.slow), pytest.param(10.0, marks=pytest.mark.slow)]
)
def test_a_clip_norm_that_adapts_finds_its_place_in_a_federation(initial):
    chosen = dp.Pipeline(
        mechanism=(dp.AdaptiveClip(initial=initial, quantile=0.5, count_noise=1.0), dp.Gaussian(1.0)),
        sampling=dp.Poisson(0.5),
        unit="client",
        trust="server",
        feedback=False,
    )
    task = SimpleNamespace(name="norms", population=20)
    done = simulate(task, chosen, clients=40, rounds=100, trainer=FromFourToSix(), progress=False)
    norms = [row["clip_norm"] for row in done.rows]
    assert norms[0] == initial and 4.5 <= norms[-1] <= 5.5
    assert "clip_norm" not in done.probed
    assert done.guarantee.steps == 100
    fixed = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=chosen.sampling, unit="client", trust="server"
    )
    assert done.guarantee.epsilon == fixed.guarantee(100, 1e-5).epsilon
