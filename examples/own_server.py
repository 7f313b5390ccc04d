"""The rest of a federation, for a client that is tried alone: its ledger, and a server in the client's own process.

A real client opens a ledger that was created once, and its `send` posts bytes to a server: see http_federation.py.
"""

import time
from pathlib import Path

import dpcomp as dp
from dpcomp.federated import Server
from dpcomp.training.pytorch.rows.parameters import read

ROUND_SECONDS = 2.0  # after which a round ends without the client


def ledger_and_server(optimizer, budget, folder=None):
    """Return the ledger of the client, and a function that carries messages to the server and returns its replies.

    Args:
        optimizer: The client's, of `make_private`.
        budget: The largest (ε, δ) that the client may spend.
        folder: Where both are kept; they are made at the first start. None keeps them in memory.
    """
    if folder is None:
        ledger, server_folder = dp.Ledger(budget=budget), None
    else:
        path, server_folder = Path(folder) / "client.db", Path(folder) / "server"
        # A ledger that was deleted since is noticed, by its mark in the state of the client.
        ledger = dp.Ledger(path) if path.exists() else dp.Ledger.create(path, budget)
    pipeline, first_model = optimizer.pipeline, read(optimizer.model)
    memory = pipeline.init_server(optimizer.layout, seed=dp.PublicSeed(0))
    server = Server(pipeline.channel, memory, first_model, folder=server_folder)

    opened = time.monotonic()

    def send(message):
        nonlocal opened
        reply = server.handle(message, sender=0)
        # Nobody else takes part; and a client that was killed after a charge gives up that round, and sends nothing.
        if len(server.accepted) == 1 or time.monotonic() - opened > ROUND_SECONDS:
            server.close_round()
            opened = time.monotonic()
        return reply

    return ledger, send
