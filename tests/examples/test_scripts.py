"""Every example runs without arguments, and does what it says it does."""

import difflib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

import dpcomp as dp

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
BODY = re.compile(r'"""[^"]*"""\n', flags=re.DOTALL)


def started(name, *arguments, folder, **environment):
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(process):
    with ended(process):
        output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return output


@contextmanager
def ended(*processes):
    """End what a failed test leaves running."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
            process.stderr.close()


def body(name):
    """The lines of code of a script, without the docstring of the module and without empty lines."""
    text = BODY.sub("", (EXAMPLES / name).read_text(encoding="utf-8"), count=1)
    return [line for line in text.splitlines() if line]


def changed_lines(before, after):
    """Count the lines that a reader changes: of each place those that go or those that come, whichever are more."""
    steps = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in steps if kind != "equal")


def test_changed_lines_are_counted():
    assert changed_lines(list("abcd"), list("abcd")) == 0
    assert changed_lines(list("abcd"), list("axyd")) == 2
    assert changed_lines(list("abcd"), list("axcyzd")) == 3
    assert changed_lines(list("abcd"), list("ad")) == 2


def test_the_script_of_opacus_becomes_a_client_by_fifteen_lines():
    assert changed_lines(body("opacus_mnist.py"), body("opacus_client.py")) == 15


def test_every_example_has_a_line_and_a_command_in_the_readme():
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    commands = set(re.findall(r"`(?:python|jupyter lab) examples/([\w.]+)`", README))
    assert commands | {"own_server.py"} == scripts
    for name in scripts:
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 180, name


@pytest.mark.slow
def test_the_client_is_killed_resumes_and_stops_at_its_budget(tmp_path):
    first = started("opacus_client.py", "-n", "30", folder=tmp_path)
    with ended(first):
        epochs = []
        for line in first.stdout:
            epochs += re.findall(r"Train Epoch: (\d+)", line)
            if len(epochs) == 2:
                first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    before = len(dp.Ledger.read(tmp_path / "client.db").entries)
    assert before >= 2

    second = started("opacus_client.py", "-n", "30", folder=tmp_path)
    with ended(second):
        output, errors = second.communicate(timeout=500)
    assert second.returncode == 0, errors
    resumed = re.findall(r"Train Epoch: (\d+).*ε = ([\d.]+)", output)
    numbers = [int(number) for number, _ in resumed]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[0] > int(epochs[-1])
    assert "beyond Budget(epsilon=4.0" in errors
    epsilons = [float(epsilon) for _, epsilon in resumed]
    assert epsilons == sorted(epsilons)
    record = dp.Ledger.read(tmp_path / "client.db")
    addresses = [entry.address for entry in record.entries]
    assert len(set(addresses)) == len(addresses)
    assert before < len(addresses) < 30
    assert [address.round for address in addresses] == list(range(len(addresses)))  # the server's rounds went on
    assert 3.5 < record.guarantee(1e-5).epsilon <= 4.0
    assert float(re.search(r"\(([\d.]+)%\)", output)[1]) > 40

    third = started("opacus_client.py", "-n", "30", folder=tmp_path)
    with ended(third):
        output, errors = third.communicate(timeout=500)
    assert third.returncode == 0, errors
    assert "Train Epoch" not in output
    assert len(dp.Ledger.read(tmp_path / "client.db").entries) == len(addresses)


@pytest.mark.slow
def test_the_script_of_opacus_runs_as_it_was(tmp_path):
    output = printed(started("opacus_mnist.py", "-n", "2", folder=tmp_path))
    assert "Train Epoch: 1" in output


@pytest.mark.slow
def test_adapters_alone_are_trained(tmp_path):
    output = printed(started("lora_transformer.py", folder=tmp_path))
    before, after = (float(re.search(rf"{word}: ([\d.]+)", output)[1]) for word in ("before", "after"))
    assert after > before + 0.1
    assert after > 0.78
    # Three adapters of 32 × 4 and 4 × 32, and a head of 2 × 32 and 2.
    assert f"trained: {3 * 2 * 32 * 4 + 2 * 32 + 2} of" in output
    assert "ε ≤ 4.3" in output


@pytest.mark.slow
def test_ragged_texts_are_trained_on_where_they_are_masked(tmp_path):
    output = printed(started("ragged_text.py", folder=tmp_path))
    assert "without a mask: " in output
    assert "Mask what is padded" in output
    assert float(re.search(r"accuracy: ([\d.]+)", output)[1]) > 0.7


@pytest.mark.slow
def test_the_hook_resumes_bit_for_bit_in_two_processes(tmp_path):
    output = printed(started("ddp_hook.py", folder=tmp_path))
    assert "the weights of the run in one go: True" in output
    assert all(float(share) < 2 for share in re.findall(r"([\d.]+)% of the bytes", output))
    assert "steps 30 to 60: " in output


@pytest.mark.slow
def test_a_federation_over_http_goes_on_after_its_server_and_a_client_were_killed(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert "client 2: accuracy" in printed(started("http_federation.py", folder=tmp_path, PORT=port, ROUNDS="1"))

    environment = {"PORT": port, "ROUNDS": "4"}
    server = started("http_federation.py", "server", folder=tmp_path, **environment)
    clients = [
        started("http_federation.py", "client", str(number), folder=tmp_path, **environment) for number in range(3)
    ]
    with ended(server, *clients):
        for line in clients[1].stdout:
            if line.startswith("client 1 trains in round 2"):
                break
        clients[1].kill()
        server.kill()
        for process in (server, clients[1]):
            process.communicate()
        server = started("http_federation.py", "server", folder=tmp_path, **environment)
        clients[1] = started("http_federation.py", "client", "1", folder=tmp_path, **environment)
        with ended(server):
            outputs = [printed(client) for client in clients]
            # Whoever has no certificate is turned away.
            trusting = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"https://127.0.0.1:{port}/", b"hello", timeout=20, context=trusting)
            server.send_signal(signal.SIGTERM)
            _, log = server.communicate(timeout=60)
        assert server.returncode == 0
        assert "round_closed version=3" in log
        assert "stopped" in log.splitlines()[-1]
    for number, output in enumerate(outputs):
        assert float(re.search(rf"client {number}: accuracy ([\d.]+)", output)[1]) > 0.8
        addresses = [entry.address for entry in dp.Ledger.read(tmp_path / f"client-{number}.db").entries]
        rounds = [address.round for address in addresses]
        assert rounds == sorted(set(rounds))
        assert rounds[-1] == 3
        assert rounds[0] == 0


@pytest.mark.slow
def test_the_notebook_draws(tmp_path):
    cells = Path(__file__).parent / "notebook_cells.py"
    output = printed(started(str(cells), str(EXAMPLES / "accuracy_against_bytes.ipynb"), folder=tmp_path))
    curves = dict(re.findall(r"^(dense float32|top 5 %, 4 bits)\|([\d.]+)\|", output, flags=re.MULTILINE))
    assert float(curves["dense float32"]) > 30 * float(curves["top 5 %, 4 bits"])
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert output.count("ε ≤ 2.55 at") == 2
