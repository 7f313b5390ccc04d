"""Which metric of a trial counts, what a config may call of a user's file, and what is said of its mistakes."""

import math
import os
import signal

import pytest

from dpcomp.core.errors import ConfigError
from dpcomp.lab.cli import main, make_parser, run_command
from dpcomp.lab.config.build import check_trials, checked_points, make_arguments
from dpcomp.lab.config.experiment import load
from dpcomp.lab.results.measure import Criterion, metric_of
from dpcomp.lab.sweep.comparison import compare, notes
from dpcomp.lab.sweep.plan import outcomes, standing_of
from dpcomp.lab.sweep.table import printed, table
from dpcomp.lab.tasks import SHIPPED_TASKS
from tests.lab.test_comparison import config_in, finished
from tests.lab.test_protocol import ROUNDS, TUNED, given

MINE = """
from dataclasses import dataclass

import numpy as np
import torch

from dpcomp.training.pytorch import PyTorch


@dataclass(frozen=True, kw_only=True)
class Signs:
    name: str = "signs"
    population: int = 60
    tested: bool = True

    def train(self):
        inputs = np.linspace(-1, 1, 60)[:, None]
        return inputs, (inputs[:, 0] > 0).astype(int)

    def validation(self):
        return self.train()

    def test(self):
        return self.train() if self.tested else None

    def client_ids(self):
        return np.arange(60) % 3

    def model(self, seed):
        return torch.nn.Linear(1, 2)

    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets)

    def metrics(self, outputs, targets):
        right = outputs.argmax(1) == targets
        return {"recall": right[targets == 1].float().mean(), "accuracy": right.float().mean()}


@dataclass(frozen=True, kw_only=True)
class Slow:
    learning_rate: float = 0.5
    local_steps: int = 5
    factor: float = 1.0

    def make_trainer(self, federation):
        rate = self.factor * self.learning_rate
        return PyTorch(learning_rate=rate, local_steps=self.local_steps).make_trainer(federation)


@dataclass(frozen=True)
class Thirds:
    def part(self, labels, clients, seed):
        return np.array_split(np.arange(len(labels)), clients)
"""
CONFIG = """
imports = ["mine.py"]
task = { Signs = {} }
metric = "recall"
direction = "higher"
delta = 1e-3

[federation]
clients = 3
rounds = 2

[pipeline]
sampling = { Poisson = { rate = 0.5 } }
mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]
"""


@pytest.fixture
def mine(tmp_path):
    """Return a function that writes a config beside the user's file, with some words replaced."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")

    def write(*replaced, name="some"):
        text = CONFIG
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        return config_in(tmp_path, name, text)

    return write


def checked(config):
    """Raise what a sweep would raise before its first trial."""
    points = checked_points(config, SHIPPED_TASKS)
    standing = standing_of(config, points)
    check_trials([(trial.name, trial.experiment, trial.seed) for trial in standing.first()], SHIPPED_TASKS)


class TestTheCriterion:
    @pytest.mark.parametrize(
        ("facts", "said"),
        [
            ({"metric": "auc"}, "without a direction"),
            ({"metric": "auc", "direction": "up"}, "direction = 'up'"),
            ({"metric": "loss", "direction": "higher"}, "leave the direction out"),
            ({"metric": "test_auc", "direction": "higher"}, "leave test_ out"),
            ({"metric": 3}, "the name of a metric"),
            ({"measure": "best"}, "'last_five'"),
            ({"tune_on": "train"}, "tune_on = 'train'"),
            ({"tuning_seeds": 0}, "tuning_seeds"),
            ({"tuning_seeds": 1.5}, "tuning_seeds"),
        ],
    )
    def test_is_said_in_full_or_known(self, facts, said):
        with pytest.raises(ConfigError, match=said):
            Criterion(**facts)

    def test_scores_what_is_not_finite_last(self):
        up, down = Criterion(), Criterion(metric="loss")
        assert up.score(0.9) > up.score(0.1) > up.score(math.nan) == up.score(math.inf)
        assert down.score(0.1) > down.score(0.9) > down.score(math.nan)

    def test_a_metric_of_a_model_that_diverged_is_nan(self):
        report = {"curves": {"test_auc": [0.9, 0.8, None], "tail_test_auc": [None, None, 0.7]}}
        assert metric_of(report, "auc") == 0.8  # nothing says that the last row was evaluated
        report["curves"]["test_loss"] = [1.0, 1.0, None]
        assert math.isnan(metric_of(report, "auc")) and math.isnan(metric_of(report, "auc", "last_five"))
        assert metric_of(report, "auc", "tail") == 0.7
        assert math.isnan(metric_of(report, "auc", examples="validation"))  # no such examples
        with pytest.raises(ConfigError, match="test_f1"):
            metric_of(report, "f1")


def curves_of(validation, test, **more):
    return (
        given(validation=[0.5] * ROUNDS)
        | {"validation_auc": [validation] * ROUNDS, "test_auc": [test] * ROUNDS}
        | {"validation_loss": [1.0] * ROUNDS, "test_loss": [1.0] * ROUNDS}
        | more
    )


class TestTheChoice:
    def config(self, tmp_path, said):
        config = config_in(tmp_path, "own", f"{said}\n{TUNED}")
        for rate, values in {1: (0.9, 0.2), 2: (0.1, 0.4), 4: (None, None)}.items():
            name = f"learning_rate={rate}/seed-0"
            finished(config, {name: [0.0] * ROUNDS}, curves=curves_of(*values))
        return config

    @pytest.mark.parametrize(
        ("said", "best", "value"),
        [
            ('metric = "auc"\ndirection = "higher"', 1, 0.2),
            ('metric = "auc"\ndirection = "lower"', 2, 0.4),
            ('metric = "auc"\ndirection = "higher"\ntune_on = "test"', 2, 0.4),
            ('metric = "auc"\ndirection = "lower"\ntune_on = "test"', 1, 0.2),
        ],
    )
    def test_is_made_by_the_declared_metric_and_set(self, tmp_path, said, best, value):
        config = self.config(tmp_path, said)
        (outcome,) = outcomes(config)
        assert outcome.tuning == f"learning_rate={best}"
        (row,) = table([outcome]).to_dict("records")
        assert (row["metric"], row["auc"], row["test_accuracy"]) == ("auc", pytest.approx(value), pytest.approx(0.1))
        assert "accuracy_percent" not in row
        assert f"{value:g}" in printed(table([outcome]))

    def test_is_made_by_the_mean_over_the_seeds_that_decide(self, tmp_path):
        text = f"tuning_seeds = 2\nseeds = [0, 1, 2]\n{TUNED}"
        config = config_in(tmp_path, "seeds", text)
        ends = {1: (0.9, 0.1), 2: (0.6, 0.6), 4: (0.5, None)}  # the best of the first seed, of both, and one to come
        for rate, values in ends.items():
            for seed, value in enumerate(values):
                if value is not None:
                    name = f"learning_rate={rate}/seed-{seed}"
                    finished(config, {name: [0.0] * ROUNDS}, curves=given(validation=[value] * ROUNDS))
        standing = standing_of(config)
        assert [trial.name for trial in standing.first()] == ["learning_rate=4/seed-1"]
        assert [trial.name for trial in standing.second()] == ["learning_rate=2/seed-2"]
        (outcome,) = standing.outcomes()
        assert (outcome.tuning, outcome.tried, len(outcome.reports)) == ("learning_rate=2", 2, 2)
        assert standing.expected() == 2 and not standing.edges()
        config.write_text(text.replace("tuning_seeds = 2", "tuning_seeds = 1"), encoding="utf-8")
        assert standing_of(config).outcomes()[0].tuning == "learning_rate=1"  # and no result is lost

    def test_takes_no_more_seeds_than_there_are(self, tmp_path):
        config = config_in(tmp_path, "seeds", f"tuning_seeds = 2\n{TUNED}")
        with pytest.raises(ConfigError, match="tuning_seeds = 2 beside 1 seeds"):
            standing_of(config)

    def test_on_the_test_set_is_noted_unless_the_config_says_so(self, tmp_path):
        config = config_in(tmp_path, "plain", TUNED.replace("{ digits = { validation = 100 } }", '"digits"'))
        for rate in (1, 2, 4):
            finished(config, {f"learning_rate={rate}/seed-0": [0.0] * ROUNDS}, curves=given())
        assert any("chosen on the test set" in line for line in notes([standing_of(config)]))
        config.write_text(f'tune_on = "test"\n{config.read_text()}', encoding="utf-8")
        assert not any("chosen on the test set" in line for line in notes([standing_of(config)]))

    def test_another_metric_leaves_the_results_as_they_are(self, tmp_path):
        config = self.config(tmp_path, 'metric = "auc"\ndirection = "higher"')
        config.write_text(TUNED, encoding="utf-8")
        assert len(standing_of(config).finished) == 3

    def test_rounds_behind_follow_the_direction(self, tmp_path):
        said = 'metric = "auc"\ndirection = "lower"\n'
        text = said + TUNED.replace("tune = { learning_rate = [1.0, 2.0, 4.0] }\n", "")
        for name, values in {"dense": [9, 6, 5, 4, 3, 2], "other": [9, 8, 7, 6, 6, 5]}.items():
            config = config_in(tmp_path, name, text)
            finished(config, {"seed-0": [0.0] * ROUNDS}, curves=curves_of(0, 0, test_auc=values))
        assert compare(tmp_path).set_index("method").loc["other", "rounds_behind"] == 3


class TestAFileOfOnesOwn:
    def test_gives_task_partition_and_trainer_and_is_swept(self, mine, capsys):
        config = mine(
            ("rounds = 2", "rounds = 2\npartition = { Thirds = {} }\ntrainer = { Slow = { factor = 0.5 } }"),
            ("[pipeline]", "[tune]\nlearning_rate = [0.5, 1.0]\n\n[pipeline]"),
        )
        assert main(["sweep", str(config)]) == 0
        printed = capsys.readouterr().out
        assert "recall" in printed and "test_accuracy" in printed
        (outcome,) = outcomes(config)
        assert outcome.tried == 2
        curves = outcome.reports[0]["curves"]
        assert {"test_recall", "test_accuracy", "validation_recall", "test_loss"} <= set(curves)
        assert outcome.reports[0]["guarantee"]["steps"] == 2  # local_steps is 1 where the file says nothing

    def test_a_trainer_gets_the_keys_of_the_federation(self, mine):
        config = mine(("rounds = 2", "rounds = 2\nlearning_rate = 0.25\nlocal_steps = 3\ntrainer = { Slow = {} }"))
        trainer = make_arguments(load(config))["trainer"]
        assert (type(trainer).__name__, trainer.learning_rate, trainer.local_steps) == ("Slow", 0.25, 3)

    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            ("trainer = { Slow = { local_steps = 3 } }", "write local_steps under"),
            ("momentum = 0.5\ntrainer = { Slow = {} }", "'momentum', which the trainer Slow does not take"),
            ("trainer = { Thirds = {} }", "the nearest is"),
            ("trainer = { Slow = { factr = 1.0 } }", "the nearest is 'factor'"),
            ("trainer = { Slow = 1.0 }", "arguments have names"),
            ('trainer = "Slow"', "write a call"),
        ],
    )
    def test_a_trainer_that_is_called_wrongly_is_refused(self, mine, lines, said):
        with pytest.raises(ConfigError, match=said):
            checked_points(mine(("rounds = 2", f"rounds = 2\n{lines}")), SHIPPED_TASKS)

    def test_epsilon_is_calibrated_only_for_a_trainer_that_says_its_releases(self, mine):
        blank = ("{ Gaussian = { noise_multiplier = 1.0 } }", "{ Gaussian = {} }")
        config = mine(blank, ("delta", "epsilon = 4.0\ndelta"), ("rounds = 2", "rounds = 2\ntrainer = { Slow = {} }"))
        checked(config)
        own = config.parent / "mine.py"
        one_more = MINE.replace("local_steps=self.local_steps)", "local_steps=self.local_steps + 1)")
        own.write_text(one_more, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"calibrated for 1 releases.*makes 2"):
            checked(config)

    def test_no_imports_refuses_to_run_it(self, mine, capsys):
        config = mine()
        assert main(["epsilon", str(config)]) == 0
        (config.parent / "mine.py").write_text("raise SystemExit('run')", encoding="utf-8")
        assert main(["epsilon", str(config), "--no-imports"]) == 1
        assert "--no-imports refuses them" in capsys.readouterr().err
        plain = mine(
            ('imports = ["mine.py"]', ""),
            ("{ Signs = {} }", '"digits"'),
            ('metric = "recall"', ""),
            ('direction = "higher"', ""),
            ("1e-3", "1e-4"),
        )
        assert main(["epsilon", str(plain), "--no-imports"]) == 0

    def test_says_which_class_is_no_dataclass(self, mine):
        config = mine()
        own = config.parent / "mine.py"
        own.write_text(
            MINE.replace("@dataclass(frozen=True, kw_only=True)\nclass Signs", "class Signs"), encoding="utf-8"
        )
        with pytest.raises(ConfigError, match=r"Signs in mine.py is no dataclass.*write @dataclass"):
            checked_points(config, SHIPPED_TASKS)

    def test_that_ends_the_process_is_refused(self, mine):
        config = mine()
        (config.parent / "mine.py").write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="can't be run: SystemExit: 3"):
            checked_points(config, SHIPPED_TASKS)

    def test_is_asked_for_its_public_ids(self, mine):
        config = mine(("rounds = 2", "rounds = 2\npartition = { ByClientId = {} }"))
        checked(config)
        with pytest.raises(ConfigError, match="say clients=3"):
            checked(mine(("rounds = 2", "rounds = 2\npartition = { ByClientId = {} }"), ("clients = 3", "clients = 2")))


class TestMistakes:
    @pytest.mark.parametrize(
        ("replaced", "said"),
        [
            (
                ('metric = "recall"', 'metric = "f1"'),
                r'"f1" is not measured on the task .signs.: it measures recall, accuracy, loss',
            ),
            (('"recall"\ndirection = "higher"', '"recall"'), "without a direction"),
            (("rounds = 2", 'rounds = "2"'), r"\[federation\] rounds is '2': give a whole number"),
            (("rounds = 2", "rounds = 0"), r"\[federation\] rounds is 0"),
            (("clients = 3", "clients = 3.0"), r"\[federation\] clients is 3.0"),
            (("rounds = 2", 'rounds = 2\nlearning_rate = "1"'), r"\[federation\] learning_rate is '1'"),
            (("rounds = 2", "rounds = 2\nlearning_rate = -1.0"), r"learning_rate is -1"),
            (("rounds = 2", "rounds = 2\nlearning_rate = nan"), r"learning_rate is nan"),
            (("rounds = 2", 'rounds = 2\npartition = "IID"'), r"partition = 'IID': write a call"),
            (("rounds = 2", "rounds = 2\nfaults = 0.1"), r"faults = 0.1: write a call"),
            (("rounds = 2", "rounds = 2\nparticipation = 0.5"), "participation = 0.5: write a call"),
            (
                ("rounds = 2", "rounds = 2\npartition = { Dirichlet = {} }"),
                r"Dirichlet has no 'concentration', which it needs",
            ),
            (
                ("rounds = 2", 'rounds = 2\npartition = { Dirichlet = { concentration = "a" } }'),
                r"concentration\) is 'a'",
            ),
            (("rounds = 2", 'rounds = 2\nfaults = { Faults = { drop = "a" } }'), r"Faults\(drop\) is 'a'"),
            (("delta = 1e-3", "delta = 2"), "delta = 2: give"),
            (("delta = 1e-3", 'delta = "1e-3"'), "delta is '1e-3'"),
            (("delta = 1e-3", 'delta = 1e-3\nepsilon = "8"'), "epsilon is '8'"),
            (("delta = 1e-3", "delta = 1e-3\nepsilon = inf"), "epsilon = inf"),
            (("delta = 1e-3", "delta = 1e-3\nseeds = [-1]"), "`seeds` is -1"),
            (("delta = 1e-3", 'delta = 1e-3\nseeds = ["a"]'), "`seeds` is 'a'"),
            (("delta = 1e-3", "delta = 1e-3\ntune = 3"), "tune = 3: write a table"),
            (("{ Signs = {} }", "3"), "task = 3: give a name"),
            (("{ Signs = {} }", "{ Signs = { tested = 1, sized = 2 } }"), "Signs has 'sized'"),
            (("{ Signs = {} }", "{ Thirds = {} }"), "is no task"),
            (('["mine.py"]', "[3]"), "imports has 3"),
            (('direction = "higher"', 'direction = "higher"\ntune_on = "training"'), "tune_on = 'training'"),
        ],
    )
    def test_are_named_before_the_first_trial(self, mine, replaced, said, capsys):
        config = mine(replaced)
        assert main(["sweep", str(config)]) == 1
        error = capsys.readouterr().err
        assert "some.toml" in error and "Traceback" not in error
        with pytest.raises(ConfigError, match=said):
            checked(config)
        assert not config.with_suffix(".running").exists()

    def test_examples_to_tune_on_must_be_there(self, tmp_path):
        text = f'tune_on = "validation"\n{TUNED}'.replace("{ digits = { validation = 100 } }", '"digits"')
        with pytest.raises(ConfigError, match=r'tune_on = "validation", and the task .digits. has no such examples'):
            checked(config_in(tmp_path, "some", text))

    def test_a_trial_without_a_test_set_has_no_value_in_tables(self, mine):
        config = mine(("{ Signs = {} }", "{ Signs = { tested = false } }"))
        assert main(["sweep", str(config)]) == 0
        (row,) = table(outcomes(config)).to_dict("records")
        assert math.isnan(row["recall"]) and row["seeds"] == 1


def test_a_command_that_is_asked_to_end_ends_like_an_interrupted_one(capsys):
    parser, commands = make_parser("dpcomp", lambda: SHIPPED_TASKS)
    folded = []

    def waits(options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not stop what is folded in
            folded.append(True)

    before = signal.getsignal(signal.SIGTERM)
    commands.add_parser("wait").set_defaults(command=waits)
    assert run_command(parser, ["wait"]) == 143
    assert folded and "SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
