"""The numbers that a text may quote of the benchmark of federated learning, by name, from its results."""

from pathlib import Path

from analysis.tables.latex_numbers import Numbers, slug
from dpcomp.lab.federated_benchmark.methods import METHODS, REFERENCE
from dpcomp.lab.federated_benchmark.outcome import outcomes_of
from dpcomp.lab.federated_benchmark.setting import SETTINGS
from dpcomp.lab.federated_benchmark.table import frame_of, ratios
from dpcomp.lab.results.results_file import results_of


def peers(configs: Path) -> Numbers:
    """`peers.<task>.<method>.<what>`: each method beside dense float32, in the same federation at the same ε.

    Args:
        configs: The folder of the configs; the benchmark's results lie where those of configs named as its tasks would.

    Raises:
        ConfigError: A trial is missing.
    """
    found: Numbers = {}
    for setting in SETTINGS:
        reports = results_of(configs / "federated_benchmark" / setting.task).read()
        name = f"peers.{setting.task}"
        found |= {
            f"{name}.epsilon": f"{setting.epsilon:g}",
            f"{name}.clients": str(setting.clients),
            f"{name}.rounds": str(setting.rounds),
            f"{name}.seeds": str(len(setting.seeds)),
        }
        for row in frame_of(outcomes_of(reports, METHODS, setting), REFERENCE.name).to_dict("records"):
            up, both = ratios(row)
            of_method = f"{name}.{slug(row['method'])}"
            found |= {
                f"{of_method}.accuracy": rf"{row['accuracy']:.1f}\,({row['deviation']:.1f})",
                f"{of_method}.ratio": f"{up:,.0f}".replace(",", "{,}") if up >= 10 else f"{up:.1f}",
                f"{of_method}.total": f"{both:,.0f}".replace(",", "{,}") if both >= 10 else f"{both:.1f}",
                f"{of_method}.tuning": f"{row['rate']:g}",
            }
            if row["method"] != REFERENCE.name:
                difference = round(row["difference"], 1) + 0.0  # not −0.0
                found[f"{of_method}.difference"] = rf"{difference:.1f} \pm {row['half_width']:.1f}"
    return found
