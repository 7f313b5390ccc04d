"""Feedback: what a client keeps of updates until its codec has sent them, and how that enters what it sends next.

A pipeline declares it: `feedback=True` is error feedback, `False` is none, and `MomentumCorrection` and `EF21` keep a
momentum beside it. With an update x, a learning rate η (1 if it is constant) and C(·) for what the receiver decodes, a
client computes

    feedback=True          target = r + x                                         r ← target − C(target)
    MomentumCorrection     u ← m·u + x/η;  target = r + η·u                       r ← target − C(target), u masked
    EF21                   v ← (1 − w)·v + w·x/η;  target = η·v − g               g ← g + C(target)

and sends C(target). A residual r holds updates, which contain the rates that they were made with, so it needs no factor
when the rate changes: in units of gradients that is the η_{t−1}/η_t of Zheng et al. 2019, Algorithm 1. A momentum is
kept in units of gradients, so what it adds to a round has the rate of that round (Goyal et al. 2017, remark 2).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from dpcomp.core.checks import check_type, real_number
from dpcomp.core.support import Everywhere
from dpcomp.display.text import outline
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Kept:
    """What a sender keeps from message to message: (d,) vectors, read-only; None where its feedback keeps none.

    Attributes:
        residual: What its codec has dropped so far.
        momentum: The momentum of its updates, each divided by its learning rate if that follows a schedule.
        sent: The sum of all that the receiver has decoded.
    """

    residual: Float32[np.ndarray, "d"] | None = None
    momentum: Float32[np.ndarray, "d"] | None = None
    sent: Float32[np.ndarray, "d"] | None = None

    def __post_init__(self):
        for vector in self.vectors.values():
            vector.flags.writeable = False

    def __repr__(self) -> str:
        return outline(self)

    @property
    def vectors(self) -> dict[str, Float32[np.ndarray, "d"]]:
        """The vectors that there are, by name, in a fixed order."""
        named = {"residual": self.residual, "momentum": self.momentum, "sent": self.sent}
        return {name: vector for name, vector in named.items() if vector is not None}


class SenderFeedback(Protocol):
    """What a sender does with updates and the vectors that it keeps; the formulas stand at the head of this module."""

    def at_start(self, d: int) -> Kept:
        """Return what a sender of d coordinates keeps before its first update."""
        ...

    @property
    def weight(self) -> float:
        """The factor of the update in the target."""
        ...

    def carried(self, kept: Kept, learning_rate: float) -> Float32[np.ndarray, "d"]:
        """Return target − weight · update.

        Args:
            kept: What the sender keeps.
            learning_rate: η of the update.
        """
        ...

    def after_sending(self, kept: Kept, update: Update, residual: Float32[np.ndarray, "d"], decoded: Update) -> Kept:
        """Return what the sender keeps once the receiver has accepted the payload.

        Args:
            kept: What it kept before.
            update: The update, before it was weighted.
            residual: target − decoded.
            decoded: What the receiver decodes.
        """
        ...

    def after_refusal(self, kept: Kept, update: Float32[np.ndarray, "d"], learning_rate: float) -> Kept:
        """Return what the sender keeps once the receiver has refused the payload: nothing was sent.

        Args:
            kept: What it kept before the update.
            update: The update, before it was weighted.
            learning_rate: η of the update.
        """
        ...


@dataclass(frozen=True)
class ErrorFeedback:
    """Add what the codec dropped to the next update (Seide et al. 2014, section 2): `feedback=True` of a pipeline."""

    @property
    def weight(self) -> float:
        """The factor of the update in the target: 1."""
        return 1.0

    def at_start(self, d: int) -> Kept:
        """Return a residual of zeros."""
        return Kept(residual=np.zeros(d, np.float32))

    def carried(self, kept: Kept, learning_rate: float) -> Float32[np.ndarray, "d"]:
        """Return the residual, whatever the rate is."""
        assert kept.residual is not None
        return kept.residual

    def after_sending(self, kept: Kept, update: Update, residual: Float32[np.ndarray, "d"], decoded: Update) -> Kept:
        """Return the new residual."""
        return Kept(residual=residual)

    def after_refusal(self, kept: Kept, update: Float32[np.ndarray, "d"], learning_rate: float) -> Kept:
        """Return the residual with the whole update added to it."""
        assert kept.residual is not None
        return Kept(residual=kept.residual + update)


@dataclass(frozen=True, kw_only=True)
class MomentumCorrection:
    """Keep the momentum at the client, in front of its residual: what waits then grows as if it had been sent.

    With an update x: u ← m·u + x, r ← r + u, the client sends C(r), and r ← r − C(r). Momentum at the server instead
    multiplies a residual that waited 1/κ rounds, for a density κ, by 1/(1 − m) when it is sent. With a learning rate
    from a schedule, u is kept in units of gradients, so its share of an update has the rate of the present round.

    With a codec that drops nothing this is momentum at the server, if every client takes part in every round.

    Source: Lin et al. 2018 (DGC), arXiv 1712.01887, sections 3.1 (momentum correction) and 3.2 (momentum factor
    masking).

    **Privacy:** u and r are functions of releases and of public learning rates, so all of it is post-processing
    (PRIVACY_RULES 1). Under a trusted server both stay at the client as clean as its updates; the server clips what it
    decodes (PRIVACY_RULES 10), so momentum, which makes payloads up to 1/(1 − m) times larger, changes no sensitivity.

    Args:
        momentum: m, in (0, 1).
        masking: Whether u is set to zero where the receiver decodes a value other than zero. It keeps old momentum from
            following an update that arrives late, and needs a codec that does not send all coordinates.

    Raises:
        TypeError: `momentum` is not a number, or `masking` not a bool.
        ValueError: `momentum` lies outside its range.

    Examples:
        >>> import dpcomp as dp
        >>> dp.Pipeline(
        ...     mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        ...     codec=dp.Codec(sparsify=dp.TopK(0.01)),
        ...     feedback=dp.MomentumCorrection(momentum=0.9),
        ... ).feedback
        MomentumCorrection(momentum=0.9, masking=True)
    """

    momentum: float = 0.9
    masking: bool = True

    def __post_init__(self):
        momentum = real_number(self.momentum, "MomentumCorrection(momentum)", "a number in (0, 1)")
        if not 0 < momentum < 1:
            raise ValueError(f"{self}: the momentum is a number in (0, 1); for none, use feedback=True")
        object.__setattr__(self, "momentum", momentum)
        check_type(self.masking, bool, f"MomentumCorrection(masking={self.masking!r}): give True or False")

    @property
    def weight(self) -> float:
        """The factor of the update in the target: 1."""
        return 1.0

    def at_start(self, d: int) -> Kept:
        """Return a residual and a momentum of zeros."""
        return Kept(residual=np.zeros(d, np.float32), momentum=np.zeros(d, np.float32))

    def carried(self, kept: Kept, learning_rate: float) -> Float32[np.ndarray, "d"]:
        """Return r + η·m·u."""
        assert kept.residual is not None
        assert kept.momentum is not None
        carried = np.float32(learning_rate * self.momentum) * kept.momentum
        carried += kept.residual
        return carried

    def after_sending(self, kept: Kept, update: Update, residual: Float32[np.ndarray, "d"], decoded: Update) -> Kept:
        """Return the new residual, and the new momentum, which is zero where something was sent."""
        momentum = self._moved(kept, update.dense(), update.learning_rate)
        if self.masking:
            momentum[decoded.support.indices(decoded.layout.size)[decoded.values != 0]] = 0
        return Kept(residual=residual, momentum=momentum)

    def after_refusal(self, kept: Kept, update: Float32[np.ndarray, "d"], learning_rate: float) -> Kept:
        """Return the residual with all of the new momentum added to it, and the new momentum."""
        return Kept(
            residual=self.carried(kept, learning_rate) + update, momentum=self._moved(kept, update, learning_rate)
        )

    def _moved(self, kept: Kept, update: Float32[np.ndarray, "d"], learning_rate: float) -> Float32[np.ndarray, "d"]:
        """Return m·u + x/η."""
        assert kept.momentum is not None
        moved = np.float32(self.momentum) * kept.momentum
        moved += per_rate(update, learning_rate)
        return moved


@dataclass(frozen=True, kw_only=True)
class EF21:
    """Send what changes in an average of the updates, of which the server adds up all that it decodes.

    With an update x: v ← (1 − w)·v + w·x, the client sends C(v − g), and g ← g + C(v − g), from v = g = 0 on. The
    server's step is the mean of the g of all clients, those included that sent nothing in the round; so `Server` needs
    the number of clients, and a late update counts as much as any other. A client that misses rounds ages v by its
    absence policy, and g stays what the server has of it. A client or server that was set back behind payloads which
    the other knows cannot go on: nobody knows that g. With a learning rate from a schedule, v is kept in units of
    gradients.

    Source: Fatkhullin, Tyurin & Richtárik 2023 (EF21-SGDM), arXiv 2305.15155, Algorithm 1; with w = 1 it is EF21
    (Richtárik, Sokolov & Fatkhullin 2021, arXiv 2106.05203, Algorithm 2).

    **Privacy:** v and g are functions of releases and of public learning rates, so all of it is post-processing
    (PRIVACY_RULES 1). A pipeline refuses it under a trusted server, which would clip the differences, so that it has
    other g than the clients, and would add up the noise of all rounds.

    Args:
        weight: w, the weight of an update in the average, in (0, 1].

    Raises:
        TypeError: `weight` is not a number.
        ValueError: `weight` lies outside its range.

    Examples:
        >>> import dpcomp as dp
        >>> dp.Pipeline(
        ...     mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        ...     codec=dp.Codec(sparsify=dp.TopK(0.01)),
        ...     feedback=dp.EF21(weight=0.1),
        ... ).feedback
        EF21(weight=0.1)
    """

    weight: float = 0.1

    def __post_init__(self):
        weight = real_number(self.weight, "EF21(weight)", "a number in (0, 1]")
        if not 0 < weight <= 1:
            raise ValueError(f"{self}: the weight of an update in the average is a number in (0, 1]")
        object.__setattr__(self, "weight", weight)

    def at_start(self, d: int) -> Kept:
        """Return an average and a sum of zeros."""
        return Kept(momentum=np.zeros(d, np.float32), sent=np.zeros(d, np.float32))

    def carried(self, kept: Kept, learning_rate: float) -> Float32[np.ndarray, "d"]:
        """Return η·(1 − w)·v − g."""
        assert kept.momentum is not None
        assert kept.sent is not None
        carried = np.float32(learning_rate * (1 - self.weight)) * kept.momentum
        carried -= kept.sent
        return carried

    def after_sending(self, kept: Kept, update: Update, residual: Float32[np.ndarray, "d"], decoded: Update) -> Kept:
        """Return the new average, and g + what the receiver decodes."""
        assert kept.sent is not None
        if isinstance(decoded.support, Everywhere):
            sent = kept.sent + decoded.values
        else:
            sent = kept.sent.copy()
            sent[decoded.support.indices(decoded.layout.size)] += decoded.values
        return Kept(momentum=self._moved(kept, update.dense(), update.learning_rate), sent=sent)

    def after_refusal(self, kept: Kept, update: Float32[np.ndarray, "d"], learning_rate: float) -> Kept:
        """Return the new average, and g as it was."""
        return Kept(momentum=self._moved(kept, update, learning_rate), sent=kept.sent)

    def _moved(self, kept: Kept, update: Float32[np.ndarray, "d"], learning_rate: float) -> Float32[np.ndarray, "d"]:
        """Return (1 − w)·v + w·x/η."""
        assert kept.momentum is not None
        moved = np.float32(1 - self.weight) * kept.momentum
        moved += np.float32(self.weight) * per_rate(update, learning_rate)
        return moved


Feedback = bool | MomentumCorrection | EF21  # of a pipeline


def per_rate(update: Float32[np.ndarray, "d"], learning_rate: float) -> Float32[np.ndarray, "d"]:
    """Return update ÷ η; where η is 0 as a float32, the update has moved nothing, and zeros are returned."""
    rate = np.float32(learning_rate)
    if rate == 1:
        return update
    return update / rate if rate else np.zeros_like(update)


def sender_feedback(feedback: Feedback) -> SenderFeedback | None:
    """Return what a client does with updates, as a pipeline declares it; None if it keeps nothing."""
    if isinstance(feedback, bool):
        return ErrorFeedback() if feedback else None
    return feedback
