"""What compressors lose beside what dense updates lose to as much more noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from jaxtyping import Float64

from analysis.tables.trials import noise_multiplier, rounds_of, trials_of
from analysis.theory.noise_floor import added_error
from dpcomp.lab.config.experiment import Experiment
from dpcomp.lab.config.grid import points
from dpcomp.lab.sweep.paired import paired_difference
from dpcomp.lab.sweep.plan import outcomes

FORMS = ("Rotated", "Float32")  # of values
NEAR_END = 1.01  # of the line through dense updates, up to which its end stands for an error


class Code(NamedTuple):
    """What a method sends of an update.

    Attributes:
        bits: The bits of a rotated value; None for float32.
        density: The share of the coordinates, k/d.
        own_supports: Whether the clients of a round have supports of their own, or a common one.
    """

    bits: int | None
    density: float
    own_supports: bool


def codes_of(config: Path, momentum: float = 0.0) -> Mapping[str, Code]:
    """Return what each method of a config sends, of those that the form is for, with that momentum at the server."""
    found = {point.labels["method"]: code_of(point.experiment, momentum) for point in points(config)}
    return {method: code for method, code in found.items() if code is not None}


def code_of(experiment: Experiment, momentum: float = 0.0) -> Code | None:
    """Read what an experiment sends; None where it has another momentum, selects by size, or sends all in float32."""
    codec = experiment.pipeline.get("codec", {}).get("Codec", {})
    support = experiment.pipeline["mechanism"][0].get("RandomK")
    quantize = codec.get("quantize", {"Float32": {}})
    other = experiment.federation.get("server_momentum", 0) != momentum
    if "sparsify" in codec or other or not quantize.keys() <= {*FORMS}:
        return None
    bits = quantize["Rotated"].get("bits", 1) if "Rotated" in quantize else None
    if support is None:
        return None if bits is None else Code(bits, 1.0, own_supports=False)
    return Code(bits, support["fraction"], own_supports=support.get("per") == "client")


class Setting(NamedTuple):
    """The configs that a law is held against, below one folder.

    Attributes:
        methods: The name of one whose axis `method` has codes, and dense updates.
        noise: That of dense updates, whose labels are the shares of the noise that are added, with the probe
            `SignalToNoise` at share 0.
        alike: The one of those whose clients are alike, on the same task.
        pooled: That of one client with the data and the noise of all, which has that probe too.
        dense: The method that all are held against.
        momentum: That of the server, of all of them.
    """

    methods: str
    noise: str
    alike: str = "noise_floor"
    pooled: str = "noise_floor_mean"
    dense: str = "dense"
    momentum: float = 0.0


SETTINGS = {
    "alike": Setting("fashion_mnist", "noise_floor"),
    "skewed labels": Setting("fashion_mnist_dirichlet", "noise_floor_dirichlet"),
    "CIFAR-10": Setting(
        "cifar10",
        "noise_floor_cifar10",
        alike="noise_floor_cifar10",
        pooled="noise_floor_cifar10_mean",
        dense="dense, momentum",
        momentum=0.9,
    ),
}
ALIKE = SETTINGS["alike"]
LOOSER = "fashion_mnist_epsilon_8"  # the methods with less noise


class Ratios(NamedTuple):
    """Energies of clean dense updates beside that of their noise.

    Attributes:
        signal: That of the mean of the clients' updates, without the draws of their batches, by that of its noise.
        draw: What the draw of its batch adds to a client's update, by the client's noise.
    """

    signal: float
    draw: float


def ratios_of(folder: Path, setting: Setting = ALIKE, *, after: float = 0.0) -> Ratios:
    """Tell the signal of the clients' mean from the draws of their batches, by two runs.

    A client of n that are alike has the ratio SNR/n + B to its noise; one client with the data and the noise of all has
    SNR + B (two batch sizes, as McCandlish et al. 2018, appendix A.1, have them). Clients that differ have that SNR
    too, and what tells them apart is in their B: a coordinate of own supports has one client's.

    Args:
        folder: The folder of the configs.
        setting: Which they are.
        after: The share of the rounds that is left out at the beginning; the mean is over the others.
    """

    def mean(name: str) -> float:
        rounds: Any = rounds_of(folder / f"{name}.toml")
        rounds = rounds[rounds["round"] > after * rounds["round"].max()]
        dense = rounds[rounds["share"] == "0"] if "share" in rounds else rounds
        return float(dense["signal_to_noise"].mean())

    each: Any = rounds_of(folder / f"{setting.noise}.toml")
    clients = int(each["participants"].max())
    alike, of_all = mean(setting.alike), mean(setting.pooled)
    signal = (of_all - alike) * clients / (clients - 1)
    return Ratios(signal=signal, draw=mean(setting.noise) - signal / clients)


def signal_half(folder: Path) -> float:
    """Return half of the 95 % interval of the signal that `ratios_of` tells, over the seeds of the pooled run."""
    clients = int(cast(Any, rounds_of(folder / f"{ALIKE.noise}.toml"))["participants"].max())
    of_pooled = _ratio_by_seed(rounds_of(folder / f"{ALIKE.pooled}.toml"), 0.0)
    return paired_difference(of_pooled, dict.fromkeys(of_pooled, 0.0))[1] * clients / (clients - 1)


def floors_of(folder: Path) -> pd.DataFrame:
    """Return the rows of `floor_of` for each of SETTINGS, with its name in the column `setting`."""
    tables = [floor_of(folder, setting).assign(setting=name) for name, setting in SETTINGS.items()]
    return pd.concat(tables, ignore_index=True)


def floor_of(folder: Path, setting: Setting = ALIKE, *, after: float = 0.0) -> pd.DataFrame:
    """Return one row for each method: its error beside the noise, what it loses, and what that error foretells.

    Args:
        folder: The folder of the configs.
        setting: Which they are.
        after: Over which rounds the ratios of signal and draws to the noise are averaged, as for `ratios_of`.

    Returns:
        Columns: `method`; `dense`, whether it is dense updates with more noise; `error`, η; `difference` and `half`,
        the paired difference in test accuracy to dense updates at share 0 and half of its 95 % interval, in points;
        `foretold`, the difference by the line through the dense updates, in points, NaN beyond its end.
    """
    noise, methods = (trials_of(folder / f"{name}.toml") for name in (setting.noise, setting.methods))
    rounds: Any = rounds_of(folder / f"{setting.noise}.toml")
    clients = int(rounds["participants"].max())
    ratios = ratios_of(folder, setting, after=after)
    rows = [
        {
            "method": f"{share} more",
            "dense": True,
            "error": float(share),
            **_lost(values, _by_seed(noise, "share")["0"]),
        }
        for share, values in sorted(_by_seed(noise, "share").items(), key=lambda item: float(item[0]))
    ]
    found, codes = _by_seed(methods, "grid.method"), codes_of(folder / f"{setting.methods}.toml", setting.momentum)
    for method, values in found.items():
        if (code := codes.get(method)) is not None:
            error = added_error(
                **code._asdict(), clients=clients, signal_to_noise=ratios.signal, draw_to_noise=ratios.draw
            )
            rows.append({"method": method, "dense": False, "error": error, **_lost(values, found[setting.dense])})
    table = pd.DataFrame(rows)
    line = table[table["dense"]]
    foretold = np.interp(table["error"], line["error"], line["difference"])
    beyond = table["error"] > NEAR_END * line["error"].max()
    return table.assign(foretold=np.where(beyond, np.nan, foretold))


def excess_of(folder: Path, table: pd.DataFrame, setting: Setting = ALIKE) -> Mapping[str, tuple[float, float]]:
    """Return by how much what is lost lies above the line through the dense updates, seed by seed.

    Args:
        folder: The folder of the configs.
        table: What `floor_of` returns for the setting.
        setting: Which they are.

    Returns:
        By method, and by "supports" for the mean of all methods that send a part of the coordinates: the mean over the
        seeds and half of its 95 % interval, in points.
    """
    noise = _by_seed(trials_of(folder / f"{setting.noise}.toml"), "share")
    methods = _by_seed(trials_of(folder / f"{setting.methods}.toml"), "grid.method")
    codes: Any = table[~table["dense"] & table["foretold"].notna()]
    sent = codes_of(folder / f"{setting.methods}.toml", setting.momentum)
    dense, seeds = methods[setting.dense], noise["0"].keys()  # a line may have fewer seeds than the methods
    found = {
        method: above_line({seed: methods[method][seed] for seed in seeds}, dense, error, noise)
        for method, error in zip(codes["method"], codes["error"], strict=True)
    }
    partial = [values for method, values in found.items() if sent[method].density < 1]
    found["supports"] = {seed: float(np.mean([values[seed] for values in partial])) for seed in partial[0]}
    lost_by = {name: _lost(values, dict.fromkeys(values, 0.0)) for name, values in found.items()}
    return {name: (lost["difference"], lost["half"]) for name, lost in lost_by.items()}


def looser_floor_of(folder: Path) -> pd.DataFrame:
    """Return what `floor_of` and `excess_of` say of the methods at a looser ε, whose noise is smaller.

    The line goes through the dense updates at the looser ε and those of `floor_of`, by the variance of their noise in
    units of the smaller one, over the seeds that both have. Signal and draws have as much larger ratios to that noise.

    Args:
        folder: The folder of the configs.

    Returns:
        Columns: `method`, `error`, `difference`, `foretold`, as for `floor_of`; `excess` and `half`, the mean over the
        seeds of what is lost above the line, and half of its 95 % interval, in points.
    """
    methods = _by_seed(trials_of(folder / f"{LOOSER}.toml"), "grid.method")
    more = _by_seed(trials_of(folder / f"{ALIKE.noise}.toml"), "share")
    strict, loose = (
        noise_multiplier(outcomes(folder / f"{name}.toml")[0].reports[0]) for name in (ALIKE.noise, LOOSER)
    )
    louder = (strict / loose) ** 2
    seeds = sorted(methods["dense"].keys() & more["0"].keys())
    noise = {"0": {seed: methods["dense"][seed] for seed in seeds}}
    noise |= {str((1 + float(share)) * louder - 1): {seed: more[share][seed] for seed in seeds} for share in more}
    rounds: Any = rounds_of(folder / f"{LOOSER}.toml")
    ratios, clients = ratios_of(folder), int(rounds["participants"].max())
    rows = []
    for method, code in codes_of(folder / f"{LOOSER}.toml").items():
        error = added_error(
            **code._asdict(),
            clients=clients,
            signal_to_noise=louder * ratios.signal,
            draw_to_noise=louder * ratios.draw,
        )
        values = {seed: methods[method][seed] for seed in seeds}
        excess = _lost(above_line(values, noise["0"], error, noise), dict.fromkeys(seeds, 0.0))
        lost = _lost(values, noise["0"])["difference"]
        rows.append(
            {
                "method": method,
                "error": error,
                "difference": lost,
                "foretold": lost - excess["difference"],
                "excess": excess["difference"],
                "half": excess["half"],
            }
        )
    return pd.DataFrame(rows)


def resampled_lines(folder: Path, times: int) -> list[tuple[list[float], list[float]]]:
    """Draw the seeds of the dense updates again, with replacement, and return η and the points lost of each draw.

    Args:
        folder: The folder of the configs.
        times: The number of draws, which are the same in every call.
    """
    noise = _by_seed(trials_of(folder / f"{ALIKE.noise}.toml"), "share")
    shares, seeds = sorted(noise, key=float), sorted(noise["0"])
    rng, lines = np.random.default_rng(0), list[tuple[list[float], list[float]]]()
    for _ in range(times):
        drawn = rng.choice(seeds, len(seeds))
        lost = [_points(noise[share], noise["0"], list(drawn)) for share in shares]
        lines.append(([float(share) for share in shares], lost))
    return lines


class Fits(NamedTuple):
    """How three forms of the law fit what codes lose, by draw of the seeds; the first is of all seeds, once each.

    Attributes:
        whole_run: R² with the ratios of signal and draws to the noise averaged over the whole run.
        late: R² with those of the last rounds.
        no_draws: R² over the whole run, and without the term of the draws of batches.
        furthest: How far the first form is off at most, in points.
    """

    whole_run: Sequence[float]
    late: Sequence[float]
    no_draws: Sequence[float]
    furthest: Sequence[float]


def resampled_fits(folder: Path, late: float, times: int) -> Fits:
    """Fit three forms of the law to the seeds, and to seeds that are drawn again with replacement.

    All forms are held against the same codes, those that the form over the whole run foretells.

    Args:
        folder: The folder of the configs.
        late: The share of the rounds that the second form leaves out.
        times: The number of draws, which are the same in every call.
    """
    noise = _by_seed(trials_of(folder / f"{ALIKE.noise}.toml"), "share")
    methods = _by_seed(trials_of(folder / f"{ALIKE.methods}.toml"), "grid.method")
    table: Any = floor_of(folder)
    names = [str(name) for name in table.loc[~table["dense"] & table["foretold"].notna(), "method"]]
    codes = [codes_of(folder / f"{ALIKE.methods}.toml")[name] for name in names]
    each: Any = rounds_of(folder / f"{ALIKE.noise}.toml")
    pooled: Any = rounds_of(folder / f"{ALIKE.pooled}.toml")
    alike, clients = each[each["share"] == "0"], int(each["participants"].max())
    ratios = {after: (_ratio_by_seed(alike, after), _ratio_by_seed(pooled, after)) for after in (0.0, late)}
    shares, seeds, seeds_of_pooled = sorted(noise, key=float), sorted(noise["0"]), sorted(ratios[late][1])
    rng, fits = np.random.default_rng(0), list[tuple[float, float, float, float]]()
    for number in range(times + 1):
        drawn = list(rng.choice(seeds, len(seeds))) if number else seeds
        drawn_pooled = list(rng.choice(seeds_of_pooled, len(seeds_of_pooled))) if number else seeds_of_pooled
        line = [_points(noise[share], noise["0"], drawn) for share in shares]
        lost = np.array([_points(methods[name], methods["dense"], drawn) for name in names])
        foretold: list[Float64[np.ndarray, codes]] = []
        for after, with_draws in ((0.0, True), (late, True), (0.0, False)):
            of_each, of_pooled = ratios[after]
            one = float(np.mean([of_each[seed] for seed in drawn]))
            whole = float(np.mean([of_pooled[seed] for seed in drawn_pooled]))
            signal = (whole - one) * clients / (clients - 1) if with_draws else whole
            draw = one - signal / clients if with_draws else 0.0
            errors = [
                added_error(**code._asdict(), clients=clients, signal_to_noise=signal, draw_to_noise=draw)
                for code in codes
            ]
            foretold.append(np.interp(errors, [float(share) for share in shares], line))
        first, second, third = (explained(lost, each) for each in foretold)
        fits.append((first, second, third, float(np.abs(lost - foretold[0]).max())))
    return Fits(*zip(*fits, strict=True))


def explained(lost: Float64[np.ndarray, "codes"], foretold: Float64[np.ndarray, "codes"]) -> float:
    """Compute R², the share of the variance of what codes lose that is foretold."""
    return float(1 - np.square(lost - foretold).sum() / np.square(lost - lost.mean()).sum())


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


def _ratio_by_seed(rounds: Any, after: float) -> Mapping[int, float]:
    counted = rounds[rounds["round"] > after * rounds["round"].max()]
    return dict(counted.groupby("seed")["signal_to_noise"].mean())


def _points(values: Mapping[int, float], others: Mapping[int, float], seeds: Sequence[int]) -> float:
    return 100 * float(np.mean([values[seed] - others[seed] for seed in seeds]))


def _by_seed(trials: pd.DataFrame, label: str) -> Mapping[str, Mapping[int, float]]:
    groups = trials.groupby(label)
    return {str(name): dict(zip(rows["seed"], rows["test_accuracy"], strict=True)) for name, rows in groups}


def _lost(values: Mapping[int, float], others: Mapping[int, float]) -> Mapping[str, float]:
    mean, half = paired_difference(values, others)
    return {"difference": 100 * mean, "half": 100 * half}
