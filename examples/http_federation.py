"""Run a server and three clients as processes that talk HTTPS on this machine.

Each end has a key and a certificate of its own, by which the server knows who sends. What both ends agree on is one
file. Whatever is killed goes on from its folder when it is started again: `python http_federation.py server`, or
`python http_federation.py client 1`.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

import dpcomp as dp
from dpcomp.adapters.http import FederationApp, HttpTransport, RoundPolicy, Senders, Tls, make_certificate, serve
from dpcomp.terms import ClientPolicy, FederationTerms
from dpcomp.training.pytorch import FederatedClient, make_private
from dpcomp.training.pytorch.rows.parameters import layout_of, read

CLIENTS, RATE = 3, 2.0
ROUNDS, PORT = int(os.environ.get("ROUNDS", "5")), int(os.environ.get("PORT", "8765"))
POLICY = ClientPolicy(budget=dp.Budget(epsilon=8.0, delta=1e-5), least_noise_multiplier=0.5)  # each client's own


def network():
    torch.manual_seed(0)  # the first weights are the same at all ends
    return torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))


def serve_rounds():
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)  # Opacus has set up its own
    terms, first = FederationTerms.read("federation.toml"), network()
    server = terms.server(layout_of(first), read(first), folder="server")
    certificates = {number: f"client-{number}.pem" for number in range(CLIENTS)}
    app = FederationApp(server, Senders.of(certificates=certificates), RoundPolicy.of(terms))
    serve(app, port=PORT, tls=Tls(certificate="server.pem", key="server-key.pem", clients=certificates.values()))
    server.close()


def take_part(number):
    terms = FederationTerms.read("federation.toml")
    draw = torch.Generator().manual_seed(number)
    features = torch.randn(400, 20, generator=draw)
    labels = (features[:, :4].sum(1) > 0).long()
    module, loss = network(), torch.nn.CrossEntropyLoss()
    model, optimizer, loader = make_private(
        module,
        torch.optim.SGD(module.parameters(), lr=RATE),
        torch.utils.data.TensorDataset(features, labels),
        terms.pipeline,
        loss=loss,
        expected_batch_size=40,
    )
    files = (f"client-{number}.pem", f"client-{number}-key.pem")
    send = HttpTransport(f"https://127.0.0.1:{PORT}/", certificate=files, ca="server.pem")
    with send, dp.Ledger(f"client-{number}.db") as ledger:
        client = FederatedClient(
            *(optimizer, ledger, send),
            client=number,
            terms=terms,
            policy=POLICY,
            folder=f"client-{number}",
            poll_seconds=0.2,
        )
        for turn in client.rounds(ROUNDS):
            print(f"client {number} trains in round {turn}", flush=True)
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss(model(inputs), targets).backward()
                optimizer.step()
        with torch.no_grad():
            right = float((model(features).argmax(1) == labels).float().mean())
        print(f"client {number}: accuracy {right:.2f}, {str(ledger.guarantee(1e-5))[:80]}", flush=True)


def prepare():
    """Agree on the terms, and make the keys, certificates and ledgers, once."""
    pipeline = dp.Pipeline(
        sampling=dp.Poisson(0.1),
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        codec=dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4)),
    )
    first, others = network(), {"learning_rate": RATE, "least_updates": 2, "round_seconds": 5.0}
    terms = FederationTerms.agree(
        pipeline, layout_of(first), read(first), rounds=5, steps=10, clients=CLIENTS, **others
    )
    make_certificate("server.pem", "server-key.pem", name="server", hosts=["127.0.0.1"])
    for number in range(CLIENTS):
        make_certificate(f"client-{number}.pem", f"client-{number}-key.pem", name=f"client {number}")
        dp.Ledger.create(f"client-{number}.db", POLICY.budget).close()
    terms.write("federation.toml")


def main():
    """Start all processes, and wait for the clients."""
    if not Path("federation.toml").exists():
        prepare()
    server = subprocess.Popen([sys.executable, __file__, "server"])
    clients = [subprocess.Popen([sys.executable, __file__, "client", str(number)]) for number in range(CLIENTS)]
    try:
        codes = [client.wait() for client in clients]
    finally:
        server.terminate()
        server.wait()
    sys.exit(max(codes))


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["server"]:
            serve_rounds()
        case ["client", number]:
            take_part(int(number))
