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
        folder: Has `fashion_mnist.toml`, whose methods are named as `code_of` reads them; `noise_floor.toml`, whose
            labels are the shares of the noise that are added; and `noise_floor_mean.toml`, one client with the data and
            the noise of all, which has the probe `SignalToNoise`: the signal of a single client of many would be mostly
            the draw of its batch.

    Returns:
        Columns: `method`; `dense`, whether it is dense updates with more noise; `error`, η; `difference` and `half`,
        the paired difference in test accuracy to dense updates at share 0 and half of its 95 % interval, in points;
        `foretold`, the difference by the line through the dense updates, in points; `signal_to_noise`, of the mean of
        the clients.
    """
    noise, methods = trials_of(folder / "noise_floor.toml"), trials_of(folder / "fashion_mnist.toml")
    rounds: Any = rounds_of(folder / "noise_floor.toml")
    clients = int(rounds["participants"].max())
    rounds = rounds_of(folder / "noise_floor_mean.toml")
    late = rounds[rounds["round"] > (1 - TAIL) * rounds["round"].max()]
    ratio = float(late["signal_to_noise"].mean())
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


def excess_of(folder: Path, table: pd.DataFrame) -> Mapping[str, tuple[float, float]]:
    """Return by how much what is lost lies above the line through the dense updates, seed by seed.

    Args:
        folder: As for `floor_of`.
        table: What `floor_of` returns.

    Returns:
        By method, and by "supports" for the mean of all methods that send a part of the coordinates: the mean over the
        seeds and half of its 95 % interval, in points.
    """
    noise = _by_seed(trials_of(folder / "noise_floor.toml"), "share")
    methods = _by_seed(trials_of(folder / "fashion_mnist.toml"), "grid.method")
    codes: Any = table[~table["dense"]]
    found = {
        method: above_line(methods[method], methods["dense"], error, noise)
        for method, error in zip(codes["method"], codes["error"], strict=True)
    }
    partial = [values for method, values in found.items() if (code := code_of(method)) and code.density < 1]
    found["supports"] = {seed: float(np.mean([values[seed] for values in partial])) for seed in partial[0]}
    nought = {name: _lost(values, dict.fromkeys(values, 0.0)) for name, values in found.items()}
    return {name: (lost["difference"], lost["half"]) for name, lost in nought.items()}


def above_line(
    values: Mapping[int, float], dense: Mapping[int, float], error: float, noise: Mapping[str, Mapping[int, float]]
) -> Mapping[int, float]:
    """Return for each seed what a method loses, less what the line through dense updates with more noise foretells.

    Args:
        values: Seed → accuracy of the method.
        dense: Seed → accuracy of dense updates.
        error: η of the method.
        noise: Share of the noise that is added → seed → accuracy of dense updates with it; "0" is without more.
    """
    shares = sorted(noise, key=float)

    def foretold(seed: int) -> float:
        lost = [noise[share][seed] - noise["0"][seed] for share in shares]
        return float(np.interp(error, [float(share) for share in shares], lost))

    return {seed: value - dense[seed] - foretold(seed) for seed, value in values.items()}


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
