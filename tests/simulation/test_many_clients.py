"""Many clients on one machine: those at the same version share their state, and nothing that is computed shows it."""

import resource
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.layout import Layout
from dpcomp.federated import Cohort, Decay, Participant
from dpcomp.federated.phases import Phase
from dpcomp.federated.server.optimizers import ServerOptimizer
from dpcomp.simulation import Faults, Fixed, Versioned, simulate
from dpcomp.simulation.clients.residuals import Residuals
from dpcomp.simulation.evaluation_rounds import rounds_between
from dpcomp.simulation.simulated_federation import opened_federation
from dpcomp.training import CohortTrainer, CountsExamples, Federation
from dpcomp.training.pytorch import PyTorch
from dpcomp.wire.feedback import Kept
from dpcomp.wire.update import with_claim
from tests.simulation.own_trainer import LeastSquares
from tests.simulation.test_simulate import TERMS, Blobs, facts, pipeline

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")  # runs this small may learn nothing

CRASHES = Faults(crash=0.2, absence=0.2, absence_rounds=3)
PLAIN = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
RESTARTS = Faults(crash=0.2, absence=0.2, server_restart=0.4)
NETWORK = Faults(drop=0.2, corrupt=0.1, duplicate=0.1, reorder=0.2, crash=0.1, absence=0.1, absence_rounds=3)


class Alone(Participant):
    """A participant of another class: the simulation shares nothing with it."""


class EachAlone(Versioned):
    participant: ClassVar[type[Participant]] = Alone


class Made:
    """A trainer without costs: it moves from where it starts by a made-up vector, charged and called a release."""

    assumptions = ()

    def __init__(self, size=20):
        self.layout, self.initial_model = Layout.of(size), np.zeros(size, np.float32)
        self.values = np.random.default_rng(0).standard_normal(size).astype(np.float32)

    def make_trainer(self, federation):
        self.federation = federation
        return self

    def train(self, client, start, memory, ledger):
        pipeline, values = self.federation.pipeline, self.values * (1 + client) - 0.5 * start + memory.address.round
        made = dp.Update(values=values, layout=self.layout, address=memory.address, noise_stddev=1.0)
        if pipeline.trust == "server":
            return made
        ledger.charge(pipeline.cost, memory.address)
        return with_claim(made, pipeline.claim)

    def evaluate(self, model):
        return {"test_loss": float(np.abs(model).mean())}


class Counted(Made):
    """A trainer that says how many examples it trains and tests."""

    trained_examples, tested_examples = 7.5, 60


def made(chosen, trainer=None, **given):
    task = SimpleNamespace(name="made up", population=60)
    arguments = {"clients": 4, "rounds": 3, "trainer": Made() if trainer is None else trainer, "progress": False}
    return simulate(task, chosen, **(arguments | given))


@pytest.mark.parametrize(
    ("unit", "trust", "faults"),
    [(*terms, faults) for terms in TERMS for faults in (Faults(), CRASHES, NETWORK)]
    + [("client", "server", RESTARTS), ("example", "nobody", Faults(patience=1, retry=1))],
)
def test_a_run_is_the_same_bit_for_bit_where_each_client_has_its_own_state(unit, trust, faults):
    rate = None if unit == "example" else 0.5
    chosen = pipeline(unit, trust, rate=rate, downlink=dp.Codec(quantize=dp.Uniform(8)))
    given = {"clients": 6, "rounds": 8, "faults": faults, "server": ServerOptimizer(momentum=0.5, behind_feedback=True)}
    if unit == "example":
        given["participation"] = Fixed(3)
    sharing = made(chosen, protocol=Versioned(absence_policy=Decay(2.0)), **given)
    alone = made(chosen, protocol=EachAlone(absence_policy=Decay(2.0)), **given)
    assert sharing.model.tobytes() == alone.model.tobytes()
    assert facts(sharing) == facts(alone)
    assert sharing.guarantee == alone.guarantee


@pytest.mark.parametrize(
    "codec", [dp.Codec(predict=dp.LastBroadcast()), dp.Codec(quantize=dp.Uniform(dp.Waterfill(4, clients=3)))]
)
def test_a_codec_with_memory_of_its_own_gives_the_same_run_too(codec):
    chosen = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(0.5)),
        codec=codec,
        downlink=dp.Codec(),
        feedback=not codec.averaged_clients,
    )
    sharing, alone = (made(chosen, clients=3, rounds=5, protocol=protocol) for protocol in (Versioned(), EachAlone()))
    assert sharing.model.tobytes() == alone.model.tobytes()
    assert facts(sharing) == facts(alone)


def test_a_budget_of_memory_changes_no_bit():
    given = {"clients": 5, "rounds": 6, "participation": Fixed(2)}
    chosen = pipeline(rate=None)
    ample, none = made(chosen, **given), made(chosen, memory_budget=0, **given)
    assert ample.model.tobytes() == none.model.tobytes()
    assert facts(ample) == facts(none)


def opened(clients, chosen, trainer, **given):
    trainer.make_trainer(SimpleNamespace(pipeline=chosen))
    arguments = {
        "optimizer": ServerOptimizer(),
        "participation": None,
        "protocol": Versioned(),
        "faults": Faults(),
        "seed": dp.PublicSeed(0),
        "secret": dp.SecretSeed(0),
        "memory_budget": 2**20,
    }
    return opened_federation(chosen, trainer, clients=clients, **(arguments | given))


def test_clients_of_a_version_hold_the_same_arrays_and_those_that_did_not_take_part_hold_nothing():
    with opened(1000, PLAIN, Made(20), participation=Fixed(3)) as federation:
        assert federation.clients.apart == []
        for _ in range(3):
            federation.play_round()
            assert federation.clients.apart == []
        one, other = federation.clients[4].state, federation.clients[700].state
        assert federation.clients.apart == [4, 700]
        assert one.model is other.model
        assert one.memory.shared is other.memory.shared
        assert one.memory.residual is other.memory.residual
        assert one.model.tobytes() == federation.server.model.tobytes()
        assert one.memory.shared.digest == federation.server.memory.shared.digest
        assert (one.memory.client, other.memory.client) == (4, 700)
        assert one.session != other.session


def test_a_client_that_is_away_keeps_what_it_had_until_it_is_back():
    with opened(5, PLAIN, Made(20)) as federation:
        federation.play_round()
        before = federation.clients[2].state
        federation.clients.gather()
        federation.traffic.away.add(2)
        federation.play_round()
        federation.play_round()
        assert federation.clients.apart == [2]
        assert federation.clients[2].state.model is before.model
        assert federation.server.memory.shared.version == before.memory.shared.version + 2
        federation.traffic.away.discard(2)
        federation.traffic.restart(2)
        outcome = federation.play_round()
        assert len(outcome.payload_bytes) == 5
        assert federation.clients.apart == []
        assert federation.clients[2].state.model.tobytes() == federation.server.model.tobytes()
        assert federation.clients[2].state.memory.link.count == 2


def test_the_residual_of_a_client_waits_for_its_next_round():
    with opened(4, pipeline(), Made(20), memory_budget=2 * 4 * 20) as federation:
        federation.play_round()
        kept = [federation.clients[client].state.memory.residual for client in range(4)]
        assert all(np.abs(residual).max() > 0 for residual in kept)
        federation.clients.gather()
        again = [federation.clients[client].state.memory.residual for client in range(4)]
        for residual, after in zip(kept, again, strict=True):
            assert residual.tobytes() == after.tobytes()


def test_residuals_beyond_the_budget_are_in_a_file(tmp_path):
    residuals = Residuals(Kept(residual=np.zeros(10, np.float32)), 2 * 4 * 10 + 39, tmp_path)
    for number in range(5):
        residuals.keep(number, Kept(residual=np.full(10, number, np.float32)))
    assert (tmp_path / "residuals").stat().st_size == 3 * 4 * 10
    for number in (4, 0, 2):
        taken = residuals.take(number)
        assert taken.residual.tolist() == [number] * 10
        residuals.keep(number, Kept(residual=taken.residual + 100))
    assert residuals.take(3).residual.tolist() == [3.0] * 10
    assert [residuals.take(number).residual[0] for number in (4, 0, 2)] == [104, 100, 102]
    assert residuals.take(7) is None
    assert (tmp_path / "residuals").stat().st_size == 3 * 4 * 10


def test_momenta_are_beside_their_residuals_in_the_file(tmp_path):
    first = Kept(momentum=np.zeros(10, np.float32), sent=np.zeros(10, np.float32))
    residuals = Residuals(first, 2 * 4 * 10, tmp_path)
    for number in range(3):
        kept = Kept(momentum=np.full(10, number, np.float32), sent=np.full(10, -number, np.float32))
        residuals.keep(number, kept)
    assert (tmp_path / "residuals").stat().st_size == 2 * 2 * 4 * 10
    for number in (2, 0, 1):
        taken = residuals.take(number)
        assert list(taken.vectors) == ["momentum", "sent"]
        assert (taken.momentum.tolist(), taken.sent.tolist()) == ([number] * 10, [-number] * 10)


@pytest.mark.parametrize(
    ("feedback", "faults"),
    [
        *((dp.MomentumCorrection(), faults) for faults in (Faults(), CRASHES, NETWORK)),
        (dp.EF21(weight=0.3), NETWORK),
        *(pytest.param(dp.EF21(weight=0.3), faults, marks=pytest.mark.slow) for faults in (Faults(), CRASHES)),
    ],
)
def test_momentum_is_kept_the_same_in_memory_in_a_file_and_by_clients_of_their_own(feedback, faults):
    codec = dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(6))
    chosen = dp.Pipeline(mechanism=PLAIN.mechanism, codec=codec, downlink=dp.Codec(), feedback=feedback)
    given = {"clients": 5, "rounds": 8, "participation": Fixed(3), "faults": faults}
    policy = Decay(2.0)
    runs = [
        made(chosen, protocol=Versioned(absence_policy=policy), **given),
        made(chosen, protocol=Versioned(absence_policy=policy), memory_budget=0, **given),
        made(chosen, protocol=EachAlone(absence_policy=policy), **given),
    ]
    assert len({run.model.tobytes() for run in runs}) == 1
    assert facts(runs[0]) == facts(runs[1]) == facts(runs[2])


def test_a_hundred_thousand_clients_cost_what_takes_part():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with opened(100_000, pipeline(), Made(10_000), participation=Fixed(5)) as federation:
        outcomes = [federation.play_round() for _ in range(2)]
        assert [len(outcome.payload_bytes) for outcome in outcomes] == [5, 5]
        assert all(outcome.sent.downlink % 100_000 == 0 < outcome.sent.downlink for outcome in outcomes)
        assert outcomes[0].sent.control > 100_000 * 100 > outcomes[1].sent.control
        assert sum(sum(history.spent.values()) for history in federation.ledger._histories.values()) == 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB; of each its own: 4 GB


class TestFixed:
    def test_so_many_take_part_in_every_round(self):
        done = made(PLAIN, clients=9, rounds=6, participation=Fixed(4))
        assert [row["participants"] for row in done.rows] == [4] * 6

    def test_each_set_of_clients_is_as_likely_as_any_other(self):
        seed, counts = dp.PublicSeed(0), np.zeros(8)
        draws = [Fixed(3).draw(8, seed.stream("cohort", number)) for number in range(2000)]
        for drawn in draws:
            assert (np.diff(drawn) > 0).all()
            counts[drawn] += 1
        assert np.abs(counts / 2000 - 3 / 8).max() < 0.05
        assert len({tuple(drawn) for drawn in draws}) == 56

    def test_amplifies_nothing(self):
        done = made(PLAIN, clients=4, rounds=3, participation=Fixed(4))
        assert done.guarantee.epsilon == PLAIN.guarantee(3, 1e-5).epsilon

    @pytest.mark.parametrize("trust", ["nobody", "server"])
    def test_is_refused_where_the_draw_of_clients_is_charged(self, trust):
        with pytest.raises(dp.NotPrivate, match=r"participation=Fixed\(count=2\).*Poisson"):
            made(pipeline("client", trust), participation=Fixed(2))
        with pytest.raises(TypeError, match=r"give dp\.Poisson\(rate\)"):
            dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=Fixed(2), unit="client", trust=trust)

    def test_of_more_clients_than_there_are_is_refused(self):
        with pytest.raises(ValueError, match="give 4 at most"):
            made(PLAIN, clients=4, participation=Fixed(5))

    @pytest.mark.parametrize("count", [0, -1, 1.5, True])
    def test_of_no_whole_number_above_0_is_refused(self, count):
        with pytest.raises((TypeError, ValueError), match="Fixed"):
            Fixed(count)

    def test_another_value_is_no_participation(self):
        with pytest.raises(TypeError, match=r"participation=0\.5"):
            made(PLAIN, participation=0.5)

    def test_a_server_refuses_whom_it_did_not_draw(self):
        assert Cohort(sampling=Fixed(2)).draw(5, pipeline().init_server(3, dp.PublicSeed(1))).shape == (2,)


class Together(LeastSquares):
    """A trainer of all clients of a round at once."""

    def train_cohort(self, work):
        self.sizes = [*getattr(self, "sizes", []), len(work)]
        return [super(Together, self).train(each.client, each.start, each.memory, each.ledger) for each in work]

    def train(self, client, start, memory, ledger):
        raise AssertionError("the clients train together")


def test_a_trainer_of_cohorts_gets_all_clients_of_a_round():
    chosen = dp.Pipeline(sampling=dp.Poisson(0.5), mechanism=(dp.Clip(3.0), dp.Gaussian(0.2)))
    task, together = SimpleNamespace(name="a line", population=200), Together(learning_rate=0.3)
    given = {"clients": 6, "rounds": 4, "participation": Fixed(3), "progress": False}
    at_once = simulate(task, chosen, trainer=together, **given)
    one_by_one = simulate(task, chosen, trainer=LeastSquares(learning_rate=0.3), **given)
    assert isinstance(together, CohortTrainer)
    assert together.sizes == [3] * 4
    assert at_once.model.tobytes() == one_by_one.model.tobytes()


class TestEvaluation:
    def test_takes_about_a_twentieth_of_the_passes(self):
        # 3 clients × 30 examples, forward and backward: 270 passes a round; 45 passes for an evaluation.
        trainer = SimpleNamespace(trained_examples=30.0, tested_examples=45)
        between = rounds_between(trainer, clients=3)
        assert 45 / (45 + 270 * between) <= 0.05 < 45 / (45 + 270 * (between - 1))

    def test_happens_after_the_first_round_and_the_last_and_seldom_in_between(self):
        # 4 clients × 7.5 examples × 3 = 90 passes a round, 60 for an evaluation: every 13 rounds.
        assert evaluated_rounds(made(PLAIN, Counted(), rounds=30)) == [1, 13, 26, 30]

    def test_depends_on_how_many_clients_a_round_asks(self):
        assert evaluated_rounds(made(PLAIN, Counted(), rounds=30, participation=Fixed(2))) == [1, 26, 30]
        assert evaluated_rounds(made(pipeline("client"), Counted(), rounds=30)) == [1, 26, 30]  # Poisson(0.5)

    def test_is_as_often_as_asked(self):
        assert evaluated_rounds(made(PLAIN, Counted(), rounds=9, evaluate_every=4)) == [4, 8, 9]

    def test_of_a_trainer_that_does_not_count_its_examples_is_in_every_round(self):
        assert evaluated_rounds(made(PLAIN, rounds=4)) == [1, 2, 3, 4]

    @pytest.mark.parametrize(("unit", "trained"), [("example", 2 * 0.5 * 15), ("client", 2 * 0.2 * 15)])
    def test_counts_examples_by_public_numbers(self, unit, trained):
        federation = Federation(
            task=Blobs(),
            pipeline=pipeline(unit),
            clients=4,
            split=lambda labels: np.array_split(np.arange(len(labels)), 4),
            seed=dp.PublicSeed(0),
            secret=dp.SecretSeed(0),
        )
        trainer = PyTorch(local_steps=2, local_sampling=dp.Poisson(0.2)).make_trainer(federation)
        assert isinstance(trainer, CountsExamples)
        assert trainer.trained_examples == pytest.approx(trained)
        assert trainer.tested_examples == 60


def evaluated_rounds(run):
    return [row["round"] for row in run.rows if "test_loss" in row]


def test_the_phases_of_those_who_stand_together_are_synced():
    with opened(3, pipeline(), Made(20)) as federation:
        federation.play_round()
        assert federation.clients[1].state.phase is Phase.SYNCED
        assert federation.clients[1].may_train
