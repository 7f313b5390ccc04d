"""SimulatedClients: many clients in one process, of which those at the same version share shared memory and model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from dpcomp.core.randomness import DitherKey, DitherKeys
from dpcomp.federated.absence import AbsencePolicy
from dpcomp.federated.client import ClientState, Follow, transition
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, Phase, new_session
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.simulation.clients.followed_once import FollowedOnce
from dpcomp.simulation.clients.residuals import Residuals
from dpcomp.simulation.network.faulty_network import Faults
from dpcomp.simulation.network.protocol import ProtocolVariant
from dpcomp.wire.channel import Channel
from dpcomp.wire.links import Link
from dpcomp.wire.memory import ClientMemory, ServerMemory

QUESTION_AND_REPLY = 2  # ticks


class SharingParticipant(Participant):
    """A participant that shares arrays with the others of its simulation.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        state: Its state, which counts as saved.
        ledger: The ledger of all clients.
        absence_policy: What it keeps of its residual after rounds that it missed.
        follow: Follows broadcasts for all clients of the simulation.
    """

    def __init__(
        self, channel: Channel, state: ClientState, ledger: Ledger, absence_policy: AbsencePolicy, follow: Follow
    ):
        super().__init__(channel, state.memory, state.model, ledger, absence_policy=absence_policy)
        self.state = self._saved = state
        self._follow = follow


class SimulatedClients:
    """The clients of a simulation, by number: those that stand apart, and all others, which stand together.

    A client stands together with others while it is synced, has nothing pending, and has followed every broadcast. Of
    such a client only its link and its residual, or what else its feedback keeps, are kept, once it has sent a payload;
    shared memory and model are one for all. A client that takes part in a round, is away or crashed stands apart, with
    a state machine of its own, until `gather` finds that it has caught up.

    Where messages may be lost, repeated, delayed or damaged, each client gets its own broadcast, so all stand apart,
    but share the arrays of a version. So they do where the protocol has participants of another class, which may do
    anything at each message; those share nothing.

    Args:
        pipeline: Its channel is that of both ends.
        memory: The memory of client 0 at the start, whose genesis names the first model.
        model: The first model, as a (d,) vector.
        count: The number of clients.
        ledger: The ledger that they all charge, each its own addresses.
        protocol: The class of the participants, and their absence policy.
        faults: What goes wrong on the network.
        residuals: Keeps the residuals of those that stand together.
        dither_keys: The secrets of all clients with the server, where the pipeline needs them.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        memory: ClientMemory,
        model: Float32[np.ndarray, "d"],
        *,
        count: int,
        ledger: Ledger,
        protocol: ProtocolVariant,
        faults: Faults,
        residuals: Residuals,
        dither_keys: DitherKeys | None = None,
    ):
        self._dither_keys = dither_keys
        self._channel, self._ledger, self._absence_policy = pipeline.channel, ledger, protocol.absence_policy
        self._count, self._residuals = count, residuals
        self._follow, self._first = FollowedOnce(), ClientState(memory=memory, model=model)
        self._links: dict[int, Link] = {}  # of those that stand together and have sent a payload
        self._together: ClientState | None = None  # of each of them, but for its number, link and residual
        self._apart: dict[int, Participant] = {}
        self._gathers = False  # whether clients come to stand together
        if protocol.participant is not Participant:
            self._apart = {client: self._own(protocol, client) for client in range(count)}
        elif faults.on_network or faults.patience < QUESTION_AND_REPLY or memory.tracked is not None:
            # A tracked signal depends on what its client sent, so it is followed by each client.
            self._apart = {client: self._sharing(self._new(client)) for client in range(count)}
        else:
            self._gathers, self._apart = True, {0: self._sharing(self._new(0))}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, client: int) -> Participant:
        """Return the participant of a client, which stands apart from now on."""
        if client not in self._apart:
            self._apart[client] = self._sharing(self._parted(client))
        return self._apart[client]

    @property
    def apart(self) -> list[int]:
        """The numbers of the clients that stand apart, ascending."""
        return sorted(self._apart)

    def begin(self) -> int:
        """Let clients stand together once those that stand apart have asked the server where it stands.

        Returns:
            How many clients each of those that asked stands for: 1, or the number of all.
        """
        alike = self._count // len(self._apart)
        if self._gathers:
            self._together = self._apart.pop(0).state
            assert self._together.phase is Phase.SYNCED
        return alike

    def write_kept(self, path: Path) -> Int64[np.ndarray, "clients"]:
        """Write what clients keep of their updates to a file, once all stand together.

        Args:
            path: The file.

        Returns:
            The clients of whom something is kept, a row each in this order.
        """
        assert self._together is not None
        assert not self._apart
        self._residuals.write(path)
        return np.array(self._residuals.clients, dtype=np.int64)

    def go_on(
        self, server: ServerMemory, model: Float32[np.ndarray, "d"], path: Path, clients: Int64[np.ndarray, "clients"]
    ) -> None:
        """Let all clients stand together as they did after a round, instead of `begin`.

        Args:
            server: The server's memory then; it knows the links of all clients.
            model: The model then, as a (d,) vector.
            path: What `write_kept` wrote.
            clients: What `write_kept` returned.
        """
        memory = replace(self._first.memory, shared=server.shared, genesis=server.genesis)
        self._together = replace(self._first, memory=memory, model=model, phase=Phase.SYNCED)
        self._apart = {}
        self._links = dict(server.links.items())
        self._residuals.read(path, clients.tolist())

    def follow(self, broadcast: bytes) -> None:
        """Let the clients that stand together follow a broadcast; for each of those apart, its message arrives."""
        if self._together is not None:
            after, _ = transition(self._channel, self._together, BroadcastReceived(broadcast), follow=self._follow)
            assert after.phase is Phase.SYNCED
            self._together = after

    def gather(self) -> None:
        """Let clients that have caught up stand together with the others."""
        if self._together is None:
            return
        for client, participant in list(self._apart.items()):
            if _same_position(participant.state, self._together):
                memory = participant.state.memory
                if memory.link.count:
                    self._links[client] = memory.link
                if memory.kept.vectors and memory.kept is not self._first.memory.kept:
                    self._residuals.keep(client, memory.kept)
                del self._apart[client]

    def _own(self, protocol: ProtocolVariant, client: int) -> Participant:
        memory = self._new(client).memory
        return protocol.participant(
            self._channel, memory, self._first.model, self._ledger, absence_policy=self._absence_policy
        )

    def _sharing(self, state: ClientState) -> Participant:
        return SharingParticipant(self._channel, state, self._ledger, self._absence_policy, self._follow)

    def _new(self, client: int) -> ClientState:
        memory = replace(self._first.memory, client=client, dither_key=self._dither_key(client))
        return replace(self._first, memory=memory, session=new_session())

    def _dither_key(self, client: int) -> DitherKey | None:
        return None if self._dither_keys is None else self._dither_keys.of(client)

    def _parted(self, client: int) -> ClientState:
        """Return the state of a client that stood together with others."""
        assert self._together is not None
        kept = self._residuals.take(client)
        memory = replace(
            self._together.memory,
            client=client,
            dither_key=self._dither_key(client),
            link=self._links.pop(client, Link()),
            kept=self._first.memory.kept if kept is None else kept,
        )
        return replace(self._together, memory=memory, session=new_session(), asked=0)


def _same_position(state: ClientState, other: ClientState) -> bool:
    """Return whether two clients are synced at one version with the same arrays, and nothing is under way."""
    mine, others = state.memory, other.memory
    return (
        (state.phase, state.pending, state.question) == (Phase.SYNCED, None, None)
        and mine.shared is others.shared
        and mine.step is others.step
        and state.model is other.model
    )
