"""The numbers that a text may quote of the law of the noise floor, by name, from results."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.tables.latex_numbers import Numbers, of_table, plain, slug
from analysis.tables.noise_floor import SETTINGS, codes_of, excess_of, explained, floor_of, ratios_of, resampled_lines
from analysis.tables.trials import rounds_of, trials_of
from analysis.theory.noise_floor import ROTATED, added_error, fewest_bits, least_error
from dpcomp.lab.results.results_file import Report
from dpcomp.lab.sweep.plan import outcomes
from dpcomp.wire.short_header import SHORT_HEADER_BYTES

LATE = 0.75  # the share of the rounds after which models are averaged in the runs of the law
DRAWS = 200  # of seeds, for the interval of the fewest bytes


def law(configs: Path) -> Numbers:
    """`law.<method>.<column>`: what the error of a code beside the noise foretells; `law.<what>`: what follows."""
    folder = configs / "erased"
    table: Any = floor_of(folder)
    found = {
        f"law.excess.{slug(name)}": rf"{mean:.1f} \pm {half:.1f}"
        for name, (mean, half) in excess_of(folder, table).items()
    }
    shown = {"error": plain("error", 2), "lost": plain("difference"), "foretold": plain("foretold")}
    found |= of_table("law", table, ["method"], shown)
    trials = trials_of(folder / "fashion_mnist.toml")
    of_noise: Any = rounds_of(folder / "noise_floor.toml")
    ratios = ratios_of(folder)
    setting = {
        "coordinates": outcomes(folder / "fashion_mnist.toml")[0].reports[0]["coordinates"],
        "clients": int(of_noise["participants"].max()),
        "signal_to_noise": ratios.signal,
        "draw_to_noise": ratios.draw,
    }
    own = trials.loc[trials["grid.method"] == "own 1 %", "payload_bytes"].mean()
    least = least_error(message_bits=8 * (own - SHORT_HEADER_BYTES), **setting)

    def error_of_a_point(errors: Sequence[float], lost: Sequence[float]) -> float:
        falling = np.minimum.accumulate(lost)[::-1]  # a draw of few seeds may have a line that rises somewhere
        return float(np.interp(-1.0, falling, errors[::-1]))

    def fewest_bytes(error: float) -> float:
        return fewest_bits(error=error, **setting) / 8 + SHORT_HEADER_BYTES

    by_error = table[table["dense"]].sort_values("error")
    codes = table[~table["dense"] & table["foretold"].notna()]
    point = error_of_a_point(list(by_error["error"]), list(by_error["difference"]))
    fewest = fewest_bytes(point)
    drawn = [fewest_bytes(error_of_a_point(*each)) for each in resampled_lines(folder, DRAWS)]
    fewest_least, fewest_most = np.percentile(drawn, [2.5, 97.5])
    skewed = SETTINGS["skewed labels"]
    apart: Any = floor_of(folder, skewed)
    found |= of_table("law.skewed", apart, ["method"], shown)
    found |= {
        f"law.skewed.excess.{slug(name)}": rf"{mean:.1f} \pm {half:.1f}"
        for name, (mean, half) in excess_of(folder, apart, skewed).items()
    }
    looser, tighter = (
        outcomes(folder / f"{name}.toml")[0].reports[0] for name in ("fashion_mnist_epsilon_8", "fashion_mnist")
    )
    louder = (noise_multiplier(tighter) / noise_multiplier(looser)) ** 2
    for method, code in codes_of(folder / "fashion_mnist_epsilon_8.toml").items():
        error = added_error(
            **code._asdict(),
            clients=setting["clients"],
            signal_to_noise=louder * ratios.signal,
            draw_to_noise=louder * ratios.draw,
        )
        foretold = np.interp(error, by_error["error"], by_error["difference"])
        found |= {
            f"law.eps_8.{slug(method)}.foretold": f"{foretold:.1f}",
            f"law.eps_8.{slug(method)}.error": f"{error:.2f}",
        }
    return found | {
        "law.skewed.draw": f"{ratios_of(folder, skewed).draw:.3f}",
        "law.two_bits": f"{ROTATED[2]:.3f}",
        "law.furthest": f"{math.ceil(10 * (table['difference'] - table['foretold']).abs().max()) / 10:.1f}",
        "law.lost_least": f"{-codes['difference'].max():.1f}",
        "law.lost_most": f"{-codes['difference'].min():.1f}",
        "law.explained": f"{explained(table):.2f}",
        "law.explained_late": f"{explained(floor_of(folder, after=LATE)):.2f}",
        "law.signal": f"{ratios.signal:.3f}",
        "law.draw": f"{ratios.draw:.4f}",
        "law.least": f"{least:.2f}",
        "law.least_lost": f"{np.interp(least, by_error['error'], by_error['difference']):.1f}",
        "law.point": f"{point:.2f}",
        "law.fewest_bytes": f"{fewest:.0f}",
        "law.fewest_bytes_least": f"{fewest_least:.0f}",
        "law.fewest_bytes_most": f"{fewest_most:.0f}",
        "law.fewest_ratio": f"{4 * setting['coordinates'] / fewest:,.0f}".replace(",", "{,}"),
    }


def noise_multiplier(report: Report) -> float:
    """Return the noise multiplier of the pipeline in a report; 0 if it adds no noise."""
    mechanism = report["pipeline"]["Pipeline"]["mechanism"]
    stages = mechanism["Unsafe"]["stages"] if isinstance(mechanism, dict) else mechanism
    noisy = (stage["Gaussian"]["noise_multiplier"] for stage in stages if "Gaussian" in stage)
    return next(noisy, 0.0)
