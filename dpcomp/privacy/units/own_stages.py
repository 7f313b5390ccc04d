"""Checks of what a stage of one's own returned: that it works on each unit alone, on the support that it names."""

import secrets
from dataclasses import replace
from typing import Any

import numpy as np

from dpcomp.core.errors import NotPrivate
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Support, checked_support, same_positions
from dpcomp.privacy.traced.clipped_sum import is_traced
from dpcomp.privacy.units.unit_gradients import Units, on_host


def refuse_mixed_units(stage: Any, before: Units, after: Any, context: PublicContext) -> None:
    """Refuse an own stage that makes a unit's row of other units, or other units: a clip would bound neither.

    Args:
        stage: The stage.
        before: What it was given.
        after: What it returned; a sum is not checked.
        context: What it was given besides.

    Raises:
        NotPrivate: The stage made more or fewer units, or a randomly drawn one is another beside others than alone.
    """
    if not isinstance(after, Units) or is_traced(before.layers[0]) or not before.count:
        return
    if after.count != before.count:
        raise NotPrivate(
            f"{stage!r}: apply made {after.count} units of {before.count}: each unit gives one row, in its place"
        )
    row = secrets.randbelow(before.count)
    alone = stage.apply(replace(before, layers=tuple(layer[row : row + 1] for layer in before.layers)), context)
    given, expected = (
        np.concatenate([on_host(layer).reshape(-1) for layer in layers])
        for layers in ([layer[row : row + 1] for layer in after.layers], alone.layers)
    )
    if not np.allclose(given, expected, rtol=1e-3, atol=1e-4 * float(np.linalg.norm(expected)), equal_nan=True):
        raise NotPrivate(
            f"{stage!r}: apply gives a unit another row beside others than alone, so one unit moves many rows and the "
            "clip does not bound it: compute each row from that row and public values, and no random numbers"
        )


def refuse_other_support(stage: Any, support: Support, context: PublicContext) -> None:
    """Refuse a stage that keeps other coordinates than it says: its positions would be sent, and cost bytes.

    Args:
        stage: The stage, which has a public support.
        support: The coordinates of what it returned.
        context: What it was given.

    Raises:
        ValueError: They are not those of its `public_support`.
    """
    d = context.layout.size
    public = checked_support(stage.public_support(context), f"{stage!r}: public_support returned")
    if not same_positions(support, public, d):
        raise ValueError(
            f"{stage!r}: apply keeps {support.count(d)} coordinates, which are not the {public.count(d)} of its "
            "public_support: return value.restrict(self.public_support(context))"
        )
