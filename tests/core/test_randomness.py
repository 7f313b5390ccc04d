"""Random streams: what may be known can be repeated by anybody, what is secret by nobody."""

import copy
import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import dpcomp as dp

PLACES = [("noise",), ("noise", 0), ("noise", 0, 0), ("noise", 1), ("noise", 0, 1), ("noise", 1, 0), ("nois",)]
PLACES += [("noise", 256), ("noise", 2**64), ("dither", 0), ("noise\0", 0), ("", 0)]

GOLDEN_PUBLIC_KEY = "2b22b88b7891b0e42907feb4e68fa40807e7924f0f750f74e8eff00df35c731f"
GOLDEN_PUBLIC_WORDS = [8122153451192977571, 14841381981898674566]
GOLDEN_SECRET_WORDS = [2669681940497512550, 6012054843830484992]

DRAWS_OF_A_FAMILY = """
import json, multiprocessing, sys
import dpcomp as dp

def draw(seed):
    return dp.SecretSeed(seed).stream("noise", 1, 2, 3, 0).bytes(16).hex()

def child(pipe, secrets):
    pipe.send([secret.stream("noise", 1, 2, 3, 0).bytes(16).hex() for secret in secrets])

secrets = [dp.SecretSeed(), dp.SecretSeed(7)]
context, said = multiprocessing.get_context("fork"), []
for _ in range(2):
    mine, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs, secrets))
    process.start()
    said.append(mine.recv())
    process.join()
said.append([secret.stream("noise", 1, 2, 3, 0).bytes(16).hex() for secret in secrets])
print(json.dumps(said))
"""


def words(seed, *place, count=64):
    return seed.stream(*place).bit_generator.random_raw(count).tolist()


@pytest.mark.parametrize("kind", [dp.PublicSeed, dp.SecretSeed])
@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(kind, number):
    with pytest.raises(ValueError, match="give a whole number from 0 to"):
        kind(number)


@pytest.mark.parametrize("kind", [dp.PublicSeed, dp.SecretSeed])
@pytest.mark.parametrize("number", [1.0, True, "1", b"1"])
def test_a_seed_that_is_no_whole_number_is_refused(kind, number):
    with pytest.raises(TypeError, match="whole number"):
        kind(number)


def test_a_public_seed_needs_a_number():
    with pytest.raises(TypeError):
        dp.PublicSeed()
    with pytest.raises(TypeError):
        dp.PublicSeed(None)


def test_public_streams_are_the_same_for_ever():
    assert f"{dp.PublicSeed(7).key('mask', 3):064x}" == GOLDEN_PUBLIC_KEY
    assert words(dp.PublicSeed(7), "mask", 3, count=2) == GOLDEN_PUBLIC_WORDS


def test_seeded_secret_streams_are_the_same_for_ever():
    assert words(dp.SecretSeed(7), "noise", 1, 2, 3, 0, count=2) == GOLDEN_SECRET_WORDS


def first_block_of_chacha20(key):
    """RFC 8439, section 2.3, of block 0 and nonce 0, as eight 64-bit words."""
    start = np.frombuffer(b"expand 32-byte k" + key.to_bytes(32, "little") + bytes(16), "<u4").tolist()
    x = list(start)
    columns, diagonals = ([(i, i + 4, i + 8, i + 12) for i in range(4)], [(0, 5, 10, 15), (1, 6, 11, 12)])
    diagonals += [(2, 7, 8, 13), (3, 4, 9, 14)]
    for a, b, c, d in (columns + diagonals) * 10:
        for into, by, turned, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[into] = (x[into] + x[by]) % 2**32
            mixed = x[turned] ^ x[into]
            x[turned] = (mixed << bits | mixed >> (32 - bits)) % 2**32
    return (
        np.array([(mine + theirs) % 2**32 for mine, theirs in zip(x, start, strict=True)], "<u4").view("<u8").tolist()
    )


def test_a_stream_is_chacha20_under_all_256_bits_of_its_key():
    for version in range(3):
        key = dp.PublicSeed(7).key("mask", version)
        assert words(dp.PublicSeed(7), "mask", version, count=8) == first_block_of_chacha20(key)


@pytest.mark.parametrize("kind", [dp.PublicSeed, dp.SecretSeed])
def test_streams_repeat_and_no_two_places_share_one(kind):
    streams = {tuple(words(kind(5), *place)) for place in PLACES}
    assert len(streams) == len(PLACES)
    assert streams == {tuple(words(kind(np.int64(5)), *place)) for place in PLACES}
    assert streams.isdisjoint(tuple(words(kind(6), *place)) for place in PLACES)


def test_a_public_and_a_secret_seed_never_share_a_stream():
    for number in (0, 7, 2**64 - 1):
        for place in PLACES:
            public, secret = words(dp.PublicSeed(number), *place), words(dp.SecretSeed(number), *place)
            assert set(public).isdisjoint(secret)


def test_public_seeds_are_equal_by_their_number_and_never_equal_a_secret_one():
    assert dp.PublicSeed(3) == dp.PublicSeed(3)
    assert len({dp.PublicSeed(3), dp.PublicSeed(3), dp.PublicSeed(4)}) == 2
    assert dp.PublicSeed(3) != dp.SecretSeed(3)
    assert repr(dp.PublicSeed(3)) == "PublicSeed(3)"


def test_an_unseeded_secret_never_repeats_at_one_place():
    secret = dp.SecretSeed()
    draws = [words(secret, "noise", 1, 2, 3, 0) for _ in range(4)]
    assert len({word for draw in draws for word in draw}) == 4 * 64
    assert not secret.seeded
    assert dp.SecretSeed(0).seeded


def test_forked_and_fresh_processes_share_only_what_is_seeded():
    said = []
    for _ in range(2):
        command = [sys.executable, "-c", DRAWS_OF_A_FAMILY]
        said += json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    unseeded, seeded = zip(*said, strict=True)
    assert len(set(unseeded)) == len(said) == 6
    assert set(seeded) == {dp.SecretSeed(7).stream("noise", 1, 2, 3, 0).bytes(16).hex()}


def test_no_global_seed_reaches_a_secret_and_no_secret_touches_a_global_generator():
    unseeded, seeded = [], []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        unseeded.append(words(dp.SecretSeed(), "noise", 0))
        seeded.append(words(dp.SecretSeed(1), "noise", 0))
        after = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        assert before[0] == after[0]
        assert before[1][2] == after[1][2]
        np.testing.assert_array_equal(before[1][1], after[1][1])
        assert torch.equal(before[2], after[2])
    assert set(unseeded[0]).isdisjoint(unseeded[1])
    assert seeded[0] == seeded[1]


@pytest.mark.parametrize("secret", [dp.SecretSeed(), dp.SecretSeed(123454321)])
def test_a_secret_never_leaves_its_process(secret):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="never leaves"):
            pickle.dumps(secret, protocol=protocol)
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never leaves"):
            copied(secret)


def test_a_secret_does_not_show_its_number():
    secret = dp.SecretSeed(123454321)
    for text in (repr(secret), str(secret), f"{secret}", repr([secret])):
        assert "123454321" not in text
        assert f"{123454321:x}" not in text
    assert repr(dp.SecretSeed()) == "SecretSeed()"
