"""A codec as one of numcodecs': chunks come back as from `dp.Codec`, and Zarr and damaged bytes are met."""

import json

import numcodecs
import numpy as np
import pytest

import dpcomp as dp
from dpcomp.adapters.numcodecs import LENGTH, ChunkCodec
from dpcomp.core.errors import ConfigError, CorruptPayload, VersionMismatch

CODEC = ChunkCodec(dp.Codec(sparsify=dp.TopK(0.3), quantize=dp.Uniform(dp.Waterfill(6.0))))
VALUES = np.random.default_rng(0).standard_normal((12, 5))


@pytest.mark.parametrize(
    "chunk",
    [
        VALUES,
        VALUES.astype(np.float32).T,
        VALUES.astype(np.float16)[::-2],
        VALUES.astype(">f8"),
        np.arange(7),
        VALUES > 0,
        np.array(3.0, np.float32),
        np.float64(2.5),
        np.zeros((0, 4)),
    ],
    ids=lambda chunk: f"{chunk.dtype.str}{list(chunk.shape)}",
)
def test_a_chunk_comes_back_as_from_the_codec(chunk):
    decoded = CODEC.decode(CODEC.encode(chunk))
    native = chunk.astype(chunk.dtype.newbyteorder("="))
    np.testing.assert_array_equal(decoded, CODEC.codec.decompress(CODEC.codec.compress(native), native))
    assert (decoded.dtype, decoded.shape) == (native.dtype, native.shape)
    out = np.empty(native.shape, native.dtype)
    assert CODEC.decode(CODEC.encode(chunk), out) is out
    np.testing.assert_array_equal(out, decoded)


def test_numcodecs_makes_the_codec_from_its_configuration():
    config = json.loads(json.dumps(CODEC.get_config()))
    assert numcodecs.get_codec(config).codec == CODEC.codec
    assert numcodecs.get_codec(config) == CODEC
    np.testing.assert_array_equal(
        numcodecs.get_codec(config).decode(bytearray(CODEC.encode(VALUES))), CODEC.decode(CODEC.encode(VALUES))
    )


def test_a_chunk_of_bytes_is_kept():
    assert bytes(CODEC.decode(CODEC.encode(b"some bytes"))) == b"some bytes"


def test_damaged_and_foreign_bytes_are_refused():
    encoded = CODEC.encode(VALUES)
    for place in range(len(encoded)):
        with pytest.raises((CorruptPayload, VersionMismatch)):
            CODEC.decode(encoded[:place])
        with pytest.raises((CorruptPayload, VersionMismatch)):
            CODEC.decode(encoded[:place] + bytes([encoded[place] ^ 4]) + encoded[place + 1 :])
    header = json.dumps(["<f8", [2**40, 2**20]]).encode()
    with pytest.raises(CorruptPayload):
        CODEC.decode(LENGTH.pack(len(header)) + header + encoded[LENGTH.size :])
    with pytest.raises(VersionMismatch):
        ChunkCodec(dp.Codec()).decode(encoded)


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match=r"give a dp\.Codec"):
        ChunkCodec(8)
    with pytest.raises(ConfigError, match="Unifrom"):
        ChunkCodec({"Codec": {"quantize": {"Unifrom": {"bits": 8}}}})
    with pytest.raises(ValueError, match="holds 4 bytes"):
        CODEC.decode(CODEC.encode(VALUES), np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="finite"):
        CODEC.encode(np.array([1.0, np.nan]))
