"""Channel: the codecs and checks that client and server share, without the private side."""

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
from jaxtyping import Float32

from dpcomp.codec.codec import Codec
from dpcomp.core.errors import NotPrivate, VersionMismatch
from dpcomp.core.layout import Layout
from dpcomp.core.public_context import HasPublicSupport, NoiseShare, PublicContext, ReadsHistory
from dpcomp.core.randomness import PublicSeed
from dpcomp.core.read_only import read_only
from dpcomp.core.support import Everywhere, Listed, Support, checked_support
from dpcomp.privacy.claim import Claim, Released, ShareOfNoise, Unbounded
from dpcomp.privacy.clip import Clip
from dpcomp.wire.feedback import EF21, Feedback, SenderFeedback, sender_feedback
from dpcomp.wire.frame import digest
from dpcomp.wire.links import Link
from dpcomp.wire.memory import NO_DIGEST, ClientMemory, Genesis, ServerMemory, Shared, with_history
from dpcomp.wire.update import UNKNOWN, Update

CLEAN_UPLINK = Unbounded(
    because="the server is trusted, so the uplink is clean, and what is decoded from it was never released",
    remedy="Release the aggregate first: pipeline.release(blocks, server_memory, secret, permit)",
)


@dataclass(frozen=True, kw_only=True)
class Channel:
    """The codecs of both directions, and the claim that sent values must have; `pipeline.channel` is a pipeline's.

    Both ends must have channels of the same identity and memories of the same layout; other payloads are refused.

    Args:
        identity: 8 bytes that name the pipeline: the digest of its canonical description.
        uplink: The codec of updates.
        downlink: The codec of broadcasts.
        feedback: What a client adds to its next update; a server adds what its codec dropped, unless it is False.
        claim: The claim on the mechanism's releases; a value with any other claim is not sent.
        server_sees_clean: Whether updates are sent without noise; what the server decodes is then not released.
        stages: The stages of the mechanism that have a public support or read history.
        clip: The clip of the clients, where the uplink makes a share of the noise; else None.
        share_stddev: The standard deviation of each client's share; 0 where there is none.
    """

    identity: bytes
    uplink: Codec
    downlink: Codec
    feedback: Feedback
    claim: Released
    server_sees_clean: bool
    stages: tuple[object, ...] = ()
    clip: Clip | None = None
    share_stddev: float = 0.0

    def fingerprint(self, layout: Layout) -> bytes:
        """Return the 8 bytes that name this channel with a layout; they must be the same at both ends."""
        return _fingerprint(self.identity, layout.digest)

    @property
    def uplink_claim(self) -> Claim:
        """The claim on an update that the server has decoded."""
        if self.clip is not None:
            return ShareOfNoise(
                because="the update has one client's share of the noise alone",
                remedy="Release the sum of a round: pipeline.noise(the sum of pipeline.total_of(update, memory), …)",
                clip_norm=self.clip.norm,
                stddev=self.share_stddev,
            )
        return CLEAN_UPLINK if self.server_sees_clean else self.claim

    @cached_property
    def sender_feedback(self) -> SenderFeedback | None:
        """What a client does with its updates, and with what it keeps of them; None without feedback."""
        return sender_feedback(self.feedback)

    @property
    def sends_differences(self) -> bool:
        """Whether clients send what changes in an estimate, so that the server adds up what they send."""
        return isinstance(self.feedback, EF21)

    @property
    def may_wait(self) -> bool:
        """Whether a part of an update may be sent in a later round."""
        return not isinstance(self.feedback, bool) or (self.feedback and not self.uplink.is_lossless)

    @property
    def predicts(self) -> bool:
        """Whether a codec needs the last broadcast."""
        return bool(self.uplink.predict or self.downlink.predict)

    @cached_property
    def history_reader(self) -> ReadsHistory | None:
        """The stage, sparsifier or quantiser that reads history, which both ends then keep; None if there is none.

        Raises:
            ValueError: Two different parts read history; or a part does that gets no `PublicContext` to read it from.
        """
        codecs = (self.uplink, self.downlink)
        for codec in codecs:
            _refuse_unread_history(codec)
        parts = (*self.stages, *(part for codec in codecs for part in (codec.sparsify, codec.quantize)))
        for part in parts:
            _refuse_half_a_history(part)
        readers = list(dict.fromkeys(part for part in parts if isinstance(part, ReadsHistory)))
        if len(readers) > 1:
            raise ValueError(f"{readers[0]} and {readers[1]} both read history: a pipeline has at most one such part")
        return readers[0] if readers else None

    def context(
        self, memory: ClientMemory | ServerMemory, sender: int | None = None, link: Link | None = None
    ) -> PublicContext:
        """Return the public context of the next message of a sender, without its supports.

        Args:
            memory: The memory of either end.
            sender: A client's number, or SERVER; None for the end that the memory belongs to.
            link: The sender's link, if the memory is the server's and the sender a client; None for the memory's own.
        """
        context = _context(memory, sender, memory.sending_link if link is None else link, None, packed=False)
        norm = memory.clip_norm if isinstance(memory, ServerMemory) else None
        return context if norm is None else replace(context, clip_norm=norm)

    def message_context(
        self, codec: Codec, memory: ClientMemory | ServerMemory, sender: int | None = None, link: Link | None = None
    ) -> PublicContext:
        """Return the public context of the next message of a sender, with its supports, for a codec.

        Args:
            codec: The uplink for a client's message, the downlink for a broadcast.
            memory: As for `context`.
            sender: As for `context`.
            link: As for `context`.
        """
        link = memory.sending_link if link is None else link
        context = _context(memory, sender, link, link.last_support, packed=codec.entropy.packed)
        if codec.noise_share is not None:
            return replace(context, noise_share=self._noise_share(memory, context.client, link))
        part: Any = codec.sparsify if codec.selects_publicly else self._public_stage
        if part is None:
            return context
        support = checked_support(part.public_support(context), f"{part!r}: public_support returned")
        return replace(context, public_support=support)

    def _noise_share(self, memory: ClientMemory | ServerMemory, client: int, link: Link) -> NoiseShare:
        """Return what the next message of a client makes its share of the noise with.

        The digests name the federation, by its random run id, and all that the client and the server have exchanged.
        So no two messages have the same dither, unless the second takes the place of the first: then the server has
        counted neither.
        """
        key, shared = memory.dither_key_of(client), memory.shared
        if key is None or self.clip is None:
            raise NotPrivate(
                f"the dither of {self.uplink.quantize} comes from a secret of client {client} with the server, and "
                "this memory has none: give init_server(dither_keys=keys), and init_client(dither_key=keys.of(client)) "
                "with the same dp.DitherKeys"
            )
        if memory.genesis.run_id == NO_DIGEST:
            raise NotPrivate(
                f"this memory names no run id, so that a second federation with the same keys and seed would have the "
                f"dither of this one, and the difference of their releases hardly any noise: give init_client and "
                f"init_server one run_id=os.urandom({len(NO_DIGEST)}), or use Server and Participant, which draw it"
            )
        exchanged = (int.from_bytes(shared.digest, "little"), int.from_bytes(link.digest, "little"))
        place = (memory.seed.number, client, shared.version, link.count, *exchanged)
        share = self.share_stddev
        return NoiseShare(clip_norm=self.clip.norm, stddev=share, dither_key=key.of_message(*place))

    def clipped(self, update: Update) -> Update:
        """Return a client's update as it is sent: clipped, where the codec makes a share of the noise.

        **Privacy:** this clip, in the code of the client, bounds what the client adds to the sum. The server cannot
        clip again, since an update with its share of the noise is far longer; it refuses levels that no clipped update
        has.

        Args:
            update: The client's update.

        Raises:
            ValueError: The update has only a part of the coordinates, so that the others would have no noise.
        """
        if self.clip is None:
            return update
        if not isinstance(update.support, Everywhere):
            raise ValueError(
                f"the update is on {type(update.support).__name__}, and {self.uplink.quantize} makes its share of the "
                "noise on all coordinates: send the whole update"
            )
        (clipped,) = self.clip.sum((update.values[None, :],))
        return replace(update, values=clipped.astype(np.float32), claim=UNKNOWN)

    @cached_property
    def _public_stage(self) -> HasPublicSupport | None:
        return next((stage for stage in self.stages if isinstance(stage, HasPublicSupport)), None)

    def shared_at_start(self, layout: Layout, seed: PublicSeed, genesis: Genesis = Genesis()) -> Shared:
        """Return shared memory before any broadcast.

        Args:
            layout: The layers of the vector.
            seed: The public seed of the run.
            genesis: The first model and the run id of the federation.
        """
        reader = self.history_reader
        history = (
            None if reader is None else _checked_history(reader, "initial_history", reader.initial_history(layout))
        )
        return Shared(digest=genesis.digest(self.fingerprint(layout), seed, history), history=history)

    def shared_after(
        self,
        shared: Shared,
        chained: bytes,
        broadcast: Float32[np.ndarray, "d"],
        listed: Support | None,
        layout: Layout,
    ) -> Shared:
        """Return shared memory after a broadcast; all ends compute the same bits.

        Args:
            shared: Shared memory before the broadcast.
            chained: The digest of the hash chain after the broadcast's payload.
            broadcast: The (d,) vector that the payload decodes to.
            listed: The support, if the payload lists its positions; else None.
            layout: The layers of the vector.
        """
        history = shared.history
        if self.history_reader is not None and history is not None:
            updated = self.history_reader.update_history(history, read_only(broadcast), layout)
            history = _checked_history(self.history_reader, "update_history", updated, like=history)
            chained = with_history(chained, history)
        return shared.advanced(chained, broadcast if self.predicts else None, listed, history)

    def refuse_foreign_memory(self, memory: ClientMemory | ServerMemory) -> None:
        """Refuse a memory of another pipeline, whose residual may hold values that this pipeline must not send.

        Raises:
            VersionMismatch: The memory has another fingerprint.
        """
        if memory.pipeline != self.fingerprint(memory.layout):
            raise VersionMismatch(
                f"the memory is of pipeline {memory.pipeline.hex()}, this pipeline is "
                f"{self.fingerprint(memory.layout).hex()}: make a new memory with pipeline.init_client or "
                "pipeline.init_server",
                reason="pipeline",
            )

    def refuse_unreleased(self, claim: Claim) -> None:
        """Refuse a value that was not released by this pipeline.

        Raises:
            NotPrivate: The claim is another; the message says why, and what to do.
        """
        if claim is self.claim:
            return
        if isinstance(claim, Released) and claim != self.claim:
            raise NotPrivate(
                f"the update was released by another mechanism, at the cost {claim.event}; this pipeline's is "
                f"{self.claim.event}: send it with the pipeline that released it"
            )
        if not isinstance(claim, Released):
            because = claim.because if isinstance(claim, Unbounded) else "the value is clipped, but carries no noise"
            remedy = claim.remedy if isinstance(claim, Unbounded) else "Add the noise first"
            raise NotPrivate(f"{because}, so it may not leave. {remedy}")


def _context(
    memory: ClientMemory | ServerMemory, sender: int | None, link: Link, previous: Listed | None, *, packed: bool
) -> PublicContext:
    sender, shared = memory.sender if sender is None else sender, memory.shared
    return PublicContext(
        layout=memory.layout,
        version=shared.version,
        round=shared.version,
        client=sender,
        mask_key=_mask_key(memory.seed.number, shared.version),
        run_key=_run_key(memory.seed.number),
        dither_key=memory.seed.key("dither", sender, shared.version, link.count),
        last_broadcast=read_only(shared.reference),
        history=read_only(shared.history),
        previous_support=previous,
        packed=packed,
    )


@lru_cache(maxsize=64)
def _fingerprint(identity: bytes, layout_digest: bytes) -> bytes:
    return digest(identity, layout_digest)


@lru_cache(maxsize=64)
def _mask_key(seed: int, version: int) -> int:
    """Return the key of a version's random supports, which all its messages have."""
    return PublicSeed(seed).key("mask", version)


@lru_cache(maxsize=64)
def _run_key(seed: int) -> int:
    """Return the key of the supports that are dealt over the rounds of a run."""
    return PublicSeed(seed).key("deal")


def _refuse_unread_history(codec: Codec) -> None:
    """Refuse a part with a history that none of its methods is given: it would be kept, and never read."""
    inner = (("predict", codec.predict), ("entropy", codec.entropy))
    if is_dataclass(codec.quantize) and not isinstance(codec.quantize, ReadsHistory):
        inner += tuple((f"quantize.{item.name}", getattr(codec.quantize, item.name)) for item in fields(codec.quantize))
    for place, part in inner:
        if isinstance(part, ReadsHistory):
            raise ValueError(
                f"{part} (codec.{place}) has a history, but its methods get no PublicContext to read it from: only a "
                "stage, a sparsifier or a quantiser reads history"
            )


def _refuse_half_a_history(part: object) -> None:
    """Refuse a part with only one of the two methods of a history, which would be ignored without an error."""
    methods = ("initial_history", "update_history")
    has = [name for name in methods if hasattr(part, name)]
    if len(has) == 1:
        (lacks,) = set(methods) - set(has)
        raise ValueError(f"{part} has {has[0]}, but not {lacks}: a part with a history has both methods, so add it")


def _checked_history(
    reader: ReadsHistory, method: str, returned: Any, like: Float32[np.ndarray, "h"] | None = None
) -> Float32[np.ndarray, "h"]:
    """Return a read-only copy of a part's history: finite float32 of shape (h,), with the h of the history before."""
    given = repr(returned)
    if isinstance(returned, np.ndarray):
        history = cast("np.ndarray[Any, np.dtype[Any]]", returned)
        given = f"{history.dtype} of shape {history.shape}"
        if history.dtype == np.float32 and history.shape == ((history.size,) if like is None else like.shape):
            if not np.isfinite(history).all():
                raise ValueError(
                    f"{reader}: {method} gave values that are not finite, which no snapshot holds: mark a coordinate "
                    "without news by a finite number"
                )
            # A copy: the part may change its array later, and a strided one is written wrongly to a checkpoint.
            kept = np.array(history, order="C")
            kept.flags.writeable = False
            return kept
    raise ValueError(
        f"{reader}: {method} gave {given}, not float32 of shape {'(h,)' if like is None else like.shape}: a snapshot "
        "would round or cut it, and the two ends would compute different supports. Return array.astype(np.float32)"
    )
