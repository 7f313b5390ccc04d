"""The command line: demo, run, table, epsilon, data."""

import argparse
import sys
from pathlib import Path

from dpcomp.errors import DpcompError
from experiments.config import ConfigError, load
from experiments.data import DATA_SETS, DataError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it did its work, 1 if something was refused, 2 for words that are off."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ConfigError, DataError, DpcompError, ValueError) as error:
        print(f"dpcomp: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpcomp", description="Compressed federated learning under differential privacy."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="four pipelines on real digits, a table and figures, in two minutes")
    demo.add_argument("--folder", type=Path, default=Path("demo"), help="where reports and figures go (default: demo)")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(command=_demo)
    run = commands.add_parser("run", help="run an experiment; reports and figures go beside its TOML file")
    run.add_argument("config", type=Path)
    run.add_argument("--jobs", type=int, default=1, help="trials side by side, each on one thread (default: 1)")
    run.set_defaults(command=_run)
    table = commands.add_parser("table", help="the methods of a folder of configs side by side, from their reports")
    table.add_argument("folder", type=Path)
    table.set_defaults(command=_table)
    epsilon = commands.add_parser("epsilon", help="the guarantee of an experiment, without training")
    epsilon.add_argument("config", type=Path)
    epsilon.set_defaults(command=_epsilon)
    data = commands.add_parser("data", help="obtain and check a data set")
    data.add_argument("name", choices=sorted(DATA_SETS))
    data.add_argument("--root", type=Path, default=None, help="a folder in torchvision's layout to look in first")
    data.set_defaults(command=_data)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from experiments.demo import demo

    demo(options.folder, seed=options.seed)
    return 0


def _run(options: argparse.Namespace) -> int:
    from analysis.figures import scrambling, training
    from analysis.results import curves, summary
    from experiments import report
    from experiments.run import run

    folders = run(options.config, jobs=options.jobs)
    name = options.config.stem
    reports = {name: [report.read(folder) for folder in folders]}
    home, table = options.config.with_suffix(""), curves(reports)
    training.draw(table).savefig(home / "training.png")
    if "top_k_overlap" in table:
        fraction = _probed_fraction(reports[name][0])
        scrambling.draw(table, fraction).savefig(home / "scrambling.png")
    print(summary(reports).to_string(index=False))
    print(reports[name][0]["guarantee"]["text"])
    return 0


def _table(options: argparse.Namespace) -> int:
    from analysis.comparison import compare

    print(compare(options.folder).to_string(index=False, float_format="{:.2f}".format))
    return 0


def _probed_fraction(facts: dict) -> float:
    probes = facts["config"]["federation"]["probes"]
    return next(probe["TopKOverlap"]["fraction"] for probe in probes if "TopKOverlap" in probe)


def _epsilon(options: argparse.Namespace) -> int:
    experiment = load(options.config)
    pipeline = experiment.make_pipeline()
    print(pipeline)
    units = experiment.federation["clients"] if experiment.unit == "client" else experiment.make_task().population
    print(pipeline.guarantee(experiment.steps, experiment.delta, population=units))
    return 0


def _data(options: argparse.Namespace) -> int:
    data_set = DATA_SETS[options.name](options.root)
    print(f"{data_set.name}: {len(data_set.train):,} training and {len(data_set.test):,} test images, digest checked")
    return 0
