"""A run is saved and loaded whole, its model is one that plain PyTorch reads, and it begins where it is told to."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dpcomp as dp
from dpcomp.simulation import Callback, Run
from tests.simulation.test_many_clients import made
from tests.simulation.test_simulate import Blobs, facts, pipeline, run

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")


def a_run(**changes):
    fields = {
        "rows": ({"round": 1, "test_loss": float("nan"), "payload_bytes": 1 / 3}, {"round": 2, "refused_corrupt": 2}),
        "guarantee": pipeline().guarantee(2, 1e-5),
        "layout": dp.Layout.of({"0.weight": (2, 3), "scale": ()}),
        "model": np.arange(7, dtype=np.float32),
        "probed": ("seconds",),
        "warnings": ("a warning",),
        "stopped": "a reason",
    }
    return Run(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tail_model": np.ones(7, np.float32)},
        {"guarantee": replace(pipeline().guarantee(2, 1e-5), epsilon=float("inf"))},
        {"model": np.array([np.nan, np.inf, -np.inf, 0, 1, 2, 3], np.float32)},
    ],
)
def test_a_run_is_read_as_it_was_written(changes, tmp_path):
    one = a_run(**changes)
    one.save(tmp_path / "new")
    two = Run.load(tmp_path / "new")
    assert two.model.tobytes() == one.model.tobytes()
    assert (two.tail_model is None) == (one.tail_model is None)
    assert two.tail_model is None or two.tail_model.tobytes() == one.tail_model.tobytes()
    for name in ("guarantee", "layout", "probed", "warnings", "stopped"):
        assert getattr(two, name) == getattr(one, name)
    assert str(two.rows) == str(one.rows)
    assert json.loads((tmp_path / "new" / "run.json").read_text())["guarantee"]["text"] == str(one.guarantee)


def test_files_of_different_runs_and_damaged_ones_are_refused(tmp_path):
    a_run().save(tmp_path / "one")
    a_run(model=np.ones(7, np.float32)).save(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(dp.DpcompError, match="is not the model of"):
        Run.load(tmp_path / "one")
    with pytest.raises(dp.DpcompError, match="holds no run"):
        Run.load(tmp_path / "two")  # whose model is gone
    for text in ("{", '{"format": 2}', "[]", "{}"):
        (tmp_path / "one" / "run.json").write_text(text)
        with pytest.raises(dp.DpcompError):
            Run.load(tmp_path / "one")
    with pytest.raises(dp.DpcompError, match="holds no run"):
        Run.load(tmp_path / "nowhere")


def test_the_model_is_one_that_plain_pytorch_reads_and_that_a_module_takes(tmp_path):
    done, task = run(pipeline()), Blobs()
    done.save(tmp_path)
    plain, applied = task.model(7), task.model(8)
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    done.apply(applied)
    inputs, targets = task.test()
    for module in (plain, applied):
        with torch.no_grad():
            outputs = module(inputs)
        assert float((outputs.argmax(1) == targets).float().mean()) == pytest.approx(done.rows[-1]["test_accuracy"])
        assert float(task.loss(outputs, targets)) == pytest.approx(done.rows[-1]["test_loss"], rel=1e-5)


def test_a_module_of_another_shape_is_refused_by_name_and_stays_as_it_was():
    done = a_run(layout=dp.Layout.of({"weight": (2, 3), "bias": (1,)}))
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    with pytest.raises(ValueError, match=r"bias is \(2,\), and \(1,\) in the run"):
        done.apply(module)
    assert torch.equal(module.weight, before)
    module.running = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"running is \(2,\), and None"):
        a_run(layout=dp.Layout.of({"weight": (2, 3), "bias": (2,)})).apply(module)


def test_a_run_begins_with_the_model_that_it_is_given():
    first = np.linspace(-1, 1, 20, dtype=np.float32)
    seen = []

    class Noted(Callback):
        def start(self, run):
            seen.append(run.model.copy())

    done = made(pipeline(), initial_model=first, callbacks=[Noted()])
    assert seen[0].tobytes() == first.tobytes()
    other = made(pipeline())
    assert done.model.tobytes() != other.model.tobytes()
    assert "the first model was not made of this data" in done.guarantee.assumptions
    assert "the first model was not made of this data" not in other.guarantee.assumptions
    same = made(pipeline(), initial_model=np.zeros(20, np.float32))  # what the trainer begins with
    assert facts(same) == facts(other) and same.model.tobytes() == other.model.tobytes()


@pytest.mark.parametrize(
    ("model", "said"),
    [(np.zeros(19, np.float32), r"shape \(19,\)"), (np.full(20, np.nan, np.float32), "not finite")],
)
def test_a_first_model_that_does_not_fit_is_refused(model, said):
    with pytest.raises(ValueError, match=said):
        made(pipeline(), initial_model=model)
