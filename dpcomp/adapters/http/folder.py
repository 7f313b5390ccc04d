"""A server's folder: all that `dpcomp federation serve FOLDER` needs, and the state that it leaves there."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dpcomp.adapters.http.app import FederationApp
from dpcomp.adapters.http.certificates import Tls
from dpcomp.adapters.http.limits import Limits
from dpcomp.adapters.http.rounds import RoundPolicy
from dpcomp.adapters.http.senders import Senders
from dpcomp.adapters.http.serving import serve
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import SecretSeed
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.terms import FederationTerms
from dpcomp.wire.model_file import read_model, write_model

TERMS, MODEL, SENDERS, STATE, LEDGER = (
    "federation.toml",
    "first_model.safetensors",
    "senders.toml",
    "server",
    "ledger.db",
)
CERTIFICATE, KEY, CLIENTS = "server.pem", "server-key.pem", "clients"


def write_folder(
    folder: str | os.PathLike[str],
    terms: FederationTerms,
    layout: Any,
    first_model: Float32[np.ndarray, "d"],
    senders: Senders,
) -> None:
    """Write what a server needs to know of its federation, for `serve_folder`.

    Add the server's certificate and key as `server.pem` and `server-key.pem`, the clients' certificates in a folder
    `clients` if they are known by them, and the ledger of a trusted server as `ledger.db`.

    Args:
        folder: The folder, which is made if it is missing.
        terms: The terms.
        layout: The layers of the model, as for `FederationTerms.agree`.
        first_model: The first model as a (d,) vector.
        senders: Who sends what.

    Raises:
        VersionMismatch: The layers or the first model are others than those of the terms.
        DpcompError: The folder holds other terms.
        OSError: A file cannot be written.
    """
    made, place = Layout.of(layout), Path(folder)
    terms.check_model(made, first_model)
    place.mkdir(parents=True, exist_ok=True)
    write_model(place / MODEL, first_model, made)
    terms.write(place / TERMS)
    senders.write(place / SENDERS)


def serve_folder(
    folder: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    plain_because: str = "",
    limits: Limits = Limits(),
) -> None:
    """Serve the federation of a folder until the process gets SIGTERM or SIGINT, and go on from its state there.

    Args:
        folder: What `write_folder` wrote, with the files that it names.
        host: The address to listen at.
        port: The port.
        plain_because: As for `serve`; without a certificate in the folder there is no TLS.
        limits: What is taken at most.

    Raises:
        ConfigError: A list of senders or terms is none.
        DpcompError, ValueError, OSError: As `FederationTerms.server`, `FederationApp` and `serve` do.
    """
    place = Path(folder)
    terms, senders = FederationTerms.read(place / TERMS), Senders.read(place / SENDERS)
    layout, first_model = read_model(place / MODEL)
    with ExitStack() as opened:
        secret, ledger = None, None
        if terms.pipeline.trust_model.server_sees_clean:
            secret = SecretSeed()  # of this process: what an earlier one drew is in the journal
            ledger = opened.enter_context(Ledger(place / LEDGER))
        server = terms.server(layout, first_model, folder=place / STATE, secret=secret, ledger=ledger)
        opened.callback(server.close)
        app = FederationApp(server, senders, RoundPolicy.of(terms), limits=limits)
        tls = None
        if (place / CERTIFICATE).exists():
            clients = sorted((place / CLIENTS).glob("*.pem"))
            tls = Tls(certificate=place / CERTIFICATE, key=place / KEY, clients=clients)
        serve(app, host=host, port=port, tls=tls, plain_because=plain_because)
