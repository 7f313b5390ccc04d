"""Extras: packages that only some parts of dpcomp need."""

from importlib.util import find_spec

from dpcomp.core.errors import MissingExtra


def require(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed.

    Call it where the part that needs them is first used, so that `import dpcomp` works without them.

    Args:
        extra: The name of the extra in dpcomp's package, such as `"torch"`.
        packages: The modules that must be importable; they are looked up, not imported.

    Raises:
        MissingExtra: Some are not installed; the message names them, and gives the `pip install` line.

    Examples:
        >>> require("lab", "json")
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtra(f"{extra} needs {', '.join(missing)}: pip install 'dpcomp[{extra}]'")
