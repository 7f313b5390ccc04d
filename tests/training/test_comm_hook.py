"""The communication hook of DistributedDataParallel, in two processes."""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dpcomp as dp
from dpcomp.training.pytorch import comm_hook
from tests.training import two_processes


@pytest.mark.slow
def test_two_processes_train_with_payloads_as_with_an_all_reduce(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, two_processes.__file__, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    reports = []
    for process in started:
        printed, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        reports.append(json.loads(printed))
    for report in reports:
        assert report["lossless"]
        assert report["float16"]
        assert report["share"] < 0.06
        assert report["lost"] == pytest.approx(0, abs=1e-3)
        with_feedback, without = report["error"]
        assert with_feedback < 0.95 * without
        assert report["levels"] == 5
        assert report["finite"] == [True, True, False, True, True, True]
        assert "need the same codec" in report["other codec"]
    assert reports[0]["digest"] == reports[1]["digest"]
    assert reports[0]["after"] == reports[1]["after"]


def test_a_hook_is_refused_before_training():
    with pytest.raises(TypeError, match=r"comm_hook\(codec\)"):
        comm_hook("top")
    with pytest.raises(TypeError, match=r"comm_hook\(feedback\)"):
        comm_hook(dp.Codec(), feedback=None)
    with pytest.raises(ValueError, match="last broadcast"):
        comm_hook(dp.Codec(predict=dp.LastBroadcast()))


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


CODEC = dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(3, rounding=dp.Stochastic()))


def hooked(hook):
    model = DistributedDataParallel(two_processes.Linear())
    model.register_comm_hook(None, hook)
    return model


def gradient(model, step):
    model.zero_grad()
    model(*two_processes.inputs(0, step)).backward()
    return torch.cat([weight.grad.reshape(-1) for weight in model.parameters()])


def test_a_hook_that_was_saved_goes_on_bit_for_bit(one_process, tmp_path):
    hook, later, forgetful = comm_hook(CODEC), comm_hook(CODEC), comm_hook(CODEC)
    model, again, third = hooked(hook), hooked(later), hooked(forgetful)
    for step in range(3):
        gradient(model, step)
    torch.save(hook.state_dict(model), tmp_path / "hook.pt")
    state = torch.load(tmp_path / "hook.pt", weights_only=True)
    gradient(again, 7)  # after the first step of a model PyTorch arranges its buckets anew
    gradient(third, 7)
    later.load_state_dict(state, again.module)
    assert {name: tuple(tensor.shape) for name, tensor in state["residuals"].items()} == {
        name: tuple(parameter.shape) for name, parameter in model.module.named_parameters()
    }
    for step in range(3, 6):
        expected = gradient(model, step)
        assert torch.equal(gradient(again, step), expected)
        assert not torch.equal(gradient(third, step), expected)
    assert all(tensor.count_nonzero() for tensor in state["residuals"].values())  # which the steps left alone


def test_the_state_of_another_model_is_refused_and_changes_nothing(one_process):
    hook = comm_hook(CODEC)
    model = hooked(hook)
    gradient(model, 0)
    state = hook.state_dict(model)
    other = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="parameters that the model does not have"):
        hook.state_dict(other)
    spoilt = {name: tensor * torch.nan for name, tensor in state["residuals"].items()}
    for wrong, error, message in (
        ([], TypeError, "a state is a mapping, not list"),
        ({"counter": 1}, ValueError, r"the state has \['counter'\]"),
        (state | {"counter": -1}, ValueError, "the counter"),
        (state | {"residuals": [1]}, TypeError, "no mapping of names to tensors"),
        (state | {"residuals": spoilt}, ValueError, "residual 'weights.0'"),
        (state | {"residuals": {"bias": torch.zeros(2)}}, ValueError, "no such parameter"),
        (state | {"residuals": {"weights.1": torch.zeros(31)}}, ValueError, r"one of shape \(30,\)"),
    ):
        with pytest.raises(error, match=message):
            hook.load_state_dict(wrong, model)
    with pytest.raises(ValueError, match="feedback=False"):
        comm_hook(CODEC, feedback=False).load_state_dict(state, model)
    after = hook.state_dict(model)
    assert after["counter"] == state["counter"]
    assert all(torch.equal(after["residuals"][name], tensor) for name, tensor in state["residuals"].items())
