"""What each end remembers; immutable to its callers, advanced by messages alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from dpcomp.codec.wiener import Tracked
from dpcomp.core.address import SERVER, Address
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed
from dpcomp.core.support import Listed, Support
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """What everyone knows: a function of the broadcasts alone."""

    version: int = 0  # how many broadcasts there were
    digest: bytes  # a hash chain over them
    reference: Float32[np.ndarray, "d"] | None = None  # the last broadcast, where a codec predicts from it
    last_support: Listed | None = None  # the last broadcast support that was listed

    def advanced(self, digest: bytes, reference: Float32[np.ndarray, "d"] | None, support: Support) -> "Shared":
        """After one more broadcast, whose payload was on that support."""
        last_support = support if isinstance(support, Listed) else self.last_support
        return Shared(version=self.version + 1, digest=digest, reference=reference, last_support=last_support)


@dataclass(frozen=True, kw_only=True)
class Link:
    """What one client and the server know of each other: the payloads that were accepted."""

    count: int = 0
    digest: bytes = bytes(8)  # a hash chain over them
    last: Address | None = None  # of the last one
    last_version: int = -1  # of the shared memory it was coded against
    last_support: Listed | None = None  # the last one that was listed: the next may be told by how it differs

    def advanced(self, digest: bytes, address: Address, version: int, support: Support) -> "Link":
        """After one more accepted payload."""
        last_support = support if isinstance(support, Listed) else self.last_support
        return Link(count=self.count + 1, digest=digest, last=address, last_version=version, last_support=last_support)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Memory:
    pipeline: bytes  # the fingerprint of the pipeline and layout it is about
    layout: Layout
    seed: PublicSeed
    shared: Shared
    residual: Float32[np.ndarray, "d"] | None  # what this sender's codec dropped so far; None without feedback
    step: Update | None = None  # the last broadcast, as every end decoded it: what the model moves by

    def __post_init__(self):
        if self.residual is not None:
            self.residual.flags.writeable = False

    @property
    def mask_key(self) -> int:
        """The public key of this round's random support: the same for all who share a version."""
        return self.seed.key("mask", self.shared.version)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientMemory(_Memory):
    """One client's side."""

    client: int
    link: Link = Link()
    tracked: Tracked | None = None  # of the broadcasts, where the codec's allocator sees the privacy noise

    def __post_init__(self):
        super().__post_init__()
        if self.address.client == SERVER:
            raise ValueError(f"client={SERVER} is the server's number: clients are numbered below it")

    @property
    def address(self) -> Address:
        """Where this client stands: the run is named by its public seed, the round by the shared version."""
        return Address(self.seed.number, self.client, self.shared.version)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pending:
    """A payload that may have left and has no answer yet, and what it makes of its sender once it is accepted."""

    payload: bytes
    update: Float32[np.ndarray, "d"]  # what was released and paid for; the residual's, should the payload be of no use
    link: Link
    residual: Float32[np.ndarray, "d"] | None
    tracked: Tracked | None

    @classmethod
    def of(cls, payload: bytes, update: Update, after: ClientMemory) -> "Pending":
        """What `send` gave for an update."""
        return cls(
            payload=payload, update=update.dense(), link=after.link, residual=after.residual, tracked=after.tracked
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerMemory(_Memory):
    """The server's side; its residual is the downlink's."""

    links: Mapping[int, Link] = field(default_factory=lambda: MappingProxyType({}))
    older: tuple[Shared, ...] = ()  # earlier shared memories, of which late payloads are still received

    @property
    def address(self) -> Address:
        """Where the server stands."""
        return Address(self.seed.number, SERVER, self.shared.version)

    def at(self, version: int) -> Shared:
        """The shared memory that a payload of this version is held against: the present one, if it is not kept."""
        return next((shared for shared in self.older if shared.version == version), self.shared)

    def link(self, client: int) -> Link:
        """What is known of a client; of a new one, nothing."""
        return self.links.get(client, Link())

    def accepted(self, client: int, link: Link) -> "ServerMemory":
        """With one client's link advanced."""
        return replace(self, links=MappingProxyType({**self.links, client: link}))
