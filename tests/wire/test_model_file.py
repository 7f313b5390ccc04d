"""Files of models: what was written comes back, in its order, and what is no model is refused."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import dpcomp as dp
from dpcomp.wire.model_file import read_model, write_model

LAYOUTS = [
    dp.Layout.of(7),
    dp.Layout.of({"weight": (2, 3), "bias": (2,), "scale": (), "empty": (0, 4), "a.b/c d": (1, 1, 2)}),
    dp.Layout.of({"layer 10": (1,), "layer 9": (2,)}),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=range(3))
def test_a_model_comes_back_with_the_order_of_its_layers(layout, tmp_path):
    model = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    write_model(tmp_path / "new" / "model.safetensors", model, layout)
    read, values = read_model(tmp_path / "new" / "model.safetensors")
    assert read == layout
    assert values.tobytes() == model.tobytes()


def test_what_is_no_model_is_refused_by_name(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(OSError, match="model"):
        read_model(path)
    path.write_bytes(b"no model")
    with pytest.raises(dp.DpcompError, match=r"model\.safetensors is no model"):
        read_model(path)
    save_file({"weight": np.ones(3, np.float32)}, path)  # whose order nobody knows
    with pytest.raises(dp.DpcompError, match="is no model as dpcomp writes it"):
        read_model(path)
    for metadata in ('["weight", "bias"]', "7", "[]", "{"):
        save_file({"weight": np.ones(3, np.float32)}, path, {"layers": metadata})
        with pytest.raises(dp.DpcompError, match=r"model\.safetensors"):
            read_model(path)
    save_file({"weight": np.ones(3)}, path, {"layers": '["weight"]'})
    with pytest.raises(dp.DpcompError, match="float32"):
        read_model(path)
