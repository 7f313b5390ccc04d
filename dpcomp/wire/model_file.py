"""Files of models: each layer under its name and in its shape, as safetensors."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dpcomp.core.errors import DpcompError
from dpcomp.core.layout import Layout
from dpcomp.core.storage import write_whole

ORDER = "layers"  # the key under which the file holds the order of its layers, since it sorts them by another


def write_model(file: str | os.PathLike[str], model: Float32[np.ndarray, "d"], layout: Layout) -> None:
    """Write a model durably, as safetensors: each layer under its name and in its shape.

    Args:
        file: The file. Its folder is made if it is missing.
        model: The model, as a (d,) vector.
        layout: Its layers.

    Raises:
        OSError: The file cannot be written.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.wire.model_file import read_model, write_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/model.safetensors"
        ...     write_model(file, np.ones(5, np.float32), dp.Layout.of({"b": (2, 2), "a": (1,)}))
        ...     layout, model = read_model(file)
        >>> layout.shapes, model.sum()
        ((('b', (2, 2)), ('a', (1,))), np.float32(5.0))
    """
    layers = zip(layout.shapes, layout.split(model), strict=True)
    arrays = {name: np.ascontiguousarray(layer).reshape(shape) for (name, shape), layer in layers}
    write_whole(Path(file), save(arrays, {ORDER: json.dumps(list(arrays))}))


def read_model(file: str | os.PathLike[str]) -> tuple[Layout, Float32[np.ndarray, "d"]]:
    """Read a model that `write_model` wrote.

    Args:
        file: The file.

    Returns:
        Its layers, and the model as a (d,) vector.

    Raises:
        DpcompError: The file holds none.
        OSError: The file cannot be read.
    """
    try:
        reader: Any = safe_open(file, framework="numpy")  # the package ships no types
        with reader as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            names: list[str] = json.loads(metadata[ORDER])
            arrays: dict[str, np.ndarray] = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DpcompError(
            f"{file} is no model as dpcomp writes it ({type(error).__name__}: {error}): restore the file, or give that "
            "of the federation or run"
        ) from error
    if not arrays or any(array.dtype != np.float32 for array in arrays.values()):
        raise DpcompError(f"{file} holds no layers of float32: give a file that write_model wrote")
    layout = Layout.of({name: array.shape for name, array in arrays.items()})
    return layout, np.concatenate([array.reshape(-1) for array in arrays.values()])
