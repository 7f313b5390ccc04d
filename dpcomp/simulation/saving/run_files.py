"""The files of a run: its models as safetensors, and all else as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dpcomp.core.errors import DpcompError
from dpcomp.core.layout import Layout
from dpcomp.core.storage import write_whole
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.wire.frame import digest
from dpcomp.wire.model_file import write_model

if TYPE_CHECKING:
    from dpcomp.simulation.run import Run

FORMAT = 1
FACTS, MODEL, TAIL_MODEL = "run.json", "model.safetensors", "tail_model.safetensors"


def write_run(folder: Path, run: "Run") -> None:
    """Write the files of a run. Raises OSError."""
    models = {MODEL: run.model} | ({} if run.tail_model is None else {TAIL_MODEL: run.tail_model})
    for name, model in models.items():
        write_model(folder / name, model, run.layout)
    guarantee = asdict(run.guarantee)
    facts = {
        "format": FORMAT,
        "rows": [{name: _plain(value) for name, value in row.items()} for row in run.rows],
        "guarantee": guarantee | {"epsilon": _plain(run.guarantee.epsilon), "text": str(run.guarantee)},
        "layout": run.layout.shapes,
        "probed": run.probed,
        "warnings": run.warnings,
        "stopped": run.stopped,
        "digests": {name: _digest_of(model) for name, model in models.items()},
    }
    write_whole(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False).encode())


def read_run(folder: Path) -> dict[str, Any]:
    """Return the arguments of the run whose files are in a folder.

    Raises:
        DpcompError: The folder holds no run, or its files are damaged or of different runs.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise DpcompError(
                f"{folder / FACTS} has format {facts['format']!r}, not {FORMAT}: use the version of dpcomp that "
                "wrote it"
            )
        layout = Layout(tuple((name, tuple(shape)) for name, shape in facts["layout"]))
        models = {name: _model(folder / name, layout, told) for name, told in facts["digests"].items()}
        said: Mapping[str, Any] = facts["guarantee"]
        guarantee = Guarantee(
            **{
                **{name: value for name, value in said.items() if name != "text"},
                "epsilon": _number(said["epsilon"]),
                "assumptions": tuple(said["assumptions"]),
            }
        )
        return {
            "rows": tuple({name: _number(value) for name, value in row.items()} for row in facts["rows"]),
            "guarantee": guarantee,
            "layout": layout,
            "model": models[MODEL],
            "tail_model": models.get(TAIL_MODEL),
            "probed": tuple(facts["probed"]),
            "warnings": tuple(facts["warnings"]),
            "stopped": facts["stopped"],
        }
    except FileNotFoundError as error:
        raise DpcompError(f"{folder} holds no run ({error}): give a folder that Run.save wrote") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DpcompError(f"the run in {folder} is damaged ({error}): restore its files from one copy") from error


def _model(file: Path, layout: Layout, told: str) -> Float32[np.ndarray, "d"]:
    layers = load_file(file)
    model = np.concatenate([layers[name].reshape(-1) for name, _ in layout.shapes])
    if _digest_of(model) != told:
        raise DpcompError(f"{file} is not the model of {FACTS} beside it: restore both from one copy")
    return model


def _digest_of(model: Float32[np.ndarray, "d"]) -> str:
    return digest(np.asarray(model, dtype="<f4").tobytes()).hex()


def _plain(value: float) -> Any:
    """Return a number as JSON has it: a whole one as it is, and one that is not finite as its name."""
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else str(float(value))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, str) else value
