"""Speed, in multiples of the time that copying the dense vector takes, measured in turns."""

import json
import subprocess
import sys
import time
from statistics import median

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.wire.update import with_claim

LAYERS = {
    f"layer {number}": (size,) for number, size in enumerate(np.geomspace(500, 2_000_000, 40).astype(int).tolist())
}


def seconds(call, *arguments):
    began = time.perf_counter()
    found = call(*arguments)
    return time.perf_counter() - began, found


def send_and_receive():
    codec = dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4))
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec)
    layers = LAYERS | {"rest": (11_000_000 - sum(size for (size,) in LAYERS.values()),)}
    memory, server = (
        pipeline.init_client(layers, dp.PublicSeed(0), client=0),
        pipeline.init_server(layers, dp.PublicSeed(0)),
    )
    rng, times = np.random.default_rng(0), []
    vector = rng.laplace(size=11_000_000).astype(np.float32)
    warm = np.empty_like(vector)
    for _ in range(15):
        update = with_claim(dp.Update(values=vector, layout=memory.layout, address=memory.address), pipeline.claim)
        copying = median(seconds(np.copyto, warm, vector)[0] for _ in range(5))
        sending, (payload, memory) = seconds(pipeline.send, update, memory)
        receiving, (_, server) = seconds(pipeline.receive, payload, server)
        times.append((sending / copying, receiving / copying))
    return [median(ratios) for ratios in zip(*times, strict=True)]


@pytest.mark.slow
def test_send_and_receive_cost_a_few_copies_of_the_vector():
    # In a process of its own: here, every call also checks the shapes and types of its arguments.
    found = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    send, receive = json.loads(found.stdout)
    assert send <= 10
    assert receive <= 6


if __name__ == "__main__":
    print(json.dumps(send_and_receive()))
