"""What noise takes from a compressor's efficiency, measured on the reports of the scrambling study, and foretold.

Losses are in percent of the compression ratio without noise; differences of two losses are points.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.measures.efficiency import bytes_at_energy
from analysis.theory.index_bits import temporal_index_bits

CASE = ("task", "batch", "phase", "seed")
SETTING = ("order", "trust", "link", "feedback", "density", "bits")
CODERS = {
    "neither": ("support_entropy_bits",),
    "layers": ("support_entropy_bits_by_layer",),
    "memory": ("support_entropy_bits", "conditional_entropy_bits"),
    "both": ("support_entropy_bits_by_layer", "conditional_entropy_bits_by_layer"),
}
"""What an ideal coder of supports may use, and the bits that it then takes: the least of these columns."""


def table_of(reports: Iterable[Mapping[str, Any]], name: str) -> pd.DataFrame:
    """Join a table of all reports ("payloads", "supports" or "energies"), with columns for the case of each row."""
    frames = []
    for report in reports:
        config = report["config"]
        case = {"task": config["task"], "batch": config["batch"], "phase": config["phase"], "seed": report["seed"]}
        frames.append(pd.DataFrame(report[name]).assign(**case, coordinates=report["coordinates"]))
    if not frames:
        raise ValueError(f"there is no report with a table of {name}: run python -m experiments study scrambling first")
    return pd.concat(frames, ignore_index=True)


def at_equal_density(payloads: pd.DataFrame, supports: pd.DataFrame) -> pd.DataFrame:
    """Compute the loss at equal density of each row of `payloads`: measured, by its parts, and as theory predicts it.

    This is efficiency (a) of `analysis.measures.efficiency`.

    The loss is the sum of `loss_of_index` and `loss_of_values` (header, side information and rounding among these).
    With b₀ the bits a kept value that are not the index's, and i those of the index, 0 without noise and z with it,
    the foretold losses are 1 − (b₀ + i₀)/(b₀ + i_z), of the same b: noise is thought to change the index alone.

    random: i₀ by the closed form h(r) from the overlap r that was sent, i_z = h(κ) of a pattern that has become random.
    closed_form: both h(r), with r of consecutive noisy top-k's as expected of the clean vectors (`moving_top_k`).
    by_layer: both as expected of the clean vectors where each layer's counts may be told (`Keeping.index_bits`).
    with_values: `by_layer`, but for b, which is that of the payload with the noise.
    of_sent: both h(r), with r as it was sent.
    of_sent_by_layer: both the least information of what was sent, given the support before or not, in all or layer by
        layer; and b that of the payload. Only these two hold with error feedback, where those from
        clean vectors are NaN: what is sent is then not the update alone.

    coder_...: what the loss would be if an ideal coder of CODERS had coded the supports that were sent, and the rest of
        the payload were as it was: measured, not foretold.

    A support that both ends know takes no index bits, whose losses are foretold to be 0; so are those of an uplink
    that no noise reaches.
    """
    rows: Any = payloads.merge(supports, on=[*CASE, "coordinates", "density", "noise_multiplier"])
    keys = [*CASE, *SETTING]
    noise_arrives = (rows["trust"] == "nobody") | (rows["link"] == "downlink")
    listed, alone = rows["order"] == "noise first", rows["feedback"] == 0
    rows["density_kept"] = rows["kept"] / rows["coordinates"]
    rows["other_bits"] = (8 * rows["payload_bytes"] - rows["index_bits"]) / rows["kept"]
    rows["closed_form_bits"] = _index_bits(rows, rows["expected_overlap"]).where(alone)
    rows["by_layer_bits"] = rows["expected_index_bits"].where(listed, 0.0).where(alone)
    entropies = ["support_entropy_bits", "conditional_entropy_bits"]
    least = rows[[*entropies, *(f"{name}_by_layer" for name in entropies)]].min(axis=1)
    rows["of_sent_by_layer_bits"] = least / rows["kept"]
    rows["of_sent_bits"] = _index_bits(rows, rows["sent_overlap"])
    before = rows[rows["noise_multiplier"] == 0].set_index(keys).loc[pd.MultiIndex.from_frame(rows[keys])]
    before = before.reset_index(drop=True).set_axis(rows.index)
    for name in ("closed_form_bits", "by_layer_bits"):
        rows[name] = rows[name].where(noise_arrives, before[name])
    for coder, columns in CODERS.items():
        without, with_noise = (of["other_bits"] + of[list(columns)].min(axis=1) / of["kept"] for of in (before, rows))
        rows[f"coder_{coder}"] = 100 * (1 - without / with_noise)

    rows["loss"] = 100 * (1 - before["payload_bytes"] / rows["payload_bytes"])
    rows["loss_of_index"] = 100 * (rows["index_bits"] - before["index_bits"]) / (8 * rows["payload_bytes"])
    rows["loss_of_values"] = rows["loss"] - rows["loss_of_index"]
    rows["random_bits"] = _index_bits(rows, rows["density_kept"]).where(noise_arrives, before["of_sent_bits"])
    for name, index_before, other, index in (
        ("random", "of_sent", before, "random"),
        ("closed_form", "closed_form", before, "closed_form"),
        ("by_layer", "by_layer", before, "by_layer"),
        ("with_values", "by_layer", rows, "by_layer"),
        ("of_sent", "of_sent", before, "of_sent"),
        ("of_sent_by_layer", "of_sent_by_layer", rows, "of_sent_by_layer"),
    ):
        without = before["other_bits"] + before[f"{index_before}_bits"]
        rows[name] = 100 * (1 - without / (other["other_bits"] + rows[f"{index}_bits"]))
    return rows


def _index_bits(rows: pd.DataFrame, overlaps: Iterable[float]) -> pd.Series:
    """h(r) of listed supports, 0 of others."""
    bits = [
        temporal_index_bits(density=density, overlap=overlap) if order == "noise first" else 0.0
        for order, density, overlap in zip(rows["order"], rows["density_kept"], overlaps, strict=True)
    ]
    return pd.Series(bits, index=rows.index)


def at_equal_energy(energies: pd.DataFrame) -> pd.DataFrame:
    """Compute the loss at equal captured energy of each row of `energies`, in a column `loss`.

    This is efficiency (b) of `analysis.measures.efficiency`: it compares the bytes that capture the same share of the
    clean update's energy.
    """
    keys = [*CASE, "order", "energy_share"]
    rows: Any = energies
    still = rows[rows["noise_multiplier"] == 0].set_index(keys)["payload_bytes"]
    reference = still.loc[pd.MultiIndex.from_frame(rows[keys])].to_numpy()
    return energies.assign(loss=100 * (1 - reference / energies["payload_bytes"]))


def crossing(energies: pd.DataFrame) -> float:
    """Compute the noise multiplier above which a random support takes fewer bytes than top-k for the same energy.

    `energies` holds the rows of one case and one share of energy.

    Between the noises that were measured, log bytes are interpolated by the logarithm of the noise. 0: already below
    the least noise that there is; infinite: at none.
    """
    rows: Any = energies
    means = rows.groupby(["noise_multiplier", "order"])["payload_bytes"].mean().unstack("order").sort_index()
    excess = np.log(means["noise first"] / means["support first"]).to_numpy()
    noises, above = means.index.to_numpy(), np.flatnonzero(excess > 0)
    if not len(above):
        return math.inf
    after = int(above[0])
    if after == 0 or noises[after - 1] == 0:
        return 0.0
    return float(np.exp(np.interp(0.0, excess[after - 1 : after + 1], np.log(noises[after - 1 : after + 1]))))


def energy_with_feedback(payloads: pd.DataFrame, share: float) -> pd.DataFrame:
    """Compute efficiency (b) of payloads that were sent: one row for each case, order and noise of the noisy uplink.

    The bytes at the share are interpolated between densities.

    NaN where no density that was measured captures the share: with feedback what is sent rotates through the
    coordinates, and holds little of the update of its own round.
    """
    keys = [*CASE, "order", "feedback", "noise_multiplier"]
    sent: Any = payloads[(payloads["trust"] == "nobody") & (payloads["bits"] == payloads["bits"].min())]
    rows: list[dict[str, Any]] = [
        dict(zip(keys, key, strict=True))  # pyright: ignore[reportArgumentType]  # as many as were grouped by
        | {"payload_bytes": bytes_at_energy(group["payload_bytes"].tolist(), group["captured_energy"].tolist(), share)}
        for key, group in sent.groupby(keys)
    ]
    return pd.DataFrame(rows).assign(energy_share=share)


def spread(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Compute the mean of each column over phases and seeds, and `..._deviation`, over seeds within a phase."""
    rows: Any = table
    phases = rows.groupby([*by, "phase"])[list(columns)]
    means, variances = (found.groupby(list(by)).mean() for found in (phases.mean(), phases.var()))
    return means.join((variances**0.5).add_suffix("_deviation"))


def claim_table(reports: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the claim in numbers: losses at the most noise, by both definitions, with predictions of the first."""
    density: Any = at_equal_density(table_of(reports, "payloads"), table_of(reports, "supports"))
    energy: Any = at_equal_energy(table_of(reports, "energies"))
    density["feedback"] = density["feedback"].map({0: "off", 1: "on"})
    density["bits"] = density["bits"].astype(str)
    density["held_equal"] = density["density"].map("top {:.1%}".format)
    energy["held_equal"] = energy["energy_share"].map("energy {:.0%}".format)
    most = density["noise_multiplier"].max()
    case = ["task", "batch", "held_equal", "order"]
    a = spread(
        density[density["noise_multiplier"] == most],
        [*case, "bits", "trust", "link", "feedback"],
        ["loss", "random", "closed_form", "by_layer", "with_values", "of_sent_by_layer"],
    )
    b = spread(energy[energy["noise_multiplier"] == most], case, ["loss", "payload_bytes"])
    rows = pd.concat([a.reset_index(), b.reset_index()], ignore_index=True)
    deviations = [name for name in rows if name.endswith("_deviation") and name != "loss_deviation"]
    return rows.drop(columns=deviations)
