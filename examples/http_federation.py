"""Run a server and three clients as processes that talk HTTP on this machine, with the standard library alone.

Each client shows a token, so that the server knows who sends. Whatever is killed goes on from its folder when it is
started again: `python http_federation.py server`, or `python http_federation.py client 1`. In production put TLS in
front, since a token that is read on the way is stolen.
"""

import hashlib
import http.server
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import torch

import dpcomp as dp
from dpcomp.federated import Server
from dpcomp.training.pytorch import FederatedClient, make_private
from dpcomp.training.pytorch.rows.parameters import layout_of, read

CLIENTS, ROUNDS, DEADLINE = 3, int(os.environ.get("ROUNDS", "5")), 5.0  # seconds after which two of three are enough
URL = f"http://127.0.0.1:{os.environ.get('PORT', '8765')}/"
SEED = dp.PublicSeed(1)
PIPELINE = dp.Pipeline(
    sampling=dp.Poisson(0.1),
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
    codec=dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4)),
)


def network():
    torch.manual_seed(0)  # the first weights are the same at all ends
    return torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))


def serve():
    first = network()
    memory = PIPELINE.init_server(layout_of(first), SEED)
    server = Server(PIPELINE.channel, memory, read(first), clients=CLIENTS, folder="server")
    senders = json.loads(Path("senders.json").read_text())  # digest of a token → client
    lock, opened = threading.Lock(), [time.monotonic()]

    def close_when_due():
        """Close the round if all have sent, or some and it is late; never beyond the last round."""
        late = time.monotonic() - opened[0] > DEADLINE and len(server.accepted) >= CLIENTS - 1
        if server.memory.shared.version < ROUNDS and (len(server.accepted) == CLIENTS or late):
            print(f"round {server.memory.shared.version}: {len(server.accepted)} clients", flush=True)
            server.close_round()
            opened[0] = time.monotonic()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            sender = senders.get(hashlib.sha256(token.encode()).hexdigest())
            length = int(self.headers.get("Content-Length", "0"))
            if sender is None or length > 10**6:
                self.answer(401 if sender is None else 413, b"")
                return
            message = self.rfile.read(length)
            with lock:
                reply = server.handle(message, sender=sender)
                close_when_due()
            self.answer(200 if reply else 204, reply or b"")

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    host, port = URL.removeprefix("http://").rstrip("/").split(":")
    http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


def take_part(number):
    draw = torch.Generator().manual_seed(number)
    features = torch.randn(400, 20, generator=draw)
    labels = (features[:, :4].sum(1) > 0).long()
    module, loss = network(), torch.nn.CrossEntropyLoss()
    model, optimizer, loader = make_private(
        module,
        torch.optim.SGD(module.parameters(), lr=2.0),
        torch.utils.data.TensorDataset(features, labels),
        PIPELINE,
        loss=loss,
        expected_batch_size=40,
    )
    token = Path(f"token-{number}").read_text()

    def send(message):
        request = urllib.request.Request(URL, message, {"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.read() or None

    with dp.Ledger(f"client-{number}.db") as ledger:
        client = FederatedClient(
            optimizer, ledger, send, client=number, seed=SEED, folder=f"client-{number}", poll_seconds=0.2
        )
        for turn in client.rounds(ROUNDS, steps=len(loader)):
            print(f"client {number} trains in round {turn}", flush=True)
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss(model(inputs), targets).backward()
                optimizer.step()
        with torch.no_grad():
            right = float((model(features).argmax(1) == labels).float().mean())
        print(f"client {number}: accuracy {right:.2f}, {str(ledger.guarantee(1e-5))[:80]}", flush=True)


def main():
    """Make tokens and ledgers once, start all processes, and wait for the clients."""
    if not Path("senders.json").exists():
        senders = {}
        for number in range(CLIENTS):
            token = secrets.token_hex(16)
            Path(f"token-{number}").write_text(token)
            senders[hashlib.sha256(token.encode()).hexdigest()] = number
            dp.Ledger.create(f"client-{number}.db", dp.Budget(epsilon=8.0, delta=1e-5)).close()
        Path("senders.json").write_text(json.dumps(senders))
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
            serve()
        case ["client", number]:
            take_part(int(number))
