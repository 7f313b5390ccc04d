"""The tables that describe pipelines: as TOML files hold them, and as the text whose digest names a pipeline."""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from dpcomp import codec as codec_folder
from dpcomp import privacy as privacy_folder
from dpcomp import sparsify as sparsify_folder
from dpcomp.codec import entropy as entropy_folder
from dpcomp.codec import quantize as quantize_folder
from dpcomp.core.calls import Calls, as_table, as_toml_table, check_keys, from_table
from dpcomp.core.errors import ConfigError
from dpcomp.privacy import Unsafe
from dpcomp.wire.feedback import EF21, MomentumCorrection

# The classes that a table may name, by their names: the parts that the folders of the library export.
PARTS: dict[str, type] = {
    name: part
    for folder in (privacy_folder, sparsify_folder, codec_folder, quantize_folder, entropy_folder)
    for name, part in vars(folder).items()
    if is_dataclass(part) and isinstance(part, type) and part not in (Unsafe, quantize_folder.Bounds)
} | {part.__name__: part for part in (MomentumCorrection, EF21)}


def canonical_text(values: Mapping[str, Any]) -> str:
    """Describe a pipeline by a text that is the same in every process.

    Args:
        values: The fields of the pipeline by name.

    Raises:
        TypeError: A part is no frozen dataclass of plain values.
    """
    return json.dumps({name: as_table(value, name) for name, value in _entries(values)}, sort_keys=True)


def toml_table(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table `[pipeline]` of a TOML file, without the fields that are None.

    Args:
        values: The fields of the pipeline by name.

    Raises:
        ValueError: A field of a part is None, but its default is not.
    """
    return {name: as_toml_table(value, name) for name, value in _entries(values) if value is not None}


def values_of_table(table: Mapping[str, Any], names: Sequence[str], parts: Iterable[type]) -> dict[str, Any]:
    """Make the fields of the pipeline that a table describes: the inverse of `toml_table`.

    Args:
        table: Plain types, as `toml_table` returns them.
        names: The names of all fields.
        parts: Classes beside `PARTS` that the table may name.

    Raises:
        ConfigError: A name is unknown, or a part refuses its arguments.
    """
    calls: Calls = {**PARTS, **{part.__name__: part for part in parts}}
    check_keys(table, (*names, "unsafe"), "[pipeline]")
    values = {key: from_table(value, key, calls) for key, value in table.items() if key != "unsafe"}
    if "mechanism" not in values:
        values["mechanism"] = ()
    if "unsafe" in table:
        values["mechanism"] = Unsafe(table["unsafe"], values["mechanism"])
    return values


def read_toml(text: str) -> dict[str, Any]:
    """Return the table that a TOML text holds.

    Raises:
        ConfigError: The text is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the text is no TOML: {error}") from error


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a table: an unsafe mechanism gives two, its reason and its stages."""
    for name, value in values.items():
        if isinstance(value, Unsafe):
            yield "unsafe", value.why
            yield name, value.stages
        else:
            yield name, value
