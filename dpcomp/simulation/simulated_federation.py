"""SimulatedFederation: a server, its clients and the traffic between them, in one process."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.federated.aggregation import ServerOptimizer, TrustedRelease
from dpcomp.federated.participant import Participant
from dpcomp.federated.server import Server
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.simulation.crashes import Crashes
from dpcomp.simulation.faulty_network import Faults
from dpcomp.simulation.participation import public_cohort
from dpcomp.simulation.protocol import ProtocolVariant
from dpcomp.simulation.round_outcome import RoundOutcome
from dpcomp.simulation.traffic import Traffic
from dpcomp.training.trainer import Trainer
from dpcomp.wire.bits_by_part import layer_bits


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedFederation:
    """A server, its clients and the messages between them in one process; `opened_federation` makes it.

    Args:
        pipeline: The mechanism and codec that the server and all clients use.
        trainer: Trains each client from its present model, and evaluates the server's model.
        participants: The clients' ends of the protocol; client i is at position i. Each has its own ledger.
        server: The server's end of the protocol: it accepts updates and closes rounds.
        server_ledger: The server's ledger. It is charged only if the server is trusted; otherwise it stays empty.
        traffic: Delivers the messages, with the faults of the network, and counts their bytes.
        crashes: Draws which clients crash or are away, and whether the server restarts.
    """

    pipeline: Pipeline
    trainer: Trainer
    participants: list[Participant]
    server: Server
    server_ledger: Ledger
    traffic: Traffic
    crashes: Crashes

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
        bits = [self._train(client) for client in cohort if self._can_train(client)]
        traffic.deliver()
        payload_bytes = tuple(accepted.payload_bytes for accepted in server.accepted)
        traffic.broadcast(server.close_round())
        traffic.deliver()
        return RoundOutcome(
            sent=traffic.take_counts(),
            payload_bytes=payload_bytes,
            layer_bits=tuple(filter(None, bits)),
            refused=server.refusals - refused_before,
            away=len(traffic.away),
        )

    @property
    def charged_ledgers(self) -> list[Ledger]:
        """The ledgers of those who draw the noise: the clients' own, or the server's."""
        if self.pipeline.trust_model.ledger_of == "server":
            return [self.server_ledger]
        return [participant.ledger for participant in self.participants]

    def _can_train(self, client: int) -> bool:
        return client not in self.traffic.away and self.participants[client].may_train

    def _train(self, client: int) -> Mapping[str, float]:
        """Train a client, send its update, and return its bits a value by layer, where an allocator spreads them."""
        participant = self.participants[client]
        before = participant.state
        update = self.trainer.train(client, before.model, before.memory, participant.ledger)
        messages = self.crashes.send_update(client, participant, update, self.traffic)
        allocates = self.pipeline.codec.allocates and messages
        return layer_bits(self.pipeline.channel, messages[0], before.memory) if allocates else {}


@contextmanager
def opened_federation(
    pipeline: Pipeline,
    trainer: Trainer,
    *,
    clients: int,
    optimizer: ServerOptimizer,
    participation: Poisson | None,
    protocol: ProtocolVariant,
    faults: Faults,
    seed: PublicSeed,
    secret: SecretSeed,
) -> Iterator[SimulatedFederation]:
    """Open a federation before its first round; when the context ends, its server is closed.

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

    Yields:
        The federation, whose clients have asked the server for its present state.
    """
    layout, model = trainer.layout, trainer.initial_model
    participants = [
        protocol.participant(
            pipeline.channel,
            pipeline.init_client(layout, seed=seed, client=client),
            model,
            Ledger(),
            absence_policy=protocol.absence_policy,
        )
        for client in range(clients)
    ]
    server_ledger, trusted_release = Ledger(), None
    if pipeline.trust_model.noise_at == "server":
        divisor = expected_participants(pipeline, clients)
        trusted_release = TrustedRelease(pipeline=pipeline, secret=secret, ledger=server_ledger, divisor=divisor)
    with ExitStack() as on_exit:
        # Without a folder a server keeps nothing, and cannot restart.
        folder = on_exit.enter_context(TemporaryDirectory()) if faults.server_restart else None
        server = protocol.server(
            pipeline.channel,
            pipeline.init_server(layout, seed=seed),
            model,
            optimizer=optimizer,
            late_policy=protocol.late_policy,
            trusted_release=trusted_release,
            clients=clients,
            cohort=public_cohort(pipeline, participation),
            folder=folder,
        )
        on_exit.callback(server.close)
        traffic = Traffic(server, participants, faults, seed.stream("network"))
        traffic.deliver()  # the clients' first questions: their bytes are a part of the first round's
        yield SimulatedFederation(
            pipeline=pipeline,
            trainer=trainer,
            participants=participants,
            server=server,
            server_ledger=server_ledger,
            traffic=traffic,
            crashes=Crashes(faults, clients, seed.stream("misfortune")),  # the purpose names the stream: it stays
        )


def expected_participants(pipeline: Pipeline, clients: int) -> float:
    """Return the expected number of clients in a round, a public constant: the pipeline's sampling rate × clients."""
    return (1.0 if pipeline.sampling is None else pipeline.sampling.rate) * clients
