"""Clients that train in other processes: the same run, charged where the ledger is, and no permit used twice."""

import pickle
from types import SimpleNamespace

import pytest
import torch

import dpcomp as dp
from dpcomp.core.errors import ConfigError
from dpcomp.lab.tasks import digits
from dpcomp.privacy.ledger.granted_ledger import GrantedLedger
from dpcomp.simulation import Clipping, Faults, Fixed, TopKOverlap, simulate
from dpcomp.simulation.simulate import check_simulation
from dpcomp.training import ParallelTrainer
from dpcomp.training.pytorch import PyTorch
from tests.simulation.own_trainer import LeastSquares
from tests.simulation.parallel_trainers import Assuming, Dying, Logged, Parallel
from tests.simulation.test_simulate import TERMS, facts, pipeline

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")  # runs this small may learn nothing

TASK = SimpleNamespace(name="a line", population=200)
COST = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0))).cost
PLACE = dp.Address(run=3, client=5, round=7)


def chosen(unit="example", trust="nobody"):
    return dp.Pipeline(
        sampling=dp.Poisson(0.5) if (unit, trust) != ("client", "nobody") else None,
        mechanism=(dp.Clip(3.0), dp.Gaussian(0.2)),
        codec=dp.Codec(sparsify=dp.TopK(0.5), quantize=dp.Uniform(8)),
        unit=unit,
        trust=trust,
    )


def run(trainer, pipeline=None, **given):
    arguments = {"clients": 5, "rounds": 3, "progress": False, **given}
    return simulate(TASK, chosen() if pipeline is None else pipeline, trainer=trainer, **arguments)


@pytest.mark.parametrize(
    ("unit", "trust", "faults"),
    [
        *((*terms, Faults()) for terms in TERMS),
        ("example", "nobody", Faults(drop=0.2, crash=0.2)),
        *(
            pytest.param("client", trust, Faults(drop=0.2, crash=0.2), marks=pytest.mark.slow)
            for trust in ("nobody", "server")
        ),
    ],
)
def test_a_seeded_run_is_the_same_in_one_process_and_in_two_more(unit, trust, faults):
    releases = 0 if trust == "server" else 1
    given = {"pipeline": chosen(unit, trust), "probes": (Clipping(), TopKOverlap(0.5)), "rounds": 5, "faults": faults}
    one, two = (run(Parallel(releases=releases), jobs=jobs, **given) for jobs in (1, 2))
    assert one.model.tobytes() == two.model.tobytes()
    assert facts(one) == facts(two)
    assert (one.guarantee, one.probed, one.warnings) == (two.guarantee, two.probed, two.warnings)


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "trust"), TERMS)
def test_a_run_of_pytorch_is_the_same_in_one_process_and_in_two_more(unit, trust):
    torch.set_num_threads(1)  # as each worker has
    given = {"clients": 5, "rounds": 3, "delta": 1e-4, "progress": False, "trainer": PyTorch(local_steps=2)}
    one, two = (simulate(digits(), pipeline(unit, trust), jobs=jobs, **given) for jobs in (1, 2))
    assert one.model.tobytes() == two.model.tobytes()
    assert facts(one) == facts(two)
    assert one.guarantee == two.guarantee


def test_each_worker_makes_its_trainer_once(tmp_path):
    run(Logged(tmp_path), jobs=2, rounds=6)
    made, trained = ((tmp_path / name).read_text().split() for name in ("made", "trained"))
    assert len(set(made)) == len(made) <= 3  # this process makes one too, which evaluates
    assert len(trained) == 30
    assert set(trained) <= set(made[1:])


def test_what_a_trainer_assumes_reaches_the_ledger_from_its_process():
    assert "the moon is public" in run(Assuming(), jobs=2).guarantee.assumptions


def test_fresh_noise_is_drawn_afresh_in_every_process():
    one, two = (run(Parallel(), jobs=2, secret=dp.SecretSeed(), participation=Fixed(2)) for _ in range(2))
    assert one.model.tobytes() != two.model.tobytes()
    assert not any("SEEDED" in assumption for assumption in one.guarantee.assumptions)


def test_a_worker_that_dies_is_an_error_and_the_next_run_is_whole():
    with pytest.raises(dp.DpcompError, match=r"worker process died .* what was charged stays charged"):
        run(Dying("dies"), jobs=2)
    assert run(Parallel(), jobs=2).model.tobytes() == run(Parallel()).model.tobytes()


@pytest.mark.slow
def test_an_interrupt_ends_the_run_and_the_next_one_is_whole():
    with pytest.raises(KeyboardInterrupt):
        run(Dying("interrupts"), jobs=2)
    assert run(Parallel(), jobs=2).model.tobytes() == run(Parallel()).model.tobytes()


class TestRefusals:
    def test_a_trainer_that_does_not_say_what_a_round_costs(self):
        assert not isinstance(LeastSquares(learning_rate=0.3), ParallelTrainer)
        with pytest.raises(TypeError, match=r"Add `releases` to the trainer"):
            run(LeastSquares(learning_rate=0.3), jobs=2)

    @pytest.mark.slow
    @pytest.mark.parametrize(("releases", "granted"), [(2, "2 steps .* was granted"), (0, "no charge was granted")])
    def test_a_trainer_that_says_another_cost_than_it_charges(self, releases, granted):
        with pytest.raises(dp.BudgetExhausted, match=rf"charges 1 steps .* but {granted}"):
            run(Parallel(releases=releases), jobs=2)

    def test_a_trainer_of_whole_cohorts(self):
        class Cohort(Parallel):
            def train_cohort(self, work):
                raise AssertionError

        with pytest.raises(ValueError, match="trains all clients of a round at once"):
            run(Cohort(), jobs=2)

    def test_a_secret_number_stays_in_its_process(self):
        with pytest.raises(dp.NotPrivate, match="stays in this process"):
            run(Parallel(), jobs=2, secret=dp.SecretSeed(7))

    @pytest.mark.parametrize("jobs", [0, -2, 1.5, True])
    def test_a_number_of_jobs_that_is_none(self, jobs):
        with pytest.raises((TypeError, ValueError), match="jobs"):
            run(Parallel(), jobs=jobs)

    def test_a_backend_that_there_is_not(self):
        with pytest.raises(ConfigError, match="backend"):
            check_simulation(TASK, chosen(), trainer=Parallel(), clients=2, rounds=1, jobs=2, backend="threads")


class TestGrants:
    def granted(self, steps=2):
        return dp.Ledger().charge(COST, PLACE, steps=steps).hand_over(seeded=False)

    def test_a_permit_that_was_handed_over_is_used_up(self):
        permit = dp.Ledger().charge(COST, PLACE, steps=2)
        permit.hand_over(seeded=False)
        assert permit.used == permit.steps
        with pytest.raises(dp.BudgetExhausted, match="used up"):
            permit.spend(COST, seeded=False)
        with pytest.raises(dp.BudgetExhausted, match="cannot be handed over"):
            permit.hand_over(seeded=False)

    def test_a_permit_of_which_a_step_was_used_is_not_handed_over(self):
        permit = dp.Ledger().charge(COST, PLACE, steps=2)
        permit.spend(COST, seeded=False)
        with pytest.raises(dp.BudgetExhausted, match="cannot be handed over"):
            permit.hand_over(seeded=False)

    def test_all_copies_of_a_grant_give_one_permit(self, tmp_path):
        grant = self.granted()
        copies = [pickle.loads(pickle.dumps(grant)) for _ in range(2)]
        permit = GrantedLedger(copies[0], tmp_path).charge(COST, PLACE, steps=2)
        assert [permit.spend(COST, seeded=True) for _ in range(2)] == [0, 1]
        with pytest.raises(dp.BudgetExhausted, match="used up"):
            permit.spend(COST, seeded=True)
        for copy in (grant, copies[1]):
            with pytest.raises(dp.BudgetExhausted, match="was used before"):
                GrantedLedger(copy, tmp_path).charge(COST, PLACE, steps=2)

    def test_a_grant_is_used_once_in_one_ledger_too(self, tmp_path):
        ledger = GrantedLedger(self.granted(), tmp_path)
        ledger.charge(COST, PLACE, steps=2)
        with pytest.raises(dp.BudgetExhausted):
            ledger.charge(COST, PLACE, steps=2)

    @pytest.mark.parametrize(
        ("cost", "place", "steps"),
        [
            (dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(0.9))).cost, PLACE, 2),
            (COST, dp.Address(run=3, client=5, round=8), 2),
            (COST, dp.Address(run=3, client=6, round=7), 2),
            (COST, PLACE, 1),
            (COST, PLACE, 3),
        ],
    )
    def test_a_grant_is_good_for_what_was_charged_alone(self, cost, place, steps, tmp_path):
        grant = self.granted()
        with pytest.raises(dp.BudgetExhausted, match="granted before the work was sent"):
            GrantedLedger(grant, tmp_path).charge(cost, place, steps=steps)
        GrantedLedger(grant, tmp_path).charge(COST, PLACE, steps=2)  # what was refused used nothing

    def test_seeded_noise_is_noted_in_the_ledger_that_was_charged(self, tmp_path):
        for seeded in (False, True):
            with dp.Ledger() as ledger:
                ledger.charge(COST, PLACE).hand_over(seeded=seeded)
                assert any("SEEDED" in clause for clause in ledger.guarantee(1e-5).assumptions) == seeded
        with dp.Ledger.create(tmp_path / "ledger.db") as ledger:
            permit = ledger.charge(COST, PLACE)
            with pytest.raises(dp.NotPrivate, match="with a number"):
                permit.hand_over(seeded=True)

    def test_a_ledger_without_a_grant_allows_nothing(self, tmp_path):
        with pytest.raises(dp.BudgetExhausted, match="no charge was granted"):
            GrantedLedger(None, tmp_path).charge(COST, PLACE)

    def test_a_ledger_gives_grants_for_its_own_permits_alone(self):
        permit = dp.Ledger().charge(COST, PLACE)
        permit._ledger = dp.Ledger()
        with pytest.raises(TypeError, match="did not give"):
            permit.hand_over(seeded=False)
