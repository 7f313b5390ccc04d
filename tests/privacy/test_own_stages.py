"""Own stages and subclasses: a unit's row comes from that unit alone, and what is charged is what is computed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import dpcomp as dp
from dpcomp.core.errors import NotPrivate
from dpcomp.privacy.units.unit_gradients import Units

CLIP, NOISE = dp.Clip(1.0), dp.Gaussian(2.0)


@dataclass(frozen=True)
class Own:
    """A stage before the clip that maps the (n, d) rows of one layer by a rule of somebody's choice."""

    rule: str

    def claim(self, before, where):
        return before

    def apply(self, value, context):
        (rows,) = value.layers
        made = {
            "centred": lambda: rows - rows.mean(0),
            "largest": lambda: rows / (abs(rows).max() + 1e-9),
            "rolled": lambda: rows[[*range(1, len(rows)), 0]],
            "sorted": lambda: rows[rows[:, 0].argsort()],
            "repeated": lambda: rows.repeat(2, axis=0) if isinstance(rows, np.ndarray) else rows.repeat(2, 1),
            "dropped": lambda: rows[1:],
            "clamped": lambda: rows.clip(-0.5, 0.5),
            "scaled": lambda: rows * 3.0,
            "broken": lambda: rows * np.float32("nan"),
        }[self.rule]()
        return replace(value, layers=(made,)) if isinstance(value, Units) else value


def pipeline_of(rule):
    return dp.Pipeline(mechanism=(Own(rule), CLIP, NOISE))


def blocks():
    rows = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    rows[-1] = 1e4
    return [rows, torch.from_numpy(rows)]


@pytest.mark.parametrize("rule", ["centred", "largest", "rolled", "sorted", "repeated", "dropped"])
@pytest.mark.parametrize("framework", [0, 1])
def test_a_stage_that_mixes_units_is_refused(rule, framework):
    pipeline = pipeline_of(rule)
    memory = pipeline.init_client(5, dp.PublicSeed(0), client=0)
    with pytest.raises(NotPrivate, match=rf"Own\(rule='{rule}'\): apply"):
        # Thrice, since the drawn row may be one that a sort leaves in its place.
        _ = [pipeline.clip(blocks()[framework], memory) for _ in range(3)]


@pytest.mark.parametrize("rule", ["clamped", "scaled", "broken"])
@pytest.mark.parametrize("framework", [0, 1])
def test_a_stage_that_maps_each_unit_alone_is_right(rule, framework):
    pipeline = pipeline_of(rule)
    memory = pipeline.init_client(5, dp.PublicSeed(0), client=0)
    for rows in (blocks()[framework], blocks()[framework][:1], blocks()[framework][:0]):
        total = pipeline.clip(rows, memory)
        assert np.linalg.norm(total.vector()) <= len(rows) * (1 + 1e-5)


class PerLayer(dp.Clip):
    """Clips each layer by itself, so that a unit moves the sum by more than the norm."""


class FixedSize(dp.Poisson):
    """Draws always as many."""


class Quiet(dp.Gaussian):
    """Adds nothing."""


@pytest.mark.parametrize(
    "parts",
    [
        {"mechanism": (PerLayer(1.0), NOISE)},
        {"mechanism": (CLIP, Quiet(2.0))},
        {"mechanism": (CLIP, NOISE), "sampling": FixedSize(0.1)},
        {"mechanism": dp.unsafe("a look", PerLayer(1.0))},
    ],
)
def test_a_subclass_of_a_proven_part_is_refused(parts):
    with pytest.raises(TypeError, match="whose proof is of that class alone"):
        dp.Pipeline(**parts)


def test_what_a_caller_has_set_for_floats_stops_no_release():
    pipeline = dp.Pipeline(mechanism=(CLIP, NOISE))
    memory, ledger = pipeline.init_client(4, dp.PublicSeed(0), client=0), dp.Ledger()
    permit = ledger.charge(pipeline.cost, memory.address, steps=4)
    with np.errstate(all="raise"):
        for value in (1e-30, 3e38, np.nan, np.inf):
            update = pipeline.release([np.full((3, 4), value, np.float32)], memory, dp.SecretSeed(), permit)
            assert np.isfinite(update.values).all()
