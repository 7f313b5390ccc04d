"""Method: the protocol of a way to compress federated learning; and what most methods are made of.

A method is a frozen dataclass in one file. `methods/__init__.py` lists those that the benchmark trains.
"""

from typing import Protocol

from dpcomp.codec import Codec
from dpcomp.codec.entropy import FixedWidth
from dpcomp.codec.quantize import Rotated, Uniform
from dpcomp.federated import ServerOptimizer
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Clip, Gaussian, Poisson
from dpcomp.privacy.claim import Stage

FOUR_BITS = Codec(quantize=Uniform(4))  # of broadcasts: 15 levels, range coded
MEAN = ServerOptimizer()  # the server's step is the mean of the updates


class Method(Protocol):
    """The protocol of a method: a frozen dataclass whose fields are numbers, strings or parts of a pipeline.

    Clients, examples, batches, noise and first weights of a seed are the same for all methods; only pipeline, server
    rule and learning rate differ.
    """

    @property
    def name(self) -> str:
        """The name in tables, results and figures; no other method has it."""
        ...

    @property
    def ours(self) -> bool:
        """Whether it is dpcomp's own, and not a peer written from its paper."""
        ...

    @property
    def source(self) -> str:
        """Paper and section."""
        ...

    @property
    def first_rate(self) -> float:
        """The learning rate where the tuning begins, as a multiple of that of dense updates."""
        ...

    def pipeline(self, setting: Setting, noise_multiplier: float) -> Pipeline:
        """Return mechanism, codecs and feedback.

        Args:
            setting: The federation.
            noise_multiplier: z; the benchmark calibrates it to the setting's (ε, δ).
        """
        ...

    def server(self, setting: Setting) -> ServerOptimizer:
        """Return the server's rule; a part of one's own is a subclass that has another `step`."""
        ...


def mechanism(setting: Setting, noise_multiplier: float, *before: Stage) -> tuple[Stage, ...]:
    """Return the stages of a client: some before the clip, such as a public support, the clip, and the noise."""
    return (*before, Clip(setting.clip_norm), Gaussian(noise_multiplier))


def sampling(setting: Setting) -> Poisson:
    """Return how a client draws the examples of a step."""
    return Poisson(setting.sampling_rate)


def rotated(bits: int) -> Codec:
    """Return DRIVE's and EDEN's codec: so many bits a value of the rotated vector."""
    return Codec(quantize=Rotated(bits), entropy=FixedWidth())


def on_support(setting: Setting, noise_multiplier: float, support: Stage, bits: int) -> Pipeline:
    """Return a pipeline with a public support before the clip, and rotated bits; broadcasts have four bits.

    Args:
        setting: The federation.
        noise_multiplier: z.
        support: The stage that restricts each unit.
        bits: A value that a client sends.
    """
    return Pipeline(
        sampling=sampling(setting),
        mechanism=mechanism(setting, noise_multiplier, support),
        codec=rotated(bits),
        downlink=FOUR_BITS,
        feedback=False,
    )


def percent(share: float) -> str:
    """Return a share as a text, such as "1 %"."""
    return f"{100 * share:g} %"


def in_bits(bits: int) -> str:
    """Return a number of bits as a text, such as "1 bit"."""
    return f"{bits} bit{'s' if bits > 1 else ''}"
