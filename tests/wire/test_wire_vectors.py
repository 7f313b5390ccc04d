"""Bodies and payloads of fixed updates, byte for byte: the format cannot change in silence.

They are tracked in wire_vectors.json. A change of the format changes the version in frame.py, and is written down by
`python -m tests.wire.test_wire_vectors`.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.public_context import PublicContext
from dpcomp.wire.frame import PAYLOAD
from dpcomp.wire.headers import is_payload
from dpcomp.wire.update import with_claim

FILE = Path(__file__).with_name("wire_vectors.json")
LAYOUT = dp.Layout.of({"a": (5, 6), "nothing": (0,), "b": (10,), "scalar": (), "c": (8, 4, 4)})
VALUES = ((np.arange(LAYOUT.size) * 37 % 23 - 11) / 8 * np.repeat([1, 1, 8, 2, 0.5], LAYOUT.sizes)).astype(np.float32)
EVERYWHERE, LISTED = dp.Everywhere(), dp.Listed(np.array([0, 1, 7, 29, 30, 39, 100, 101, 102, 168]))
SEEDED = dp.Seeded(seed=2024, k=12)
COMMON = PublicContext(layout=LAYOUT, public_support=SEEDED, dither_key=77)
AFTER = replace(COMMON, previous_support=dp.Listed(np.array([0, 1, 8, 29, 30, 40, 100, 101, 103, 168])))
LONG = PublicContext(layout=dp.Layout.of({"dense": (100_000,), "thin": (900_000,)}))
ONE_LAYER = PublicContext(layout=dp.Layout.of(10**6))
GAPS = dp.Listed(np.array([*range(0, 100_000, 40), 999_999]))
PACKED = dp.FixedWidth()


def quantized(quantize, entropy=dp.RangeCoder()):
    return dp.Codec(quantize=quantize, entropy=entropy)


CASES = {
    "float32 everywhere": (dp.Codec(), EVERYWHERE, COMMON),
    "float32 listed, coded": (dp.Codec(), LISTED, COMMON),
    "float32 listed, packed": (dp.Codec(entropy=PACKED), LISTED, COMMON),
    "float32 seeded": (dp.Codec(), SEEDED, COMMON),
    "float16 seeded": (quantized(dp.Float16()), SEEDED, COMMON),
    "int8 everywhere": (quantized(dp.Uniform(8), PACKED), EVERYWHERE, COMMON),
    "int8 listed": (quantized(dp.Uniform(8), PACKED), LISTED, COMMON),
    "3 bits, packed": (quantized(dp.Uniform(3), PACKED), EVERYWHERE, COMMON),
    "2 bits, coded": (quantized(dp.Uniform(2)), EVERYWHERE, COMMON),
    "4 bits, listed, coded": (quantized(dp.Uniform(4)), LISTED, COMMON),
    "4 bits, listed, after another": (quantized(dp.Uniform(4)), LISTED, AFTER),
    "4 bits, seeded, coded": (quantized(dp.Uniform(4)), SEEDED, COMMON),
    "10 bits, coded": (quantized(dp.Uniform(10)), EVERYWHERE, COMMON),
    "16 bits, coded": (quantized(dp.Uniform(16)), EVERYWHERE, COMMON),
    "4 bits, stochastic": (quantized(dp.Uniform(4, rounding=dp.Stochastic())), EVERYWHERE, COMMON),
    "4 bits, dithered": (quantized(dp.Uniform(4, rounding=dp.Dithered())), EVERYWHERE, COMMON),
    "fixed step": (quantized(dp.Uniform(dp.FixedStep(0.25))), EVERYWHERE, COMMON),
    "equal rates": (quantized(dp.Uniform(dp.Equal(3))), EVERYWHERE, COMMON),
    "water-filling, coded": (quantized(dp.Uniform(dp.Waterfill(2.5))), EVERYWHERE, COMMON),
    "water-filling, packed": (quantized(dp.Uniform(dp.Waterfill(3.5)), PACKED), EVERYWHERE, COMMON),
    "sign": (quantized(dp.Sign(), PACKED), EVERYWHERE, COMMON),
    "sign, coded": (quantized(dp.Sign()), EVERYWHERE, COMMON),
    "a sign that is nearly constant, coded": (quantized(dp.Sign()), dp.Listed(np.flatnonzero(VALUES >= 0)), COMMON),
    "ternary": (quantized(dp.Ternary()), EVERYWHERE, COMMON),
    "rotated": (quantized(dp.Rotated(), PACKED), EVERYWHERE, COMMON),
    "a gap beyond the table": (quantized(dp.Uniform(2)), dp.Listed(np.array([*range(40), 999_999])), ONE_LAYER),
    "layers of their own density, long gaps": (quantized(dp.Uniform(2)), GAPS, LONG),
}


def values_on(support, common):
    indices = support.indices(common.layout.size)
    return VALUES[indices % len(VALUES)]


def payloads():
    """A payload up, the broadcast down, and a predicted payload up behind it."""
    pipeline = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.5)),
        codec=dp.Codec(predict=dp.LastBroadcast(), sparsify=dp.TopK(0.1), quantize=dp.Uniform(4)),
        downlink=quantized(dp.Uniform(8), PACKED),
        sampling=dp.Poisson(0.25),
    )
    seed = dp.PublicSeed(77)
    memory, server = pipeline.init_client(LAYOUT, seed, client=3), pipeline.init_server(LAYOUT, seed)
    found = {}
    for name in ("up", "up again"):
        update = with_claim(dp.Update(values=VALUES, layout=LAYOUT, address=memory.address), pipeline.claim)
        found[name], memory = pipeline.send(update, memory)
        estimate, server = pipeline.receive(found[name], server)
        found[f"down after {name}"], server = pipeline.broadcast(estimate.derive(VALUES / np.float32(2)), server)
        memory = pipeline.follow(found[f"down after {name}"], memory)
    return found


def bodies():
    return {name: codec.encode(values_on(support, at), support, at)[0] for name, (codec, support, at) in CASES.items()}


def tracked():
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_the_body_is_the_same_for_ever(name):
    codec, support, common = CASES[name]
    assert codec.encode(values_on(support, common), support, common)[0].hex() == tracked()["bodies"][name]


@pytest.mark.parametrize("name", CASES)
def test_an_old_body_reads_as_it_did(name):
    codec, support, common = CASES[name]
    _, expected = codec.encode(values_on(support, common), support, common)
    values, where = codec.decode(bytes.fromhex(tracked()["bodies"][name]), common)
    assert values.tobytes() == expected.tobytes()
    assert where == support


def test_payloads_up_and_down_are_the_same_for_ever():
    assert {name: payload.hex() for name, payload in payloads().items()} == tracked()["payloads"]


def test_they_are_of_this_version_of_the_format():
    found = {name: bytes.fromhex(payload) for name, payload in tracked()["payloads"].items()}
    assert all(map(is_payload, found.values()))
    assert {name for name, payload in found.items() if PAYLOAD.begins(payload)} == {"up", "down after up"}
    assert set(tracked()["bodies"]) == set(CASES)


if __name__ == "__main__":
    found = {"bodies": bodies(), "payloads": payloads()}
    text = {part: {name: body.hex() for name, body in named.items()} for part, named in found.items()}
    FILE.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
