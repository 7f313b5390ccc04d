"""Checkpoint: save a memory, a model and a pending payload on disk, and load them again.

A folder holds numbered checkpoints, each a safetensors file. A new checkpoint is written under another name, synced,
renamed, and its folder synced; only then is the checkpoint before the last deleted. So a crash leaves an undamaged
checkpoint at any moment. What fails once it has its name is a warning: it is the one that is loaded. A file that is
damaged or foreign is named in a warning, and the checkpoint before it is loaded. A checkpoint is never pickled, and
never holds a ledger: restoring it must take no charge back.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]  # its PathLike has no parameter

from dpcomp.codec.wiener import TrackedSignal
from dpcomp.core.address import Address
from dpcomp.core.errors import DpcompError, VersionMismatch
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed
from dpcomp.core.storage import atomic_write, make_folder
from dpcomp.core.support import Listed
from dpcomp.wire.channel import Channel
from dpcomp.wire.feedback import Kept
from dpcomp.wire.links import Link, Links
from dpcomp.wire.memory import ClientMemory, Genesis, Pending, ServerMemory, Shared

FAMILY, FORMAT_NUMBER = "dpcomp checkpoint ", 5
FORMAT = f"{FAMILY}{FORMAT_NUMBER}"
CHECKPOINTS_KEPT = 2
SUFFIX = ".safetensors"

Arrays = dict[str, np.ndarray]
Record = dict[str, Any]  # plain values, written as JSON


class OtherFormatError(DpcompError):
    """A checkpoint is whole, and of a format that this version of dpcomp does not read."""


class Checkpoint(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        memory: The memory of a client or of the server.
        model: The parameters as a (d,) vector.
        pending: The payload that has no reply yet.
        extra_arrays: Other arrays, by name.
    """

    memory: ClientMemory | ServerMemory
    model: Float32[np.ndarray, "d"] | None = None
    pending: Pending | None = None
    extra_arrays: Mapping[str, np.ndarray] = MappingProxyType({})


def save(folder: str | os.PathLike[str], checkpoint: Checkpoint) -> Path:
    """Write the next checkpoint durably.

    The memory's `step` is not saved, since the model was moved by it before.

    Args:
        folder: Where the checkpoints are; it is created if it does not exist.
        checkpoint: What to save.

    Returns:
        The path of the new checkpoint.

    Raises:
        ValueError: The model does not have the shape (d,) of the memory's layout.
        OSError: The file cannot be written; earlier checkpoints are as they were, and the newest is loaded.

    Warns:
        UserWarning: The checkpoint is saved, but an older one can't be deleted, or the folder not be synced: after a
            crash of the machine the checkpoint before it may be the newest.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.wire import checkpoint
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> memory = pipeline.init_client(10, dp.PublicSeed(0), client=7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = checkpoint.save(folder, checkpoint.Checkpoint(memory, np.ones(10, np.float32)))
        ...     loaded = checkpoint.load(folder, pipeline.channel)
        >>> path.name, loaded.memory.address == memory.address, loaded.model.sum()
        ('0000000000.safetensors', True, np.float32(10.0))
    """
    place = Path(folder)
    make_folder(place)
    packed, record = _packed(checkpoint)
    arrays = {name: np.asarray(array, order="C") for name, array in packed.items()}  # of others it writes other values
    text = json.dumps(record, sort_keys=True)
    earlier = _checkpoints_in(place)
    number = int(earlier[-1].stem) + 1 if earlier else 0
    path = place / f"{number:010d}{SUFFIX}"
    with atomic_write(path, draft_name="unfinished") as draft:
        try:
            save_file(arrays, draft, {"format": FORMAT, "facts": text, "digest": _digest(text, arrays)})
        except SafetensorError as error:  # what the system refused, as that library says it
            raise OSError(
                f"the checkpoint {path} can't be written ({error}): earlier ones are as they were. Is the disk full?"
            ) from error
    for old in earlier[: 1 - CHECKPOINTS_KEPT]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:  # the new one is in place, so the caller must go on from it
            warnings.warn(f"{old} can't be deleted ({error}), and is tried again at the next checkpoint", stacklevel=2)
    return path


def load(folder: str | os.PathLike[str], channel: Channel) -> Checkpoint:
    """Load the newest undamaged checkpoint of a folder; a warning names each newer one, which is damaged.

    A damaged checkpoint is renamed to *.torn, so that it is not tried again, and does not count as one of the two that
    are kept.

    Args:
        folder: Where `save` wrote the checkpoints.
        channel: The channel of the pipeline that they were saved with: `pipeline.channel`.

    Returns:
        What was saved, bit for bit, apart from the memory's `step`.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
        DpcompError: All checkpoints in the folder are damaged, or of another program; or the newest is of another
            format of dpcomp's, and nothing is renamed.
        VersionMismatch: The newest undamaged checkpoint is of another pipeline or layout.

    Examples:
        >>> import tempfile
        >>> import dpcomp as dp
        >>> from dpcomp.wire import checkpoint
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint.load(folder, pipeline.channel)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: ... holds no checkpoint (*.safetensors): ...
    """
    checkpoints = _checkpoints_in(Path(folder))
    if not checkpoints:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint (*{SUFFIX}): begin with pipeline.init_client, or give another folder"
        )
    refused: dict[Path, str] = {}
    for path in reversed(checkpoints):
        try:
            arrays, record = _read(path)
        except OtherFormatError:
            raise  # it may be newer than this dpcomp, and an older checkpoint beside it would set the state back
        except DpcompError as error:
            refused[path] = str(error)
            continue
        for torn, reason in refused.items():
            warnings.warn(f"{reason}; {path.name} is used, which is older", stacklevel=2)
            torn.rename(torn.with_suffix(".torn"))  # or it would count as one of CHECKPOINTS_KEPT
        return _unpacked(arrays, record, channel, path)
    raise DpcompError(
        f"no checkpoint in {folder} is whole: {'; '.join(refused.values())}. Restore a file, or begin anew"
    )


def look_at(folder: str | os.PathLike[str]) -> tuple[float, Record, Arrays]:
    """Read the newest undamaged checkpoint as plain values, while another process may save the next; nothing changes.

    Args:
        folder: Where `save` wrote the checkpoints.

    Returns:
        When it was saved, in seconds since 1970; the facts of the memory, as docs/reference/formats.md lists them; and
        the arrays, by name.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
        DpcompError: All checkpoints in the folder are damaged, or of another program or format.
    """
    while True:
        refused, deleted = list[str](), False
        for path in reversed(_checkpoints_in(Path(folder))):
            try:
                arrays, record = _read(path)
                return path.stat().st_mtime, record, arrays
            except (DpcompError, FileNotFoundError) as error:
                if path.exists():
                    refused.append(str(error))
                else:
                    deleted = True
        if not deleted:  # else the process that saves has deleted it, and a newer one is there
            break
    if not refused:
        raise FileNotFoundError(f"{folder} holds no checkpoint (*{SUFFIX}): give the folder of a server or client")
    raise DpcompError(f"no checkpoint in {folder} is whole: {'; '.join(refused)}")


def exists(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a checkpoint, whole or damaged."""
    return bool(_checkpoints_in(Path(folder)))


def _checkpoints_in(place: Path) -> list[Path]:
    """Return the paths of all checkpoints of a folder, oldest first."""
    return sorted(path for path in place.glob(f"*{SUFFIX}") if path.stem.isdigit())


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the digest of all that a checkpoint holds."""
    state = hashlib.blake2b(text.encode(), digest_size=16)
    for name, array in sorted(arrays.items()):
        state.update(repr((name, array.dtype.str, array.shape)).encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _read(path: Path) -> tuple[Arrays, Record]:
    try:
        reader: Any = safe_open(path, framework="numpy")  # the package ships no types
        with reader as opened:
            header: dict[str, str] = opened.metadata() or {}
            if header.get("format") != FORMAT:  # before its arrays are read: another program's may have any type
                other = OtherFormatError if header.get("format", "").startswith(FAMILY) else DpcompError
                raise other(
                    f"{path} has the format {header.get('format')!r}, not {FORMAT!r}: another program or version of "
                    "dpcomp wrote it. Go on with the version that wrote it, or begin anew in an empty folder"
                )
            arrays: Arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise DpcompError(f"{path} is torn, or no checkpoint ({error})") from error
    if header.get("digest") != _digest(header.get("facts", ""), arrays):
        raise DpcompError(f"{path} is damaged: its digest does not match its content")
    return arrays, json.loads(header["facts"])


def _packed(checkpoint: Checkpoint) -> tuple[Arrays, Record]:
    memory, arrays = checkpoint.memory, {f"beside {name}": value for name, value in checkpoint.extra_arrays.items()}
    if checkpoint.model is not None:
        arrays["model"] = np.array(checkpoint.model, dtype=np.float32)
        if arrays["model"].shape != (memory.layout.size,):
            raise ValueError(f"save: the model has shape {arrays['model'].shape}, not ({memory.layout.size},)")
    arrays |= memory.kept.vectors
    record: Record = {
        "pipeline": memory.pipeline.hex(),
        "layout": memory.layout.shapes,
        "seed": memory.seed.number,
        "shared": _pack_shared("shared", memory.shared, arrays),
        "first_model": memory.genesis.first_model.hex(),
        "run_id": memory.genesis.run_id.hex(),
    }
    if memory.rounds is not None:
        record["rounds"] = memory.rounds
    if isinstance(memory, ServerMemory):
        record["older"] = [_pack_shared(f"older {place}", shared, arrays) for place, shared in enumerate(memory.older)]
        if memory.clip_norm is not None:
            record["clip norm"] = memory.clip_norm
        arrays |= {f"links {name}": column for name, column in memory.links.columns().items()}
        return arrays, record
    record["client"] = memory.client
    record["link"] = _pack_link("link", memory.link, arrays)
    record["noise"] = _pack_tracked("tracked", memory.tracked, arrays)
    if checkpoint.pending is not None:
        pending = checkpoint.pending
        arrays |= {"payload": np.frombuffer(pending.payload, dtype=np.uint8), "update": pending.update}
        arrays |= {f"pending {name}": vector for name, vector in pending.kept.vectors.items()}
        if pending.learning_rate != 1:
            record["pending learning rate"] = pending.learning_rate
        record["pending link"] = _pack_link("pending link", pending.link, arrays)
        record["pending noise"] = _pack_tracked("pending tracked", pending.tracked, arrays)
    return arrays, record


def _unpacked(arrays: Arrays, record: Record, channel: Channel, path: Path) -> Checkpoint:
    layout = Layout(tuple((name, tuple(shape)) for name, shape in record["layout"]))
    fingerprint = channel.fingerprint(layout)
    if record["pipeline"] != fingerprint.hex():
        raise VersionMismatch(
            f"{path} is of pipeline and layout {record['pipeline']}, this pipeline is {fingerprint.hex()}: "
            "load it with the pipeline that it was saved with",
            reason="pipeline",
        )
    shared = _read_shared("shared", record["shared"], arrays)
    both: Record = {"pipeline": fingerprint, "layout": layout, "seed": PublicSeed(record["seed"]), "shared": shared}
    both["kept"] = _read_kept("", arrays)
    both["genesis"] = Genesis(first_model=bytes.fromhex(record["first_model"]), run_id=bytes.fromhex(record["run_id"]))
    both["rounds"] = record.get("rounds")
    model = arrays.get("model")
    extra_arrays = {name.removeprefix("beside "): value for name, value in arrays.items() if name.startswith("beside ")}
    if "client" not in record:
        columns = {name.removeprefix("links "): value for name, value in arrays.items() if name.startswith("links ")}
        older = tuple(_read_shared(f"older {place}", old, arrays) for place, old in enumerate(record["older"]))
        norm: float | None = record.get("clip norm")
        memory = ServerMemory(**both, links=Links.from_columns(columns), older=older, clip_norm=norm)
        return Checkpoint(memory, model, None, extra_arrays)
    link, tracked = _read_link("link", record["link"], arrays), _read_tracked("tracked", record["noise"], arrays)
    memory, pending = ClientMemory(**both, client=record["client"], link=link, tracked=tracked), None
    if "pending link" in record:
        pending = Pending(
            payload=arrays["payload"].tobytes(),
            update=arrays["update"],
            link=_read_link("pending link", record["pending link"], arrays),
            kept=_read_kept("pending ", arrays),
            tracked=_read_tracked("pending tracked", record["pending noise"], arrays),
            learning_rate=record.get("pending learning rate", 1.0),
        )
    return Checkpoint(memory, model, pending, extra_arrays)


def _pack_shared(name: str, shared: Shared, arrays: Arrays) -> Record:
    _keep(f"{name} reference", shared.reference, arrays)
    _keep(f"{name} history", shared.history, arrays)
    _keep_listed(name, shared.last_support, arrays)
    return {"version": shared.version, "digest": shared.digest.hex()}


def _read_shared(name: str, record: Record, arrays: Arrays) -> Shared:
    return Shared(
        version=record["version"],
        digest=bytes.fromhex(record["digest"]),
        reference=arrays.get(f"{name} reference"),
        history=arrays.get(f"{name} history"),
        last_support=_listed(name, arrays),
    )


def _pack_link(name: str, link: Link, arrays: Arrays) -> Record:
    _keep_listed(name, link.last_support, arrays)
    return {
        "count": link.count,
        "digest": link.digest.hex(),
        "last": None if link.last is None else vars(link.last),
        "last_version": link.last_version,
    }


def _read_link(name: str, record: Record, arrays: Arrays) -> Link:
    return Link(
        count=record["count"],
        digest=bytes.fromhex(record["digest"]),
        last=None if record["last"] is None else Address(**record["last"]),
        last_version=record["last_version"],
        last_support=_listed(name, arrays),
    )


def _pack_tracked(name: str, tracked: TrackedSignal | None, arrays: Arrays) -> float | None:
    if tracked is None:
        return None
    arrays |= {f"{name} {item}": getattr(tracked, item) for item in ("total", "weight", "factors")}
    return tracked.noise


def _read_tracked(name: str, noise: float | None, arrays: Arrays) -> TrackedSignal | None:
    if noise is None:
        return None
    return TrackedSignal(arrays[f"{name} total"], arrays[f"{name} weight"], arrays[f"{name} factors"], noise)


def _read_kept(prefix: str, arrays: Arrays) -> Kept:
    return Kept(**{name: arrays.get(f"{prefix}{name}") for name in ("residual", "momentum", "sent")})


def _keep(name: str, array: np.ndarray | None, arrays: Arrays) -> None:
    if array is not None:
        arrays[name] = array


def _keep_listed(name: str, support: Listed | None, arrays: Arrays) -> None:
    if support is not None:
        arrays[f"{name} support"] = support.positions


def _listed(name: str, arrays: Arrays) -> Listed | None:
    return Listed(arrays[f"{name} support"]) if f"{name} support" in arrays else None
