"""A codec alone: any array becomes bytes and comes back, or is refused."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from xxhash import xxh3_64

import dpcomp as dp
from dpcomp.codec.arrays import LARGEST
from dpcomp.codec.standalone import FIRST_BYTE, HEADER_BYTES, TAG_END, _keys
from dpcomp.wire.frame import MAGIC
from tests.codec import other_process
from tests.codec.other_process import CODECS

EVERY_CODEC = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
rng = np.random.default_rng(0)
NORMAL = rng.standard_normal((12, 25)).astype(np.float32)


def read_only(array):
    array.flags.writeable = False
    return array


ODD = {
    "scalar": np.array(3.5),
    "number": np.float32(-2),
    "empty": np.zeros(0, np.float32),
    "empty matrix": np.zeros((3, 0, 2)),
    "one value": np.ones((1, 1, 1), np.float16),
    "float16": NORMAL.astype(np.float16),
    "float64": NORMAL.astype(np.float64),
    "big endian": NORMAL.astype(">f4"),
    "transposed": NORMAL.T,
    "reversed": NORMAL[::-1, ::-3],
    "every second": NORMAL[1::2, ::2],
    "Fortran": np.asfortranarray(NORMAL),
    "broadcast": np.broadcast_to(NORMAL[:1], (7, 25)),
    "read-only": read_only(NORMAL.copy()),
    "matrix": np.asmatrix(NORMAL),
    "zeros": np.zeros((5, 6), np.float32),
    "negative zeros": np.full(9, -0.0),
    "subnormal": NORMAL * np.float32(1e-42),
    "largest": np.sign(NORMAL) * np.float32(LARGEST["float32"]),
    "largest float16": np.array([LARGEST["float16"], -1.0, LARGEST["float16"]] * 20, np.float16),
    "outlier": np.where(np.arange(300) == 7, np.float32(1e30), NORMAL.ravel()),
    "torch": torch.from_numpy(NORMAL.copy()),
    "torch parameter": torch.nn.Parameter(torch.from_numpy(NORMAL.copy()).t()),
    "torch bfloat16": torch.from_numpy(NORMAL.copy()).to(torch.bfloat16)[::2],
    "torch scalar": torch.tensor(0.25, dtype=torch.float64),
    "JAX": jnp.asarray(NORMAL),
    "JAX bfloat16": jnp.asarray(NORMAL, jnp.bfloat16),
    "whole numbers": np.arange(-3, 4, dtype=np.int16)[::-1],
    "state dict": torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.BatchNorm1d(7)).state_dict(),
    "mixed": {
        "w": torch.from_numpy(NORMAL.copy()),
        "mask": np.array([[True, False, True]]),
        "none": np.zeros(0),
        "big": np.array([2**64 - 1, 0], np.uint64),
        "flags": torch.tensor([True, False]),
        "b": jnp.ones(3),
        "s": np.array(1.5),
    },
    "nothing": {},
}


def on_host(array):
    if isinstance(array, torch.Tensor):
        return array.detach().to(torch.float64 if array.is_floating_point() else array.dtype).numpy()
    made = np.asarray(array)
    return made if made.dtype.kind in "iub" else made.astype(np.float64)


def as_dict(value):
    return value if isinstance(value, dict) else {"": value}


def plain(value):
    """The same contents as contiguous arrays of NumPy, of float32 or exact."""
    made = {name: on_host(array) for name, array in as_dict(value).items()}
    made = {name: np.array(a, np.float32 if a.dtype.kind == "f" else a.dtype, order="C") for name, a in made.items()}
    return made if isinstance(value, dict) else made[""]


@EVERY_CODEC
def test_what_comes_back_is_like_what_was_given(codec):
    for value in ODD.values():
        payload = codec.compress(value, number=3)
        assert payload == codec.compress(plain(value), number=3)
        back, reference = codec.decompress(payload, value), as_dict(codec.decompress(payload, plain(value)))
        assert list(as_dict(back)) == list(as_dict(value))
        for name, given in as_dict(value).items():
            compare(as_dict(back)[name], given, reference[name], exact=codec is CODECS["float32"])


def compare(got, given, reference, *, exact):
    assert (got.shape, got.dtype) == (given.shape, given.dtype)
    assert isinstance(got, torch.Tensor) == isinstance(given, torch.Tensor)
    assert isinstance(got, jnp.ndarray) == isinstance(given, jnp.ndarray)
    here, there = on_host(got), on_host(given)
    assert np.isfinite(here).all()
    if there.dtype.kind in "iub" or exact:
        np.testing.assert_array_equal(here, there.astype(np.float32) if there.dtype.kind == "f" else there)
    limit = LARGEST["float16"] if got.dtype in (np.float16, torch.float16) else LARGEST["float32"]
    np.testing.assert_allclose(here, np.clip(reference, -limit, limit), rtol=0.005)
    if isinstance(got, np.ndarray):
        assert got.flags.writeable or not got.size
        assert not np.shares_memory(got, np.asarray(given))


@EVERY_CODEC
def test_a_payload_holds_the_body_that_the_codec_makes_of_the_sorted_floats(codec):
    value = {"b": 10 * NORMAL[0], "n": np.array(3), "a": NORMAL}
    mask_key, _, dither_key = _keys(3)
    layout = dp.Layout.of({"a": (12, 25), "b": (25,)})
    context = dp.PublicContext(layout=layout, mask_key=mask_key, dither_key=dither_key)
    if codec.selects_publicly:
        context = replace(context, public_support=codec.sparsify.public_support(context))
    flat = np.concatenate([NORMAL.ravel(), 10 * NORMAL[0]])
    support = codec.select(flat, dp.Everywhere(), context)
    body, decoded = codec.encode(flat[support.indices(325)], support, context)
    payload = codec.compress(value, number=3)
    assert payload[HEADER_BYTES + 1 :] == np.array(3, "<i8").tobytes() + body
    expected = np.zeros(325, np.float32)
    expected[support.indices(325)] = decoded
    back = codec.decompress(payload, value)
    np.testing.assert_array_equal(np.concatenate([back["a"].ravel(), back["b"]]), expected)


def test_the_names_of_like_may_come_in_another_order():
    value = {"b": NORMAL, "a": np.array([1, 2]), "c": NORMAL[0]}
    codec = CODECS["uniform"]
    other = dict(reversed(value.items()))
    back = codec.decompress(codec.compress(value), other)
    assert list(back) == ["c", "a", "b"]
    np.testing.assert_array_equal(back["b"], codec.decompress(codec.compress(value), value)["b"])
    np.testing.assert_array_equal(back["a"], [1, 2])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.array([1.0, np.nan]), ValueError, r"the array has nan at index \[1\]"),
        ({"w": np.array([[0.0, 1], [-np.inf, 2]])}, ValueError, r"'w' has -inf at index \[1, 0\]"),
        ({"a": np.zeros(3), "w": torch.tensor(torch.nan)}, ValueError, r"'w' has nan at index \[\]"),
        (np.array([1, 1e39]), ValueError, r"has 1e\+39 at index \[1\], beyond ±3.403e\+38"),
        (np.array([[1e308, 1e308]]).T[::-1], ValueError, r"index \[0, 0\], beyond"),
        (torch.tensor([1.0, torch.inf], dtype=torch.bfloat16), ValueError, r"inf at index \[1\]"),
        (np.array([1j]), TypeError, "complex128.*real and imaginary"),
        (torch.tensor([1j]), TypeError, "complex64"),
        (np.array([None]), TypeError, "the type object"),
        (np.array(["x"]), TypeError, "the type str"),
        (np.array(["2020"], "datetime64[Y]"), TypeError, "the type datetime64"),
        (np.zeros(2, [("a", "f4")]), TypeError, "the type void"),
        (np.zeros(2, np.longdouble), TypeError, "the type (float128|longdouble)"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), TypeError, "masked"),
        (torch.empty(3, device="meta"), TypeError, "cannot be read"),
        ([1.0, 2.0], TypeError, "a list: give an array"),
        (1.5, TypeError, "a float: give an array"),
        (None, TypeError, "a NoneType"),
        ({"w": "text"}, TypeError, "'w' is a str"),
        ({"w": {"b": NORMAL}}, TypeError, "a mapping in a mapping"),
        ({1: NORMAL}, TypeError, "the name 1"),
    ],
)
def test_what_no_codec_can_send_is_refused_with_its_name_and_index(value, error, message):
    with pytest.raises(error, match=message):
        CODECS["top"].compress(value)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (dp.Codec(predict=dp.LastBroadcast()), "last broadcast"),
        (dp.Codec(quantize=dp.ExactGaussian(cohort=4)), "secret of client and server"),
        (dp.Codec(sparsify=dp.HistoryK(0.1)), "history of broadcasts"),
        (dp.Codec(sparsify=dp.RandomK(0.1, per="client")), "each client"),
        (dp.Codec(quantize=dp.Uniform(dp.Waterfill(4, clients=3))), "privacy noise"),
    ],
)
def test_a_part_that_needs_a_link_is_refused(codec, message):
    for call in (lambda: codec.compress(NORMAL), lambda: codec.decompress(b"", NORMAL), lambda: dp.Compressor(codec)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(("number", "error"), [(-1, ValueError), (2**64, ValueError), (1.5, TypeError)])
def test_a_number_is_a_whole_number_of_64_bits(number, error):
    with pytest.raises(error, match=r"compress\(number\)"):
        CODECS["random"].compress(NORMAL, number=number)


@pytest.mark.parametrize("number", [0, 1, 255, 256, 2**64 - 1])
def test_random_parts_draw_from_the_number_in_the_payload(number):
    codec = CODECS["random"]
    payload = codec.compress(NORMAL, number=number)
    support = np.flatnonzero(codec.decompress(payload, NORMAL))
    other = np.flatnonzero(codec.decompress(codec.compress(NORMAL, number=2**40), NORMAL))
    assert not np.array_equal(support, other)
    assert codec.compress(NORMAL, number=number) == payload


def test_another_number_makes_another_error_of_rotation_and_dither():
    for codec in (CODECS["dithered"], CODECS["rotated"]):
        errors = [codec.decompress(codec.compress(NORMAL, number=i), NORMAL) - NORMAL for i in range(30)]
        alone, averaged = np.square(errors).mean(), np.square(np.mean(errors, axis=0)).mean()
        assert averaged < alone / 15


def test_a_payload_of_other_arrays_or_another_codec_is_told_from_a_damaged_one():
    codec = CODECS["uniform"]
    payload = codec.compress({"w": NORMAL, "n": np.array(3)})
    others = (
        {"w": NORMAL},
        {"v": NORMAL, "n": np.array(3)},
        {"w": NORMAL.T, "n": np.array(3)},
        {"w": NORMAL, "n": np.array(3, np.int32)},
        NORMAL,
    )
    for like in others:
        with pytest.raises(dp.VersionMismatch, match="names or shapes"):
            codec.decompress(payload, like)
    with pytest.raises(dp.VersionMismatch, match="of the codec"):
        dp.Codec(quantize=dp.Uniform(5)).decompress(payload, {"w": NORMAL, "n": np.array(3)})
    with pytest.raises(TypeError, match="a payload is bytes, not str"):
        codec.decompress("text", NORMAL)
    back = codec.decompress(payload, {"w": NORMAL.astype(np.float16), "n": np.array(0)})
    assert back["w"].dtype == np.float16


def test_a_payload_of_a_pipeline_is_none_of_compress():
    with pytest.raises(dp.CorruptPayload, match=r"pipeline\.receive"):
        CODECS["uniform"].decompress(MAGIC + bytes(100), NORMAL)


def tagged(payload):
    return payload[:1] + xxh3_64(payload[TAG_END:]).digest() + payload[TAG_END:]


@EVERY_CODEC
def test_every_damaged_byte_and_every_cut_is_noticed(codec):
    value = {"w": NORMAL[:3], "n": np.array([1, 2])}
    payload = codec.compress(value, number=300)
    assert tagged(payload) == payload
    for place in range(len(payload)):
        for changed in (payload[:place], payload[:place] + bytes([payload[place] ^ 0x10]) + payload[place + 1 :]):
            with pytest.raises(dp.CorruptPayload):
                codec.decompress(changed, value)


@EVERY_CODEC
def test_hostile_bytes_raise_nothing_but_corrupt_payload(codec):
    """With a right tag, and digests of this codec and these arrays."""
    value = {"w": NORMAL[:4], "mask": np.array([True, False]), "b": NORMAL[5]}
    payload, draw, refused = codec.compress(value, number=300), np.random.default_rng(1), 0
    start = HEADER_BYTES - 1
    for trial in range(150):
        rest = bytearray(payload[start:])
        if trial % 3 == 0:
            rest = bytearray(draw.bytes(int(draw.integers(1, 200))))
        elif trial % 3 == 1:
            rest = rest[: int(draw.integers(len(rest)))]
        else:
            for place in draw.integers(len(rest), size=3):
                rest[place] = int(draw.integers(256))
        try:
            back = codec.decompress(tagged(payload[:start] + bytes(rest)), value)
        except dp.CorruptPayload:
            refused += 1
        else:
            assert np.isfinite(back["w"]).all() and back["mask"].view(np.uint8).max() <= 1
    assert refused > 60


def test_exact_arrays_and_numbers_that_no_sender_writes_are_corrupt():
    value = {"mask": np.array([True]), "n": np.array([1, 2])}
    payload = CODECS["top"].compress(value)
    head, rest = payload[: HEADER_BYTES - 1], payload[HEADER_BYTES:]
    hostile = [payload[:-cut] for cut in range(1, 18)]
    hostile += [payload + b"x", head + b"\0" + b"\2" + rest[1:], head + b"\11" + 9 * b"\1" + rest]
    for message in hostile:
        with pytest.raises(dp.CorruptPayload):
            CODECS["top"].decompress(tagged(message), value)


def test_hostile_bytes_of_any_kind_are_corrupt():
    draw = np.random.default_rng(0)
    for size in range(200):
        for message in (draw.bytes(size), bytes([FIRST_BYTE]) + draw.bytes(size)):
            with pytest.raises(dp.CorruptPayload):
                CODECS["top"].decompress(message, NORMAL)


def test_two_processes_make_the_same_bytes_and_decode_the_same_bits():
    ran = subprocess.run([sys.executable, other_process.__file__], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == other_process.digests()


def test_a_payload_has_few_bytes_beside_the_body():
    codec = CODECS["float32"]
    body, _ = codec.encode(NORMAL.ravel(), dp.Everywhere(), dp.PublicContext(layout=dp.Layout.of(300)))
    assert len(codec.compress(NORMAL)) == len(body) + HEADER_BYTES == len(body) + 18


@dataclass(frozen=True)
class OwnSupport:
    """A sparsifier of somebody's own, with a support that its reader cannot compute."""

    def select(self, vector, candidates, context):
        return dp.Seeded(seed=int(np.abs(vector).argmax()), k=9)


@dataclass(frozen=True)
class OwnFloats(dp.Float32):
    """A float format of somebody's own, whose decoded values cannot be written to."""

    def values(self, levels, side, counts, context):
        made = np.array(super().values(levels, side, counts, context))
        made.flags.writeable = False
        return made


def test_own_parts_are_taken():
    listed = dp.Codec(sparsify=OwnSupport())
    assert np.count_nonzero(listed.decompress(listed.compress(NORMAL), NORMAL)) == 9
    own = dp.Codec(quantize=OwnFloats())
    assert own.decompress(own.compress(NORMAL), NORMAL).flags.writeable
