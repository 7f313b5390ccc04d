"""SimulatedFederation: a server, its clients and the traffic between them, in one process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float32

from dpcomp.core.randomness import DitherKeys, PublicSeed, SecretSeed
from dpcomp.federated.server import Server
from dpcomp.federated.server.aggregation import TrustedRelease
from dpcomp.federated.server.cohort import Draw
from dpcomp.federated.server.optimizers import ServerRule
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.simulation.clients.participation import public_cohort
from dpcomp.simulation.clients.residuals import Residuals
from dpcomp.simulation.clients.side_by_side import SideBySide
from dpcomp.simulation.clients.simulated_clients import SimulatedClients
from dpcomp.simulation.network.crashes import Crashes
from dpcomp.simulation.network.faulty_network import Faults
from dpcomp.simulation.network.protocol import ProtocolVariant
from dpcomp.simulation.network.traffic import Traffic
from dpcomp.simulation.round_outcome import RoundOutcome
from dpcomp.simulation.saving.run_folder import CLIENTS, RunState
from dpcomp.training.trainer import CohortTrainer, LocalWork, Trainer
from dpcomp.wire.bits_by_part import layer_bits
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedFederation:
    """A server, its clients and the messages between them in one process; `opened_federation` makes it.

    Args:
        pipeline: The mechanism and codec that the server and all clients use.
        trainer: Trains each client from its present model, and evaluates the server's model.
        clients: The clients' ends of the protocol, by number.
        server: The server's end of the protocol: it accepts updates and closes rounds.
        ledger: The ledger of all who draw noise: each client is charged under its number, a trusted server under its.
        traffic: Delivers the messages, with the faults of the network, and counts their bytes.
        crashes: Draws which clients crash or are away, and whether the server restarts.
        side_by_side: Trains clients in other processes; None trains them in this one.
    """

    pipeline: Pipeline
    trainer: Trainer
    clients: SimulatedClients
    server: Server
    ledger: Ledger
    traffic: Traffic
    crashes: Crashes
    side_by_side: SideBySide | None = None

    def play_round(self) -> RoundOutcome:
        """Play one round: the drawn clients train and send, the server closes the round, all follow its broadcast.

        Returns:
            The bytes, refusals and absences of the round.

        Raises:
            BudgetExhausted: A ledger's budget does not allow a release.
        """
        server, traffic = self.server, self.traffic
        refused_before = server.refusals.copy()
        self.crashes.begin_round(traffic, server)
        cohort = server.cohort()
        traffic.invite(cohort)
        chosen = [client for client in cohort if self._can_train(client)]
        bits = [self._send(client, update) for client, update in self._updates(chosen)]
        traffic.deliver()
        payload_bytes = tuple(accepted.payload_bytes for accepted in server.accepted)
        traffic.broadcast(server.close_round())
        traffic.deliver()
        self.clients.gather()
        return RoundOutcome(
            sent=traffic.take_counts(),
            payload_bytes=payload_bytes,
            layer_bits=tuple(filter(None, bits)),
            refused=server.refusals - refused_before,
            away=len(traffic.away),
        )

    def _can_train(self, client: int) -> bool:
        return client not in self.traffic.away and self.clients[client].may_train

    def _updates(self, chosen: Sequence[int]) -> Iterator[tuple[int, Update]]:
        """Train clients: in other processes, as one program where the trainer can, else each before the next."""
        work = (self._work(client) for client in chosen)
        if self.side_by_side is not None:
            yield from zip(chosen, self.side_by_side.train(list(work)), strict=True)
            return
        if isinstance(self.trainer, CohortTrainer):
            yield from zip(chosen, self.trainer.train_cohort(list(work)), strict=True)
            return
        for each in work:
            yield each.client, self.trainer.train(each.client, each.start, each.memory, each.ledger)

    def _work(self, client: int) -> LocalWork:
        state = self.clients[client].state
        return LocalWork(client=client, start=state.model, memory=state.memory, ledger=self.ledger)

    def _send(self, client: int, update: Update) -> Mapping[str, float]:
        """Send a client's update, and return its bits a value by layer, where an allocator spreads them."""
        participant = self.clients[client]
        before = participant.state
        messages = self.crashes.send_update(client, participant, update, self.traffic)
        allocates = self.pipeline.codec.allocates and messages
        return layer_bits(self.pipeline.channel, messages[0], before.memory) if allocates else {}


@contextmanager
def opened_federation(
    pipeline: Pipeline,
    trainer: Trainer,
    *,
    clients: int,
    optimizer: ServerRule,
    participation: Draw | None,
    protocol: ProtocolVariant,
    faults: Faults,
    seed: PublicSeed,
    secret: SecretSeed,
    memory_budget: int,
    side_by_side: SideBySide | None = None,
    first_model: Float32[np.ndarray, "d"] | None = None,
    saved: RunState | None = None,
) -> Iterator[SimulatedFederation]:
    """Open a federation before its first round, or the one after a saved round; at the end its server is closed.

    Args:
        pipeline: The mechanism and codec that the server and all clients use.
        trainer: Trains the clients, and gives the layout and the first model.
        clients: The number of clients.
        optimizer: Computes the server's step from the mean update.
        participation: With `unit="example"`, draws the clients that a round asks; None asks all.
        protocol: The classes of both ends, and their policies.
        faults: The probabilities of faults, and how long clients and rounds wait.
        seed: The public seed: it names the run, and masks, dither and faults are drawn from it.
        secret: The seed of a trusted server's noise, and of a draw of clients that must be secret.
        memory_budget: The most bytes of clients' residuals in memory.
        side_by_side: Trains clients in other processes; None trains them in this one.
        first_model: The model of round 1, as a (d,) vector; None for the trainer's own.
        saved: What was saved after a round of the same run; None to begin anew.

    Yields:
        The federation, whose clients have asked the server for its present state.
    """
    layout, model = trainer.layout, trainer.initial_model if first_model is None else first_model
    keys = None if pipeline.largest_cohort is None else DitherKeys.drawn(secret)
    own = None if keys is None else keys.of(0)
    # Every payload names it, and the dither depends on it: a run that can be repeated has the same one again.
    run_id = seed.key("run id").to_bytes(32, "little")[:8] if secret.seeded else None
    first = pipeline.init_client(layout, seed=seed, client=0, first_model=model, dither_key=own)
    ledger, trusted_release = Ledger() if saved is None else saved.ledger, None
    if pipeline.trust_model.noise_at == "server":
        divisor = expected_participants(pipeline, clients)
        trusted_release = TrustedRelease(pipeline=pipeline, secret=secret, ledger=ledger, divisor=divisor)
    with ExitStack() as on_exit:
        # Without a folder a server keeps nothing, and cannot restart.
        folder = on_exit.enter_context(TemporaryDirectory()) if faults.server_restart else None
        residuals = Residuals(first.kept, memory_budget, Path(on_exit.enter_context(TemporaryDirectory())))
        server = protocol.server(
            pipeline.channel,
            pipeline.init_server(layout, seed=seed, run_id=run_id, dither_keys=keys),
            model,
            optimizer=optimizer,
            late_policy=protocol.late_policy,
            trusted_release=trusted_release,
            clients=clients,
            cohort=public_cohort(pipeline, participation),
            folder=folder,
        )
        on_exit.callback(server.close)
        simulated = SimulatedClients(
            pipeline,
            first,
            model,
            count=clients,
            ledger=ledger,
            protocol=protocol,
            faults=faults,
            residuals=residuals,
            dither_keys=keys,
        )
        traffic = Traffic(server, simulated, faults, seed.stream("network"))
        if saved is None:
            traffic.introduce()  # the bytes of the first questions are a part of the first round's
        else:
            server.go_on(saved.server)
            server.refusals.update(saved.refusals)
            simulated.go_on(server.memory, server.model, saved.residuals, saved.server.extra_arrays[CLIENTS])
        yield SimulatedFederation(
            pipeline=pipeline,
            trainer=trainer,
            clients=simulated,
            server=server,
            ledger=ledger,
            traffic=traffic,
            crashes=Crashes(faults, clients, seed.stream("misfortune")),  # the purpose names the stream: it stays
            side_by_side=side_by_side,
        )


def expected_participants(pipeline: Pipeline, clients: int) -> float:
    """Return the expected number of clients in a round, a public constant: the pipeline's sampling rate × clients."""
    return (1.0 if pipeline.sampling is None else pipeline.sampling.rate) * clients
