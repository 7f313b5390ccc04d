"""Measures a round of Flower with dpcomp and without: python -m benchmarks.flower_rounds

A SuperLink and SuperNodes run as processes of this machine, with TLS and keys of nodes. They play rounds of three apps
in turns: of plain SGD with FedAvg; of DP-SGD with Opacus and FedAvg, as its user would write it; and of DP-SGD with
dpcomp. In a round each node takes ten steps of 256 examples of a CNN with 26,010 parameters. A round's time is from the
end of the round before to its own end, at the server; the first round is left out. It prints what it measured, and at
full size writes docs/benchmarks/flower_rounds.json.

All processes share the cores of one machine, so the times are those of a busy one. Flower's bytes are those that the
SuperLink counts of a run.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import dpcomp as dp
from dpcomp.adapters.flower import prepare_node
from dpcomp.terms import ClientPolicy, FederationTerms
from dpcomp.training.pytorch.rows.parameters import layout_of, read
from experiments.data.models import fashion_cnn

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "benchmarks" / "flower_rounds.json"
MOST_SECONDS = 1800.0  # of a run
APPS = {"plain SGD": ("plain", "plain"), "Opacus": ("opacus", "plain"), "dpcomp": ("private", "private")}
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "rounds-app"
version = "1.0.0"
description = "Rounds that are timed"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "dpcomp"

[tool.flwr.app.components]
serverapp = "rounds_app.{server}_server:app"
clientapp = "rounds_app.{client}_client:app"

[tool.flwr.app.config]
ends = "ends.json"
"""


def written_app(folder: Path, name: str, clients: int, rounds: int) -> Path:
    """Write the app of a name, and return its folder."""
    client, server = APPS[name]
    shutil.copytree(Path(__file__).parent / "apps", folder / "rounds_app", ignore=shutil.ignore_patterns("*.pyc"))
    for other in {"plain", "opacus", "private"} - {client}:
        (folder / "rounds_app" / f"{other}_client.py").unlink()
    (folder / "pyproject.toml").write_text(PROJECT.format(client=client, server=server))
    if client == "private":
        first = fashion_cnn(seed=0)
        pipeline = dp.Pipeline(
            sampling=dp.Poisson(0.1),
            mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
            codec=dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4)),
        )
        FederationTerms.agree(
            pipeline,
            layout_of(first),
            read(first),
            rounds=rounds,
            steps=10,
            clients=clients,
            learning_rate=0.1,
            least_updates=clients,
            round_seconds=600.0,
        ).write(folder / "rounds_app" / "federation.toml")
    return folder


@contextmanager
def federation(folder: Path, clients: int, rounds: int) -> Iterator[Any]:
    """Start the processes of a federation, and end them."""
    sys.path.insert(0, str(ROOT / "examples" / "flower"))
    from loopback import Loopback  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ |= {"ROUNDS_CLIENTS": str(clients), "ROUNDS_ROUNDS": str(rounds)}
    for node in range(clients):
        prepare_node(folder / f"node-{node}", ClientPolicy(budget=dp.Budget(epsilon=100.0, delta=1e-5)))

    def node_config(node: int) -> str:
        return f'partition-id={node} dpcomp-folder="{folder / f"node-{node}"}"'

    with Loopback(folder, clients, node_config) as processes:
        processes.wait_for_nodes()
        yield processes


def played(processes: Any, folder: Path, name: str, clients: int, rounds: int) -> dict[str, Any]:
    """Run an app, and return the seconds of its rounds and what was counted. Raises RuntimeError if it failed."""
    folder.mkdir()
    app, ends = written_app(folder / "app", name, clients, rounds), folder / "ends.json"
    run, until = processes.run(app, ends=str(ends)), time.monotonic() + MOST_SECONDS
    while len(times_in(ends)) <= rounds and time.monotonic() < until:
        time.sleep(0.5)  # and Flower's own command, which takes seconds of a core, is not run beside the rounds
    while not (status := processes.status(run))["status"].startswith("finished") and time.monotonic() < until:
        time.sleep(2.0)
    if status["status"] != "finished:completed" or len(times := times_in(ends)) != rounds + 1:
        raise RuntimeError(f"the app of {name} ended as {status['status']}: {processes.log('superlink')[-3000:]}")
    traffic = status["network-traffic"]
    counted = {"from_nodes": traffic["inbound-bytes"], "to_nodes": traffic["outbound-bytes"]}
    own = ends.with_suffix(".traffic.json")
    return {"seconds": np.diff(times)[1:].tolist(), **counted, **(json.loads(own.read_text()) if own.exists() else {})}


def times_in(path: Path) -> list[float]:
    """Return when the rounds so far have ended."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # it is not there yet, or is just being written
        return []


def measured(folder: Path, clients: int, rounds: int, turns: int) -> dict[str, Any]:
    """Run all apps in turns, and return the figures."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in APPS}
    with federation(folder, clients, rounds) as processes:
        for turn in range(turns):
            for place, name in enumerate(APPS):
                result = played(processes, folder / f"run-{turn}-{place}", name, clients, rounds)
                print(f"{name}: {np.median(result['seconds']):.2f} s a round", file=sys.stderr, flush=True)
                results[name].append(result)
    rows = {name: row_of(of_app, results, clients, rounds) for name, of_app in results.items()}
    return {
        "clients": clients,
        "rounds": rounds,
        "turns": turns,
        "apps": rows,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def row_of(
    of_app: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]], clients: int, rounds: int
) -> dict[str, Any]:
    """Return the figures of an app: medians of its rounds, and of their ratios turn by turn."""
    medians = [float(np.median(each["seconds"])) for each in of_app]
    row: dict[str, Any] = {"seconds_a_round": round(float(np.median(medians)), 2)}
    for other, of_other in results.items():
        ratios = [mine / float(np.median(each["seconds"])) for mine, each in zip(medians, of_other, strict=True)]
        if of_other is not of_app:
            row[f"÷ {other}"] = {key: round(float(value), 2) for key, value in spread(ratios).items()}
    for key in ("from_nodes", "to_nodes", "received_bytes", "sent_bytes"):
        if key in of_app[0]:
            row[f"{key.removesuffix('_bytes')}_bytes_a_node_and_round"] = round(
                float(np.mean([each[key] for each in of_app])) / clients / rounds
            )
    return row


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, and the smallest and largest value."""
    return {"median": float(np.median(values)), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a round of Flower with dpcomp and without.")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(Path(folder), options.clients, options.rounds, options.turns)
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if (options.clients, options.rounds, options.turns) == tuple(
        parser.get_default(name) for name in ("clients", "rounds", "turns")
    ):
        RECORD.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
