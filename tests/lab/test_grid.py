import pytest

import dpcomp as dp
from dpcomp.core.errors import ConfigError
from dpcomp.lab.config.build import checked_points, make_arguments, make_pipeline
from dpcomp.lab.config.experiment import load
from dpcomp.lab.config.labels import folder_name, label, short_names
from dpcomp.lab.tasks import SHIPPED_TASKS

BASE = """
task = "digits"
delta = 1e-4

[federation]
clients = 3
rounds = 2
probes = [{ TopKOverlap = { fraction = 0.05 } }]

[pipeline]
sampling = { Poisson = { rate = 0.2 } }
mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]
codec = { Codec = { sparsify = { TopK = { fraction = 0.05 } }, quantize = { Uniform = { bits = 4 } } } }

[grid]
"""


@pytest.fixture
def of_grid(tmp_path):
    def found(grid, base=BASE):
        path = tmp_path / "some.toml"
        path.write_text(base + grid, encoding="utf-8")
        return checked_points(path, SHIPPED_TASKS)

    return found


def test_a_grid_is_the_product_of_its_axes_in_the_order_of_the_file(of_grid):
    found = of_grid(
        '"pipeline.codec.Codec.sparsify.TopK.fraction" = [0.1, 0.01]\n'
        '"federation.local_steps" = [1, 3]\n"federation.probes.TopKOverlap.fraction" = [0.5]'
    )
    assert [tuple(point.labels.values()) for point in found] == [
        *(("0.1", "1", "0.5"), ("0.1", "3", "0.5"), ("0.01", "1", "0.5"), ("0.01", "3", "0.5"))
    ]
    assert list(found[0].labels) == ["TopK.fraction", "local_steps", "TopKOverlap.fraction"]
    last = found[-1].experiment
    assert make_pipeline(last).codec == dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4))
    assert make_arguments(last)["trainer"].local_steps == 3
    assert found[-1].title == "TopK.fraction=0.01, local_steps=3, TopKOverlap.fraction=0.5"
    assert found[-1].name == "TopK.fraction=0.01,TopKOverlap.fraction=0.5,local_steps=3"


def test_absent_leaves_a_key_out_and_a_stage_of_a_list(of_grid):
    whole, bare = of_grid('"pipeline.codec.Codec.quantize" = [{ Uniform = { bits = 8 } }, { Absent = {} }]')
    assert (whole.labels, bare.labels) == ({"quantize": "Uniform(bits=8)"}, {"quantize": "absent"})
    assert make_pipeline(bare.experiment).codec == dp.Codec(sparsify=dp.TopK(0.05))
    clean, noisy = of_grid(
        '[grid.noise]\n"none" = { "pipeline.unsafe" = "a look", "pipeline.mechanism.Gaussian" = { Absent = {} } }\n'
        '"z = 2" = { "pipeline.mechanism.Gaussian.noise_multiplier" = 2.0 }'
    )
    assert make_pipeline(clean.experiment).mechanism == dp.unsafe("a look", dp.Clip(1.0))
    assert make_pipeline(noisy.experiment).mechanism == (dp.Clip(1.0), dp.Gaussian(2.0))
    assert (clean.title, noisy.title) == ("none", "z = 2")


def test_an_axis_of_ones_own_sets_paths_together(of_grid):
    dense, sparse = of_grid(
        '[grid.method]\n"dense" = { "pipeline.codec" = { Absent = {} }, "pipeline.feedback" = false }\n'
        '"top 1 %" = { "pipeline.codec.Codec.sparsify.TopK.fraction" = 0.01, "tune.learning_rate" = [1.0, 2.0] }'
    )
    assert make_pipeline(dense.experiment).codec == dp.Codec()
    assert (dense.experiment.tune, sparse.experiment.tune) == ({}, {"learning_rate": (1.0, 2.0)})
    assert make_pipeline(sparse.experiment).feedback


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ('"federation.local_step" = [1]', "the nearest is 'local_steps'"),
        ('"federatoin.local_steps" = [1]', "the nearest is 'federation'"),
        ('"pipeline.codec.Codec.sparsifi.TopK.fraction" = [0.1]', "the nearest is 'sparsify'"),
        ('"pipeline.codec.Codec.sparsify.TopK.fractoin" = [0.1]', "the nearest is 'fraction'"),
        ('"pipeline.mechanism.Gausian.noise_multiplier" = [1.0]', "the nearest is 'Gaussian'"),
        ('"pipeline.codec.Codec.sparsify" = [{ TopKay = { fraction = 0.1 } }]', "the nearest is 'TopK'"),
        ("epsilom = [1.0]", "the nearest is 'epsilon'"),
        ('"seeds" = [1]', "Known: delta, epsilon, federation, pipeline, task, tune"),
        ('"pipeline.codec.Codec.sparsify.RandomK.fraction" = [0.1]', r"is TopK\(fraction=0.05\), not RandomK: vary"),
        ("federation.local_steps = [1, 3]", 'by paths in quotes: "federation.local_steps"'),
        ('"federation.rounds.many" = [1]', "rounds is 2, and has no key 'many'"),
        ('"epsilon.low" = [1]', "a plain value"),
        ('"federation.probes.0" = [1]', "the nearest is 'TopKOverlap'"),
        ('"pipeline.codec.Codec.quantize.Uniform.bits.Equal.bits" = [4]', "bits is 4, and has no key 'Equal'"),
        ('"pipeline.codec.Codec.entropy" = [{ FixedWidth = { wide = 1 } }]', "takes no arguments: leave it out"),
        ('"federation.local_steps" = 3', "write a list of values"),
        ('"federation.local_steps" = []', "has no values"),
        ('"federation.local_steps" = [1, 1.0]', "stands there twice"),
        ('[grid.method]\n"dense" = false', "whose labels set paths"),
        ('"pipeline.mechanism" = [[{ Clip = { norm = 1.0 } }]]', "at mechanism=.Clip.norm=1.."),
    ],
)
def test_what_no_grid_can_mean_is_refused_with_its_place(of_grid, grid, said):
    with pytest.raises(ConfigError, match=said) as refused:
        of_grid(grid)
    assert "some.toml: " in str(refused.value)


def test_two_calls_of_a_name_in_a_list_are_varied_as_a_whole(of_grid):
    twice = BASE.replace("[{ Clip = { norm = 1.0 } }", "[{ Clip = { norm = 2.0 } }, { Clip = { norm = 1.0 } }")
    with pytest.raises(ConfigError, match=r"2 calls of Clip: vary pipeline\.mechanism as a whole"):
        of_grid('"pipeline.mechanism.Clip.norm" = [1.0]', twice)


def test_a_file_with_a_grid_is_no_single_experiment(of_grid, tmp_path):
    of_grid('"federation.local_steps" = [1]')
    with pytest.raises(ConfigError, match="dpcomp sweep"):
        load(tmp_path / "some.toml")


def test_labels_are_short_and_tell_values_apart():
    assert [label(value) for value in (True, 128.0, 1e-5, 0.123456789, "IID")] == [
        *("true", "128", "1e-05", "0.123456789", "IID")
    ]
    assert label({"Uniform": {"bits": {"Waterfill": {"bits": 4}}}}) == "Uniform(bits=Waterfill(bits=4))"
    assert label([{"Clip": {"norm": 1.0}}, {"Gaussian": {}}]) == "[Clip(norm=1), Gaussian()]"


def test_folders_are_safe_distinct_and_short():
    assert folder_name({}) == ""
    assert folder_name({"learning_rate": "128"}) == "learning_rate=128"
    assert folder_name({"b": "2", "a": "1"}) == folder_name({"a": "1", "b": "2"}) == "a=1,b=2"
    names = [folder_name({"a": text}) for text in ("x", "x ", "x/../y", "x=y", "x,y", "ä", "x" * 300, "x" * 301, "")]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) < 100
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._=,+-")
    assert folder_name({"a": "1,b=2", "c": "3"}) != folder_name({"a": "1", "b": "2,c=3"})


def test_axes_are_called_by_the_shortest_ending_that_is_theirs_alone():
    paths = ["pipeline.a.TopK.fraction", "pipeline.a.RandomK.fraction", "federation.rounds", "rounds"]
    assert list(short_names(paths).values()) == ["TopK.fraction", "RandomK.fraction", "federation.rounds", "rounds"]
