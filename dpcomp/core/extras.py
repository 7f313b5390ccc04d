"""Extras: packages that only some parts of dpcomp need."""

from importlib.util import find_spec

from dpcomp.core.errors import MissingExtra


def require(extra: str, *packages: str) -> None:
    """Refuse to go on without the packages of an extra.

    Args:
        extra: The name that pip knows, such as "torch".
        packages: Modules that must be importable.

    Raises:
        MissingExtra: Naming the packages, and the line that installs them.

    Example:
        >>> require("lab", "json")
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtra(f"{', '.join(missing)} is not installed: pip install 'dpcomp[{extra}]'")
