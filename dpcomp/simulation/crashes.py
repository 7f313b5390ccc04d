"""Crashes and absences, as a seed says."""

import numpy as np

from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import Trained
from dpcomp.federated.server import Server
from dpcomp.simulation.faulty_network import Faults
from dpcomp.simulation.traffic import Traffic
from dpcomp.wire.update import Update

BEFORE_SAVING, BEFORE_SENDING, AFTER_SENDING, IDLE = range(4)  # the moments at which a client may crash


class Misfortune:
    """What befalls the ends of a federation, round by round."""

    def __init__(self, faults: Faults, clients: int, stream: np.random.Generator):
        self._faults, self._clients, self._stream = faults, clients, stream
        self._back: dict[int, int] = {}  # client → rounds until it is back
        self._crashes: dict[int, int] = {}  # client → moment, in this round

    def strike(self, traffic: Traffic, server: Server) -> None:
        """At the beginning of a round: who comes back, and catches up before it trains; who goes; who will crash."""
        faults, stream = self._faults, self._stream
        self._back = {client: rounds - 1 for client, rounds in self._back.items()}
        for client in [client for client, rounds in self._back.items() if not rounds]:
            del self._back[client]
            traffic.away.discard(client)
            traffic.restart(client)
        self._crashes = {}
        for client in range(self._clients):
            if client not in traffic.away and faults.absence and stream.random() < faults.absence:
                self._back[client] = int(stream.integers(1, faults.absence_rounds + 1))
                traffic.away.add(client)
            elif client not in traffic.away and faults.crash and stream.random() < faults.crash:
                self._crashes[client] = int(stream.integers(IDLE + 1))
                if self._crashes[client] == IDLE:
                    traffic.restart(client)
        if faults.server_restart and stream.random() < faults.server_restart:
            server.restart()

    def trained(self, client: int, participant: Participant, update: Update, traffic: Traffic) -> list[bytes]:
        """A client goes on from its update as far as it gets; what it would have sent."""
        moment = self._crashes.get(client)
        if moment == BEFORE_SAVING:
            traffic.restart(client)
            return []
        messages = participant.handle(Trained(update))
        if moment != BEFORE_SENDING:
            traffic.send(client, messages)
        if moment in (BEFORE_SENDING, AFTER_SENDING):
            traffic.restart(client)
        return messages
