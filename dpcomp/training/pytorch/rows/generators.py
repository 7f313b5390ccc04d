"""Generators: the global ones that layers and data sets draw from, lent in states that are drawn from a secret."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8, UInt32, UInt64
from torch import Tensor

from dpcomp.core.errors import NotPrivate
from dpcomp.core.randomness import SecretSeed

States = tuple[Tensor, ...]

WORDS = 624  # of the Mersenne Twister that torch has on the CPU
CPU_BYTES, CUDA_BYTES, SEED_BYTES, HOST_BYTES = 4 * WORDS, 16, 8, 32
MOST_DRAWN = 2**28  # words that a data set is taken to draw for a batch: that many take a second to draw
LARGEST_OFFSET = 2**40  # of blocks of four numbers, in the stream of one seed of Philox


@contextmanager
def lent_torch_generators(secret: SecretSeed, purpose: str, *place: int) -> Iterator[None]:
    """Set the states of torch's global generators from a secret for a while; afterwards they are what they were.

    **Privacy:** random numbers before the clip count as drawn apart from the data only if nobody knows them: from a
    public seed, one example would shift the known numbers of all examples behind it. `manual_seed` keeps 32 bits of a
    seed on the CPU, which can be searched, so the whole state is set: 19,937 bits on the CPU, and on a GPU, whose
    generator has a seed of 64 bits, also a place in its stream of 40 bits.

    Args:
        secret: Where the states come from: fresh at every call, unless it has a number.
        purpose: What is drawn.
        place: Numbers that tell the states of one purpose apart.
    """
    generators = _generators()
    before = [generator.get_state() for generator in generators]
    size = CPU_BYTES + SEED_BYTES + CUDA_BYTES * (len(generators) - 1)
    drawn = secret.state(size, purpose, *place)
    try:
        generators[0].set_state(_cpu_state(drawn[: CPU_BYTES + SEED_BYTES]))
        for number, generator in enumerate(generators[1:]):
            start = CPU_BYTES + SEED_BYTES + CUDA_BYTES * number
            generator.set_state(_cuda_state(drawn[start : start + CUDA_BYTES]))
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


@contextmanager
def lent_generators(secret: SecretSeed, purpose: str, *place: int) -> Iterator[None]:
    """Set the global generators of torch, NumPy and Python from a secret for a while, then give their states back.

    Args:
        secret: As for `lent_torch_generators`.
        purpose: As for `lent_torch_generators`.
        place: As for `lent_torch_generators`.
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    drawn = secret.state(2 * HOST_BYTES, f"{purpose}, host", *place)
    try:
        np.random.seed(np.frombuffer(drawn[:HOST_BYTES], np.uint32))  # noqa: NPY002  # all 256 bits enter
        random.seed(int.from_bytes(drawn[HOST_BYTES:], "little"))
        with lent_torch_generators(secret, purpose, *place):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


@contextmanager
def unseeded_by_data() -> Iterator[None]:
    """Load examples, and refuse code that gives a global generator of torch, NumPy or Python another state meanwhile.

    **Privacy:** lent states are secret only until something seeds them: from then on the numbers of all examples that
    are loaded next are known, and go by how many examples stand before them.

    Raises:
        NotPrivate: A generator is in a state that draws from the one before do not lead to.
    """
    before, words = random_states(), _words()
    yield
    seeded = {name for name, now in _words().items() if not _leads_to(words[name], now)}
    if seeded_between(before, random_states()):
        seeded.add("torch's")
    if seeded:
        raise NotPrivate(
            f"the data set seeds {' and '.join(sorted(seeded))} global generator while examples are loaded, so that "
            "the random numbers of the examples that are loaded next are known and go by their place in the batch: one "
            "example more would change those of all that follow. dpcomp sets the generators from the secret for each "
            "batch: leave them as they are, or draw what an example needs from a generator made for it, such as "
            "torch.Generator().manual_seed(i), numpy.random.default_rng(i) or random.Random(i)"
        )


def set_generator(generator: torch.Generator, secret: SecretSeed, purpose: str, *place: int) -> None:
    """Set the whole state of a generator on the CPU from a secret, for good.

    Args:
        generator: Not one of torch's global ones, which are lent.
        secret: As for `lent_torch_generators`.
        purpose: As for `lent_torch_generators`.
        place: As for `lent_torch_generators`.
    """
    generator.set_state(_cpu_state(secret.state(CPU_BYTES + SEED_BYTES, purpose, *place)))


@contextmanager
def kept_generators() -> Iterator[None]:
    """Give torch's global generators the states back that they had, after what is drawn inside."""
    before = random_states()
    try:
        yield
    finally:
        set_random_states(before)


def random_states() -> States:
    """Return the states of torch's global generators, the CPU's first."""
    return tuple(generator.get_state() for generator in _generators())


def set_random_states(states: States) -> None:
    """Set the states of torch's global generators; those of devices that came into use since are left alone."""
    for generator, state in zip(_generators(), states, strict=False):
        generator.set_state(state)


def seed_unforeseeably() -> None:
    """Seed torch's global generators from the system's entropy, so that no code sets the same seed again."""
    for generator in _generators():
        generator.seed()


def seeds_of_generators() -> tuple[int, ...]:
    """Return the seeds that torch's global generators were given, the CPU's first."""
    return tuple(generator.initial_seed() for generator in _generators())


def seed_generators(number: int) -> None:
    """Seed torch's global generators with a number that everybody may know: for trials, which release nothing."""
    for generator in _generators():
        generator.manual_seed(number)


def seeded_between(before: States, after: States) -> bool:
    """Return whether a generator was given another seed, or the state of another one, from one look to the next."""
    return not all(torch.equal(a[:SEED_BYTES], b[:SEED_BYTES]) for a, b in zip(before, after, strict=False))


def drawn_between(before: States, after: States) -> bool:
    """Return whether a generator moved from one look to the next."""
    return not all(map(torch.equal, before, after))


def _words() -> dict[str, UInt32[np.ndarray, "624"]]:
    """Return the words from which the global generators on the host draw, which are Mersenne Twisters."""
    of_torch = torch.default_generator.get_state().numpy().view(np.uint64)[3 : 3 + WORDS]
    return {
        "torch's": of_torch.astype(np.uint32),
        "NumPy's": np.random.get_state(legacy=False)["state"]["key"],  # noqa: NPY002
        "Python's": np.array(random.getstate()[1][:WORDS], np.uint32),
    }


def _leads_to(before: UInt32[np.ndarray, "624"], after: UInt32[np.ndarray, "624"]) -> bool:
    """Return whether a Mersenne Twister with some words comes to others by drawing: it makes all words anew at once."""
    if np.array_equal(before, after):
        return True
    wanted = _twister(after, 0).random_raw(WORDS)
    drawing, blocks, looked_at = _twister(before, WORDS), 1, 0
    while looked_at < MOST_DRAWN:
        drawn = drawing.random_raw(blocks * WORDS).reshape(blocks, WORDS)
        if any(np.array_equal(drawn[place], wanted) for place in np.flatnonzero(drawn[:, 0] == wanted[0])):
            return True
        looked_at += drawn.size
        blocks = min(2 * blocks, 1024)
    return False


def _twister(words: UInt32[np.ndarray, "624"], drawn: int) -> np.random.MT19937:
    found = np.random.MT19937(0)
    found.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": drawn}}
    return found


def _generators() -> list[torch.Generator]:
    """Return torch's global generators of all devices in use: the CPU's, then those of the GPUs."""
    on_gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *on_gpus]


def _cpu_state(drawn: bytes) -> UInt8[Tensor, "bytes"]:
    """Return a state of torch's generator on the CPU: a seed, which only names it, and the words that it draws from."""
    state = _form_of_cpu_state().copy()
    state[0] = np.frombuffer(drawn[:SEED_BYTES], np.uint64)[0]
    state[3 : 3 + WORDS] = np.frombuffer(drawn[SEED_BYTES:], np.uint32)
    state[3] |= 2**31  # not all words are zero; the other bits of the first one are no part of the state
    return torch.from_numpy(state.view(np.uint8))


def _cuda_state(drawn: bytes) -> UInt8[Tensor, "16"]:
    """Return a state of torch's generator on a GPU: its seed, and its place in the stream of this seed."""
    state = np.frombuffer(drawn, np.uint64).copy()
    state[1] = state[1] % LARGEST_OFFSET * 4  # it counts single numbers, of which a block has four
    return torch.from_numpy(state.view(np.uint8))


@cache
def _form_of_cpu_state() -> UInt64[np.ndarray, "words"]:
    """Return the state of a fresh generator on the CPU, as numbers of 64 bits: its words lie at 3 to 626.

    Raises:
        RuntimeError: This torch keeps its state in another form.
    """
    state = torch.Generator().manual_seed(5489).get_state().numpy().copy()
    numbers = state.view(np.uint64) if state.size % 8 == 0 else np.zeros(0, np.uint64)
    first, second = 5489, 1301868182  # as the authors of the Mersenne Twister fill it from their default seed
    if numbers.size < 3 + WORDS or numbers[0] != 5489 or numbers[3:5].tolist() != [first, second]:
        raise RuntimeError(
            f"torch {torch.__version__} keeps the state of its generator in a form that dpcomp does not know, so it "
            "cannot be set from a secret: use the torch versions that dpcomp names"
        )
    return numbers
