"""A long run in bad weather: 50 clients, 300 rounds, and all that the network does to them."""

import resource
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

import dpcomp as dp
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import Phase
from dpcomp.federated.server import Server
from dpcomp.lab.tasks import digits
from dpcomp.simulation import Faults, Versioned, simulate
from dpcomp.training.pytorch import PyTorch

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")  # of refusals, which the weather makes
WEATHER = Faults(drop=0.3, corrupt=0.05, duplicate=0.05, reorder=0.1, absence=0.02, absence_rounds=60)
PIPELINE = dp.Pipeline(
    sampling=dp.Poisson(0.5),
    mechanism=(dp.Clip(1.0), dp.Gaussian(0.3)),
    codec=dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)),
)


class WatchedServer(Server):
    """Remembers where it stood at each version, and how much it held."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        WatchedParticipant.server = self
        self.stood, self.held, self.resident = {0: (self.memory.shared.digest, self.model)}, [], []

    def close_round(self):
        broadcast = super().close_round()
        self.stood[self.memory.shared.version] = (self.memory.shared.digest, self.model)
        supports = [link.last_support for link in self.memory.links.values()]
        links = sum(0 if support is None else support.positions.nbytes for support in supports)
        self.held.append(links + sum(len(broadcast.message) for broadcast in self._state.broadcasts))
        self.resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return broadcast


class WatchedParticipant(Participant):
    """Compares itself with the server at every step at which it is synced."""

    server: ClassVar[WatchedServer]
    mismatches: ClassVar[int] = 0
    compared: ClassVar[int] = 0

    def handle(self, event):
        messages = super().handle(event)
        if self.state.phase is Phase.SYNCED:
            digest, model = self.server.stood[self.state.memory.shared.version]
            same = self.state.memory.shared.digest == digest and self.state.model.tobytes() == model.tobytes()
            same = same and self.state.memory.link == self.server.memory.link(self.state.memory.client)
            WatchedParticipant.mismatches += not same
            WatchedParticipant.compared += 1
        return messages


@dataclass(frozen=True, kw_only=True)
class Watching(Versioned):
    """Ends that are watched."""

    server: ClassVar = WatchedServer
    participant: ClassVar = WatchedParticipant


def run(rounds, faults, seed, protocol, clients=50):
    outcome = simulate(
        digits(),
        PIPELINE,
        clients=clients,
        rounds=rounds,
        seed=seed,
        trainer=PyTorch(learning_rate=6.0),
        faults=faults,
        protocol=protocol,
        evaluate_every=1,
        progress=False,
    )
    return outcome.table()


def ending(table: pd.DataFrame) -> float:
    """The test accuracy at the end: the mean of ten rounds."""
    return float(table["test_accuracy"].tail(10).mean())


def check_protocol(rounds, seed, clients=50):
    table = run(rounds, WEATHER, seed, Watching(), clients)
    assert WatchedParticipant.mismatches == 0 < WatchedParticipant.compared
    return table, WatchedParticipant.server


def test_nobody_who_is_synced_stands_elsewhere():
    check_protocol(12, seed=0, clients=8)


@pytest.mark.slow
def test_three_hundred_rounds_in_bad_weather():
    differences = []
    for seed in range(3):
        faulty, server = check_protocol(300, seed)
        accepted = faulty["participants"].sum()
        fair = run(-(-int(accepted) // 50), Faults(), seed, Versioned())
        assert 0 <= fair["participants"].sum() - accepted < 50
        differences.append(ending(faulty) - ending(fair))
        refused = {column: int(faulty[column].sum()) for column in faulty if column.startswith("refused_")}
        print(f"seed {seed}: {ending(faulty):.3f} with faults, {ending(fair):.3f} without, {accepted:.0f} updates")
        print(refused)
        print("held", server.held[99], max(server.held), "resident KiB", server.resident[99], server.resident[-1])
        assert max(server.held[200:]) <= 1.1 * max(server.held[:200])
        assert server.resident[-1] - server.resident[99] < 64 * 1024  # rows and the watcher's models are 15 MiB of it
    assert abs(np.mean(differences)) < 0.01, differences
