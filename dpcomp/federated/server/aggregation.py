"""Aggregation: from the updates of a round to the step that is broadcast."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dpcomp.core.exact_sum import ExactSum
from dpcomp.core.randomness import SecretSeed
from dpcomp.core.support import Dealt, Everywhere, Support
from dpcomp.privacy import Poisson
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.privacy.units.unit_gradients import SumOfTotals, Total
from dpcomp.wire.channel import Channel
from dpcomp.wire.memory import ServerMemory
from dpcomp.wire.update import UNKNOWN, Update, with_claim


class Accepted(NamedTuple):
    """What is kept of an update that the server has accepted in the present round; its values are in the sum.

    Attributes:
        client: The number of the client that sent it.
        weight: Its weight in the mean.
        payload_bytes: The length of its payload.
    """

    client: int
    weight: float
    payload_bytes: int


class AcceptedUpdates(Sequence[Accepted]):
    """What is kept of each update of a round, in 16 bytes an update."""

    def __init__(self):
        self._clients, self._weights, self._payload_bytes = array("I"), array("d"), array("I")

    def append(self, accepted: Accepted) -> None:
        """Add an update."""
        self._clients.append(accepted.client)
        self._weights.append(accepted.weight)
        self._payload_bytes.append(accepted.payload_bytes)

    def __len__(self) -> int:
        return len(self._payload_bytes)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return Accepted(self._clients[place], self._weights[place], self._payload_bytes[place])


@runtime_checkable
class Releases(Protocol):
    """A mechanism that a trusted server can release with: a `Pipeline`."""

    @property
    def channel(self) -> Channel:
        """The channel of both ends."""
        ...

    @property
    def cost(self) -> Cost:
        """The cost of a single release."""
        ...

    @property
    def sampling(self) -> Poisson | None:
        """How the clients of a round are drawn; None for all of them."""
        ...

    @property
    def largest_cohort(self) -> int | None:
        """The most clients of a round; None for any number."""
        ...

    def total_of(self, update: Update, memory: ServerMemory) -> Total:
        """Return the total of one client's update; `Pipeline.total_of` explains the arguments."""
        ...

    def empty_total(self, memory: ServerMemory) -> Total:
        """Return the total of no unit."""
        ...

    def noise(self, total: Total, memory: ServerMemory, secret: SecretSeed, permit: Permit) -> Update:
        """Add noise to a total; `Pipeline.noise` explains the arguments."""
        ...

    def clip_norm_after(self, released: Update, memory: ServerMemory, expected: float) -> float | None:
        """Return the clip norm of the next round; `Pipeline.clip_norm_after` explains the arguments."""
        ...


class RoundSum(Protocol):
    """The sum of the updates of a round, to which each is added as it comes, in any order."""

    @property
    def next_clip_norm(self) -> float | None:
        """The clip norm of the next round, once `mean` has released it; None where it stays as it is."""
        ...

    def add(self, update: Update, weight: float) -> None:
        """Add an update with a public weight."""
        ...

    def mean(self) -> Update:
        """Return the released mean of the updates so far."""
        ...


class ReleasedSum:
    """The weighted sum of updates that their clients released; it does not depend on the order of the updates.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        memory: The server's memory in this round.
        divisor: What the sum is divided by; None for the number of updates.
    """

    def __init__(self, channel: Channel, memory: ServerMemory, divisor: int | None = None):
        self._channel, self._memory, self._divisor = channel, memory, divisor
        self._sum, self._count = ExactSum(memory.layout.size), 0
        self._support: Support | None = None  # of the first update; everywhere, where others have other ones
        self._places = set[int]()  # of all own supports that one permutation dealt

    @property
    def next_clip_norm(self) -> None:
        """No clip norm: clients have clipped."""
        return None

    def add(self, update: Update, weight: float = 1.0) -> None:
        """Add weight · update; the product is rounded to float32, and the sum is exact.

        Args:
            update: The decoded update.
            weight: A public weight.

        Raises:
            NotPrivate: The update was not released by this pipeline.
        """
        self._channel.refuse_unreleased(update.claim)
        values = update.values if weight == 1 else np.float32(weight) * update.values
        everywhere = isinstance(update.support, Everywhere)
        self._sum.add(values, None if everywhere else update.support.indices(update.layout.size))
        self._cover(update.support)
        self._count += 1

    def _cover(self, support: Support) -> None:
        """Note that an update has this support; unions are made in `mean`, for each takes a time of all its places."""
        first = self._support = support if self._support is None else self._support
        alike = isinstance(first, Dealt) and first.alike(support)
        if not alike and support != first:
            self._support = Everywhere()
        if isinstance(support, Dealt):
            self._places.update(support.places)

    def _union(self) -> Support:
        """Return the support of all updates: a union of own supports while they are fewer than all coordinates."""
        first = Everywhere() if self._support is None else self._support
        if not isinstance(first, Dealt):
            return first
        if first.k * len(self._places) > self._memory.layout.size:
            return Everywhere()
        return first.union(replace(first, places=tuple(sorted(self._places))))

    def mean(self) -> Update:
        """Return Σ weightᵢ · updateᵢ ÷ divisor; without any update, zero."""
        layout = self._memory.layout
        divisor = max(1, self._count) if self._divisor is None else self._divisor
        mean = (self._sum.rounded() / divisor).astype(np.float32)
        support = self._union()
        values = mean[support.indices(layout.size)]
        update = Update(values=values, layout=layout, address=self._memory.address, support=support)
        return with_claim(update, self._channel.claim)


@dataclass(frozen=True, kw_only=True)
class TrustedRelease:
    """What a trusted server's releases are made with: once a round it charges, and adds noise to the clipped sum.

    Args:
        pipeline: The pipeline whose mechanism clips and adds the noise.
        secret: The source of the noise, and of the secret draw of the clients of a round.
        ledger: The ledger, which is charged once a round.
        divisor: The expected number of clients in a round, a public constant.

    Raises:
        NotPrivate: The secret has a number, and the ledger is durable and not for research.
    """

    pipeline: Releases
    secret: SecretSeed
    ledger: Ledger
    divisor: float

    def __post_init__(self):
        self.ledger.refuse_seed(self.secret)


class ClippedSum:
    """The sum of the updates of a round under a trusted server; it does not depend on their order.

    **Privacy:** an update is clipped here, after decoding, so each client moves the sum by at most one clip norm
    whatever its codec did (PRIVACY_RULES 10 and 18); where the codec's error is a share of the noise, the client has
    clipped. The updates are added without rounding.

    Args:
        release: What the round is released with.
        memory: The server's memory in this round.
    """

    def __init__(self, release: TrustedRelease, memory: ServerMemory):
        self._release, self._memory = release, memory
        self._next_clip_norm: float | None = None
        self._sum = SumOfTotals(release.pipeline.empty_total(memory))

    @property
    def next_clip_norm(self) -> float | None:
        """The clip norm of the next round, once `mean` has released it; None where it stays as it is."""
        return self._next_clip_norm

    def add(self, update: Update, weight: float = 1.0) -> None:
        """Add an update, as `total_of` bounds it; a trusted server accepts none that is late, so the weight is 1."""
        assert weight == 1, f"a trusted server accepts no late update, but this one has weight {weight}"
        self._sum.add(self._release.pipeline.total_of(update, self._memory))

    def mean(self) -> Update:
        """Charge the round, and return the noised sum of the clipped updates ÷ `divisor`.

        A round without updates is charged and noised like any other, so that an observer cannot tell.

        **Privacy:** the divisor is a public constant, and the charge is durable before the noise is drawn.

        Raises:
            BudgetExhausted: The round was charged before, or the budget allows no further release.
        """
        release, memory = self._release, self._memory
        permit = release.ledger.charge(release.pipeline.cost, memory.address)
        released = release.pipeline.noise(self._sum.total(), memory, release.secret, permit)
        self._next_clip_norm = release.pipeline.clip_norm_after(released, memory, release.divisor)
        return released.derive(released.dense() / np.float32(release.divisor))


def mean_of_released(
    channel: Channel, updates: Sequence[Update], memory: ServerMemory, weights: Sequence[float] | None = None
) -> Update:
    """Return the weighted mean Σ weightᵢ · updateᵢ ÷ n of n updates that their clients released.

    The sum is exact, so the mean does not depend on the order of the updates.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        updates: The decoded updates; without any, the mean is zero.
        memory: The server's memory.
        weights: Public weights, a weight an update; None for 1 each.

    Returns:
        The mean, on the support of the updates if they all have the same, else everywhere.

    Raises:
        NotPrivate: An update was not released by this pipeline.
    """
    total = ReleasedSum(channel, memory)
    for update, weight in zip(updates, weights or [1.0] * len(updates), strict=True):
        total.add(update, weight)
    return total.mean()


def estimate_after(mean: Update, estimate: Float32[np.ndarray, "d"] | None) -> Update:
    """Return the estimate of the mean update, of which clients send what changes (`EF21`).

    **Privacy:** the estimate is the sum of released means, so it has their claim.

    Args:
        mean: Σ differences ÷ number of clients, of this round.
        estimate: The (d,) estimate before this round; None before the first.

    Returns:
        The estimate, on d coordinates.
    """
    values = mean.dense() if estimate is None else estimate + mean.dense()
    # Not derive, because the estimate has values outside this mean's support.
    return with_claim(replace(mean, values=values, support=Everywhere(), claim=UNKNOWN), mean.claim)
