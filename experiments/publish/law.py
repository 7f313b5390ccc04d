"""The numbers that a text may quote of the law of the noise floor, by name, from results."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.tables.latex_numbers import Numbers, of_table, plain, slug
from analysis.tables.noise_floor import (
    SETTINGS,
    codes_of,
    excess_of,
    floor_of,
    looser_floor_of,
    ratios_of,
    resampled_fits,
    resampled_lines,
    signal_half,
)
from analysis.tables.trials import rounds_of, trials_of
from analysis.theory.noise_floor import ROTATED, added_error, fewest_bits, least_error
from dpcomp.lab.sweep.plan import outcomes
from dpcomp.wire.short_header import SHORT_HEADER_BYTES

LATE = 0.75  # the share of the rounds after which models are averaged in the runs of the law
DRAWS = 1000  # of seeds, for intervals


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
    for name, other in (("skewed", SETTINGS["skewed labels"]), ("cifar10", SETTINGS["CIFAR-10"])):
        apart: Any = floor_of(folder, other)
        found |= of_table(f"law.{name}", apart, ["method"], shown)
        found |= {
            f"law.{name}.excess.{slug(method)}": rf"{mean:.1f} \pm {half:.1f}"
            for method, (mean, half) in excess_of(folder, apart, other).items()
        }
        of_other = ratios_of(folder, other)
        found |= {f"law.{name}.signal": f"{of_other.signal:.3f}", f"law.{name}.draw": f"{of_other.draw:.3f}"}
    looser: Any = looser_floor_of(folder)
    found |= of_table("law.eps_8", looser, ["method"], shown)
    for row in looser.to_dict("records"):
        found[f"law.eps_8.excess.{slug(str(row['method']))}"] = rf"{row['excess']:.1f} \pm {row['half']:.1f}"
    fits = resampled_fits(folder, LATE, DRAWS)
    forms = {"explained": fits.whole_run, "explained_late": fits.late, "explained_no_draws": fits.no_draws}
    forms |= {
        f"{name}_less": np.subtract(fits.whole_run, forms[name]) for name in ("explained_late", "explained_no_draws")
    }
    for name, values in forms.items():
        low, high = np.percentile(values[1:], [2.5, 97.5])
        found |= {f"law.{name}": f"{values[0]:.2f}", f"law.{name}.range": f"[{round(low, 1) + 0.0:.1f},{high:.1f}]"}
    half, clients = signal_half(folder), setting["clients"]
    common = codes_of(folder / "fashion_mnist.toml")["shared 6 %, 2 bits"]._asdict()
    for name, moved in (("least", -half), ("most", half)):  # the draws move against the signal
        found[f"law.shared_6_2_bits.error.{name}"] = "{:.2f}".format(
            added_error(
                **common,
                clients=clients,
                signal_to_noise=ratios.signal + moved,
                draw_to_noise=ratios.draw - moved / clients,
            )
        )
    furthest_constant = (codes["difference"] - codes["difference"].mean()).abs().max()
    return found | {
        "law.two_bits": f"{ROTATED[2]:.3f}",
        "law.furthest": f"{math.ceil(10 * fits.furthest[0]) / 10:.1f}",
        "law.furthest_constant": f"{math.ceil(10 * furthest_constant) / 10:.1f}",
        "law.furthest_most": f"{np.percentile(fits.furthest[1:], 97.5):.1f}",
        "law.lost_least": f"{-codes['difference'].max():.1f}",
        "law.lost_most": f"{-codes['difference'].min():.1f}",
        "law.signal": rf"{ratios.signal:.3f} \pm {half:.3f}",
        "law.draw": rf"{ratios.draw:.4f} \mp {half / clients:.4f}",
        "law.least": f"{least:.2f}",
        "law.least_lost": f"{np.interp(least, by_error['error'], by_error['difference']):.1f}",
        "law.point": f"{point:.2f}",
        "law.fewest_bytes": f"{fewest:.0f}",
        "law.fewest_bytes_least": f"{fewest_least:.0f}",
        "law.fewest_bytes_most": f"{fewest_most:.0f}",
        "law.fewest_ratio": f"{4 * setting['coordinates'] / fewest:,.0f}".replace(",", "{,}"),
    }
