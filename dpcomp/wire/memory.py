"""Memory: what each end remembers between messages; a message replaces a memory by a new value."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from jaxtyping import Float32

from dpcomp.codec.wiener import TrackedSignal
from dpcomp.core.address import SERVER, Address
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import DitherKey, DitherKeys, PublicSeed
from dpcomp.core.support import Listed, Support
from dpcomp.display import html
from dpcomp.display.text import outline
from dpcomp.wire.feedback import Kept
from dpcomp.wire.frame import body_digest, digest
from dpcomp.wire.links import Link, Links
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        return outline(self)

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


NO_DIGEST = bytes(8)  # stands where a digest would, if there is nothing to digest


@dataclass(frozen=True, kw_only=True)
class Genesis:
    """What a federation begins with, besides pipeline, layout and seed; shared memory's digest begins with all of it.

    Attributes:
        first_model: The digest of the first model; zeros for none, as without `Server` and `Participant`.
        run_id: 8 random bytes that distinguish this federation from all others of the same configuration and seed;
            zeros for none, or for a client that has not learned it yet. No random stream derives from it but the secret
            dither of `dp.ExactGaussian`, so that no two federations have the same.

    Raises:
        ValueError: One of the two does not have 8 bytes.
    """

    first_model: bytes = NO_DIGEST
    run_id: bytes = NO_DIGEST

    def __post_init__(self):
        if (len(self.first_model), len(self.run_id)) != (len(NO_DIGEST), len(NO_DIGEST)):
            raise ValueError(f"{self}: the digest of a model and a run id have {len(NO_DIGEST)} bytes each")

    @classmethod
    def of(cls, first_model: Float32[np.ndarray, "d"] | None, run_id: bytes | None = None) -> "Genesis":
        """Make the genesis of a first model, a (d,) vector or None for none, and a run id, 8 bytes or None for none."""
        named = NO_DIGEST if first_model is None else digest(np.asarray(first_model, dtype="<f4").tobytes())
        return cls(first_model=named, run_id=NO_DIGEST if run_id is None else run_id)

    def digest(self, fingerprint: bytes, seed: PublicSeed, history: Float32[np.ndarray, "h"] | None = None) -> bytes:
        """Return the digest of shared memory before any broadcast.

        Args:
            fingerprint: Of pipeline and layout: `channel.fingerprint(layout)`.
            seed: The public seed of the run.
            history: The history before any broadcast, if a part keeps one; else None.
        """
        named = b"" if self == Genesis() else self.first_model + self.run_id
        return with_history(digest(fingerprint, seed.number.to_bytes(8, "little"), named), history)


def with_history(chained: bytes, history: Float32[np.ndarray, "h"] | None) -> bytes:
    """Return a digest of shared memory that tells two histories apart.

    The broadcasts decide the history only if every machine computes it alike, which an own part may fail to do: its two
    ends would then decode other coordinates, and nothing else in a message would show it.
    """
    if history is None:
        return chained
    return digest(chained, body_digest(np.ascontiguousarray(history, dtype="<f4").view(np.uint8).data))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Memory:
    """What the memories of client and server have in common.

    Attributes:
        pipeline: The fingerprint of the pipeline and layout.
        layout: The layers of the vector.
        seed: The public seed of the run.
        shared: The state that all ends share.
        kept: What this end keeps of what it has to send: the client as its feedback says; the server, whose feedback is
            plain, the residual of the downlink.
        step: The last broadcast as all ends decoded it, which is added to the model; None before the first.
        genesis: The first model and the run id of the federation.
        rounds: The number of rounds of the federation, as its terms say it; None for no end.
    """

    pipeline: bytes
    layout: Layout
    seed: PublicSeed
    shared: Shared
    kept: Kept
    step: Update | None = None
    genesis: Genesis = Genesis()
    rounds: int | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name} {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        return html.panel(type(self).__name__, html.facts(self._facts()))

    def _facts(self) -> list[tuple[str, str]]:
        """Return what is shown of a memory: no values, for a residual may be of clean updates, and no key."""
        layers = len(self.layout.shapes)
        return [
            ("seed", repr(self.seed)),
            ("version", f"{self.shared.version:,}"),
            ("layout", f"{self.layout.size:,} coordinates in {layers:,} layer{'s' * (layers != 1)}"),
            ("kept", ", ".join(self.kept.vectors) or "nothing"),
        ]

    @property
    def residual(self) -> Float32[np.ndarray, "d"] | None:
        """What this sender's codec has dropped so far, as a (d,) vector; None if its feedback keeps none."""
        return self.kept.residual

    def with_genesis(self, genesis: Genesis) -> Self:
        """Return this memory with another genesis; before any broadcast, its digest begins with it."""
        shared = self.shared
        if not shared.version:
            shared = replace(shared, digest=genesis.digest(self.pipeline, self.seed, shared.history))
        return replace(self, genesis=genesis, shared=shared)

    def with_first_model(self, model: Float32[np.ndarray, "d"]) -> Self:
        """Return this memory with a first model in its genesis, if it is at version 0 and names none yet.

        Args:
            model: The first model, as a (d,) vector.

        Raises:
            ValueError: The memory names another first model, or the model does not fit its layout.
        """
        if model.shape != (self.layout.size,):
            raise ValueError(
                f"the model has shape {model.shape}, the memory's layout {self.layout.size} coordinates: give a "
                f"vector of shape ({self.layout.size},)"
            )
        if self.shared.version:
            return self
        named = Genesis.of(model).first_model
        if self.genesis.first_model not in (NO_DIGEST, named):
            raise ValueError(
                f"the memory names the first model {self.genesis.first_model.hex()}, but {named.hex()} was given: "
                "begin with the model that the memory was made for"
            )
        return self.with_genesis(replace(self.genesis, first_model=named))

    def _copy(self) -> Self:
        """Return a copy, whose fields a method may then set: `replace` would check again what was checked before."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    @property
    def broadcast_link(self) -> Link:
        """The link of the broadcasts. Its count stays 0, since shared memory counts the broadcasts."""
        return Link(last_support=self.shared.last_support)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClientMemory(_Memory):
    """The memory of a client; `pipeline.init_client` makes it.

    Attributes:
        client: The client's number.
        link: The state that this client shares with the server.
        tracked: The signal variance of the broadcasts, if the codec's allocator uses the privacy noise; else None.
        dither_key: This client's secret with the server, where the codec makes a share of the noise; else None. No
            checkpoint holds it.

    Raises:
        ValueError: `client` is the server's number.
    """

    client: int
    link: Link = field(default_factory=Link)
    tracked: TrackedSignal | None = None
    dither_key: DitherKey | None = None

    def __post_init__(self):
        if self.address.client == SERVER:
            raise ValueError(f"client={SERVER} is the server's number: clients are numbered below it")

    @property
    def address(self) -> Address:
        """The address of this client's next release: its run is the public seed's number, its round the version."""
        return Address(self.seed.number, self.client, self.shared.version)

    @property
    def sender(self) -> int:
        """The number that this end's payloads state."""
        return self.client

    @property
    def sending_link(self) -> Link:
        """The link of this client's payloads."""
        return self.link

    def _facts(self) -> list[tuple[str, str]]:
        return [("client", f"{self.client}"), *super()._facts(), ("payloads accepted", f"{self.link.count:,}")]

    def after_sending(self, kept: Kept, link: Link, tracked: TrackedSignal | None) -> "ClientMemory":
        """Return this memory for the time after a payload was accepted.

        Args:
            kept: What its feedback keeps then.
            link: The link, with the payload.
            tracked: The tracked variances.
        """
        after = self._copy()
        vars(after).update(kept=kept, link=link, tracked=tracked)
        return after

    def dither_key_of(self, client: int) -> DitherKey | None:
        """Return the secret of a client with the server, if this memory has it."""
        return self.dither_key if client == self.client else None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pending:
    """A payload that may have been sent and has no reply yet, and its sender's memory once it is accepted.

    Attributes:
        payload: The payload with a full header, so that it can be sent to whatever server the client finds.
        update: The (d,) vector that was released and charged; the feedback takes it up if the payload is refused.
        link: The sender's link after the payload is accepted.
        kept: What the sender keeps after the payload is accepted.
        tracked: The sender's tracked variances after the payload is accepted.
        learning_rate: The learning rate that the update contains, where it follows a schedule; else 1.
    """

    payload: bytes
    update: Float32[np.ndarray, "d"]
    link: Link
    kept: Kept
    tracked: TrackedSignal | None
    learning_rate: float = 1.0

    def __repr__(self) -> str:
        return outline(self)

    @classmethod
    def of(cls, payload: bytes, update: Update, after: ClientMemory) -> "Pending":
        """Make a pending payload of what `send` returned for an update.

        Args:
            payload: The payload with a full header.
            update: The update that was sent.
            after: The sender's memory after the payload is accepted.

        Returns:
            The payload, with the parts of the memory that its acceptance changes.
        """
        return cls(
            payload=payload,
            update=update.dense(),
            link=after.link,
            kept=after.kept,
            tracked=after.tracked,
            learning_rate=update.learning_rate,
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ServerMemory(_Memory):
    """The memory of the server; `pipeline.init_server` makes it. Its residual is that of the downlink.

    Attributes:
        links: The link of each client that has sent a payload, by the client's number.
        older: Earlier shared memories, against which late payloads are still decoded.
        dither_keys: The secrets with all clients, where the codec makes shares of the noise; else None. No checkpoint
            holds them.
        clip_norm: The norm of `dp.AdaptiveClip` in this round, a function of released counts; None for other clips.
    """

    links: Links = field(default_factory=Links)
    older: tuple[Shared, ...] = ()
    dither_keys: DitherKeys | None = None
    clip_norm: float | None = None

    @property
    def address(self) -> Address:
        """The address of the server's next release."""
        return Address(self.seed.number, SERVER, self.shared.version)

    @property
    def sender(self) -> int:
        """The number that this end's payloads state."""
        return SERVER

    @property
    def sending_link(self) -> Link:
        """The link of the broadcasts."""
        return self.broadcast_link

    def _facts(self) -> list[tuple[str, str]]:
        return [*super()._facts(), ("clients that sent", f"{len(self.links):,}")]

    def dither_key_of(self, client: int) -> DitherKey | None:
        """Return the secret of a client with the server, if this memory has it."""
        return None if self.dither_keys is None else self.dither_keys.of(client)

    def shared_at(self, version: int) -> Shared:
        """Return shared memory at a version, to check a payload of that version; the present, if it is not kept."""
        if not self.older:
            return self.shared
        return next((shared for shared in self.older if shared.version == version), self.shared)

    def at_version(self, version: int) -> "ServerMemory":
        """Return this memory with shared memory as it was at a version; as it is, if that version is not kept."""
        shared = self.shared_at(version)
        return self if shared is self.shared else replace(self, shared=shared)

    def link(self, client: int) -> Link:
        """Return the link of a client; an empty link for a client that has sent nothing."""
        return self.links.get(client, Link())

    def accepted(self, client: int, link: Link) -> "ServerMemory":
        """Return this memory with the link of a client replaced."""
        after = self._copy()
        vars(after).update(links=self.links.replaced(client, link))
        return after
