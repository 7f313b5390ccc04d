"""Checkpoints: a memory, and a model beside it, on disk as a whole or not at all; never pickled, never a ledger.

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
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dpcomp.errors import DpcompError, VersionMismatch
from dpcomp.memory import ClientMemory, Link, ServerMemory, Shared
from dpcomp.randomness import PublicSeed
from dpcomp.support import Everywhere, Listed, Seeded, Support
from dpcomp.tracking import Tracked
from dpcomp.update import Address, Layout, Update

if TYPE_CHECKING:
    from dpcomp.pipeline import Pipeline

FORMAT = "dpcomp checkpoint 1"
KEPT = 2  # generations
SUFFIX = ".safetensors"

Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]


def save(folder: str | os.PathLike[str], memory: ClientMemory | ServerMemory, model: Any = None) -> Path:
    """Write the next generation, durably, and return its path; `model` is the (d,) vector of parameters, if any.

    Raises:
        ValueError: the model is not of the memory's layout.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    arrays, facts = _packed(memory)
    if model is not None:
        arrays["model"] = np.array(model, dtype=np.float32)
        if arrays["model"].shape != (memory.layout.size,):
            raise ValueError(f"save: the model has shape {arrays['model'].shape}, not ({memory.layout.size},)")
    text = json.dumps(facts, sort_keys=True)
    generations = _generations(place)
    number = int(generations[-1].stem) + 1 if generations else 0
    path, unfinished = place / f"{number:010d}{SUFFIX}", place / "unfinished"
    save_file(arrays, unfinished, {"format": FORMAT, "facts": text, "digest": _digest(text, arrays)})
    _sync(unfinished)
    os.replace(unfinished, path)
    _sync(place)
    for old in generations[: 1 - KEPT]:
        old.unlink()
    return path


def load(
    folder: str | os.PathLike[str], pipeline: "Pipeline"
) -> tuple[ClientMemory | ServerMemory, Float32[np.ndarray, "d"] | None]:
    """The memory and the model of the newest whole generation; a warning names each newer one that is none.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        DpcompError: no generation in it is whole.
        VersionMismatch: it is whole, but of another pipeline.
    """
    generations = _generations(Path(folder))
    if not generations:
        raise FileNotFoundError(f"{folder} holds no checkpoint (*{SUFFIX}): begin with pipeline.init, or name another")
    refused = []
    for path in reversed(generations):
        try:
            arrays, facts = _read(path)
        except DpcompError as error:
            refused.append(str(error))
            continue
        for reason in refused:
            warnings.warn(f"{reason}; {path.name} is used, which is older", stacklevel=2)
        return _unpacked(arrays, facts, pipeline, path), arrays.get("model")
    raise DpcompError(f"no checkpoint in {folder} is whole: {'; '.join(refused)}. Restore one, or begin anew")


def _generations(place: Path) -> list[Path]:
    """Ascending."""
    return sorted(path for path in place.glob(f"*{SUFFIX}") if path.stem.isdigit())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _packed(memory: ClientMemory | ServerMemory) -> tuple[Arrays, Facts]:
    arrays: Arrays = {} if memory.residual is None else {"residual": memory.residual}
    shared = memory.shared
    _keep_listed("shared support", shared.last_support, arrays)
    facts: Facts = {
        "pipeline": memory.pipeline.hex(),
        "layout": memory.layout.shapes,
        "seed": memory.seed.number,
        "version": shared.version,
        "digest": shared.digest.hex(),
    }
    if shared.reference is not None:
        arrays["reference"] = shared.reference.values
        facts["reference"] = vars(shared.reference.address)
        _keep_listed("reference support", shared.reference.support, arrays)
        if isinstance(shared.reference.support, Seeded):
            facts["reference seeded"] = vars(shared.reference.support)
    if isinstance(memory, ServerMemory):
        facts["links"] = {str(client): _pack_link(client, link, arrays) for client, link in memory.links.items()}
        return arrays, facts
    facts["client"] = memory.client
    facts["links"] = {str(memory.client): _pack_link(memory.client, memory.link, arrays)}
    if memory.tracked is not None:
        tracked = memory.tracked
        arrays |= {"total": tracked.total, "weight": tracked.weight, "factors": tracked.factors}
        facts["noise"] = tracked.noise
    return arrays, facts


def _unpacked(arrays: Arrays, facts: Facts, pipeline: "Pipeline", path: Path) -> ClientMemory | ServerMemory:
    layout = Layout(tuple((name, tuple(shape)) for name, shape in facts["layout"]))
    fingerprint = pipeline.fingerprint(layout)
    if facts["pipeline"] != fingerprint.hex():
        raise VersionMismatch(
            f"{path} is of pipeline and layout {facts['pipeline']}, this one is {fingerprint.hex()}: "
            "load it with the pipeline that it was saved with"
        )
    reference = None
    if "reference" in facts:
        seeded = Seeded(**facts["reference seeded"]) if "reference seeded" in facts else None
        reference = Update(
            values=arrays["reference"],
            layout=layout,
            address=Address(**facts["reference"]),
            support=_listed("reference support", arrays) or seeded or Everywhere(),
            claim=pipeline.claim,
        )
    shared = Shared(
        version=facts["version"],
        digest=bytes.fromhex(facts["digest"]),
        reference=reference,
        last_support=_listed("shared support", arrays),
    )
    links = {int(client): _read_link(client, said, arrays) for client, said in facts["links"].items()}
    both = {"pipeline": fingerprint, "layout": layout, "seed": PublicSeed(facts["seed"]), "shared": shared}
    both["residual"] = arrays.get("residual")
    if "client" not in facts:
        return ServerMemory(**both, links=MappingProxyType(links))
    tracked = None
    if "noise" in facts:
        tracked = Tracked(arrays["total"], arrays["weight"], arrays["factors"], facts["noise"])
    return ClientMemory(**both, client=facts["client"], link=links[facts["client"]], tracked=tracked)


def _pack_link(client: int, link: Link, arrays: Arrays) -> Facts:
    _keep_listed(f"link {client}", link.last_support, arrays)
    return {
        "count": link.count,
        "digest": link.digest.hex(),
        "last": None if link.last is None else vars(link.last),
        "last_version": link.last_version,
    }


def _read_link(client: str, said: Facts, arrays: Arrays) -> Link:
    return Link(
        count=said["count"],
        digest=bytes.fromhex(said["digest"]),
        last=None if said["last"] is None else Address(**said["last"]),
        last_version=said["last_version"],
        last_support=_listed(f"link {client}", arrays),
    )


def _keep_listed(name: str, support: Support | None, arrays: Arrays) -> None:
    if isinstance(support, Listed):
        arrays[name] = support.positions


def _listed(name: str, arrays: Arrays) -> Listed | None:
    return Listed(arrays[name]) if name in arrays else None
