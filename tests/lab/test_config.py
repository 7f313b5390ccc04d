import inspect

import pytest

import dpcomp as dp
from dpcomp.core.errors import ConfigError
from dpcomp.federated.server.optimizers import ServerAdam, ServerOptimizer
from dpcomp.lab.cli import main
from dpcomp.lab.config.build import checked_points, make_arguments, make_pipeline, simulation_arguments
from dpcomp.lab.config.calls import CALLS
from dpcomp.lab.config.experiment import load
from dpcomp.lab.config.federation_keys import FEDERATION_KEYS
from dpcomp.lab.tasks import SHIPPED_TASKS
from dpcomp.simulation import Dirichlet, Faults, simulate
from dpcomp.simulation.network.unversioned import Unversioned
from dpcomp.simulation.probes import TopKOverlap
from dpcomp.training.schedule import Cosine

TEXT = """
task = "digits"
epsilon = 8.0
delta = 1e-4
seeds = [3, 4]

[federation]
clients = 5
rounds = 20
local_steps = 2
participation = { Poisson = { rate = 0.5 } }
probes = [{ TopKOverlap = { fraction = 0.01 } }]

[tune]
learning_rate = [0.5, 1.0]

[pipeline]
sampling = { Poisson = { rate = 0.25 } }
mechanism = [{ RandomK = { fraction = 0.1 } }, { Clip = { norm = 1.0 } }, { Gaussian = {} }]
codec = { Codec = { quantize = { Uniform = { bits = { Equal = { bits = 4 } } } }, entropy = { FixedWidth = {} } } }
"""


def config(tmp_path, text):
    path = tmp_path / "some.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_the_calls_that_python_would_make(tmp_path):
    experiment = load(config(tmp_path, TEXT))
    assert experiment.seeds == (3, 4)
    assert experiment.steps == 40
    assert make_arguments(experiment)["participation"] == dp.Poisson(0.5)
    assert make_arguments(experiment)["probes"] == (TopKOverlap(0.01),)
    pipeline = make_pipeline(experiment)
    assert pipeline.codec == dp.Codec(quantize=dp.Uniform(dp.Equal(4)), entropy=dp.FixedWidth())
    assert {call.__name__ for call in (dp.Sign, dp.Rotated, dp.Waterfill, dp.LastBroadcast)} <= set(CALLS)
    assert pipeline.stages[:2] == (dp.RandomK(0.1), dp.Clip(1.0))
    assert 0.995 * 8 <= pipeline.guarantee(experiment.steps, 1e-4).epsilon <= 8


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("rounds = 20", "roundz = 20", "'rounds'"),
        ("fraction = 0.1 ", "fractoin = 0.1 ", "'fraction'"),
        ("{ RandomK =", "{ RandonK =", "'RandomK'"),
        ('task = "digits"', 'task = "digit"', "'digits'"),
        ("epsilon = 8.0", "epsilom = 8.0", "'epsilon'"),
        ("codec =", "codek =", "'codec'"),
        ("learning_rate = [", "learning_rat = [", "'learning_rate'"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path, right, wrong, named):
    assert right in TEXT
    with pytest.raises(ConfigError, match=f"the nearest is {named}"):
        checked_points(config(tmp_path, TEXT.replace(right, wrong)), SHIPPED_TASKS)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("rounds = 20", "", "no 'rounds'"),
        ("epsilon = 8.0", "", "give a budget"),
        ("{ Gaussian = {} }", "{ Gaussian = { noise_multiplier = 1.0 } }", "give a budget"),
        ("norm = 1.0", "norm = -1.0", "finite number above 0"),
        ("seeds = [3, 4]", "seeds = []", "one seed"),
        ("[pipeline]", "[pipeline", "is not TOML"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_file_or_place(tmp_path, right, wrong, said):
    with pytest.raises(ConfigError, match=said):
        checked_points(config(tmp_path, TEXT.replace(right, wrong)), SHIPPED_TASKS)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.toml")


def test_an_unsafe_pipeline_says_why_in_the_file(tmp_path):
    text = (
        TEXT.replace("epsilon = 8.0", "")
        .replace(", { Gaussian = {} }", "")
        .replace("[pipeline]", "[pipeline]\nunsafe = 'a look'")
    )
    pipeline = make_pipeline(load(config(tmp_path, text)))
    assert pipeline.mechanism == dp.unsafe("a look", dp.RandomK(0.1), dp.Clip(1.0))


def test_a_device_and_a_schedule_are_arguments_like_others(tmp_path):
    rate = "learning_rate = { Cosine = { peak = 0.2, rounds = 20, warm_up = 2 } }"
    text = TEXT.replace("rounds = 20\n", f'rounds = 20\ndevice = "cuda"\n{rate}\n', 1).replace(
        "[tune]\nlearning_rate = [0.5, 1.0]", ""
    )
    trainer = make_arguments(load(config(tmp_path, text)))["trainer"]
    assert trainer.device == "cuda"
    assert trainer.learning_rate == Cosine(peak=0.2, rounds=20, warm_up=2)


VALUES = {  # no value is a default's, and no two of one type are equal
    "clients": 7,
    "rounds": 11,
    "partition": Dirichlet(0.3),
    "participation": dp.Poisson(0.5),
    "evaluate_every": 13,
    "tail": 0.625,
    "protocol": Unversioned(),
    "faults": Faults(drop=0.1),
    "probes": (TopKOverlap(0.01),),
    "local_steps": 3,
    "learning_rate": 0.25,
    "momentum": 0.125,
    "proximal": 0.0625,
    "expected_batch_size": 17.0,
    "local_sampling": dp.Poisson(0.4),
    "physical_batch_size": 19,
    "device": "cuda",
    "server_learning_rate": 0.75,
    "server_momentum": 0.375,
    "server_momentum_behind_feedback": True,
}


def test_a_key_that_only_permits_is_no_part_of_what_results_hold(tmp_path):
    plain = load(config(tmp_path, TEXT.replace("rounds = 20\n", "rounds = 20\nserver_momentum = 0.9\n", 1)))
    permitted = "rounds = 20\nserver_momentum = 0.9\nserver_momentum_behind_feedback = true\n"
    asked = load(config(tmp_path, TEXT.replace("rounds = 20\n", permitted, 1)))
    assert asked.settings == plain.settings
    assert make_arguments(asked)["server"] == ServerOptimizer(momentum=0.9, behind_feedback=True)
    assert asked.settings["federation"]["server_momentum"] == 0.9


def test_every_key_of_a_federation_goes_where_it_is_known():
    # a trainer is called with the arguments that are its own, and a server with those of its rule
    assert {*VALUES, "trainer", "server"} == FEDERATION_KEYS.keys()
    arguments = simulation_arguments(VALUES)
    assert set(arguments) <= set(inspect.signature(simulate).parameters)
    arrived = vars(arguments.pop("trainer")) | arguments
    server = arguments.pop("server")
    assert isinstance(server, ServerOptimizer)
    arrived |= {key: getattr(server, name) for key, (owner, name) in FEDERATION_KEYS.items() if owner == "server"}
    assert {key: arrived[key] for key in VALUES} == VALUES


def test_the_servers_optimiser_is_a_value_or_made_of_its_numbers_and_not_both(tmp_path):
    call = "rounds = 20\nserver = { ServerAdam = { learning_rate = 0.03 } }\n"
    adam = load(config(tmp_path, TEXT.replace("rounds = 20\n", call, 1)))
    assert make_arguments(adam)["server"] == ServerAdam(learning_rate=0.03)
    both = load(config(tmp_path, TEXT.replace("rounds = 20\n", f"{call}server_momentum = 0.9\n", 1)))
    with pytest.raises(dp.ConfigError, match="server beside server_momentum"):
        make_arguments(both)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("learning_rate = [0.5, 1.0]", "learning_rate = []", r"\[tune\] learning_rate = \[\]: give the values to try"),
        ("task =", "# task =", r"it has no task: write task = "),
    ],
)
def test_what_is_left_empty_is_said_with_what_to_write(tmp_path, before, after, said):
    assert before in TEXT
    with pytest.raises(ConfigError, match=said):
        load(config(tmp_path, TEXT.replace(before, after)))


@pytest.mark.parametrize("participation", [True, False])
def test_the_epsilon_of_a_config_says_whose_it_is_where_not_all_are_asked(tmp_path, capsys, participation):
    text = TEXT if participation else TEXT.replace("participation = { Poisson = { rate = 0.5 } }\n", "")
    assert main(["epsilon", str(config(tmp_path, text))]) == 0
    assert ("a client that is asked in every round" in capsys.readouterr().err) is participation
