"""What each end remembers: values that only messages replace by new ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from dpcomp.codec.wiener import TrackedSignal
from dpcomp.core.address import SERVER, Address
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed
from dpcomp.core.support import Listed, Support
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """What everyone knows: a function of the broadcasts alone.

    Attributes:
        version: How many broadcasts there were.
        digest: A hash chain over them.
        reference: The last broadcast as a (d,) vector, where a codec predicts from it.
        last_support: The last support that a broadcast listed position by position.
        history: What the part with `ReadsHistory` keeps of all broadcasts, where there is such a part.
    """

    version: int = 0
    digest: bytes
    reference: Float32[np.ndarray, "d"] | None = None
    last_support: Listed | None = None
    history: Float32[np.ndarray, "h"] | None = None

    def advanced(
        self,
        chained: bytes,
        reference: Float32[np.ndarray, "d"] | None,
        listed: Support | None,
        history: Float32[np.ndarray, "h"] | None,
    ) -> "Shared":
        """Return shared memory after one more broadcast.

        Args:
            chained: The hash chain after its payload.
            reference: The broadcast, where a codec predicts from it.
            listed: The support whose positions its body lists; None where it lists none.
            history: The history after it.
        """
        return Shared(
            version=self.version + 1,
            digest=chained,
            reference=reference,
            last_support=listed if isinstance(listed, Listed) else self.last_support,
            history=history,
        )


@dataclass(frozen=True, kw_only=True)
class Link:
    """What one client and the server know of each other: the payloads of that client that were accepted.

    Attributes:
        count: How many.
        digest: A hash chain over them.
        last: The address of the last one.
        last_version: The version of shared memory that it was coded against; -1 before any.
        last_support: The last support that one of them listed: the next may be coded by how it differs.
    """

    count: int = 0
    digest: bytes = bytes(8)
    last: Address | None = None
    last_version: int = -1
    last_support: Listed | None = None

    def advanced(self, chained: bytes, address: Address, version: int, listed: Support | None) -> "Link":
        """Return the link after one more accepted payload; `listed` is the support that its body lists, or None."""
        last_support = listed if isinstance(listed, Listed) else self.last_support
        return Link(count=self.count + 1, digest=chained, last=address, last_version=version, last_support=last_support)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Memory:
    """What both ends' memories hold.

    `pipeline` is the fingerprint of the pipeline and layout; `residual` what this sender's codec dropped so far, None
    without feedback; `step` the last broadcast, as every end decoded it: what the model moves by.
    """

    pipeline: bytes
    layout: Layout
    seed: PublicSeed
    shared: Shared
    residual: Float32[np.ndarray, "d"] | None
    step: Update | None = None

    def __post_init__(self):
        if self.residual is not None:
            self.residual.flags.writeable = False

    @property
    def broadcast_link(self) -> Link:
        """The link that broadcasts travel on, one for all clients; shared memory has counted them already."""
        return Link(last_support=self.shared.last_support)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientMemory(_Memory):
    """What one client remembers; `pipeline.init_client` makes it.

    `tracked` is the signal variance of the broadcasts, where the codec's allocator sees the privacy noise.
    """

    client: int
    link: Link = Link()
    tracked: TrackedSignal | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.address.client == SERVER:
            raise ValueError(f"client={SERVER} is the server's number: clients are numbered below it")

    @property
    def address(self) -> Address:
        """Where this client stands: the run is named by its public seed, the round by the shared version."""
        return Address(self.seed.number, self.client, self.shared.version)

    @property
    def sending_link(self) -> Link:
        """The link that this client's payloads travel on."""
        return self.link


@dataclass(frozen=True, kw_only=True, eq=False)
class Pending:
    """A payload that may have left and has no reply yet, and what it makes of its sender once it is accepted.

    `update` is the (d,) vector that was released and paid for; it goes into the residual should the payload be refused.
    """

    payload: bytes
    update: Float32[np.ndarray, "d"]
    link: Link
    residual: Float32[np.ndarray, "d"] | None
    tracked: TrackedSignal | None

    @classmethod
    def of(cls, payload: bytes, update: Update, after: ClientMemory) -> "Pending":
        """Keep what `send` gave for an update: its payload, and the memory after it is accepted."""
        return cls(
            payload=payload, update=update.dense(), link=after.link, residual=after.residual, tracked=after.tracked
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerMemory(_Memory):
    """What the server remembers; `pipeline.init_server` makes it. Its residual is the downlink's.

    `older` are earlier shared memories, against which late payloads are still received.
    """

    links: Mapping[int, Link] = field(default_factory=lambda: MappingProxyType({}))
    older: tuple[Shared, ...] = ()

    @property
    def address(self) -> Address:
        """Where the server stands."""
        return Address(self.seed.number, SERVER, self.shared.version)

    @property
    def sending_link(self) -> Link:
        """The link that broadcasts travel on."""
        return self.broadcast_link

    def at(self, version: int) -> Shared:
        """Return the shared memory that a payload of this version is checked against; the present one, if not kept."""
        return next((shared for shared in self.older if shared.version == version), self.shared)

    def link(self, client: int) -> Link:
        """Return what is known of a client; of a new one, an empty link."""
        return self.links.get(client, Link())

    def accepted(self, client: int, link: Link) -> "ServerMemory":
        """Return this memory with one client's link replaced."""
        return replace(self, links=MappingProxyType({**self.links, client: link}))
