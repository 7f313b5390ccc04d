"""Payloads of fixed updates, byte for byte: the format cannot change in silence."""

import numpy as np
import pytest

import dpcomp as dp

LAYOUT = dp.Layout.of({"a": (5, 6), "nothing": (0,), "b": (10,)})
VALUES = ((np.arange(40) * 37 % 23 - 11) / 8).astype(np.float32)
LISTED = dp.Listed(np.array([0, 1, 7, 29, 30, 39]))
SEEDED = dp.Seeded(seed=2024, k=6)
INT8 = dp.Codec(quantize=dp.Uniform(8), entropy=dp.FixedWidth())

VECTORS = {
    "float32 everywhere": (
        dp.Codec(),
        dp.Everywhere(),
        "00280000000000b0bf0000c03e000040bf0000803f000000be0000a0bf0000003f000020bf0000903f00000000"
        "000090bf0000203f000000bf0000a03f0000003e000080bf0000403f0000c0be0000b03f0000803e000060bf00"
        "00603f000080be0000b0bf0000c03e000040bf0000803f000000be0000a0bf0000003f000020bf0000903f0000"
        "0000000090bf0000203f000000bf0000a03f0000003e000080bf0000403f0000",
    ),
    "float32 listed, coded": (
        dp.Codec(),
        LISTED,
        "02060000000000b0bf0000c03e000020bf0000003f000020bf0000403f04000000000040359303",
    ),
    "float32 listed, fixed": (
        dp.Codec(entropy=dp.FixedWidth()),
        LISTED,
        "02060000000000b0bf0000c03e000020bf0000003f000020bf0000403f407074de09",
    ),
    "float32 seeded": (
        dp.Codec(),
        SEEDED,
        "01060000000000a0bf0000003f0000203f0000c0be0000603f0000803f0000",
    ),
    "int8 everywhere": (
        INT8,
        dp.Everywhere(),
        "0028000000323c0000223c00a23adb730cad45e77f17b951f28b23c45cfe962ed06800a23adb730cad40f17f0dbe4cfd8c1acb",
    ),
    "int8 listed": (
        INT8,
        LISTED,
        "0206000000323c0000c23b407074de0900a245ad15fe",
    ),
    "3 bits, fixed": (
        dp.Codec(quantize=dp.Uniform(3), entropy=dp.FixedWidth()),
        dp.Everywhere(),
        "0028000000eb3e0000d63e603a505d282f95990a4c0702f2407929",
    ),
    "2 bits, coded": (
        dp.Codec(quantize=dp.Uniform(2)),
        dp.Everywhere(),
        "0028000000b03f0000a03f0700ffff0200e3f0e1f7c4821b65282423",
    ),
    "4 bits, listed, coded": (
        dp.Codec(quantize=dp.Uniform(4)),
        LISTED,
        "02060000004a3e0000dc3d170000000000f9ff0e00f0f00000f000000000f0f0000000f052359303a0328e5c",
    ),
    "4 bits, seeded, coded": (
        dp.Codec(quantize=dp.Uniform(4)),
        SEEDED,
        "0106000000373e000000001200f9ff0d00e000000000e000000000f000e0e024bb6314",
    ),
    "10 bits, listed, coded": (
        dp.Codec(quantize=dp.Uniform(10)),
        LISTED,
        "0206000000313b0000c13a08010000000080ffff02f0000000000000000000000000000000000000000000f000"
        "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "00f000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "000000f00000000000000000000000f00000000000000000000000000000000000000000000000000000000000"
        "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "000000000000f0523593038528975d",
    ),
}
LONG_GAP = (
    "0265000000803f09000700000001000000f0000000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000000c5eb0100ffffff13ffeba5ffffce13fffeffffff"
    "50e2d7b9f9405674ef6efcfa8f51daa858228f3b3c8cfb2b33ef3842b3d31133fc11d87f574d43e0919935dc68"
    "8b747ba36faa8c13562d071fb21978bac1d029022de3fa64aa76aab4df463b11ab2b03b9639571a54a0164e8f3"
    "847e2918dc4a97d30399720f2e7b4e3bbb8f8d88188cf4ee60e9"
)
UPWARDS = (
    "6470630177f484102e5c989e4d00000000000000030000000000000000000000c4d28e48e61fbee30000000028"
    "000000943553f86a7525aa02040000004a3e00000000170000000000f9ff0e00f0e00000000000000000000000"
    "00e0aeb1060a"
)
DOWNWARDS = (
    "6470630177f484102e5c989e4d00000000000000ffffffff0000000000000000c4d28e48e61fbee30000000012"
    "0000003520f77cd6a179e30204000000b33b0000000040215d0113fd01"
)


def values_on(support):
    return VALUES[support.indices(40)]


@pytest.mark.parametrize(("codec", "support", "body"), VECTORS.values(), ids=VECTORS)
def test_the_body_is_the_same_for_ever(codec, support, body):
    found, _ = codec.encode(values_on(support), support, LAYOUT)
    assert found.hex() == body


@pytest.mark.parametrize(("codec", "support", "body"), VECTORS.values(), ids=VECTORS)
def test_an_old_body_reads_as_it_did(codec, support, body):
    _, expected = codec.encode(values_on(support), support, LAYOUT)
    seeded = support if isinstance(support, dp.Seeded) else None
    values, where = codec.decode(bytes.fromhex(body), seeded, LAYOUT)
    assert values.tobytes() == expected.tobytes()
    assert where == support


def test_gaps_beyond_the_table_of_the_models_read_as_they_did():
    codec, layout = dp.Codec(quantize=dp.Uniform(2)), dp.Layout.of(10**6)
    support = dp.Listed(np.array([*range(0, 4000, 40), 999_999]))
    values = np.ones(101, np.float32)
    body, _ = codec.encode(values, support, layout)
    assert body.hex() == LONG_GAP
    np.testing.assert_array_equal(codec.decode(bytes.fromhex(LONG_GAP), None, layout)[0], values)


def test_payloads_up_and_down_are_the_same_for_ever():
    pipeline = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.5)),
        codec=dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4)),
        downlink=INT8,
        sampling=dp.Poisson(0.25),
    )
    seed = dp.PublicSeed(77)
    memory, server = pipeline.init(LAYOUT, seed, client=3), pipeline.init_server(LAYOUT, seed)
    update = dp.Update(values=VALUES, layout=LAYOUT, address=memory.address, claim=pipeline.claim)
    up, _ = pipeline.send(update, memory)
    assert up.hex() == UPWARDS
    estimate, server = pipeline.receive(up, server)
    down, _ = pipeline.broadcast(estimate.derive(estimate.dense() / np.float32(2)), server)
    assert down.hex() == DOWNWARDS
