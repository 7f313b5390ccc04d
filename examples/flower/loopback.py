"""A SuperLink and SuperNodes on this machine, with TLS and keys of nodes; each may be killed and started again."""

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

PROGRAMS = Path(sys.executable).parent
HOST = "127.0.0.1"


class Loopback:
    """A federation of Flower's processes on this machine, whose files are all in one folder."""

    def __init__(self, folder, nodes, node_config):
        self.folder, self.nodes, self.node_config = Path(folder).absolute(), nodes, node_config
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.running, self.started = free_port(), {}, {}
        self.port_for_nodes = self.port
        self.environment = os.environ | {
            "FLWR_HOME": str(self.folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", "")]),  # where Flower looks for its programs
        }
        if not (self.folder / "ca.crt").exists():
            write_certificates(self.folder)
            for node in range(nodes):
                write_node_key(self.folder / f"node-{node}.key")
        home = self.folder / "flower"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\n'
            f'address = "{HOST}:{self.port}"\nroot-certificates = "{self.folder / "ca.crt"}"\n'
        )

    def __enter__(self):
        self.start_link()
        if not (self.folder / "registered").exists():
            for node in range(self.nodes):
                self._flwr("supernode", "register", f"node-{node}.key.pub", "loopback")
            (self.folder / "registered").touch()
        for node in range(self.nodes):
            self.start_node(node)
        return self

    def __exit__(self, *_):
        for name in list(self.running):
            self.kill(name)
        mine = f"FLWR_HOME={self.folder / 'flower'}".encode()
        end([each for each in processes() if mine in of_process(each, "environ").split(b"\0")])

    def start_link(self):
        self._start(
            "superlink",
            "flower-superlink",
            *("--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.crt"),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--host", HOST, "--port", str(self.port), "--database", "superlink.db"),
        )
        self._wait_for_port()

    def start_node(self, node):
        self._start(
            f"node-{node}",
            "flower-supernode",
            *("--root-certificates", "ca.crt", "--superlink", f"{HOST}:{self.port_for_nodes}"),
            *("--auth-supernode-private-key", f"node-{node}.key", "--host", HOST, "--port", str(free_port())),
            *("--node-config", self.node_config(node)),
        )

    def tend(self):
        """Start the nodes that have ended by themselves: Flower lets a killed one in after a minute, and not before."""
        for name, process in list(self.running.items()):
            if name != "superlink" and process.poll() is not None and time.monotonic() > self.started[name] + 20.0:
                self.start_node(int(name.removeprefix("node-")))

    def run(self, app, **config):
        """Start the app on the SuperLink; return Flower's number of the run."""
        values = " ".join(f"{name.replace('_', '-')}={json.dumps(value)}" for name, value in config.items())
        return self._flwr("run", str(app), "loopback", *(("--run-config", values) if values else ()))["run-id"]

    def status(self, run):
        while True:
            try:
                return next(each for each in self._flwr("list")["runs"] if each["run-id"] == run)
            except RuntimeError:
                if self.running["superlink"].poll() is not None:
                    raise
                time.sleep(2.0)  # a busy machine: Flower's command waits for a few seconds only

    def wait_for_nodes(self):
        while sum(each["status"] == "online" for each in self._flwr("supernode", "list")["nodes"]) < self.nodes:
            time.sleep(1.0)

    def kill(self, name, with_signal=signal.SIGTERM):
        """End a process, and those that it started and has left."""
        process = self.running.pop(name)
        started = descendants(process.pid)
        if with_signal == signal.SIGKILL:
            end(started)
        process.send_signal(with_signal)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end(started)

    def kill_server_app(self):
        """Kill the process that runs the ServerApp, and nothing else; return whether there was one."""
        started = descendants(self.running["superlink"].pid)
        found = [each for each in started if b"flwr-serverapp" in of_process(each, "cmdline")]
        end(found)
        return bool(found)

    def show(self, run):
        """Print what the ServerApp prints, as it comes; return the process that does so."""
        return subprocess.Popen(
            [str(PROGRAMS / "flwr"), "log", run, "loopback", "--stream"], cwd=self.folder, env=self.environment
        )

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name, program, *arguments):
        self.started[name] = time.monotonic()
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(PROGRAMS / program), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _flwr(self, *arguments):
        done = subprocess.run(
            [str(PROGRAMS / "flwr"), *arguments, "--format", "json"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        answer = json.loads(done.stdout[done.stdout.index("{") :]) if "{" in done.stdout else {}
        if done.returncode or not answer.get("success"):
            raise RuntimeError(f"flwr {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return answer

    def _wait_for_port(self):
        while True:
            try:
                socket.create_connection((HOST, self.port), timeout=1.0).close()
                return
            except OSError:
                if self.running["superlink"].poll() is not None:
                    raise RuntimeError(f"the SuperLink ended: {self.log('superlink')[-2000:]}") from None
                time.sleep(0.2)


def processes():
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def of_process(process, file):
    try:
        return Path(f"/proc/{process}/{file}").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


def descendants(process):
    """Return the numbers of the processes that a process has started, and those that they have."""
    children = {}
    for each in processes():
        if stat := of_process(each, "stat"):
            children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(each)
    found = list(children.get(process, []))
    for each in found:
        found += children.get(each, [])
    return found


def end(those):
    for process in those:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def write_certificates(folder):
    """Write a certificate authority and the SuperLink's certificate, for a day."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback authority")])
    now = datetime.now(UTC)

    def certificate(name, key, *extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)

    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    own_key = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    constraint = x509.BasicConstraints(ca=True, path_length=None)
    (folder / "ca.crt").write_bytes(certificate(root, authority, constraint, own_key))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    (folder / "server.crt").write_bytes(certificate(subject, server, names, issuer_key))
    write_private(
        folder / "server.key", server.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )


def write_node_key(path):
    """Write the pair of keys by which the SuperLink knows a node."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_name(f"{path.name}.pub").write_bytes(
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    )


def write_private(path, content):
    path.touch(mode=0o600)
    path.write_bytes(content)
