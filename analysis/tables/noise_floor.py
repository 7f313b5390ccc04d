"""What compressors lose beside what dense updates lose to as much more noise."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.tables.trials import rounds_of, trials_of
from analysis.theory.noise_floor import added_error
from dpcomp.lab.sweep.paired import paired_difference

TAIL = 0.25  # the share of the rounds whose models are averaged, where the accuracy is decided
SUPPORTS = re.compile(r"(own|shared) ([\d.]+) %(?:, (\d) bits)?")  # of a method with supports before the noise
DENSE_BITS = re.compile(r"dense, (\d) bits?")


class Code(NamedTuple):
    """What a method sends of an update.

    Attributes:
        bits: The bits of a rotated value.
        density: The share of the coordinates.
        own_supports: Whether the clients of a round have supports of their own, or a common one.
    """

    bits: int
    density: float
    own_supports: bool


def code_of(method: str) -> Code | None:
    """Read what a method sends from its name, such as "own 0.5 %, 2 bits" or "dense, 1 bit"; None for another name."""
    if dense := DENSE_BITS.fullmatch(method):
        return Code(int(dense[1]), 1.0, own_supports=False)
    if supports := SUPPORTS.fullmatch(method):
        whose, percent, bits = supports.groups(default="1")
        return Code(int(bits), float(percent) / 100, own_supports=whose == "own")
    return None


def floor_of(folder: Path) -> pd.DataFrame:
    """Return one row for each method: its error beside the noise, what it loses, and what that error foretells.

    Args:
        folder: Has `fashion_mnist.toml`, whose methods are named as `code_of` reads them, and
            `noise_floor.toml`, whose labels are the shares of the noise that are added; share 0 has the probe
                `SignalToNoise`.

    Returns:
        Columns: `method`; `dense`, whether it is dense updates with more noise; `error`, η; `difference` and `half`,
        the paired difference in test accuracy to dense updates at share 0 and half of its 95 % interval, in points;
        `foretold`, the difference by the line through the dense updates, in points; `signal_to_noise`, of the mean of
        the clients.
    """
    noise, methods = trials_of(folder / "noise_floor.toml"), trials_of(folder / "fashion_mnist.toml")
    rounds: Any = rounds_of(folder / "noise_floor.toml")
    clients = int(rounds["participants"].max())
    late = rounds[rounds["round"] > (1 - TAIL) * rounds["round"].max()]
    ratio = clients * float(late["signal_to_noise"].mean())  # of the mean of the clients
    rows = [
        {
            "method": f"{share} more",
            "dense": True,
            "error": float(share),
            **_lost(values, _by_seed(noise, "share")["0"]),
        }
        for share, values in sorted(_by_seed(noise, "share").items(), key=lambda item: float(item[0]))
    ]
    found = _by_seed(methods, "grid.method")
    for method, values in found.items():
        if (code := code_of(method)) is not None:
            error = added_error(**code._asdict(), clients=clients, signal_to_noise=ratio)
            rows.append({"method": method, "dense": False, "error": error, **_lost(values, found["dense"])})
    table = pd.DataFrame(rows)
    line = table[table["dense"]]
    return table.assign(foretold=np.interp(table["error"], line["error"], line["difference"]), signal_to_noise=ratio)


def explained(table: pd.DataFrame) -> float:
    """Compute R², the share of the variance of what compressors lose that dense updates with more noise foretell."""
    points = table[~table["dense"]]
    rest = np.square(points["difference"] - points["foretold"]).sum()
    return float(1 - rest / np.square(points["difference"] - points["difference"].mean()).sum())


def _by_seed(trials: pd.DataFrame, label: str) -> Mapping[str, Mapping[int, float]]:
    groups = trials.groupby(label)
    return {str(name): dict(zip(rows["seed"], rows["test_accuracy"], strict=True)) for name, rows in groups}


def _lost(values: Mapping[int, float], others: Mapping[int, float]) -> Mapping[str, float]:
    mean, half = paired_difference(values, others)
    return {"difference": 100 * mean, "half": 100 * half}
