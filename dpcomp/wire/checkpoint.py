"""Checkpoints: a memory, and what stands beside it, on disk as a whole or not at all; never pickled, never a ledger.

A folder holds numbered generations, each a safetensors file. A new one is written under another name, synced,
renamed, and its folder synced; only then the generation before the last goes. A file that is torn or foreign is
named in a warning, and the one before it is used.
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
from safetensors.numpy import save_file

from dpcomp.codec.wiener import TrackedSignal
from dpcomp.core.address import Address
from dpcomp.core.errors import DpcompError, VersionMismatch
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed
from dpcomp.core.storage import atomic_write, make_folder
from dpcomp.core.support import Listed
from dpcomp.wire.channel import Channel
from dpcomp.wire.memory import ClientMemory, Link, Pending, ServerMemory, Shared

FORMAT = "dpcomp checkpoint 3"
KEPT = 2  # generations
SUFFIX = ".safetensors"

Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]


class Checkpoint(NamedTuple):
    """What a checkpoint holds: a memory; the (d,) vector of parameters; a payload without an answer; other arrays."""

    memory: ClientMemory | ServerMemory
    model: Float32[np.ndarray, "d"] | None = None
    pending: Pending | None = None
    beside: Mapping[str, np.ndarray] = MappingProxyType({})


def save(folder: str | os.PathLike[str], checkpoint: Checkpoint) -> Path:
    """Write the next generation, durably, and return its path.

    The memory's last `step` is left out: the model has taken it.

    Raises:
        ValueError: the model is not of the memory's layout.
    """
    place = Path(folder)
    make_folder(place)
    arrays, facts = _packed(checkpoint)
    text = json.dumps(facts, sort_keys=True)
    generations = _generations(place)
    number = int(generations[-1].stem) + 1 if generations else 0
    path = place / f"{number:010d}{SUFFIX}"
    with atomic_write(path, draft_name="unfinished") as draft:
        save_file(arrays, draft, {"format": FORMAT, "facts": text, "digest": _digest(text, arrays)})
    for old in generations[: 1 - KEPT]:
        old.unlink()
    return path


def load(folder: str | os.PathLike[str], channel: Channel) -> Checkpoint:
    """The newest whole generation; a warning names each newer one that is none.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        DpcompError: no generation in it is whole.
        VersionMismatch: it is whole, but of another pipeline.
    """
    generations = _generations(Path(folder))
    if not generations:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint (*{SUFFIX}): begin with pipeline.init_client or name another"
        )
    refused: dict[Path, str] = {}
    for path in reversed(generations):
        try:
            arrays, facts = _read(path)
        except DpcompError as error:
            refused[path] = str(error)
            continue
        for torn, reason in refused.items():
            warnings.warn(f"{reason}; {path.name} is used, which is older", stacklevel=2)
            torn.rename(torn.with_suffix(".torn"))  # or it would pass for the generation in reserve
        return _unpacked(arrays, facts, channel, path)
    raise DpcompError(f"no checkpoint in {folder} is whole: {'; '.join(refused.values())}. Restore one, or begin anew")


def _generations(place: Path) -> list[Path]:
    """Ascending."""
    return sorted(path for path in place.glob(f"*{SUFFIX}") if path.stem.isdigit())


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Of everything that a checkpoint says."""
    state = hashlib.blake2b(text.encode(), digest_size=16)
    for name, array in sorted(arrays.items()):
        state.update(repr((name, array.dtype.str, array.shape)).encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _read(path: Path) -> tuple[Arrays, Facts]:
    try:
        with safe_open(path, framework="numpy") as opened:
            said = opened.metadata() or {}
            if said.get("format") != FORMAT:  # before its arrays are read: another program's may have any type
                raise DpcompError(
                    f"{path} has the format {said.get('format')!r}, not {FORMAT!r}: another program's, or version's"
                )
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise DpcompError(f"{path} is torn, or no checkpoint ({error})") from error
    if said.get("digest") != _digest(said.get("facts", ""), arrays):
        raise DpcompError(f"{path} is damaged: its digest does not fit")
    return arrays, json.loads(said["facts"])


def _packed(checkpoint: Checkpoint) -> tuple[Arrays, Facts]:
    memory, arrays = checkpoint.memory, {f"beside {name}": value for name, value in checkpoint.beside.items()}
    if checkpoint.model is not None:
        arrays["model"] = np.array(checkpoint.model, dtype=np.float32)
        if arrays["model"].shape != (memory.layout.size,):
            raise ValueError(f"save: the model has shape {arrays['model'].shape}, not ({memory.layout.size},)")
    _keep("residual", memory.residual, arrays)
    facts: Facts = {
        "pipeline": memory.pipeline.hex(),
        "layout": memory.layout.shapes,
        "seed": memory.seed.number,
        "shared": _pack_shared("shared", memory.shared, arrays),
    }
    if isinstance(memory, ServerMemory):
        facts["older"] = [_pack_shared(f"older {place}", shared, arrays) for place, shared in enumerate(memory.older)]
        facts["links"] = {
            str(client): _pack_link(f"link {client}", link, arrays) for client, link in memory.links.items()
        }
        return arrays, facts
    facts["client"] = memory.client
    facts["link"] = _pack_link("link", memory.link, arrays)
    facts["noise"] = _pack_tracked("tracked", memory.tracked, arrays)
    if checkpoint.pending is not None:
        pending = checkpoint.pending
        arrays |= {"payload": np.frombuffer(pending.payload, dtype=np.uint8), "update": pending.update}
        _keep("pending residual", pending.residual, arrays)
        facts["pending link"] = _pack_link("pending link", pending.link, arrays)
        facts["pending noise"] = _pack_tracked("pending tracked", pending.tracked, arrays)
    return arrays, facts


def _unpacked(arrays: Arrays, facts: Facts, channel: Channel, path: Path) -> Checkpoint:
    layout = Layout(tuple((name, tuple(shape)) for name, shape in facts["layout"]))
    fingerprint = channel.fingerprint(layout)
    if facts["pipeline"] != fingerprint.hex():
        raise VersionMismatch(
            f"{path} is of pipeline and layout {facts['pipeline']}, this one is {fingerprint.hex()}: "
            "load it with the pipeline that it was saved with",
            reason="pipeline",
        )
    shared = _read_shared("shared", facts["shared"], arrays)
    both: Facts = {"pipeline": fingerprint, "layout": layout, "seed": PublicSeed(facts["seed"]), "shared": shared}
    both["residual"] = arrays.get("residual")
    model = arrays.get("model")
    beside = {name.removeprefix("beside "): value for name, value in arrays.items() if name.startswith("beside ")}
    if "client" not in facts:
        links = {int(client): _read_link(f"link {client}", said, arrays) for client, said in facts["links"].items()}
        older = tuple(_read_shared(f"older {place}", said, arrays) for place, said in enumerate(facts["older"]))
        return Checkpoint(ServerMemory(**both, links=MappingProxyType(links), older=older), model, None, beside)
    link, tracked = _read_link("link", facts["link"], arrays), _read_tracked("tracked", facts["noise"], arrays)
    memory, pending = ClientMemory(**both, client=facts["client"], link=link, tracked=tracked), None
    if "pending link" in facts:
        pending = Pending(
            payload=arrays["payload"].tobytes(),
            update=arrays["update"],
            link=_read_link("pending link", facts["pending link"], arrays),
            residual=arrays.get("pending residual"),
            tracked=_read_tracked("pending tracked", facts["pending noise"], arrays),
        )
    return Checkpoint(memory, model, pending, beside)


def _pack_shared(name: str, shared: Shared, arrays: Arrays) -> Facts:
    _keep(f"{name} reference", shared.reference, arrays)
    _keep(f"{name} history", shared.history, arrays)
    _keep_listed(name, shared.last_support, arrays)
    return {"version": shared.version, "digest": shared.digest.hex()}


def _read_shared(name: str, said: Facts, arrays: Arrays) -> Shared:
    return Shared(
        version=said["version"],
        digest=bytes.fromhex(said["digest"]),
        reference=arrays.get(f"{name} reference"),
        history=arrays.get(f"{name} history"),
        last_support=_listed(name, arrays),
    )


def _pack_link(name: str, link: Link, arrays: Arrays) -> Facts:
    _keep_listed(name, link.last_support, arrays)
    return {
        "count": link.count,
        "digest": link.digest.hex(),
        "last": None if link.last is None else vars(link.last),
        "last_version": link.last_version,
    }


def _read_link(name: str, said: Facts, arrays: Arrays) -> Link:
    return Link(
        count=said["count"],
        digest=bytes.fromhex(said["digest"]),
        last=None if said["last"] is None else Address(**said["last"]),
        last_version=said["last_version"],
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


def _keep(name: str, array: np.ndarray | None, arrays: Arrays) -> None:
    if array is not None:
        arrays[name] = array


def _keep_listed(name: str, support: Listed | None, arrays: Arrays) -> None:
    if support is not None:
        arrays[f"{name} support"] = support.positions


def _listed(name: str, arrays: Arrays) -> Listed | None:
    return Listed(arrays[f"{name} support"]) if f"{name} support" in arrays else None
