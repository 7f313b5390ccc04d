"""A federation that is a folder, served by a command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.adapters.http import HttpTransport, Senders, new_token, serve_folder, write_folder
from dpcomp.federated import ReplyReceived, TimedOut, Trained
from dpcomp.lab.cli import main
from dpcomp.terms import FederationTerms
from dpcomp.wire.model_file import read_model
from tests.adapters.federation import PIPELINE, SAMPLED, certificates

ROOT = Path(__file__).parents[2]
LAYERS = {"weight": (30, 3), "bias": (10,)}  # not in the order of their names
FIRST = np.arange(100, dtype=np.float32)


def agreed(pipeline=PIPELINE, steps=2, **given):
    return FederationTerms.agree(pipeline, LAYERS, FIRST, rounds=2, steps=steps, clients=1, **given)


def served(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "dpcomp", "federation", "serve", str(folder), "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, process.stderr.readline().split("url=")[1].strip()


def test_a_folder_is_served_and_goes_on_after_it_was_stopped(tmp_path, capsys):
    token, terms = new_token(0), agreed()
    write_folder(tmp_path / "served", terms, LAYERS, FIRST, Senders.of(tokens=[token]))
    certificates(tmp_path / "served")
    ledger = dp.Ledger()
    client = terms.participant(LAYERS, FIRST, client=0, ledger=ledger)
    for _ in range(2):
        process, url = served(tmp_path / "served")
        with process, HttpTransport(url, token=token, ca=tmp_path / "served" / "server.pem") as send:

            def talk(event, send=send):
                messages = client.handle(event)
                while messages:
                    messages += client.handle(ReplyReceived(send(messages.pop(0))))

            version = client.state.memory.shared.version
            talk(TimedOut())
            memory = client.state.memory
            permit = ledger.charge(PIPELINE.cost, memory.address)
            talk(Trained(PIPELINE.release([np.ones((2, 100), np.float32)], memory, dp.SecretSeed(), permit)))
            while client.state.memory.shared.version == version:
                time.sleep(0.05)
                talk(TimedOut())
            process.send_signal(signal.SIGTERM)
            log = process.stderr.read()
        assert process.returncode == 0
        assert f"round_closed version={version}" in log
    assert main(["federation", "status", str(tmp_path / "served")]) == 0
    assert "version 2" in capsys.readouterr().out
    assert client.state.memory.shared.version == 2
    assert client.state.memory.link.count == 2


def test_the_first_model_keeps_the_order_of_its_layers(tmp_path):
    write_folder(tmp_path, agreed(), LAYERS, FIRST, Senders())
    layout, model = read_model(tmp_path / "first_model.safetensors")
    assert layout == dp.Layout.of(LAYERS)
    assert model.tobytes() == FIRST.tobytes()


def test_what_is_not_of_one_federation_is_refused(tmp_path):
    terms = agreed()
    with pytest.raises(dp.VersionMismatch, match="first model"):
        write_folder(tmp_path, terms, LAYERS, FIRST + 1, Senders())
    assert not list(tmp_path.iterdir())
    write_folder(tmp_path, terms, LAYERS, FIRST, Senders())
    with pytest.raises(dp.DpcompError, match="holds other terms"):
        write_folder(tmp_path, agreed(), LAYERS, FIRST, Senders())
    with pytest.raises(ValueError, match="no TLS"):
        serve_folder(tmp_path, host="0.0.0.0")
    (tmp_path / "first_model.safetensors").write_bytes(b"no model")
    with pytest.raises(dp.DpcompError, match="is no model"):
        serve_folder(tmp_path)


def test_a_trusted_server_needs_its_ledger_and_a_clock(tmp_path):
    with pytest.raises(dp.NotPrivate, match="least_updates=0"):
        agreed(SAMPLED, 1, round_seconds=5.0)
    write_folder(tmp_path, agreed(SAMPLED, 1, round_seconds=5.0, least_updates=0), LAYERS, FIRST, Senders())
    with pytest.raises(dp.DpcompError, match=r"ledger\.db"):
        serve_folder(tmp_path)
