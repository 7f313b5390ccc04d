"""Server optimisers: from the mean update of a round to the step that is broadcast."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dpcomp.core.checks import check_type, real_number
from dpcomp.core.support import Everywhere
from dpcomp.wire.channel import Channel
from dpcomp.wire.update import UNKNOWN, Update, with_claim

Moments = Mapping[str, Float32[np.ndarray, "d"]]


@runtime_checkable
class ServerRule(Protocol):
    """What a server makes its steps with: a frozen value; the server keeps the moments."""

    @property
    def moments(self) -> tuple[str, ...]:
        """The names of the (d,) vectors that it keeps from round to round, which a checkpoint holds under these."""
        ...

    def refuse_feedback(self, channel: Channel) -> None:
        """Refuse clients whose feedback lets a part of an update wait, unless that was asked for.

        Raises:
            ValueError: It was not asked for.
        """
        ...

    def step(self, mean: Update, moments: Moments) -> tuple[Update, Moments]:
        """Compute the step to broadcast, and the moments after it.

        **Privacy:** the step is made of released means and public numbers alone, so it has their claim.

        Args:
            mean: The mean Δ of a round's updates.
            moments: The vectors after the last step; empty before the first.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer:
    """Federated averaging with server momentum: v ← μv + Δ, step = η·v, for the mean Δ of a round's updates.

    The step is added to the model. With the defaults it is plain federated averaging: the step is the mean. Give it to
    `Server` or `simulate`; the server keeps the velocity v, so several runs may use the same optimiser.

    Momentum behind the feedback of clients is refused, unless `behind_feedback` asks for it: with a sparsifier of
    density κ a value waits about 1/κ rounds in a residual, and once it is sent, the server applies the sum of these
    rounds 1/(1 − μ) times over, long after their gradients. `MomentumCorrection` of the pipeline has the momentum in
    front of the residual instead.

    Source: Hsu, Qi & Brown 2019 (FedAvgM), section 4; Reddi et al. 2021, Algorithm 2. Of momentum and residuals: Lin et
    al. 2018 (DGC), section 3.1.

    Args:
        learning_rate: η, the server's learning rate.
        momentum: μ, in [0, 1); 0 for none.
        behind_feedback: Whether momentum may stand behind feedback that lets a part of an update wait.

    Raises:
        TypeError: A rate or momentum is not a number, or `behind_feedback` not a bool.
        ValueError: A rate or momentum lies outside its range.

    Examples:
        >>> from dpcomp.federated import ServerOptimizer
        >>> ServerOptimizer(momentum=0.9)
        ServerOptimizer(learning_rate=1.0, momentum=0.9, behind_feedback=False)
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    behind_feedback: bool = False

    def __post_init__(self):
        check_type(
            self.behind_feedback, bool, f"ServerOptimizer(behind_feedback={self.behind_feedback!r}): give True or False"
        )
        rate = real_number(self.learning_rate, "ServerOptimizer(learning_rate)", "a finite number from 0 on")
        momentum = real_number(self.momentum, "ServerOptimizer(momentum)", "a number in [0, 1)")
        if not 0 <= rate < np.inf or not 0 <= momentum < 1:
            raise ValueError(f"{self}: the learning rate is a finite number from 0 on, the momentum one in [0, 1)")
        object.__setattr__(self, "learning_rate", rate)
        object.__setattr__(self, "momentum", momentum)

    @property
    def moments(self) -> tuple[str, ...]:
        """The name of the velocity, which is kept from round to round."""
        return ("velocity",)

    def refuse_feedback(self, channel: Channel) -> None:
        """Refuse momentum behind the feedback of clients, unless it was asked for.

        Args:
            channel: The channel of both ends: `pipeline.channel`.

        Raises:
            ValueError: The clients of this channel may send a part of an update in a later round.
        """
        if self.momentum and channel.may_wait and not self.behind_feedback:
            raise ValueError(
                f"{self} behind feedback={channel.feedback}: a value that waited in a residual for many rounds is "
                f"applied {1 / (1 - self.momentum):.3g} times over once it is sent. Use momentum=0.0 and "
                "Pipeline(feedback=dp.MomentumCorrection(...)), or Pipeline(feedback=False); or ask for it with "
                "behind_feedback=True"
            )

    def step(self, mean: Update, moments: Moments) -> tuple[Update, Moments]:
        """Compute the step to broadcast, and the velocity after it.

        **Privacy:** the step is made of released means alone, so it has their claim.

        Args:
            mean: The mean Δ of a round's updates.
            moments: `velocity`, v after the last step, as a (d,) vector; empty before the first step.

        Returns:
            The step η·v on d coordinates, and the new v; without momentum there is no v.
        """
        if self.momentum == 0:
            return mean.derive(mean.dense() * np.float32(self.learning_rate)), {}
        velocity = moments.get("velocity")
        velocity = mean.dense() if velocity is None else np.float32(self.momentum) * velocity + mean.dense()
        return _on_all(mean, velocity * np.float32(self.learning_rate)), {"velocity": velocity}


@dataclass(frozen=True, kw_only=True)
class _Adaptive(ABC):
    """What Adam, Yogi and Adagrad at the server have in common: step = η·m ÷ (√v + τ), with m ← β₁m + (1 − β₁)Δ."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    adaptivity: float = 1e-3
    behind_feedback: bool = False

    def __post_init__(self):
        name = type(self).__name__
        check_type(self.behind_feedback, bool, f"{name}(behind_feedback={self.behind_feedback!r}): give True or False")
        rate = real_number(self.learning_rate, f"{name}(learning_rate)", "a finite number from 0 on")
        momentum = real_number(self.momentum, f"{name}(momentum)", "a number in [0, 1)")
        adaptivity = real_number(self.adaptivity, f"{name}(adaptivity)", "a finite number above 0")
        if not 0 <= rate < np.inf or not 0 <= momentum < 1 or not 1e-12 <= adaptivity < np.inf:
            raise ValueError(
                f"{self}: the learning rate is a finite number from 0 on, the momentum one in [0, 1), and the "
                "adaptivity, which stands beside the root of the second moment, one from 1e-12 on"
            )
        for field, value in (("learning_rate", rate), ("momentum", momentum), ("adaptivity", adaptivity)):
            object.__setattr__(self, field, value)

    def refuse_feedback(self, channel: Channel) -> None:
        """Refuse to stand behind the feedback of clients, unless that was asked for.

        Args:
            channel: The channel of both ends: `pipeline.channel`.

        Raises:
            ValueError: The clients of this channel may send a part of an update in a later round.
        """
        if channel.may_wait and not self.behind_feedback:
            raise ValueError(
                f"{self} behind feedback={channel.feedback}: a coordinate that is sent once in many rounds has a small "
                "second moment in between, so what waited in a residual is scaled up when it comes. Use "
                "Pipeline(feedback=False), or server=ServerOptimizer(); or ask for it with behind_feedback=True"
            )

    @property
    def moments(self) -> tuple[str, ...]:
        """The names of both moments, which are kept from round to round."""
        return ("first_moment", "second_moment")

    @abstractmethod
    def _second_moment(
        self, before: Float32[np.ndarray, "d"], squares: Float32[np.ndarray, "d"]
    ) -> Float32[np.ndarray, "d"]:
        """Return v after a round, of v before it and Δ²."""
        ...

    def step(self, mean: Update, moments: Moments) -> tuple[Update, Moments]:
        """Compute the step to broadcast, and both moments after it.

        **Privacy:** the step is made of released means and public numbers alone, so it has their claim.

        Args:
            mean: The mean Δ of a round's updates.
            moments: `first_moment` m and `second_moment` v after the last step, as (d,) vectors; empty before the
                first step, where m is 0 and v is τ².

        Returns:
            The step on d coordinates, and the new moments.
        """
        delta = mean.dense()
        first = moments.get("first_moment", np.zeros_like(delta))
        second = moments.get("second_moment", np.full_like(delta, self.adaptivity**2))
        momentum = np.float32(self.momentum)
        first = momentum * first + (1 - momentum) * delta
        with np.errstate(over="ignore"):  # of an update that a public bound lets through: its step is then 0
            second = self._second_moment(second, np.square(delta))
        values = np.float32(self.learning_rate) * first / (np.sqrt(second) + np.float32(self.adaptivity))
        return _on_all(mean, values), {"first_moment": first, "second_moment": second}


@dataclass(frozen=True, kw_only=True)
class _Forgetting(_Adaptive):
    """What Adam and Yogi have in common: the share β₂ of the second moment that stays from round to round."""

    second_momentum: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        name = f"{type(self).__name__}(second_momentum)"
        second_momentum = real_number(self.second_momentum, name, "a number in [0, 1)")
        if not 0 <= second_momentum < 1:
            raise ValueError(f"{name} is {self.second_momentum}: give a number in [0, 1)")
        object.__setattr__(self, "second_momentum", second_momentum)


@dataclass(frozen=True, kw_only=True)
class ServerAdam(_Forgetting):
    """Adam at the server: v ← β₂v + (1 − β₂)Δ², step = η·m ÷ (√v + τ), with m ← β₁m + (1 − β₁)Δ.

    Δ is the mean of a round's updates; m begins at 0 and v at τ², without bias correction. Noise of standard deviation
    σ in Δ makes √v at least about σ, so the step of a coordinate that is mostly noise is about η for any σ: the rate
    wants tuning with the noise.

    Source: Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2 (FedAdam).

    Args:
        learning_rate: η, the server's learning rate.
        momentum: β₁, in [0, 1).
        second_momentum: β₂, in [0, 1).
        adaptivity: τ, from 10⁻¹² on: the smaller, the more the step of a coordinate adapts to its history.
        behind_feedback: Whether it may stand behind feedback that lets a part of an update wait, which is refused
            otherwise.

    Raises:
        TypeError: An argument has another type.
        ValueError: A number lies outside its range.

    Examples:
        >>> from dpcomp.federated import ServerAdam
        >>> ServerAdam(learning_rate=0.03).second_momentum
        0.99
    """

    def _second_moment(
        self, before: Float32[np.ndarray, "d"], squares: Float32[np.ndarray, "d"]
    ) -> Float32[np.ndarray, "d"]:
        share = np.float32(self.second_momentum)
        return share * before + (1 - share) * squares


@dataclass(frozen=True, kw_only=True)
class ServerYogi(_Forgetting):
    """Yogi at the server: v ← v − (1 − β₂)·Δ²·sign(v − Δ²); else as `ServerAdam`.

    v changes by no more than (1 − β₂)Δ² a round, whatever it is: it forgets a large Δ more slowly than Adam's.

    Source: Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2 (FedYogi).

    Args:
        learning_rate: η, the server's learning rate.
        momentum: β₁, in [0, 1).
        second_momentum: β₂, in [0, 1).
        adaptivity: τ, from 10⁻¹² on.
        behind_feedback: Whether it may stand behind feedback that lets a part of an update wait, which is refused
            otherwise.

    Raises:
        TypeError: An argument has another type.
        ValueError: A number lies outside its range.

    Examples:
        >>> from dpcomp.federated import ServerYogi
        >>> ServerYogi(learning_rate=0.03).momentum
        0.9
    """

    def _second_moment(
        self, before: Float32[np.ndarray, "d"], squares: Float32[np.ndarray, "d"]
    ) -> Float32[np.ndarray, "d"]:
        return before - np.float32(1 - self.second_momentum) * squares * np.sign(before - squares)


@dataclass(frozen=True, kw_only=True)
class ServerAdagrad(_Adaptive):
    """Adagrad at the server: v ← v + Δ²; else as `ServerAdam`, and without momentum unless it is given.

    v grows with every round, so that the steps become shorter: with noise of standard deviation σ in Δ, as 1/(σ√t).

    Source: Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2 (FedAdagrad).

    Args:
        learning_rate: η, the server's learning rate.
        momentum: β₁, in [0, 1).
        adaptivity: τ, from 10⁻¹² on.
        behind_feedback: Whether it may stand behind feedback that lets a part of an update wait, which is refused
            otherwise.

    Raises:
        TypeError: An argument has another type.
        ValueError: A number lies outside its range.

    Examples:
        >>> from dpcomp.federated import ServerAdagrad
        >>> ServerAdagrad().momentum
        0.0
    """

    momentum: float = 0.0

    def _second_moment(
        self, before: Float32[np.ndarray, "d"], squares: Float32[np.ndarray, "d"]
    ) -> Float32[np.ndarray, "d"]:
        return before + squares


def _on_all(mean: Update, values: Float32[np.ndarray, "d"]) -> Update:
    """Return an update on all coordinates with the claim of a mean; not derive, as moments leave its support."""
    return with_claim(replace(mean, values=values, support=Everywhere(), claim=UNKNOWN), mean.claim)
