"""A simulation that was ended at any moment goes on from its folder as if nothing had happened, or refuses to."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated import ServerAdam, ServerOptimizer, Weigh
from dpcomp.privacy.ledger.ledger_copy import copy_of_ledger, ledger_of_copy
from dpcomp.simulation import Callback, Clipping, Dirichlet, Faults, Fixed, Unversioned
from dpcomp.simulation.saving import run_folder, settings
from dpcomp.simulation.saving.settings import described, differences
from dpcomp.training.pytorch import PyTorch
from dpcomp.wire import exchange
from tests.simulation.test_many_clients import made
from tests.simulation.test_simulate import Blobs, facts, pipeline, run

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")
ROUNDS = 7
NOISE = (dp.Clip(1.0), dp.Gaussian(1.0))
TOP = dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4))
TRUSTED = {"unit": "client", "trust": "server"}


class Killed(Exception):
    """What ends a run in the middle; a process that is killed runs no more of our code than this leaves out."""


class EndAfter(Callback):
    def __init__(self, rounds):
        self.rounds = rounds

    def round(self, run):
        if len(run.rows) == self.rounds:
            raise Killed


@pytest.fixture
def payloads(monkeypatch):
    """All payloads of clients and the server, in order."""
    sent, send, broadcast = [], exchange.send, exchange.broadcast
    monkeypatch.setattr(exchange, "send", lambda *given: _noted(sent, send(*given)))
    monkeypatch.setattr(exchange, "broadcast", lambda *given: _noted(sent, broadcast(*given)))
    return sent


def _noted(sent, made):
    sent.append(bytes(made[0].message))
    return made


KINDS = {
    "top-k": (pipeline(), {}),
    "one client": (pipeline(), {"clients": 1}),
    "asked for three": (pipeline(rate=None), {"participation": Fixed(2), "memory_budget": 0}),
    "own noise of a client": (pipeline("client"), {"server": ServerOptimizer(momentum=0.5, behind_feedback=True)}),
    "trusted server": (pipeline(**TRUSTED), {"server": ServerAdam(behind_feedback=True), "tail": 0.5}),
    "norm that adapts": (
        dp.Pipeline(mechanism=(dp.AdaptiveClip(initial=0.1), dp.Gaussian(1.0)), codec=TOP, **TRUSTED),
        {},
    ),
    "mask first": (pipeline(order="mask first"), {"partition": Dirichlet(0.5), "probes": (Clipping(),)}),
    "momentum": (dp.Pipeline(mechanism=NOISE, codec=TOP, feedback=dp.MomentumCorrection(momentum=0.5)), {}),
    "differences": (dp.Pipeline(mechanism=NOISE, codec=TOP, feedback=dp.EF21(weight=0.5)), {"memory_budget": 400}),
    "predicted": (dp.Pipeline(mechanism=NOISE, codec=dp.Codec(predict=dp.LastBroadcast())), {}),
    "from history": (dp.Pipeline(mechanism=(dp.HistoryK(0.3), *NOISE), codec=dp.Codec(quantize=dp.Uniform(4))), {}),
    "noise of the codec": (
        dp.Pipeline(
            mechanism=NOISE,
            codec=dp.Codec(quantize=dp.ExactGaussian(cohort=4)),
            downlink=dp.Codec(),
            feedback=False,
            **TRUSTED,
        ),
        {},
    ),
}


FAST = ("top-k", "asked for three", "trusted server", "norm that adapts")


@pytest.mark.parametrize(
    ("kind", "simulated"),
    [(kind, made) for kind in FAST] + [pytest.param(kind, run, marks=pytest.mark.slow) for kind in KINDS],
)
def test_a_run_that_was_killed_goes_on_bit_for_bit(kind, simulated, tmp_path, payloads):
    chosen, given = KINDS[kind]
    whole = simulated(chosen, rounds=ROUNDS, **given)
    of_whole = payloads.copy()
    with pytest.raises(Killed):
        simulated(chosen, rounds=ROUNDS, folder=tmp_path, save_every=2, callbacks=[EndAfter(5)], **given)
    del payloads[:]
    again = simulated(chosen, rounds=ROUNDS, folder=tmp_path, save_every=2, **given)
    assert [row["round"] for row in again.rows] == list(range(1, ROUNDS + 1))
    assert facts(again) == facts(whole)
    assert again.model.tobytes() == whole.model.tobytes()
    assert (again.tail_model is None) == (whole.tail_model is None)
    assert again.tail_model is None or again.tail_model.tobytes() == whole.tail_model.tobytes()
    assert again.guarantee == whole.guarantee
    assert again.probed == whole.probed
    assert payloads and payloads == of_whole[-len(payloads) :]
    charged = dp.Ledger.read(tmp_path / f"round-{ROUNDS:06d}" / "ledger.db")
    assert charged.guarantee(1e-5).epsilon == whole.guarantee.epsilon
    addresses = [entry.address for entry in charged.entries]
    assert len(set(addresses)) == len(addresses)


def test_a_run_that_has_ended_is_returned_and_trains_nothing(tmp_path, payloads):
    done = made(pipeline(**TRUSTED), folder=tmp_path, tail=0.5)
    del payloads[:]
    again = made(pipeline(**TRUSTED), folder=tmp_path, tail=0.5)
    assert not payloads
    assert again.rows == done.rows  # the seconds too
    assert again.model.tobytes() == done.model.tobytes() and again.guarantee == done.guarantee


def test_what_decides_nothing_may_change(tmp_path):
    with pytest.raises(Killed):
        made(pipeline(), folder=tmp_path, save_every=1, callbacks=[EndAfter(1)])
    again = made(pipeline(), folder=tmp_path, save_every=3, memory_budget=0, callbacks=[Callback()])
    assert facts(again) == facts(made(pipeline()))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"rounds": 4}, "rounds was 3 and is 4"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"chosen": pipeline(noise=2.0)}, r"noise_multiplier was 1.0 and is 2.0"),
        ({"delta": 1e-6}, "delta was 1e-05 and is 1e-06"),
        ({"server": ServerAdam(behind_feedback=True)}, "server was"),
        ({"secret": dp.SecretSeed(5)}, "secret was"),
        ({"initial_model": np.full(20, 0.25, np.float32)}, "first_model was"),
        ({"partition": Dirichlet(0.5)}, "partition was"),
    ],
)
def test_another_call_is_refused_by_its_difference(other, said, tmp_path):
    before = made(pipeline(), folder=tmp_path)
    given = {"chosen": pipeline(), "folder": tmp_path, **other}
    with pytest.raises(dp.DpcompError, match=said):
        made(given.pop("chosen"), **given)
    assert made(pipeline(), folder=tmp_path).rows == before.rows


def test_another_version_of_what_computes_is_refused(tmp_path, monkeypatch):
    made(pipeline(), folder=tmp_path)
    monkeypatch.setattr(
        sys.modules["dpcomp.simulation.simulate"], "versions", lambda: settings.versions() | {"numpy": "1"}
    )
    with pytest.raises(dp.DpcompError, match=rf"versions.numpy was {np.__version__} and is 1"):
        made(pipeline(), folder=tmp_path)


def killed(*_, **__):
    raise Killed


STEPS = [
    (run_folder.SimulatedClients, "write_kept", killed),
    (run_folder.checkpoint, "save", killed),
    (run_folder, "copy_of_ledger", killed),
    (run_folder, "sync", killed),
    (run_folder, "put_in_place", killed),
    (run_folder, "shutil", SimpleNamespace(rmtree=killed)),
]


@pytest.mark.parametrize(("owner", "name", "ends"), STEPS, ids=[step[1] for step in STEPS])
def test_whatever_moment_of_a_save_a_process_ends_at_a_whole_state_is_read(owner, name, ends, tmp_path, monkeypatch):
    whole = made(pipeline(), rounds=3)
    with pytest.raises(Killed):
        made(pipeline(), rounds=3, folder=tmp_path, save_every=1, callbacks=[EndAfter(2)])
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, ends)
        with pytest.raises(Killed):
            made(pipeline(), rounds=3, folder=tmp_path, save_every=1)
    left = sorted(place.name for place in tmp_path.iterdir())
    assert left != ["lock", "round-000001", "settings.json"]  # the save had begun
    assert facts(made(pipeline(), rounds=3, folder=tmp_path, save_every=1)) == facts(whole)
    states = [place.name for place in tmp_path.iterdir() if "round" in place.name and "part" not in place.name]
    assert states == ["round-000003"] or (name == "shutil" and len(states) == 2)


def test_a_state_that_is_in_place_is_saved_whatever_cannot_be_deleted(tmp_path, monkeypatch):
    def damaged(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "shutil", SimpleNamespace(rmtree=damaged))
        with pytest.warns(UserWarning, match="round-000001 can't be deleted"):
            made(pipeline(), rounds=2, folder=tmp_path, save_every=1)
    assert len(list(tmp_path.glob("round-*"))) == 2


@pytest.mark.parametrize("name", ["state.json", "ledger.db", "residuals", "server/0000000000.safetensors"])
@pytest.mark.parametrize("damage", ["flip", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_damaged_state_is_refused(name, damage, tmp_path):
    made(pipeline(), folder=tmp_path)
    (state,) = tmp_path.glob("round-*")
    content = bytearray((state / name).read_bytes())
    content[len(content) // 2] ^= 1
    (state / name).write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(dp.DpcompError, match=r"damaged|whole"):
        made(pipeline(), folder=tmp_path)


def test_a_folder_without_its_settings_is_refused(tmp_path):
    made(pipeline(), folder=tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(dp.DpcompError, match=r"no settings\.json"):
        made(pipeline(), folder=tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(dp.DpcompError, match="damaged"):
        made(pipeline(), folder=tmp_path)


def test_a_folder_in_use_is_refused(tmp_path):
    class Twice(Callback):
        def round(self, done):
            with pytest.raises(dp.DpcompError, match="in use"):
                made(pipeline(), folder=tmp_path)

    made(pipeline(), rounds=1, folder=tmp_path, callbacks=[Twice()])


@pytest.mark.parametrize(
    ("chosen", "given", "said"),
    [
        (pipeline(), {"secret": dp.SecretSeed()}, "released twice"),
        (pipeline(), {"faults": Faults(drop=0.1)}, "under way"),
        (pipeline(), {"protocol": Unversioned()}, "Unversioned"),
        (
            dp.Pipeline(
                mechanism=NOISE, codec=dp.Codec(quantize=dp.Uniform(dp.Waterfill(4, clients=4))), feedback=False
            ),
            {},
            "clients= of the allocator",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(chosen, given, said, tmp_path):
    with pytest.raises((dp.NotPrivate, ValueError), match=said):
        made(chosen, folder=tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_a_copy_of_a_ledger_holds_all_of_it_and_a_durable_one_is_not_copied(tmp_path):
    chosen, ledger = pipeline(), dp.Ledger()
    for number in range(3):
        ledger.charge(chosen.cost, dp.Address(run=0, client=7, round=number), steps=2)
    copy = copy_of_ledger(ledger)
    again = ledger_of_copy(copy, "copy")
    assert again.mark == ledger.mark and again.guarantee(1e-5) == ledger.guarantee(1e-5)
    assert again.most_steps == 2
    with pytest.raises(dp.BudgetExhausted):
        again.charge(chosen.cost, dp.Address(run=0, client=7, round=2))
    with pytest.raises(dp.DpcompError, match="no copy of a ledger"):
        ledger_of_copy(b"nonsense", "nonsense")
    with pytest.raises(dp.DpcompError, match="no copy of a ledger"):
        ledger_of_copy(copy[:-5000] + bytes(5000), "zeros")
    with dp.Ledger.create(tmp_path / "ledger.db") as durable, pytest.raises(dp.NotPrivate):
        copy_of_ledger(durable)


def test_values_are_described_alike_in_every_process_and_tell_data_apart():
    task = replace(Blobs(), broken=0.5)
    assert described(task) != described(Blobs())
    assert "0x" not in json.dumps(described((Blobs(), PyTorch(), object(), made, test_a_folder_in_use_is_refused)))
    used = Blobs()
    used.model(0)  # which the task keeps
    assert described(used) == described(Blobs())
    one, other = np.arange(4.0), np.array([0.0, 1.0, 2.0, 3.0 + 1e-9])
    assert described(one) == described(one.copy()) != described(other)
    assert described(np.zeros((2, 3))) != described(np.zeros((3, 2)))
    assert differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3]}) == "b[1] was 2 and is 3"
    one, other = described({"trainer": PyTorch()}), described({"trainer": PyTorch(learning_rate=0.25)})
    assert differences(one, other) == "trainer.PyTorch.learning_rate was 0.5 and is 0.25"
    assert differences({"a": 1}, {"a": 1.0})  # another type is another call
    assert not differences({"a": {"b": None}}, {"a": {"b": None}})


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (dp.Pipeline(mechanism=NOISE), "dpcomp.pipeline.Pipeline"),
        (ServerAdam(), "dpcomp.federated.server_optimizers.ServerAdam"),
        (Fixed(3), "dpcomp.federated.cohort.Fixed"),
        (Weigh(max_age=1), "dpcomp.federated.late.Weigh"),
    ],
)
def test_a_folder_names_a_class_that_was_moved_as_folders_always_have(value, name):
    assert [*described(value)] == [name]


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.simulation.test_simulate import pipeline, run
done = run(pipeline(), rounds=40, folder=sys.argv[1], save_every=1)
Path(sys.argv[2]).write_bytes(done.model.tobytes() + str(done.guarantee).encode())
"""


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments_changes_nothing(tmp_path):
    whole = run(pipeline(), rounds=40)
    folder, result, draw = tmp_path / "run", tmp_path / "result", random.Random(3)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "ignore"}
    for kills in range(4):
        before = sorted(folder.glob("round-*"))
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(result)], env=environment)
        while kills < 3 and process.poll() is None and sorted(folder.glob("round-*")) == before:
            time.sleep(0.001)  # until it has saved a state of its own
        if kills < 3:
            time.sleep(0.2 * draw.random())
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            assert not result.exists()
        assert kills < 3 or process.wait() == 0
    assert result.read_bytes() == whole.model.tobytes() + str(whole.guarantee).encode()
    shutil.rmtree(folder)


@pytest.mark.parametrize("part", ["state.json", "ledger.db", "residuals", "server"])
def test_a_state_without_one_of_its_parts_is_refused_in_our_words(tmp_path, part):
    with pytest.raises(Killed):
        made(pipeline(), rounds=3, folder=tmp_path, save_every=1, callbacks=[EndAfter(2)])
    (lost,) = tmp_path.glob(f"round-*/{part}")
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(dp.DpcompError, match=rf"{part} .*begin anew"):
        made(pipeline(), rounds=3, folder=tmp_path, save_every=1)


def test_a_folder_that_is_none_is_refused_in_our_words(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(dp.DpcompError, match=r"simulate\(folder=.*cannot be written .*name a folder"):
            made(pipeline(), rounds=1, folder=place)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"simulate\(folder=''\) is no path"):
        made(pipeline(), rounds=1, folder="")
    assert os.listdir(tmp_path) == ["file"]
