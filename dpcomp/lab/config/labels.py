"""Names of the points of a grid: labels that read like the config, and folders that are safe on every file system."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 80
PLAIN = re.compile(r"[A-Za-z0-9._+-]+")


def label(value: Any) -> str:
    """Return a TOML value as a short text: 0.01, true, TopK(fraction=0.01)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(label, value))}]"
    if not isinstance(value, dict):
        return str(value)
    if len(value) == 1:
        ((name, arguments),) = value.items()
        if name[:1].isupper() and isinstance(arguments, dict):
            return f"{name}({_arguments(arguments)})"
    return f"{{{_arguments(value)}}}"


def _arguments(table: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={label(value)}" for key, value in table.items())


def folder_name(labels: Mapping[str, str]) -> str:
    """Return the name of a point as a folder's name: `axis=label,axis=label`, in the order of the axes' names.

    A label with characters that a file system may not allow, and a name that is too long, is changed or cut, and gets a
    digest of the original.
    """
    name = ",".join(_safe(f"{axis}={value}", f"{axis}{value}") for axis, value in sorted(labels.items()))
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{_digest(name)}"


def _safe(text: str, must_be_plain: str) -> str:
    if PLAIN.fullmatch(must_be_plain):
        return text
    return f"{re.sub(r'[^A-Za-z0-9._=+-]+', '_', text).strip('_')}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return for each dotted path its shortest ending that no other path shares.

    It is `fraction`, for example, or `TopK.fraction` where another path ends with `fraction`.
    """
    paths = list(paths)
    short = {}
    for path in paths:
        parts = path.split(".")
        endings = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        others = [other for other in paths if other != path]
        alone = (tail for tail in endings if not any(f".{other}".endswith(f".{tail}") for other in others))
        short[path] = next(alone, path)
    return short
