"""Memory: what each end remembers between messages; a message replaces a memory by a new value."""

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
    """The state that all ends share: a function of the broadcasts alone.

    Attributes:
        version: The number of broadcasts so far.
        digest: The hash chain over them.
        reference: The last broadcast as a (d,) vector, if a codec predicts from it; else None.
        last_support: The last support whose positions a broadcast listed.
        history: The (h,) vector that the part with `ReadsHistory` keeps of all broadcasts; None without such a part.
    """

    version: int = 0
    digest: bytes
    reference: Float32[np.ndarray, "d"] | None = None
    last_support: Listed | None = None
    history: Float32[np.ndarray, "h"] | None = None

    def __post_init__(self):
        for array in (self.reference, self.history):
            if array is not None:
                array.flags.writeable = False  # own parts see both, and all memories of one version share them

    def advanced(
        self,
        chained: bytes,
        reference: Float32[np.ndarray, "d"] | None,
        listed: Support | None,
        history: Float32[np.ndarray, "h"] | None,
    ) -> "Shared":
        """Return shared memory after another broadcast.

        Args:
            chained: The hash chain after the broadcast's payload.
            reference: The broadcast as a (d,) vector, if a codec predicts from it; else None.
            listed: The support, if the payload lists its positions; else None.
            history: The history after the broadcast.
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
    """The state that a client and the server share: a function of the client's accepted payloads.

    Attributes:
        count: The number of accepted payloads.
        digest: The hash chain over them.
        last: The address of the last accepted payload.
        last_version: The version of shared memory that it was coded against; -1 before the first.
        last_support: The last support whose positions a payload listed; the next is coded by its difference from it.
    """

    count: int = 0
    digest: bytes = bytes(8)
    last: Address | None = None
    last_version: int = -1
    last_support: Listed | None = None

    def advanced(self, chained: bytes, address: Address, version: int, listed: Support | None) -> "Link":
        """Return the link after another accepted payload.

        Args:
            chained: The hash chain after the payload.
            address: The payload's address.
            version: The version of shared memory that it was coded against.
            listed: The support, if the payload lists its positions; else None.
        """
        last_support = listed if isinstance(listed, Listed) else self.last_support
        return Link(count=self.count + 1, digest=chained, last=address, last_version=version, last_support=last_support)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Memory:
    """What the memories of client and server have in common.

    Attributes:
        pipeline: The fingerprint of the pipeline and layout.
        layout: The layers of the vector.
        seed: The public seed of the run.
        shared: The state that all ends share.
        residual: What this sender's codec has dropped so far, as a (d,) vector; None without feedback.
        step: The last broadcast as all ends decoded it, which is added to the model; None before the first.
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
        """The link of the broadcasts. Its count stays 0, since shared memory counts the broadcasts."""
        return Link(last_support=self.shared.last_support)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientMemory(_Memory):
    """The memory of a client; `pipeline.init_client` makes it.

    Attributes:
        client: The client's number.
        link: The state that this client shares with the server.
        tracked: The signal variance of the broadcasts, if the codec's allocator uses the privacy noise; else None.

    Raises:
        ValueError: `client` is the server's number.
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
        """The address of this client's next release: its run is the public seed's number, its round the version."""
        return Address(self.seed.number, self.client, self.shared.version)

    @property
    def sending_link(self) -> Link:
        """The link of this client's payloads."""
        return self.link


@dataclass(frozen=True, kw_only=True, eq=False)
class Pending:
    """A payload that may have been sent and has no reply yet, and its sender's memory once it is accepted.

    Attributes:
        payload: The sealed bytes.
        update: The (d,) vector that was released and charged; it is added to the residual if the payload is refused.
        link: The sender's link after the payload is accepted.
        residual: The sender's residual after the payload is accepted.
        tracked: The sender's tracked variances after the payload is accepted.
    """

    payload: bytes
    update: Float32[np.ndarray, "d"]
    link: Link
    residual: Float32[np.ndarray, "d"] | None
    tracked: TrackedSignal | None

    @classmethod
    def of(cls, payload: bytes, update: Update, after: ClientMemory) -> "Pending":
        """Make a pending payload of what `send` returned for an update.

        Args:
            payload: The payload.
            update: The update that was sent.
            after: The sender's memory after the payload is accepted.

        Returns:
            The payload, with the parts of the memory that its acceptance changes.
        """
        return cls(
            payload=payload, update=update.dense(), link=after.link, residual=after.residual, tracked=after.tracked
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerMemory(_Memory):
    """The memory of the server; `pipeline.init_server` makes it. Its residual is that of the downlink.

    Attributes:
        links: The link of each client that has sent a payload, by the client's number.
        older: Earlier shared memories, against which late payloads are still decoded.
    """

    links: Mapping[int, Link] = field(default_factory=lambda: MappingProxyType({}))
    older: tuple[Shared, ...] = ()

    @property
    def address(self) -> Address:
        """The address of the server's next release."""
        return Address(self.seed.number, SERVER, self.shared.version)

    @property
    def sending_link(self) -> Link:
        """The link of the broadcasts."""
        return self.broadcast_link

    def shared_at(self, version: int) -> Shared:
        """Return shared memory at a version, to check a payload of that version; the present, if it is not kept."""
        return next((shared for shared in self.older if shared.version == version), self.shared)

    def link(self, client: int) -> Link:
        """Return the link of a client; an empty link for a client that has sent nothing."""
        return self.links.get(client, Link())

    def accepted(self, client: int, link: Link) -> "ServerMemory":
        """Return this memory with the link of a client replaced."""
        return replace(self, links=MappingProxyType({**self.links, client: link}))
