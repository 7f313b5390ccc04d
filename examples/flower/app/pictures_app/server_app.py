"""What the SuperLink runs: the rounds of the terms."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from dpcomp.adapters.flower import PrivateStrategy
from dpcomp.terms import FederationTerms
from pictures_app import task

app = ServerApp()


def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
    model = task.network()
    model.load_state_dict(arrays.to_torch_state_dict())
    print(f"accuracy after {number} rounds: {task.accuracy(model):.3f}", flush=True)
    return MetricRecord({"accuracy": task.accuracy(model)})


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(str(context.run_config["server-folder"]))
    strategy = PrivateStrategy(FederationTerms.read(task.TERMS), folder=folder)
    first = ArrayRecord(task.network().state_dict())
    result = strategy.start(grid=grid, initial_arrays=first, evaluate_fn=evaluate)
    torch.save(result.arrays.to_torch_state_dict(), folder / "final_model.pt")
