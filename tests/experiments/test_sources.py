"""The sources: what they serve, and that a failing one says why."""

import gzip
import io
import os
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dpcomp.lab.tasks.examples import DataError
from experiments.data.sources import (
    DebianPackage,
    Folder,
    NpmPackage,
    Unavailable,
    WebArchive,
    WebFolder,
)

CONTENTS = {"one": b"first", "two": b"second" * 1000}
NAMES = tuple(CONTENTS)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the address on this machine under which it can be fetched."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path)) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def archive_of(contents, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Give a function that puts a shell script in the place of a client."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


def test_folder(tmp_path):
    (tmp_path / "one").write_bytes(CONTENTS["one"])
    (tmp_path / "two.gz").write_bytes(gzip.compress(CONTENTS["two"]))
    assert Folder(path=tmp_path).read(NAMES) == CONTENTS
    with pytest.raises(Unavailable, match=r"neither three nor three\.gz"):
        Folder(path=tmp_path).read((*NAMES, "three"))
    (tmp_path / "two.gz").write_bytes(gzip.compress(CONTENTS["two"])[:-9])
    with pytest.raises(DataError, match=r"two\.gz can't be read"):
        Folder(path=tmp_path).read(NAMES)


def test_web_folder(served):
    folder, address = served
    for name, content in CONTENTS.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    assert WebFolder(address=address).read(NAMES) == CONTENTS
    with pytest.raises(Unavailable, match=r"three\.gz can't be reached: HTTP Error 404"):
        WebFolder(address=address).read((*NAMES, "three"))
    (folder / "two.gz").write_bytes(b"<html>please log in</html>")
    with pytest.raises(Unavailable, match=r"two\.gz arrived damaged"):
        WebFolder(address=address).read(NAMES)


def test_web_archive(served):
    folder, address = served
    source = WebArchive(address=f"{address}batches.tar.gz")
    packed = archive_of({f"batches/{name}": content for name, content in CONTENTS.items()} | {"batches/more": b""})
    (folder / "batches.tar.gz").write_bytes(packed)
    assert source.read(NAMES) == CONTENTS
    with pytest.raises(Unavailable, match="lacks three, four"):
        source.read((*NAMES, "three", "four"))
    (folder / "batches.tar.gz").write_bytes(packed[:-20])
    with pytest.raises(Unavailable, match="archive is damaged"):
        source.read(NAMES)


def test_an_address_where_nobody_answers(served):
    with pytest.raises(Unavailable, match="can't be reached"):
        # Port 9 of this machine: discard, which nobody serves.
        WebFolder(address="http://127.0.0.1:9/", timeout_seconds=2.0).read(NAMES)


def test_npm_package(client, tmp_path):
    (tmp_path / "packed").write_bytes(archive_of({f"package/data/{name}": data for name, data in CONTENTS.items()}))
    client("npm", f'echo "$@" > {tmp_path}/asked; cp {tmp_path}/packed some-package-1.2.tgz')
    assert NpmPackage(package="some-package@1.2").read(NAMES) == CONTENTS
    asked = (tmp_path / "asked").read_text().split()
    assert asked[0] == "pack" and asked[-1] == "some-package@1.2" and "--ignore-scripts" in asked
    client("npm", "echo nothing to do")
    with pytest.raises(Unavailable, match="left 0 files"):
        NpmPackage(package="some-package@1.2").read(NAMES)


def test_debian_package(client, tmp_path):
    packed = {f"./usr/share/{name}.gz": gzip.compress(data) for name, data in CONTENTS.items()}
    (tmp_path / "packed").write_bytes(archive_of(packed, mode="w"))
    client("apt-get", "[ $1 = download ] && touch $2_1_all.deb")
    client("dpkg-deb", f"[ $1 = --fsys-tarfile ] && cat {tmp_path}/packed")
    assert DebianPackage(package="some-package").read(NAMES) == CONTENTS


def test_a_failing_client_tells_its_last_line_and_what_to_do(client):
    client("apt-get", "echo first >&2; echo 'E: Unable to locate package some-package' >&2; exit 100")
    with pytest.raises(Unavailable, match=r"status 100: E: Unable to locate .*; if .* `apt-get update` as root first"):
        DebianPackage(package="some-package").read(NAMES)


def test_a_client_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"npm is not on this machine; install Node\.js with npm"):
        NpmPackage(package="some-package@1.2").read(NAMES)
