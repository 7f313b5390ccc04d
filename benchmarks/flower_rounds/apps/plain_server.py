"""The server of the apps without dpcomp: Flower's FedAvg."""

from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from . import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds."""
    FedAvg(fraction_evaluate=0.0, min_train_nodes=task.CLIENTS, min_available_nodes=task.CLIENTS).start(
        grid=grid,
        initial_arrays=ArrayRecord(task.network().state_dict()),
        num_rounds=task.ROUNDS,
        evaluate_fn=task.noting(Path(str(context.run_config["ends"]))),
    )
