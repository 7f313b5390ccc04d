"""Random streams: a public seed for what everybody may know, a secret one for noise and sampling.

The two are different types, so that a mask can never share a stream with noise. Every stream is
ChaCha20 (RFC 8439's cipher, 20 rounds) under a 256-bit key of its own, derived with BLAKE2b from the
seed, the purpose, and the numbers that place it (run, client, round, step).
"""

import hashlib
import os

import numpy as np
from randomgen import ChaCha

from dpcomp.core.checks import whole_number


def _key(kind: bytes, seed: bytes, purpose: str, place: tuple[int, ...]) -> int:
    """A 256-bit key; no two (kind, seed, purpose, place) encode to the same bytes."""
    name = purpose.encode()
    material = [len(name).to_bytes(2, "little"), name]
    material += [number.to_bytes(16, "little") for number in place]
    digest = hashlib.blake2b(b"".join(material), digest_size=32, key=seed, person=kind)
    return int.from_bytes(digest.digest(), "little")


def _generator(key: int) -> np.random.Generator:
    """NumPy's distributions over ChaCha20."""
    return np.random.Generator(ChaCha(key=key, rounds=20))  # pyright: ignore[reportArgumentType]


LARGEST_SEED = 2**64 - 1


class PublicSeed:
    """A seed that all parties, and any observer, may know: masks, dither, partitions, first weights."""

    def __init__(self, number: int):
        self.number = whole_number(number, "PublicSeed(number)", least=0, most=LARGEST_SEED)

    def key(self, purpose: str, *place: int) -> int:
        """256 bits for `purpose` at `place`: the same on every machine."""
        return _key(b"dpcomp public", self.number.to_bytes(8, "little"), purpose, place)

    def stream(self, purpose: str, *place: int) -> np.random.Generator:
        """A NumPy generator under that key, for what one party draws: NumPy may change its distributions.

        What two ends must draw alike they make of raw words of the cipher under `key`.
        """
        return _generator(self.key(purpose, *place))

    def __repr__(self) -> str:
        return f"PublicSeed({self.number})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicSeed) and other.number == self.number

    def __hash__(self) -> int:
        return hash(("PublicSeed", self.number))


class SecretSeed:
    """The source of noise and of sampling draws; it never leaves its process.

    Without a number every stream is keyed with 256 fresh bits of the system's entropy, so no two draws
    can share noise: not in forked workers, not after a restart. With a number (research only) a stream
    is a function of the number, the purpose and the place, and the guarantee says that noise was seeded.
    """

    def __init__(self, number: int | None = None):
        self._seed = None
        if number is not None:
            self._seed = whole_number(number, "SecretSeed(number)", least=0, most=LARGEST_SEED).to_bytes(8, "little")

    @property
    def seeded(self) -> bool:
        """Whether the streams can be repeated by whoever knows the number."""
        return self._seed is not None

    def stream(self, purpose: str, *place: int) -> np.random.Generator:
        """A generator for `purpose` at `place`, which are part of its key."""
        seed = os.urandom(32) if self._seed is None else self._seed
        return _generator(_key(b"dpcomp secret", seed, purpose, place))

    def __repr__(self) -> str:
        return "SecretSeed(<seeded>)" if self.seeded else "SecretSeed()"

    def __reduce__(self):
        raise TypeError("a SecretSeed never leaves its process: make one where the noise is drawn")
