"""Run the app of the tests on Flower's simulation engine, with a hundred nodes: `python -m ... FOLDER`.

It is a process of its own, since Ray warns of much, and the tests take warnings for errors.
"""

import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from dpcomp.adapters.flower import PrivateStrategy, simulated_folders
from dpcomp.adapters.flower.records import arrays_of
from dpcomp.training.pytorch.rows.parameters import layout_of, read
from tests.adapters.flower_ends import GENEROUS, app_of, network, terms_of

NODES, ROUNDS = 100, 2

if __name__ == "__main__":
    folder, module = Path(sys.argv[1]), network()
    terms = terms_of(rounds=ROUNDS, clients=NODES, least_updates=NODES, round_seconds=1000.0)
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = PrivateStrategy(terms, folder=folder / "server", poll_seconds=0.1)
        strategy.start(grid, arrays_of(layout_of(module), read(module)))
        assert strategy.server is not None and strategy.exchange is not None
        assert strategy.server.memory.shared.version == ROUNDS
        assert not strategy.exchange.failed and not strategy.exchange.declined
        terms.write(folder / "federation.toml")  # the end

    run_simulation(
        server_app=server_app,
        client_app=app_of(terms, folder=simulated_folders(folder / "nodes", GENEROUS)),
        num_supernodes=NODES,
        backend_config={
            "init_args": {"num_cpus": 1, "include_dashboard": False},
            "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
        },
    )
