"""Crashes and absences of clients, and restarts of the server, by a seed."""

import numpy as np

from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import Trained
from dpcomp.federated.server import Server
from dpcomp.simulation.network.faulty_network import Faults
from dpcomp.simulation.network.traffic import Traffic
from dpcomp.wire.update import Update

# The moments at which a client may crash. A seeded run draws among them by number, so their order stays.
BEFORE_SAVING, BEFORE_SENDING, AFTER_SENDING, AT_ROUND_START = MOMENTS = range(4)


class Crashes:
    """Draws who crashes and who is away, round by round, and makes it happen.

    Args:
        faults: The probabilities.
        clients: The number of clients.
        stream: Where the draws come from.
    """

    def __init__(self, faults: Faults, clients: int, stream: np.random.Generator):
        self._faults, self._clients, self._stream = faults, clients, stream
        self._rounds_away: dict[int, int] = {}  # client → rounds until it is back
        self._crash_moments: dict[int, int] = {}  # client → moment, in this round

    def begin_round(self, traffic: Traffic, server: Server) -> None:
        """Bring back clients whose absence ends, then draw absences, crashes and a restart of the server."""
        faults, stream = self._faults, self._stream
        self._rounds_away = {client: rounds - 1 for client, rounds in self._rounds_away.items()}
        for client in [client for client, rounds in self._rounds_away.items() if not rounds]:
            del self._rounds_away[client]
            traffic.away.discard(client)
            traffic.restart(client)
        self._crash_moments = {}
        for client in range(self._clients if faults.absence or faults.crash else 0):
            if client not in traffic.away and faults.absence and stream.random() < faults.absence:
                self._rounds_away[client] = int(stream.integers(1, faults.absence_rounds + 1))
                traffic.away.add(client)
            elif client not in traffic.away and faults.crash and stream.random() < faults.crash:
                self._crash_moments[client] = int(stream.integers(len(MOMENTS)))
                if self._crash_moments[client] == AT_ROUND_START:
                    traffic.restart(client)
        if faults.server_restart and stream.random() < faults.server_restart:
            server.restart()

    def send_update(self, client: int, participant: Participant, update: Update, traffic: Traffic) -> list[bytes]:
        """Save and send a client's update, as far as it gets before a crash.

        Args:
            client: Its number.
            participant: Its state machine.
            update: What it has trained.
            traffic: Where it sends.

        Returns:
            The messages that it made, sent or not; none where it crashed before it saved.
        """
        moment = self._crash_moments.get(client)
        if moment == BEFORE_SAVING:
            traffic.restart(client)
            return []
        messages = participant.handle(Trained(update))
        if moment != BEFORE_SENDING:
            traffic.send(client, messages)
        if moment in (BEFORE_SENDING, AFTER_SENDING):
            traffic.restart(client)
        return messages
