"""A codec with error feedback: nothing that was given is lost, and the state can be saved."""

import io

import numpy as np
import pytest
import torch

import dpcomp as dp

CODECS = {
    "top": dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)),
    "top float32": dp.Codec(sparsify=dp.TopK(0.05)),
    "sign": dp.Codec(quantize=dp.Sign()),
    "random": dp.Codec(sparsify=dp.RandomK(0.1), quantize=dp.Uniform(4, rounding=dp.Dithered())),
    "float32": dp.Codec(),
}
SHAPE = (30, 20)


def gradients(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_what_was_decoded_and_the_residual_add_up_to_what_was_given(codec):
    compressor = dp.Compressor(codec)
    given, decoded = gradients(40), np.zeros(SHAPE)
    for gradient in given:
        before = gradient.copy()
        decoded += compressor.decompress(compressor.compress("w", gradient), gradient)
        np.testing.assert_array_equal(gradient, before)
    residual = compressor.state_dict()["residuals"]["w"].reshape(SHAPE)
    np.testing.assert_allclose(decoded + residual, given.sum(axis=0, dtype=np.float64), atol=2e-4)
    assert (codec is CODECS["float32"]) == (not residual.any())


def test_each_name_has_a_residual_of_its_own():
    together, alone = dp.Compressor(CODECS["top"]), dp.Compressor(CODECS["top"])
    for first, other in zip(gradients(5), gradients(5, seed=1), strict=True):
        together.compress("first", first)
        together.compress("other", other)
        alone.compress("other", other)
    np.testing.assert_array_equal(together.state_dict()["residuals"]["other"], alone.state_dict()["residuals"]["other"])


def test_without_feedback_each_payload_is_that_of_the_codec():
    compressor = dp.Compressor(CODECS["top"], feedback=False)
    (gradient,) = gradients(1)
    payloads = [compressor.compress("w", gradient) for _ in range(2)]
    for payload in payloads:
        np.testing.assert_array_equal(
            compressor.decompress(payload, gradient),
            CODECS["top"].decompress(CODECS["top"].compress(gradient), gradient),
        )
    assert compressor.state_dict() == {"counter": 2, "residuals": {}}


def test_payloads_of_all_times_and_senders_draw_other_random_numbers():
    (gradient,) = gradients(1)
    supports = []
    for sender in (0, 1, 65_535):
        compressor = dp.Compressor(CODECS["random"], feedback=False, sender=sender)
        for name in ("a", "a", "b"):
            payload = compressor.compress(name, gradient)
            supports.append(tuple(np.flatnonzero(compressor.decompress(payload, gradient))))
    assert len(set(supports)) == 9


@pytest.mark.parametrize("as_tensor", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_a_saved_state_goes_on_bit_for_bit(as_tensor):
    def mapped(gradient):
        return {"w": as_tensor(gradient), "b": as_tensor(gradient[0])}

    whole = dp.Compressor(CODECS["random"], sender=3)
    given = gradients(8)
    for gradient in given[:4]:
        whole.compress("model", mapped(gradient))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = dp.Compressor(CODECS["random"], sender=3)
    # Arrays of NumPy are read by pickle; tensors need no more than torch.load allows.
    resumed.load_state_dict(torch.load(file, weights_only=as_tensor is torch.from_numpy))
    for gradient in given[4:]:
        assert resumed.compress("model", mapped(gradient)) == whole.compress("model", mapped(gradient))


def test_a_state_is_a_copy():
    compressor = dp.Compressor(CODECS["top"])
    compressor.compress("w", gradients(1)[0])
    state = compressor.state_dict()
    other = dp.Compressor(CODECS["top"])
    other.load_state_dict(state)
    state["residuals"]["w"][:] = 0
    for each in (compressor, other):
        assert each.state_dict()["residuals"]["w"].any()


def test_what_is_refused_changes_nothing():
    compressor = dp.Compressor(CODECS["top"])
    compressor.compress("w", gradients(1)[0])
    before = compressor.state_dict()
    largest = np.full(SHAPE, np.finfo(np.float32).max)
    for bad, error, message in (
        (np.full(SHAPE, np.nan), ValueError, r"Compressor.compress\('w'\): the array has nan at index \[0, 0\]"),
        (np.zeros((20, 30)), ValueError, "under a name of its own"),
        ({"v": np.zeros(SHAPE)}, ValueError, "under a name of its own"),
        ([1.0], TypeError, "a list"),
    ):
        with pytest.raises(error, match=message):
            compressor.compress("w", bad)
    with pytest.raises(TypeError, match="give a string"):
        compressor.compress(3, largest)
    after = compressor.state_dict()
    assert after["counter"] == before["counter"] == 1
    np.testing.assert_array_equal(after["residuals"]["w"], before["residuals"]["w"])
    sums = dp.Compressor(CODECS["random"])
    sums.compress("w", largest)
    with pytest.raises(ValueError, match="add up to values beyond"):
        sums.compress("w", largest)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (3, TypeError, "is a mapping, not int"),
        ({"counter": 1}, ValueError, "'counter' and 'residuals'"),
        ({"counter": -1, "residuals": {}}, ValueError, "the counter"),
        ({"counter": 1, "residuals": [3]}, TypeError, "no mapping"),
        ({"counter": 1, "residuals": {"w": "text"}}, TypeError, "a str"),
        ({"counter": 1, "residuals": {"w": np.array([np.nan])}}, ValueError, "nan"),
    ],
)
def test_a_state_that_is_none_is_refused(state, error, message):
    compressor = dp.Compressor(CODECS["top"])
    compressor.compress("w", gradients(1)[0])
    with pytest.raises(error, match=message):
        compressor.load_state_dict(state)
    assert compressor.state_dict()["counter"] == 1


def test_a_loaded_residual_of_another_size_is_refused_when_it_is_used():
    compressor = dp.Compressor(CODECS["top"])
    compressor.load_state_dict({"counter": 1, "residuals": {"w": np.ones(3)}})
    with pytest.raises(ValueError, match="its residual is of 3 values"):
        compressor.compress("w", gradients(1)[0])
    without = dp.Compressor(CODECS["top"], feedback=False)
    with pytest.raises(ValueError, match="feedback=False"):
        without.load_state_dict(compressor.state_dict())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"codec": "TopK"}, TypeError),
        ({"codec": dp.Codec(), "feedback": 1}, TypeError),
        ({"codec": dp.Codec(), "sender": -1}, ValueError),
        ({"codec": dp.Codec(), "sender": 2**16}, ValueError),
    ],
)
def test_an_argument_that_is_none_is_refused(arguments, error):
    with pytest.raises(error, match="Compressor"):
        dp.Compressor(**arguments)
