"""Federations on a network with faults: seeded, configured, counted, and as good as without them."""

import numpy as np
import pytest
import torch

import dpcomp as dp
from dpcomp.federated.server import Server
from dpcomp.federated.server.late import Weigh
from dpcomp.simulation import Faults, Unversioned, Versioned, simulate
from dpcomp.simulation.network.faulty_network import Network
from dpcomp.simulation.network.unversioned import UnversionedServer
from dpcomp.training.pytorch import PyTorch
from tests.simulation.test_simulate import TERMS, Blobs, pipeline

# Runs this small often learn nothing, and `simulate` says so: tests/simulation/test_run_warnings.py.
pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")

torch.set_num_threads(1)
HARSH = Faults(
    drop=0.3,
    corrupt=0.05,
    duplicate=0.05,
    reorder=0.2,
    crash=0.05,
    absence=0.1,
    absence_rounds=4,
    server_restart=0.1,
)


def run(chosen, faults=Faults(), *, rounds=8, **kwargs):
    trainer = PyTorch(local_steps=2)
    return simulate(Blobs(), chosen, clients=4, rounds=rounds, trainer=trainer, faults=faults, progress=False, **kwargs)


@pytest.mark.parametrize(
    ("unit", "trust", "order"),
    [
        *((*terms, "noise first") for terms in TERMS),
        ("example", "nobody", "mask first"),
        *(pytest.param("client", trust, "mask first", marks=pytest.mark.slow) for trust in ("nobody", "server")),
    ],
)
def test_a_faulty_run_is_repeatable_and_charged_in_full(unit, trust, order):
    chosen = pipeline(unit, trust, order)
    one, other, perfect = run(chosen, HARSH), run(chosen, HARSH), run(chosen)
    assert one.model.tobytes() == other.model.tobytes()
    assert one.guarantee.epsilon <= perfect.guarantee.epsilon  # who was away released nothing; no release was repeated
    if trust == "server":
        assert one.guarantee.epsilon == perfect.guarantee.epsilon
    table = one.table()
    assert table["participants"].sum() <= perfect.table()["participants"].sum()
    assert table["control_bytes"].sum() > perfect.table()["control_bytes"].sum()
    assert {"away", "control_bytes"} <= set(table)
    refused = [column for column in table if column.startswith("refused_")]
    assert refused and (trust == "nobody" or set(refused) <= set(one.probed))


def test_a_perfect_network_says_nothing_of_faults():
    table = run(pipeline()).table()
    assert "away" not in table and not [column for column in table if column.startswith("refused_")]


def test_late_updates_are_taken_where_that_is_declared():
    slow = Faults(reorder=0.9, delay=9, patience=3, retry=3)
    rejected = run(pipeline(), slow, rounds=12)
    weighed = run(pipeline(), slow, rounds=12, protocol=Versioned(late_policy=Weigh(max_age=4)))
    assert weighed.table()["participants"].sum() > rejected.table()["participants"].sum()


def test_without_version_checks_the_ends_drift_apart():
    drift = {}
    for name, protocol, kind in (
        ("with", Versioned(), SeenServer),
        ("without", Unversioned(), SeenUnversionedServer),
    ):
        seen, servers, participants = seen_ends(protocol, kind)
        run(pipeline(noise=0.1), Faults(drop=0.2, duplicate=0.2), rounds=15, protocol=seen)
        models = servers[0].models
        drift[name] = [min(np.abs(one.state.model - model).max() for model in models) for one in participants]
    assert max(drift["with"]) == 0 < min(drift["without"])


def test_without_version_checks_no_server_is_trusted():
    with pytest.raises(dp.NotPrivate, match="twice the sensitivity"):
        run(pipeline("client", "server"), protocol=Unversioned())


@pytest.mark.parametrize("wrong", [{"drop": 1.5}, {"corrupt": -0.1}, {"delay": 0}, {"patience": 2.5}, {"retry": True}])
def test_wrong_faults_are_named(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        Faults(**wrong)


def test_a_network_does_what_its_faults_say():
    def arriving(**faults):
        network, came = Network(Faults(**faults), np.random.default_rng(0)), []
        for number in range(2000):
            network.send(0, 1, number.to_bytes(4, "big"))
        while not network.idle:
            came += [message for _, _, message in network.tick()]
        return came

    sent = [number.to_bytes(4, "big") for number in range(2000)]
    assert arriving() == sent
    assert 1300 < len(arriving(drop=0.3)) < 1500
    assert 2150 < len(arriving(duplicate=0.1)) < 2250
    assert sorted(arriving(reorder=0.5)) == sent != arriving(reorder=0.5)
    assert 150 < sum(one != other for one, other in zip(arriving(corrupt=0.1), sent, strict=True)) < 250


class SeenServer(Server):
    """A server, and every model that it has stood at."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.models = [self.model]

    def close_round(self):
        broadcast = super().close_round()
        self.models.append(self.model)
        return broadcast


class SeenUnversionedServer(SeenServer, UnversionedServer):
    pass


def seen_ends(protocol, server_kind):
    """The protocol with a look at its ends: itself, and lists that they will stand in."""
    servers, participants = [], []

    class Server(server_kind):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            servers.append(self)

    class Participant(protocol.participant):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            participants.append(self)

    class Seen(type(protocol)):
        server, participant = Server, Participant

    return Seen(), servers, participants
