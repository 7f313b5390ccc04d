"""A researcher's own file beside a config: its dataclasses become names that the config may call.

    imports = ["block_top_k.py", "hospitals.py"]                       # paths from the config's folder
    task = { Hospitals = { logits = 2 } }                              # a dataclass that is a `dpcomp.simulation.Task`

    [pipeline]
    codec = { Codec = { sparsify = { BlockTopK = { fraction = 0.01 } } } }

    [federation]
    partition = { ByRegion = {} }                                      # and trainer = { Mine = {} }

The files are run by whatever reads the config. A report of a trial that calls such a name holds the digest of the file;
trials that call none of them do not change with it.
"""

import hashlib
import sys
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType

from dpcomp.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Import:
    """A Python file: its name as the config says it, where it lies, and the SHA-256 of what it held at first."""

    name: str
    path: Path
    digest: str

    def dataclasses(self) -> dict[str, type]:
        """Run the file, once a process, and return the public dataclasses that it defines, by name.

        Raises:
            ConfigError: The file was changed since, can't be run, or defines none.
        """
        found = {name: value for name, value in self._classes().items() if is_dataclass(value)}
        if not found:
            raise ConfigError(
                f"imports: {self.name} defines no dataclass: write @dataclass(frozen=True) over its class"
            )
        return found

    def plain_classes(self) -> set[str]:
        """Return the names of its other public classes, which a config cannot call. Raises as `dataclasses` does."""
        return {name for name, value in self._classes().items() if not is_dataclass(value)}

    def _classes(self) -> dict[str, type]:
        """Return the public classes that the file defines, by name."""
        module = self._module()
        return {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__ and name[0] != "_"
        }

    def _module(self) -> ModuleType:
        """Import the file, once a process; its name holds the digest of its content, so versions do not mix."""
        name = f"experiments_import_{self.digest}"
        if name in sys.modules:
            return sys.modules[name]
        source = _content(self.name, self.path)
        if hashlib.sha256(source).hexdigest() != self.digest:
            raise ConfigError(f"imports: {self.name} was changed after the experiment began: start it again")
        module = ModuleType(name)
        module.__file__ = str(self.path)
        sys.modules[name] = module  # dataclasses look their module up while they are made
        try:
            exec(compile(source, self.path, "exec"), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise ConfigError(f"imports: {self.name} can't be run: {type(error).__name__}: {error}") from error
        return module


def imported(name: object, folder: Path) -> Import:
    """Return a file of `imports` with the digest of its present content.

    Args:
        name: Its path from the config's folder.
        folder: The config's folder.

    Raises:
        ConfigError: The file cannot be read.
    """
    if not isinstance(name, str):
        raise ConfigError(f'imports has {name!r}: give paths of Python files, such as imports = ["mine.py"]')
    path = (folder / name).absolute()  # a worker may stand in another folder
    return Import(name=name, path=path, digest=hashlib.sha256(_content(name, path)).hexdigest())


def _content(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"imports: {name} can't be read ({error.strerror}): give a Python file's path from the config's folder"
        ) from error
