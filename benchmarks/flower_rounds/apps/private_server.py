"""The server of the app with dpcomp."""

import json
from dataclasses import asdict
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from dpcomp.adapters.flower import PrivateStrategy
from dpcomp.terms import FederationTerms

from . import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds, and write what the server counted of its messages."""
    ends = Path(str(context.run_config["ends"]))
    strategy = PrivateStrategy(FederationTerms.read(task.TERMS), folder=ends.with_suffix(".server"))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(task.network().state_dict()),
        evaluate_fn=task.noting(ends),
    )
    assert strategy.server is not None
    ends.with_suffix(".traffic.json").write_text(json.dumps(asdict(strategy.server.traffic)))
