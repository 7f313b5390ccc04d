"""Every number that a text may quote of the six claims, by name, from results."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cost import break_even as deliveries
from analysis.cost.devices import LINKS, RADIOS
from analysis.cost.model import Range
from analysis.figures import delta_coding, residuals
from analysis.measures.intervals import mean_interval
from analysis.tables.latex_numbers import (
    Column,
    Numbers,
    of_table,
    of_trials,
    plain,
    slug,
)
from analysis.tables.latex_numbers import spread as with_spread
from analysis.tables.noise_losses import CODERS, crossing, spread
from analysis.tables.studies import audits_of, energies_of, losses_of, study_reports
from analysis.tables.trials import noise_multiplier, rounds_of, trials_below, trials_of
from analysis.theory.gaussian_top_k import small_snr_recall
from analysis.theory.index_bits import dithered_excess_bits, noise_floor_rate
from dpcomp.lab.config.grid import points
from dpcomp.lab.config.labels import label
from dpcomp.lab.sweep.comparison import compare
from dpcomp.lab.sweep.plan import outcomes
from dpcomp.lab.tasks.classification import Classification
from dpcomp.privacy.guarantee import rounded_up
from dpcomp.training.pytorch.rows.parameters import layout_of
from experiments.publish.law import LATE, law
from experiments.publish.peers import peers

POINTS = 3  # how far off the loss that is foretold may be
PREDICTIONS = ("random", "closed_form", "by_layer", "with_values")


def numbers(configs: Path, tasks: Mapping[str, Callable[[], Classification]]) -> Numbers:
    """Return every number that could be quoted, by name.

    Args:
        configs: The folder of the configs.
        tasks: Those whose models' sizes may be quoted.

    Raises:
        ConfigError: A claim has no finished trial.
    """
    found = _models(tasks)
    for of_claim in CLAIMS:
        found |= of_claim(configs)
    return found


def _models(tasks: Mapping[str, Callable[[], Classification]]) -> Numbers:
    """`model.<task>`: its parameters."""
    sizes = {name: layout_of(task().model(0)).size for name, task in tasks.items()}
    return {f"model.{name}": f"{size:,}".replace(",", "{,}") for name, size in sizes.items()}


def _setups(configs: Path) -> Numbers:
    """`setup.<config>.<key>`: what a file says of the federation, and its points."""
    found: Numbers = {}
    for config in sorted(configs.rglob("*.toml")):
        made = points(config)
        first = made[0].experiment
        name = f"setup.{slug(config.relative_to(configs).with_suffix(''))}"
        facts = {key: value for key, value in first.federation.items() if isinstance(value, int | float)}
        budgets = [budget for point in made if (budget := point.experiment.epsilon) is not None]
        facts |= {
            "noisy_epsilon": max(budgets, default=None),
            "epsilon": first.epsilon,
            "seeds": len(first.seeds),
            "points": len(made),
        }
        found |= {f"{name}.{key}": label(value) for key, value in facts.items() if value is not None}
    return found


def _noise_floor(configs: Path) -> Numbers:
    """`floor.<what>`: bits a coordinate for errors as large as the noise, at z = 1, ten clients of the small CNN."""
    clients, coordinates = 10, 26_010
    bound = noise_floor_rate(clients=clients, noise_share=1, noise_multiplier=1, coordinates=coordinates)
    excess = dithered_excess_bits(signal_to_error=clients / coordinates)
    return {"floor.clients": str(clients), "floor.bound": f"{bound:.5f}", "floor.excess": f"{excess:.3f}"}


def _top_k(configs: Path) -> Numbers:
    found: Numbers = {}
    of_method = ["grid.method"]
    for task, axes in (
        ("fashion_mnist", ["noise", *of_method]),
        *((task, of_method) for task in ("cifar10", "cifar10_small", "cifar10_small_long", "cifar10_resnet8")),
    ):
        found |= of_trials(f"top_k.{task}", trials_of(configs / "top_k" / f"{task}.toml"), axes, reference="dense")
    behind = trials_of(configs / "top_k" / "cifar10.toml")
    found |= of_trials("top_k.beside_no_feedback", behind, of_method, reference="top 10 %")
    small = trials_of(configs / "top_k" / "cifar10_small.toml")
    found |= of_trials("top_k.small_beside_no_feedback", small, of_method, reference="top 1 %")
    fashion = trials_of(configs / "top_k" / "fashion_mnist.toml")
    found |= of_trials("top_k.beside_momentum", fashion, ["noise", *of_method], reference="dense, momentum")
    resnet: Any = compare(configs / "top_k" / "resnet18_cifar10.toml")
    shown = {
        "accuracy": plain("accuracy_percent"),
        "behind": plain("rounds_behind", 0),
        "ratio": plain("compression_ratio", 0),
    }
    return found | of_table("top_k.resnet18", resnet, ["method"], shown)


def _allocation(configs: Path) -> Numbers:
    by = ["noise", "entropy", "allocation"]
    trials: Any = trials_of(configs / "allocation" / "digits.toml")
    plain_trials: Any = trials_of(configs / "allocation" / "float32.toml")
    best = of_trials("allocation", trials, by, reference="float32")
    found = {name.replace(".difference", ".beside_best"): value for name, value in best.items()}
    found |= of_trials("allocation.float32", plain_trials, ["noise", "learning_rate"])
    # Held-out images can't tell neighbouring rates, which move all rules alike: so float32 has the rate of each rule.
    trials["learning_rate"] = trials["tuning"].str.removeprefix("learning_rate=")
    float32 = plain_trials.set_index(["noise", "learning_rate", "seed"])["test_accuracy"]
    for labels, rows in trials.groupby(by):
        of_plain = float32.reindex(pd.MultiIndex.from_frame(rows[["noise", "learning_rate", "seed"]]))
        difference = _interval((100 * (rows["test_accuracy"].to_numpy() - of_plain.to_numpy())).tolist())
        found[".".join(["allocation", *map(slug, labels), "difference"])] = difference
    rounds: Any = rounds_of(configs / "allocation" / "digits.toml")
    found |= _same_widths("allocation", rounds[rounds["entropy"] == "packed"])
    found |= _same_widths("by_layer", rounds_of(configs / "allocation" / "cifar10.toml"))
    rounded = trials_of(configs / "allocation" / "rounding.toml")
    rounded["shares"] = rounded["allocation"].str.split(",").str[0]
    found |= of_trials("rounding", rounded, ["noise", "shares", "rounding"], reference="nearest")
    found |= of_trials("shares", rounded, ["noise", "rounding", "shares"], reference="equal")
    shrunk = trials_of(configs / "allocation" / "shrinkage.toml")
    found |= of_trials("shrinkage", shrunk, ["allocation"], reference="float32")
    by_layer = trials_of(configs / "allocation" / "cifar10.toml")
    found |= of_trials("by_layer", by_layer, ["allocation"], reference="float32")
    found |= of_trials("four_bits", by_layer, ["allocation"], reference="equal, 4 bits")
    equal = "equal, 2 bits, least-error steps"
    at_one_rate = trials_of(configs / "allocation" / "cifar10_one_rate.toml")
    found |= of_trials("widths_at_one_rate", at_one_rate, ["allocation"], reference=equal)
    return found | of_trials("widths", by_layer, ["allocation"], reference=equal)


def _same_widths(name: str, rounds: Any) -> Numbers:
    """`<name>.same_widths.<rule>`: the percentage of the rounds in which water-filling gives all layers one width."""
    layers = [column for column in rounds if column.startswith("bits of ")]
    filled = rounds[rounds["allocation"].str.startswith("water-filled")]
    alike = (filled[layers].nunique(axis=1) == 1).groupby(filled["allocation"]).mean()
    return {f"{name}.same_widths.{slug(rule)}": f"{100 * share:.0f}" for rule, share in alike.items()}


def _scrambling(configs: Path) -> Numbers:
    losses: Any = losses_of(configs / "scrambling")
    energies: Any = energies_of(configs / "scrambling")
    found = dict(_losses(losses)) | dict(_energies(energies)) | _foretold(losses) | _foretold_recall(losses)
    rows = losses[(losses["link"] == "uplink") & (losses["trust"] == "nobody")]
    overlaps = rows[(rows["order"] == "noise first") & (rows["feedback"] == 1) & (rows["bits"] == rows["bits"].min())]
    means = overlaps.groupby(["task", "batch", "density", "noise_multiplier"])[
        ["clean_overlap", "noisy_overlap", "sent_overlap"]
    ].mean()
    shown = {name: plain(name, 2) for name in means}
    found |= of_table("overlap", means.reset_index(), ["task", "batch", "density", "noise_multiplier"], shown)
    seeds, phases = losses["seed"].nunique(), dict[str, dict[str, int]]()
    cases = losses.groupby(["task", "batch", "phase", "seed"]).ngroups
    at = "fashion_mnist.2000.0_01.noise_first.nobody.uplink.alone.4.8"
    found |= _cause(losses) | _claimed(losses)
    found["gain.fashion_mnist"] = found[f"loss.{at}.loss_of_values_mean"].removeprefix("-")
    recordings: dict[str, Any] = {}
    for report in study_reports(configs / "scrambling"):
        task, recording = report["config"]["task"], report["config"]["recording"]
        phases |= {task: phases.get(task, {}) | recording["phases"]}
        recordings[task] = recording
    for task, recording in recordings.items():
        *steps, last = sorted(phases[task].values())
        found |= {
            f"scrambling.phases.{task}": _listed([*steps, last]),
            f"scrambling.rounds.{task}": str(recording["rounds"]),
            "scrambling.warmup": str(recording["warmup"]),
            "scrambling.rate": f"{recording['learning_rate']:g}",
            "scrambling.clip_norm": f"{recording['clip_norm']:g}",
        }
    return found | {"scrambling.seeds": str(seeds), "scrambling.cases": str(cases)}


def _cause(losses: Any) -> Numbers:
    """`cause.<part>.<end>`: over tasks and batches, what knowing nothing of a support gains, what layers are worth."""
    rows = losses[(losses["order"] == "noise first") & (losses["trust"] == "nobody") & (losses["feedback"] == 0)]
    rows = rows[(rows["bits"] == rows["bits"].min()) & (rows["noise_multiplier"] == rows["noise_multiplier"].max())]
    coders = ["coder_neither", "coder_layers", "coder_both"]
    means: Any = rows.groupby(["density", "task", "batch"])[coders].mean()
    memory = means.loc[0.1, "coder_both"] - means.loc[0.1, "coder_layers"]
    of_memory = {f"cause.memory_10.{task}.{batch}": f"{worth:.1f}" for (task, batch), worth in memory.items()}
    gains, layers = -means.loc[0.01, "coder_neither"], means.loc[0.1, "coder_layers"]
    return of_memory | {
        f"cause.{name}.{end}": f"{getattr(values, which)():.1f}"
        for name, values in (("gain", gains), ("layers_10", layers))
        for end, which in (("least", "min"), ("most", "max"))
    }


def _listed(numbers: Sequence[int]) -> str:
    """Return numbers as "1, 2 and 3,000", for math mode."""
    *first, last = (f"{number:,}".replace(",", "{,}") for number in numbers)
    return r"\text{, }".join(first) + rf"\text{{ and }}{last}"


def _claimed(losses: Any) -> Numbers:
    """`claimed.<feedback>.<bits>.<end>`: efficiency (a) at the top 1 % and the most noise, over tasks and batches."""
    rows = losses[(losses["order"] == "noise first") & (losses["trust"] == "nobody") & (losses["density"] == 0.01)]
    rows = rows[rows["noise_multiplier"] == rows["noise_multiplier"].max()]
    found: Numbers = {}
    for (feedback, bits), part in rows.groupby(["feedback", "bits"]):
        means = part.groupby(["task", "batch"])["loss"].mean()
        name = f"claimed.{'feedback' if feedback else 'alone'}.{bits}"
        found |= {f"{name}.least": f"{means.min():.1f}", f"{name}.most": f"{means.max():.1f}"}
    tenth: Any = losses[(losses["order"] == "noise first") & (losses["trust"] == "nobody") & (losses["density"] == 0.1)]
    tenth = tenth[
        (tenth["noise_multiplier"] == tenth["noise_multiplier"].max()) & (tenth["bits"] == tenth["bits"].min())
    ]
    lost = tenth.groupby(["feedback", "task", "batch"])["loss"].mean()
    shares = 100 * lost[1] / lost[0]
    found |= {
        "claimed.feedback_share_10.least": f"{shares.min():.0f}",
        "claimed.feedback_share_10.most": f"{shares.max():.0f}",
    }
    still = losses[(losses["order"] == "noise first") & (losses["trust"] == "nobody") & (losses["density"] == 0.01)]
    still = still[(still["noise_multiplier"] == 0) & (still["bits"] == still["bits"].min())]
    for (feedback, task, batch), part in still.groupby(["feedback", "task", "batch"]):
        found[f"ratio.{'feedback' if feedback else 'alone'}.{task}.{batch}"] = f"{part['compression_ratio'].mean():.0f}"
    return found


def _losses(losses: Any) -> Iterator[tuple[str, str]]:
    """Efficiency (a) at every noise: mean over phases and seeds, with the deviation of seeds within a phase."""
    by = ["task", "batch", "density", "order", "trust", "link", "feedback", "bits", "noise_multiplier"]
    columns = ["loss", "loss_of_index", "loss_of_values", *PREDICTIONS, *(f"coder_{name}" for name in CODERS)]
    table: Any = spread(losses, by, columns).reset_index()
    table["feedback"] = table["feedback"].map({0: "alone", 1: "feedback"})
    shown = {name: with_spread(name, f"{name}_deviation") for name in columns}
    shown |= {f"{name}_mean": plain(name) for name in columns}
    yield from of_table("loss", table, by, shown).items()


def _energies(energies: Any) -> Iterator[tuple[str, str]]:
    """Efficiency (b): the loss, and how many times the bytes without noise, of each recording and on average."""
    by = ["task", "batch", "energy_share", "order", "noise_multiplier"]
    each: Any = energies.assign(times=1 / (1 - energies["loss"] / 100))
    table: Any = spread(each, by, ["loss", "payload_bytes"]).reset_index()
    still = table[table["noise_multiplier"] == 0].set_index(by[:-1])["payload_bytes"]
    table["times"] = table["payload_bytes"].to_numpy() / still.loc[pd.MultiIndex.from_frame(table[by[:-1]])].to_numpy()
    for name, rows in (("times", each), ("mean_times", table)):
        half = rows[(rows["order"] == "noise first") & (rows["energy_share"] == 0.5)]
        times: Any = half.loc[half["noise_multiplier"] == half["noise_multiplier"].max(), "times"]
        yield f"energy.{name}_least", f"{times.min():.1f}"
        yield f"energy.{name}_most", f"{times.max():.1f}"
    shown = {"loss": with_spread("loss", "loss_deviation"), "times": plain("times"), "bytes": plain("payload_bytes", 0)}
    yield from of_table("energy", table, by, shown).items()
    for (task, batch, share), part in energies.groupby(["task", "batch", "energy_share"]):
        name = f"crossing.{slug(task)}.{batch}.{slug(share)}"
        found = [crossing(rows) for _, rows in part.groupby("phase")]
        yield f"{name}.low", _noise(min(found), part)
        yield f"{name}.high", _noise(max(found), part)
        means = part.groupby(["order", "noise_multiplier"])["payload_bytes"].mean()
        for which, noise in (("clean", 0), ("noisy", part["noise_multiplier"].max())):
            yield f"{name}.{which}", f"{means['support first', noise] / means['noise first', 0]:.1f}"


def _noise(crossing: float, part: Any) -> str:
    noises = part["noise_multiplier"]
    if crossing == 0:
        return f"<{noises[noises > 0].min():g}"
    return f">{noises.max():g}" if math.isinf(crossing) else f"{crossing:.1f}"


def _foretold(losses: Any) -> Numbers:
    """How far off the foretold losses are, over settings with the noise first, no feedback and some noise."""
    alone = losses[
        (losses["order"] == "noise first")
        & (losses["trust"] == "nobody")
        & (losses["feedback"] == 0)
        & (losses["noise_multiplier"] > 0)
    ]
    keys = ["task", "batch", "phase", "density", "bits", "noise_multiplier"]
    means = alone.groupby(keys)[["loss", *PREDICTIONS]].mean()
    found = {"foretold.settings": str(len(means))}
    for name in PREDICTIONS:
        off = (means[name] - means["loss"]).abs()
        found |= {f"foretold.{name}.mean": f"{off.mean():.1f}", f"foretold.{name}.most": f"{off.max():.1f}"}
        found |= {f"foretold.{name}.within": f"{100 * (off <= POINTS).mean():.0f}"}
        found |= {f"foretold.{name}.too_high": f"{100 * (means[name] > means['loss']).mean():.0f}"}
        for noise, part in off.groupby("noise_multiplier"):
            found[f"foretold.{name}.{slug(noise)}.mean"] = f"{part.mean():.1f}"
    top: Any = means.xs((0.01, 4, 8.0), level=("density", "bits", "noise_multiplier"))
    excess = (top["by_layer"] - top["loss"]).groupby(["task", "batch"]).mean()
    found |= {"foretold.claimed.least": f"{excess.min():.1f}", "foretold.claimed.most": f"{excess.max():.1f}"}
    found |= {"foretold.claimed.mean": f"{(top['by_layer'] - top['loss']).mean():.0f}"}
    for decibels in (-20, -10):
        times = small_snr_recall(density=0.01, snr=10 ** (decibels / 10)) / 0.01
        found[f"recall.{-decibels}_db"] = f"{times:.1f}"
    return found


def _foretold_recall(losses: Any) -> Numbers:
    """How far the recall that is foretold from the clean vector is from that of the draws, in points."""
    rows = losses[losses["noise_multiplier"] > 0].drop_duplicates(
        ["task", "batch", "phase", "seed", "density", "noise_multiplier"]
    )
    off = 100 * (rows["expected_recall"] - rows["recall"])
    found = {}
    groups: Any = off.groupby([rows["task"], rows["density"]])
    for (task, density), part in groups:
        name = f"foretold.recall.{slug(task)}.{slug(density)}"
        found |= {f"{name}.bias": f"{part.mean():.2f}", f"{name}.deviation": f"{part.std(ddof=1):.2f}"}
    return found


def _local_steps(configs: Path) -> Numbers:
    """`local_steps.<config>.<ε>.<steps>.<what>`; `batch` has one step over the work of three, beside one."""
    trials: Any = trials_below(configs / "local_steps")
    found = of_trials("local_steps", trials, ["config", "budget", "local_steps"], reference="1")
    on_fashion = trials[trials["config"].isin(["fashion_mnist", "fashion_mnist_batch"])]
    work = on_fashion["config"].map({"fashion_mnist": "", "fashion_mnist_batch": "batch "}) + on_fashion["local_steps"]
    for name, method, reference in (("batch", "batch 1", "1"), ("three_beside_batch", "3", "batch 1")):
        beside = of_trials("local_steps", on_fashion.assign(work=work), ["work"], reference=reference)
        found[f"local_steps.{name}.difference"] = beside[f"local_steps.{slug(method)}.difference"]
    return found


def _delta_coding(configs: Path) -> Numbers:
    rounds = rounds_of(configs / "delta_coding" / "fashion_mnist.toml")
    saved = delta_coding.savings(rounds)
    cost = -saved.loc[saved["noise_multiplier"] == 1, "saved_percent"].mean()
    found = {
        f"delta_coding.{slug(noise)}.saved": _interval(group["saved_percent"].tolist())
        for noise, group in saved.groupby("noise_multiplier")
    }
    found["delta_coding.1.cost"] = f"{cost:.2f}"
    bits: Any = rounds.assign(bits=32 / rounds["compression_ratio"]).groupby(["noise_multiplier", "predict", "seed"])
    means = bits["bits"].mean()
    ends: Any = rounds.dropna(subset=["test_accuracy"]).groupby(["noise_multiplier", "predict", "seed"])
    accuracies = 100 * ends["test_accuracy"].last()
    for (noise, predict), group in accuracies.groupby(["noise_multiplier", "predict"]):
        accuracy = Column(digits=1, spread=False).text(group.tolist())
        found[f"delta_coding.{slug(noise)}.{slug(predict)}.accuracy"] = accuracy
    return found | {
        f"delta_coding.{slug(noise)}.{slug(predict)}.bits": Column(digits=2, spread=False).text(group.tolist())
        for (noise, predict), group in means.groupby(["noise_multiplier", "predict"])
    }


def _prediction(configs: Path) -> Numbers:
    """`prediction.<noise>.<column>`: bits a coordinate that prediction saves and should save, with 95 % intervals."""
    rounds: Any = rounds_of(configs / "delta_coding" / "digits.toml")
    columns = ["saved_bits", "foretold_bits", "squared_correlation", "error", "predicted_error"]
    means: Any = rounds.groupby(["noise_multiplier", "seed"])[columns].mean().reset_index()
    means["off"] = (means["saved_bits"] - means["foretold_bits"]).abs()
    means["unequal"] = 100 * (means["predicted_error"] / means["error"] - 1).abs()
    found: Numbers = {
        "prediction.unequal": f"{means['unequal'].max():.1f}",
        "prediction.off": f"{means['off'].max():.3f}",
    }
    for noise, part in means.groupby("noise_multiplier"):
        for name in ("saved_bits", "foretold_bits", "squared_correlation"):
            mean, half = mean_interval(part[name].tolist())
            path = f"prediction.{slug(noise)}.{name.removesuffix('_bits')}"
            found |= {path: rf"{mean:.3f} \pm {half:.3f}", f"{path}_mean": f"{mean:.3f}"}
    return found


def _residuals(configs: Path) -> Numbers:
    gains = residuals.gains(rounds_of(configs / "faults" / "residuals.toml"))
    found = {}
    groups: Any = gains.groupby(["method", "longest"])
    for (policy, longest), group in groups:
        found[f"residuals.{slug(policy)}.{longest}"] = _interval(group["points"].tolist())
    return found | {"residuals.seeds": str(gains["seed"].nunique())}


def _interval(values: Sequence[float]) -> str:
    """Return the mean with its 95 % interval."""
    mean, half = mean_interval(values)
    return rf"{round(mean, 1) + 0.0:.1f} \pm {half:.1f}"  # not −0.0


def _faults(configs: Path) -> Numbers:
    trials: Any = trials_of(configs / "faults" / "versions.toml")
    uplink = trials.groupby(["codec", "protocol", "faults"])["uplink_bytes"].mean()["top 5 %"]["version checks"]
    unchecked = trials[trials["protocol"] == "no version checks"]
    ends = unchecked.pivot(index="seed", columns=["codec", "faults"], values="test_accuracy")
    top, dense = (ends[codec]["0 %"] - ends[codec]["30 %"] for codec in ("top 5 %", "float32"))
    found = {"faults.uplink_times": f"{uplink['30 %'] / uplink['0 %']:.1f}"}
    found["faults.more_lost"] = _interval((100 * (top - dense)).tolist())
    return found | of_trials("faults", trials, ["codec", "protocol", "faults"], reference="0 %")


def _orders(configs: Path) -> Numbers:
    table: Any = compare(configs / "compression")
    shown = {"behind": plain("rounds_behind", 0)}
    found = of_table("orders", table, ["method"], shown)
    trials = trials_below(configs / "compression")
    trials[["steps", "name"]] = trials["config"].str.split("/", expand=True)
    found |= of_trials("orders", trials, ["steps", "name"], reference="dense")
    ratios: Any = trials.groupby("config")["compression_ratio"].mean()
    for steps in ("local_steps_1", "local_steps_3"):
        own = ratios[f"{steps}/random_k_10"] / ratios[f"{steps}/bits_4"]
        found[f"orders.{steps}.random_k_10.against_4_bits"] = f"{own:.1f}"
        (dense,) = outcomes(configs / "compression" / steps / "dense.toml")
        found[f"orders.{steps}.noise_multiplier"] = f"{noise_multiplier(dense.reports[0]):.2f}"
    return found


def _erased(configs: Path) -> Numbers:
    """`erased.<budget>.<method>`: supports before the noise."""
    folder = configs / "erased"
    found: Numbers = {}
    configs_of = {
        "eps_4": "fashion_mnist",
        "eps_8": "fashion_mnist_epsilon_8",
        "cifar10": "cifar10",
        "dirichlet": "fashion_mnist_dirichlet",
        "steps_5": "fashion_mnist_steps_5",
    }
    for budget, config in configs_of.items():
        trials = trials_of(folder / f"{config}.toml")
        found |= of_trials(f"erased.{budget}", trials, ["grid.method"], reference="dense")
    with_momentum = trials_of(folder / "cifar10.toml")
    for name, without in (
        ("momentum", "dense, momentum"),
        ("own_6", "own 6 %, 2 bits"),
        ("own_1", "own 1 %"),
        ("common", "common 6 %, 2 bits, momentum"),
    ):
        found |= of_trials(f"erased.cifar10_{name}", with_momentum, ["grid.method"], reference=without)
    skewed = trials_of(folder / "cifar10_dirichlet.toml")
    found |= of_trials("erased.cifar10_dirichlet", skewed, ["grid.method"], reference="dense, momentum")
    common = "common 6 %, 2 bits, momentum"
    found |= of_trials("erased.cifar10_dirichlet_common", skewed, ["grid.method"], reference=common)
    one, five = (trials_of(folder / f"{name}.toml") for name in ("fashion_mnist", "fashion_mnist_steps_5"))
    both = pd.concat([one[one["grid.method"] == "dense"].assign(**{"grid.method": "dense, one step"}), five])
    beside_one = of_trials("erased.steps_5", both, ["grid.method"], reference="dense, one step")
    for method in ("dense", "own_1"):
        found[f"erased.steps_5.{method}.beside_one"] = beside_one[f"erased.steps_5.{method}.difference"]
    shares: Any = rounds_of(folder / "clipped.toml")
    late: Any = shares[shares["round"] > LATE * shares["round"].max()]
    for name, part in (("clipped", shares), ("clipped_late", late)):
        means = 100 * part.groupby("grid.method" if "grid.method" in part else "method")["clipped_fraction"].mean()
        found |= {f"erased.{name}.{slug(method)}": f"{share:.0f}" for method, share in means.items()}
    clips = trials_of(folder / "clip.toml")
    found |= of_trials("erased.clip", clips, ["grid.method"], reference="own 1 %, clip 0.1")
    common = trials_of(folder / "fashion_mnist.toml")
    for name, percent in (("common", "6 %, 2 bits"), ("common_1", "1 %")):
        found |= of_trials(f"erased.{name}", common, ["grid.method"], reference=f"shared {percent}")
    return found


def _quantiser_noise(configs: Path) -> Numbers:
    """`exact.<ε>.<uplink>`: the errors of quantisers as the noise of a trusted server, beside float32."""
    trials = trials_of(configs / "quantiser_noise" / "fashion_mnist_linear.toml")
    return of_trials("exact", trials, ["grid.epsilon", "uplink"], reference="float32")


def _cost(configs: Path) -> Numbers:
    """`cost.<update>.<codec>.<column>`: medians over seeds; with a device for the update, ranges,
    of the large one or, after `small.`, of the other."""
    reports = study_reports(configs / "cost")
    found: Numbers = {}
    for row in deliveries.cost_summary(reports).to_dict("records"):
        name = f"cost.{slug(row['update'])}.{slug(row['codec'])}"
        found |= {f"{name}.{column}": _figures(row[column]) for column in row if column not in ("update", "codec")}
        found[f"{name}.error_percent"] = _figures(100 * row["error"])
    evens: Any = deliveries.costs_by_device(deliveries.measured_costs(reports))
    for row in evens.to_dict("records"):
        small = "" if row["update"] == "resnet18" else "small."
        name = f"cost.{small}{slug(row['device'])}.{slug(row['codec'])}"
        for column in ("mbits", "packed_mbits", "nanojoules"):
            low, high = row[f"{column}_low"], row[f"{column}_high"]
            found[f"{name}.{column}"] = rf"{_figures(low)}\text{{--}}{_figures(high)}"
    for link in LINKS:
        found[f"link.{slug(link.name)}"] = _range(link.bits_per_second, 1e6)
    for radio in RADIOS:
        found[f"radio.{slug(radio.name)}"] = _range(radio.joules_per_bit, 1e-9)
    return found


def _range(range_: Range, unit: float) -> str:
    low, high = _figures(range_.low / unit), _figures(range_.high / unit)
    return low if low == high else rf"{low}\text{{--}}{high}"


def _figures(value: float) -> str:
    """Two figures: more would be those of one machine on one day."""
    if not math.isfinite(value):
        return r"\infty" if value > 0 else "nan"
    digits = 1 - math.floor(math.log10(abs(value))) if value else 0
    rounded = round(value, digits)  # 9.96 becomes 10, of as many figures
    digits = max(0, 1 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    return f"{rounded:,.{digits}f}".replace(",", "{,}")


def _training_time(configs: Path) -> Numbers:
    """`time.<what>`: milliseconds of a private step and of sending an update; its share of the step in percent."""
    folder = configs.parents[1] / "docs" / "benchmarks"
    steps, sent = (_medians(folder / f"{name}.json") for name in ("step-cnn", "messages-small"))
    step = 1000 / steps["private step: CNN, 26k, B = 64"]
    found = {"time.step": _figures(step)}
    for name, codec in (("top_1", "top-k 1 %, 4 bits, range coder"), ("water_filled", "water-filling, 4 bits packed")):
        each = sent[f"send, {codec}, 26,010 parameters"] / 1000
        found |= {f"time.{name}": _figures(each), f"time.{name}_share": _figures(100 * each / step)}
    return found


def _medians(path: Path) -> Mapping[str, float]:
    """Return row → median of a benchmark's results."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["what"]: row["figure"]["median"] for row in rows}


def _yardstick(configs: Path) -> Numbers:
    trials: Any = trials_of(configs / "yardstick" / "fashion_mnist.toml")
    accuracy = Column(scale=100).text(trials["test_accuracy"].tolist())
    return {"yardstick.accuracy": accuracy, "yardstick.epsilon": rounded_up(trials["epsilon"].max())}


def _audit(configs: Path) -> Numbers:
    audits: Any = audits_of(configs / "audit")
    shipped, naive = (audits[audits["kind"] == kind] for kind in ("shipped", "naive"))
    counts = {
        "audit.shipped": len(shipped),
        "audit.shipped_broken": int(shipped["broken"].sum()),
        "audit.naive": len(naive),
        "audit.naive_broken": int(naive["broken"].sum()),
        "audit.runs": int(audits["runs"].max()),
    }
    return {name: f"{count:,}" for name, count in counts.items()}


CLAIMS: tuple[Callable[[Path], Numbers], ...] = (
    _setups,
    _yardstick,
    _noise_floor,
    _top_k,
    _allocation,
    _scrambling,
    _local_steps,
    _delta_coding,
    _prediction,
    _residuals,
    _cost,
    _training_time,
    _faults,
    _orders,
    _erased,
    law,
    peers,
    _quantiser_noise,
    _audit,
)
