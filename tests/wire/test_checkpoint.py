"""Checkpoints: what is loaded is what was saved, bit for bit, or a file is named that cannot be used."""

import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch

import dpcomp as dp
from dpcomp.wire import checkpoint
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.update import with_claim

LAYOUT = {"a": (12, 25), "scalar": (), "empty": (0,), "b": (99,)}
NOISE = (dp.Clip(1.0), dp.Gaussian(0.5))
TOP = dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
PIPELINES = {
    "top": dp.Pipeline(mechanism=NOISE, codec=TOP),
    "predicted": dp.Pipeline(mechanism=NOISE, codec=dp.Codec(predict=dp.LastBroadcast(), quantize=dp.Sign())),
    "masked": dp.Pipeline(mechanism=(dp.RandomK(0.3), *NOISE), codec=dp.Codec(quantize=dp.Uniform(4))),
    "no feedback": dp.Pipeline(mechanism=NOISE, codec=TOP, feedback=False),
    "sees the noise": dp.Pipeline(
        mechanism=NOISE, codec=dp.Codec(quantize=dp.Uniform(dp.Waterfill(2.0, clients=2))), feedback=False
    ),
}
EVERY_PIPELINE = pytest.mark.parametrize("name", PIPELINES)


def rounds(pipeline, client, server, numbers):
    """Rounds of one client, and all bytes that passed."""
    seen = []
    for number in numbers:
        rng = np.random.default_rng(number)
        masks = [stage for stage in pipeline.stages if isinstance(stage, dp.RandomK)]
        d = client.layout.size
        support = masks[0].public_support(pipeline.channel.context(client)) if masks else dp.Everywhere()
        update = with_claim(
            dp.Update(
                values=rng.standard_normal(support.count(d)).astype(np.float32),
                layout=client.layout,
                address=client.address,
                support=support,
                noise_stddev=0.5,
            ),
            pipeline.claim,
        )
        up, client = pipeline.send(update, client)
        received, server = pipeline.receive(up, server)
        down, server = pipeline.broadcast(received, server)
        client = pipeline.follow(down, client)
        seen += [up, down]
    return client, server, seen


def ends(pipeline):
    seed = dp.PublicSeed(9)
    return pipeline.init_client(LAYOUT, seed, client=7), pipeline.init_server(LAYOUT, seed)


@EVERY_PIPELINE
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_run_goes_on_from_its_checkpoints_as_if_nothing_had_happened(tmp_path, name, before):
    pipeline = PIPELINES[name]
    client, server, _ = rounds(pipeline, *ends(pipeline), range(before))
    model = np.random.default_rng(0).standard_normal(client.layout.size).astype(np.float32)
    checkpoint.save(tmp_path / "client", Checkpoint(client, model))
    checkpoint.save(tmp_path / "server", Checkpoint(server))
    again, its_model, *_ = checkpoint.load(tmp_path / "client", pipeline.channel)
    server_again, nothing, *_ = checkpoint.load(tmp_path / "server", pipeline.channel)
    assert its_model is not None and its_model.tobytes() == model.tobytes()
    assert nothing is None
    assert (again.link, again.address) == (client.link, client.address)
    assert dict(server_again.links) == dict(server.links)
    went_on, after_load = (rounds(pipeline, *pair, range(10, 13)) for pair in ((client, server), (again, server_again)))
    assert went_on[2] == after_load[2]
    for one, other in zip(went_on[:2], after_load[:2], strict=True):
        assert one.shared.digest == other.shared.digest
        assert one.step.dense().tobytes() == other.step.dense().tobytes()
        assert (one.residual is None) == (other.residual is None)
        assert one.residual is None or one.residual.tobytes() == other.residual.tobytes()


def test_two_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path):
    pipeline = PIPELINES["top"]
    client, server = ends(pipeline)
    for number in range(4):
        client, server, _ = rounds(pipeline, client, server, [number])
        checkpoint.save(tmp_path, Checkpoint(client))
    assert len(list(tmp_path.iterdir())) == 2
    assert checkpoint.load(tmp_path, pipeline.channel).memory.shared.version == 4


def saved_twice(tmp_path):
    pipeline = PIPELINES["top"]
    client, server, _ = rounds(pipeline, *ends(pipeline), range(1))
    checkpoint.save(tmp_path, Checkpoint(client))
    return checkpoint.save(tmp_path, Checkpoint(rounds(pipeline, client, server, [1])[0]))


def test_a_file_torn_anywhere_is_named_and_the_one_before_it_is_used(tmp_path):
    newest = saved_twice(tmp_path)
    whole = newest.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(whole), 131), len(whole) - 1]:
        newest.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match=rf"{newest.name} .*; 0000000000.safetensors is used, which is older"):
            memory = checkpoint.load(tmp_path, PIPELINES["top"].channel).memory
        assert memory.shared.version == 1


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    newest = saved_twice(tmp_path)
    whole = newest.read_bytes()
    for at in np.random.default_rng(0).choice(len(whole), 300, replace=False):
        newest.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.warns(UserWarning, match="is used, which is older"):
            assert checkpoint.load(tmp_path, PIPELINES["top"].channel).memory.shared.version == 1


OTHERS = safetensors.torch.save({"weight": torch.zeros(3, dtype=torch.bfloat16)}, {"format": "pt"})


@pytest.mark.parametrize("foreign", [b"", b"notes", pickle.dumps({"residual": 1}), b"\xff" * 4096, OTHERS])
def test_where_no_file_is_whole_each_is_named(tmp_path, foreign):
    saved_twice(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(foreign)
    with pytest.raises(dp.DpcompError, match=r"0000000001.safetensors .*0000000000.safetensors .*begin anew"):
        checkpoint.load(tmp_path, PIPELINES["top"].channel)


def test_a_folder_without_checkpoints_says_so(tmp_path):
    (tmp_path / "unfinished").write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoint.load(tmp_path, PIPELINES["top"].channel)


def test_another_pipelines_checkpoint_is_refused(tmp_path):
    saved_twice(tmp_path)
    with pytest.raises(dp.VersionMismatch, match="load it with the pipeline"):
        checkpoint.load(tmp_path, PIPELINES["masked"].channel)


def test_a_model_of_another_size_is_refused(tmp_path):
    client, _ = ends(PIPELINES["top"])
    with pytest.raises(ValueError, match=r"the model has shape \(3,\)"):
        checkpoint.save(tmp_path, Checkpoint(client, np.zeros(3, np.float32)))
    assert not list(tmp_path.iterdir())


def test_a_ledger_gets_nothing_back_from_an_older_checkpoint(tmp_path):
    pipeline = PIPELINES["top"]
    client, _ = ends(pipeline)
    checkpoint.save(tmp_path / "memory", Checkpoint(client))
    with dp.Ledger.create(tmp_path / "ledger.db") as ledger:
        ledger.charge(pipeline.cost, client.address)
        again = checkpoint.load(tmp_path / "memory", pipeline.channel).memory
        with pytest.raises(dp.BudgetExhausted, match="charged before"):
            ledger.charge(pipeline.cost, again.address)


SAVER = """
import sys
import numpy as np, dpcomp as dp
from dpcomp.wire import checkpoint
pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(0.5)))
memory = pipeline.init_client(200_000, dp.PublicSeed(9), client=7)
for number in range(int(sys.argv[2]), 10**6):
    checkpoint.save(sys.argv[1], checkpoint.Checkpoint(memory, np.full(200_000, number, np.float32)))
    print(number, flush=True)
"""


def test_killed_while_it_saves_a_process_leaves_its_last_whole_checkpoint(tmp_path):
    pipeline, told, rng = dp.Pipeline(mechanism=NOISE), -1, np.random.default_rng(0)
    for _ in range(2):
        command = [sys.executable, "-c", SAVER, str(tmp_path), str(told + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = int(process.stdout.readline())
        time.sleep(float(rng.uniform(0, 0.05)))
        process.kill()
        told = max([told, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        _, model, *_ = checkpoint.load(tmp_path, pipeline.channel)
        assert model is not None
        assert model[0] in (told, told + 1)
        assert (model == model[0]).all()
