"""Random streams: a public seed for what everybody may know, a secret one for noise and sampling.

The two are different types, so that a mask can never share a stream with noise. Every stream is
ChaCha20 (RFC 8439's cipher, 20 rounds) under a 256-bit key of its own, derived with BLAKE2b from the
seed, the purpose, and the numbers that place it (run, client, round, step). Release noise is made of the cipher's
words by `SecretSeed.standard_normal`, and all else, which is small, by NumPy's distributions over the cipher. The
docstring of `dpcomp.Gaussian` says what a guarantee idealises of the draws.
"""

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from jaxtyping import Float64
from randomgen import ChaCha

from dpcomp.core import normals
from dpcomp.core.checks import whole_number


def _key(domain: bytes, seed: bytes, purpose: str, place: tuple[int, ...]) -> int:
    """Derive a 256-bit key; no two (domain, seed, purpose, place) encode to the same bytes."""
    name = purpose.encode()
    material = [len(name).to_bytes(2, "little"), name]
    material += [number.to_bytes(16, "little") for number in place]
    digest = hashlib.blake2b(b"".join(material), digest_size=32, key=seed, person=domain)
    return int.from_bytes(digest.digest(), "little")


def _generator(key: int) -> np.random.Generator:
    """Return NumPy's distributions over ChaCha20."""
    return np.random.Generator(ChaCha(key=key, rounds=20))  # pyright: ignore[reportArgumentType]


LARGEST_SEED = 2**64 - 1


class PublicSeed:
    """A seed that every party and any observer may know: for masks, dither, partitions and first weights.

    One seed serves a whole run, and names it (`Address.run`). Streams with different purposes or places are
    independent: their keys differ, and ChaCha20 is a cipher. Two seeds with one number are equal.

    Args:
        number: A whole number from 0 to 2⁶⁴ − 1.

    Raises:
        TypeError: The number is not a whole number.
        ValueError: It lies outside the range.

    Examples:
        >>> import dpcomp as dp
        >>> seed = dp.PublicSeed(7)
        >>> seed.key("mask", 3) == dp.PublicSeed(7).key("mask", 3) != seed.key("mask", 4)
        True
        >>> seed.stream("partition").permutation(5).shape
        (5,)
    """

    def __init__(self, number: int):
        self.number = whole_number(number, "PublicSeed(number)", least=0, most=LARGEST_SEED)

    def key(self, purpose: str, *place: int) -> int:
        """Return the 256-bit key of a purpose and a place, the same on every machine.

        Args:
            purpose: What the key is for, such as `"mask"`.
            place: Numbers from 0 below 2¹²⁸ that tell the keys of one purpose apart, such as round and client.
        """
        return _key(b"dpcomp public", self.number.to_bytes(8, "little"), purpose, place)

    def stream(self, purpose: str, *place: int) -> np.random.Generator:
        """Return a NumPy generator under that key, for what one party draws alone.

        NumPy may change its distributions between versions. What two ends must draw alike is made of raw words of the
        cipher under `key` instead.

        Args:
            purpose: As for `key`.
            place: As for `key`.
        """
        return _generator(self.key(purpose, *place))

    def __repr__(self) -> str:
        return f"PublicSeed({self.number})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicSeed) and other.number == self.number

    def __hash__(self) -> int:
        return hash(("PublicSeed", self.number))


class SecretSeed:
    """The source of noise, sampling draws and random numbers before the clip; it stays in the process that made it.

    Without a number, every call of `stream` gets a key of 256 fresh bits from the operating system, so no two draws can
    share noise: not in forked workers, not after a restart. Use this wherever privacy matters. With a number, a stream
    is a function of the number, the purpose and the place: for repeatable research only, since whoever knows the number
    can subtract the noise; the guarantee then says that the noise was seeded.

    A secret seed cannot be pickled or copied, and its `repr` does not show the number.

    Args:
        number: A whole number from 0 to 2⁶⁴ − 1 for repeatable research; None for fresh randomness.

    Raises:
        TypeError: The number is not a whole number; or the seed is pickled or copied.
        ValueError: The number lies outside the range.

    Examples:
        >>> import dpcomp as dp
        >>> dp.SecretSeed().seeded, dp.SecretSeed(7)
        (False, SecretSeed(<seeded>))
        >>> dp.SecretSeed().standard_normal(3, "noise", 0).shape
        (3,)
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
        """Return a NumPy generator for a purpose and a place; without a number, a fresh one at every call.

        Args:
            purpose: What is drawn, such as `"sample"`.
            place: Numbers from 0 below 2¹²⁸ that tell the streams of one purpose apart: run, client, round, step.
        """
        return _generator(self._key(b"dpcomp secret", purpose, place))

    def standard_normal(self, count: int, purpose: str, *place: int) -> Float64[np.ndarray, "count"]:
        """Draw release noise for a purpose and a place; without a number, fresh noise at every call.

        The key is another one than that of `stream` at the same purpose and place.
        `dpcomp.core.normals.standard_normal` says how the numbers are made and how exact they are.

        Args:
            count: The number of draws, from 0 to 2³⁴.
            purpose: What is drawn, such as `"noise"`.
            place: Numbers from 0 below 2¹²⁸ that tell the draws of one purpose apart: run, client, round, step.

        Returns:
            (count,) independent numbers of N(0, 1) in float64.

        Raises:
            ValueError: `count` is larger than a key's stream.
        """
        return normals.standard_normal(self._key(b"dpcomp normals", purpose, place), count)

    def state(self, size: int, purpose: str, *place: int) -> bytes:
        """Draw the state of a generator that others draw from, such as torch's for dropout; fresh without a number.

        The key is another one than those of `stream` and `standard_normal` at the same purpose and place, so masks
        share no stream with noise or sampling.

        Args:
            size: The number of bytes.
            purpose: What is drawn from the generator, such as `"pass"`.
            place: Numbers from 0 below 2¹²⁸ that tell the states of one purpose apart: run, client, round, pass.

        Returns:
            Bytes of the key stream.
        """
        key = self._key(b"dpcomp state", purpose, place)
        return Cipher(ChaCha20(key.to_bytes(32, "little"), bytes(16)), mode=None).encryptor().update(bytes(size))

    def number_for_workers(self, purpose: str) -> int | None:
        """Return the number of a seed that worker processes make for a purpose; None where theirs are fresh, too.

        Args:
            purpose: What the workers draw, such as `"examples"`.
        """
        return int.from_bytes(self.state(8, f"{purpose}, workers"), "little") if self.seeded else None

    def _key(self, domain: bytes, purpose: str, place: tuple[int, ...]) -> int:
        seed = os.urandom(32) if self._seed is None else self._seed
        return _key(domain, seed, purpose, place)

    def __repr__(self) -> str:
        return "SecretSeed(<seeded>)" if self.seeded else "SecretSeed()"

    def __reduce__(self):
        raise TypeError("a SecretSeed never leaves its process: make one where the noise is drawn")


KEY_BYTES = 32


class DitherKey:
    """The secret key of one client with the server, from which `dp.ExactGaussian` draws the dither of its messages.

    The two agree on it when the client enrols, over a channel that nobody else reads: the server sends
    `keys.of(client).to_bytes()`, and the client gives it to `pipeline.init_client(dither_key=...)`. It stands in no
    checkpoint, message or report, cannot be pickled, and its `repr` does not show it: give it anew after a restart.

    **Privacy:** who has the key can take this client's share of the noise away. Each message has a dither of its own:
    its key derives from the run, the client, and the digests of all that the two ends have exchanged before it. A
    dither that two different updates had would cancel noise.

    Args:
        key: 32 bytes.
        seeded: Whether the bytes derive from a number, which somebody may know; the guarantee then says so.

    Raises:
        TypeError: `key` is not bytes; or the key is pickled or copied.
        ValueError: `key` does not have 32 bytes.
    """

    def __init__(self, key: bytes, *, seeded: bool = False):
        self._key, self.seeded = _checked_key(key, "DitherKey"), seeded

    def of_message(self, *place: int) -> int:
        """Return the 256-bit key of one message's dither.

        Args:
            place: Numbers from 0 below 2¹²⁸ that tell all messages of this client apart, in all runs.
        """
        return _key(b"dpcomp dither", self._key, "message", place)

    def to_bytes(self) -> bytes:
        """Return the 32 bytes, to give them to the client."""
        return self._key

    def __repr__(self) -> str:
        return "DitherKey(<secret>)"

    def __reduce__(self):
        raise TypeError("a DitherKey stays in its process: give its bytes to the client when it enrols")


class DitherKeys:
    """The server's secret, from which the dither key of each client derives; see `DitherKey`.

    A server that may be restarted keeps the 32 bytes as it keeps its other secrets, since its clients keep theirs.

    Args:
        key: 32 bytes of `os.urandom`, the same whenever this server runs.
        seeded: Whether the bytes derive from a number, which somebody may know; the guarantee then says so.

    Raises:
        TypeError: `key` is not bytes; or the keys are pickled or copied.
        ValueError: `key` does not have 32 bytes.

    Examples:
        >>> import os
        >>> import dpcomp as dp
        >>> keys = dp.DitherKeys(os.urandom(32))
        >>> keys.of(7).to_bytes() == keys.of(7).to_bytes() != keys.of(8).to_bytes()
        True
    """

    def __init__(self, key: bytes, *, seeded: bool = False):
        self._key, self.seeded = _checked_key(key, "DitherKeys"), seeded

    @classmethod
    def drawn(cls, secret: SecretSeed) -> "DitherKeys":
        """Draw the keys of a federation whose ends are all in this process, such as a simulation's.

        Args:
            secret: Where they come from: the operating system, or the number of the seed.
        """
        key = secret._key(b"dpcomp secret", "dither keys", ())  # pyright: ignore[reportPrivateUsage]
        return cls(key.to_bytes(KEY_BYTES, "little"), seeded=secret.seeded)

    def of(self, client: int) -> DitherKey:
        """Return the key of a client.

        Args:
            client: The client's number.
        """
        key = _key(b"dpcomp dither", self._key, "client", (client,))
        return DitherKey(key.to_bytes(KEY_BYTES, "little"), seeded=self.seeded)

    def __repr__(self) -> str:
        return "DitherKeys(<secret>)"

    def __reduce__(self):
        raise TypeError("DitherKeys stay in the server's process: make them of its 32 bytes where it runs")


def _checked_key(key: bytes, name: str) -> bytes:
    if not isinstance(key, bytes):
        raise TypeError(f"{name} of {type(key).__name__}: give {KEY_BYTES} bytes, such as os.urandom({KEY_BYTES})")
    if len(key) != KEY_BYTES:
        raise ValueError(f"{name} of {len(key)} bytes: give {KEY_BYTES}, such as os.urandom({KEY_BYTES})")
    return key
