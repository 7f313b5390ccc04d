"""The Flower adapter in Flower's own processes: SuperNodes that are killed, and the simulation on Ray."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

import torch

import dpcomp as dp
from benchmarks.flower_rounds.__main__ import measured
from dpcomp.core.database.database import look_at_database
from dpcomp.core.errors import DpcompError
from dpcomp.federated.server.journal import KIND
from dpcomp.lab.tasks import digits
from dpcomp.terms import FederationTerms
from dpcomp.training.pytorch.rows.parameters import layout_of, read
from dpcomp.wire.headers import unsealed
from experiments.data.tasks import fashion_mnist

ROOT = Path(__file__).parents[2]
DELTA = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "rounds"), [(["--faults"], 20), (["--faults", "--fashion-mnist"], 20), (["--kills", "50"], 20)], ids=str
)
def test_killed_processes_go_on_and_end_at_the_model_of_what_was_accepted(tmp_path, options, rounds):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ROUNDS": str(rounds)}
    script = ROOT / "examples" / "flower" / "start.py"
    federation, accepted = tmp_path / "flower-federation", {}
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), *options],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                for journal in federation.glob("server/*/journal.db"):  # it holds the last two rounds
                    try:
                        with look_at_database(journal, KIND) as connection:
                            rows = connection.execute("SELECT number, version, payload FROM accepted").fetchall()
                    except DpcompError:
                        continue  # it is just being made
                    accepted |= {number: (version, payload) for number, version, payload in rows}
                time.sleep(1.0)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    printed = (tmp_path / "output").read_text(errors="replace")
    assert process.returncode == 0, printed[-5000:]
    assert printed.count("--- a fault") + printed.count("--- kill ") == (4 if "--faults" in options else 50)
    assert "is run again" in printed

    terms = FederationTerms.read(federation / "app" / "pictures_app" / "federation.toml")
    first = (fashion_mnist.task() if "--fashion-mnist" in options else digits()).model(0)
    server, counted = terms.server(layout_of(first), read(first)), dict.fromkeys(range(terms.clients), 0)
    for number in range(terms.rounds):
        for version, payload in accepted.values():
            if version == number:
                client = unsealed(payload).client
                server.handle(payload, client)
                counted[client] += 1
        assert len(server.accepted) >= terms.least_updates
        server.close_round()
    final = torch.load(federation / "server" / "final_model.pt", weights_only=True)
    assert np.concatenate([part.numpy().ravel() for part in final.values()]).tobytes() == server.model.tobytes()

    steps = terms.steps
    planned = {number: terms.pipeline.guarantee(number * steps, DELTA).epsilon for number in range(1, rounds + 1)}
    told = {}  # client → the rounds that its ledger was charged for
    for node in range(terms.clients):
        ledger = dp.Ledger.read(federation / f"node-{node}" / "ledger.db")
        epsilon, (client,) = ledger.guarantee(DELTA).epsilon, {entry.address.client for entry in ledger.entries}
        told[client] = min(planned, key=lambda number: abs(planned[number] - epsilon))
        assert epsilon == planned[told[client]]
    # A killed node was charged for a round that it lost; whoever was late under load was too.
    assert all(counted[client] <= told[client] <= rounds for client in counted)
    if "--faults" in options:
        assert min(told.values()) < rounds, "the node that was away was charged for rounds that it missed"
    print(f"{len(accepted)} updates accepted, by client {counted}; charged {told}")


@pytest.mark.slow
def test_a_hundred_nodes_of_the_simulation_learn(tmp_path):
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-m", "tests.adapters.flower_simulation", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-5000:]
    terms = FederationTerms.read(tmp_path / "federation.toml")
    folders = list((tmp_path / "nodes").iterdir())
    assert len(folders) == terms.clients == 100
    for folder in folders:
        ledger = dp.Ledger.read(folder / "ledger.db")
        assert ledger.guarantee(DELTA).epsilon == terms.guarantee(DELTA).epsilon


@pytest.mark.slow
def test_rounds_are_timed_with_dpcomp_and_without(tmp_path):
    figures = measured(tmp_path, clients=2, rounds=3, turns=1)
    plain, opacus, private = (figures["apps"][name] for name in ("plain SGD", "Opacus", "dpcomp"))
    dense = 4 * 26_010
    for row in (plain, opacus):
        assert row["from_nodes_bytes_a_node_and_round"] > dense < row["to_nodes_bytes_a_node_and_round"]
    # Beside the messages of both ends, Flower sends the first model to each node once, and a frame with each message.
    assert private["received_bytes_a_node_and_round"] < private["from_nodes_bytes_a_node_and_round"] < dense / 20
    assert private["sent_bytes_a_node_and_round"] < private["to_nodes_bytes_a_node_and_round"] < dense / 2
    assert private["÷ Opacus"]["median"] > 0
