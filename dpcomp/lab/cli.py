"""The command line: demo, run, sweep, study, table, figures, numbers, epsilon, data."""

import argparse
import sys
from pathlib import Path

from dpcomp.core.errors import DpcompError
from dpcomp.lab.config.calls import ConfigError
from dpcomp.lab.sweep.run import TrialFailed, run
from dpcomp.lab.sweep.workers import BACKENDS
from experiments.data.data_sets import DATA_SETS, DataError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it did its work, 1 if something was refused or failed, 2 for words that are off."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ConfigError, DataError, DpcompError, TrialFailed, ValueError) as error:
        print(f"dpcomp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dpcomp: stopped; the same command goes on from what is finished", file=sys.stderr)
        return 130


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
    sweep = commands.add_parser("sweep", help="run all trials of a config with a [grid], or of a folder of configs")
    sweep.add_argument("target", type=Path, metavar="CONFIG_OR_FOLDER")
    sweep.add_argument("--jobs", type=int, default=None, help="trials side by side (default: 1; of a cluster all)")
    sweep.add_argument(
        "--backend",
        choices=sorted(BACKENDS),
        default="loky",
        help="whose processes: this machine's, or a cluster's that $RAY_ADDRESS or $DASK_SCHEDULER_ADDRESS names",
    )
    sweep.set_defaults(command=_sweep)
    study = commands.add_parser("study", help="measure a claim; what is measured is skipped")
    studies = study.add_subparsers(required=True, metavar="NAME")
    scrambling = studies.add_parser("scrambling", help="what noise costs a compressor, on recorded updates")
    scrambling.add_argument("--folder", type=Path, default=Path("experiments/configs/scrambling"))
    scrambling.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    scrambling.add_argument(
        "--tasks", nargs="+", choices=["fashion_mnist", "cifar10"], default=["fashion_mnist", "cifar10"]
    )
    scrambling.set_defaults(command=_scrambling)
    cost = studies.add_parser("cost", help="bytes, CPU seconds and memory of every codec, and where it pays")
    cost.add_argument("--folder", type=Path, default=Path("experiments/configs/cost"))
    cost.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    cost.set_defaults(command=_cost)
    table = commands.add_parser("table", help="the methods of a folder of configs side by side, from their reports")
    table.add_argument("folder", type=Path)
    table.set_defaults(command=_table)
    figures = commands.add_parser("figures", help="draw every figure from the reports that are there; trains nothing")
    figures.add_argument("--configs", type=Path, default=Path("experiments/configs"))
    figures.add_argument("--folder", type=Path, default=Path("docs/figures"), help="where they go")
    figures.set_defaults(command=_figures)
    numbers = commands.add_parser("numbers", help="write the numbers that the paper quotes from the reports")
    numbers.add_argument("--configs", type=Path, default=Path("experiments/configs"))
    numbers.add_argument("--paper", type=Path, default=Path("paper"), help="the folder of paper.tex")
    numbers.set_defaults(command=_numbers)
    epsilon = commands.add_parser("epsilon", help="the guarantee of an experiment, without training")
    epsilon.add_argument("config", type=Path)
    epsilon.set_defaults(command=_epsilon)
    data = commands.add_parser("data", help="obtain and check a data set")
    data.add_argument("name", choices=sorted(DATA_SETS))
    data.add_argument("--root", type=Path, default=None, help="a folder in torchvision's layout to look in first")
    data.set_defaults(command=_data)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from dpcomp.lab.demo import demo

    demo(options.folder, seed=options.seed)
    return 0


def _run(options: argparse.Namespace) -> int:
    from dpcomp.lab.results import report
    from dpcomp.lab.results.frames import summary
    from dpcomp.lab.results.sweep_table import write_figures

    reports = {options.config.stem: [report.read(folder) for folder in run(options.config, jobs=options.jobs)]}
    write_figures(options.config, reports)
    print(summary(reports).to_string(index=False))
    print(reports[options.config.stem][0]["guarantee"]["text"])
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from dpcomp.lab.results.sweep_table import table, write
    from dpcomp.lab.sweep.sweep import sweep, told

    configs = _configs(options.target)
    local = options.backend == "loky"
    jobs = options.jobs if options.jobs is not None else 1 if local else -1
    swept = sweep(configs, backend=options.backend, jobs=jobs)
    for config in configs:
        write([found for found in swept.outcomes if found.point.config == config])
    found = table(swept.outcomes).drop(columns="folder")
    if len(configs) > 1:
        names = [outcome.point.config.relative_to(options.target).with_suffix("") for outcome in swept.outcomes]
        found.insert(0, "config", names)
    print(found.to_string(index=False, float_format="{:.2f}".format, na_rep=""))
    if swept.failures:
        print(f"dpcomp: {told(swept.failures)}", file=sys.stderr)
    return 1 if swept.failures else 0


def _configs(target: Path) -> list[Path]:
    """The configs below a folder, or the one that is named."""
    if not target.is_dir():
        return [target]
    configs = sorted(target.rglob("*.toml"))
    if not configs:
        raise ConfigError(f"{target} holds no config, *.toml")
    return configs


def _scrambling(options: argparse.Namespace) -> int:
    from analysis.tables.noise_losses import told
    from experiments.studies.noise_study import study
    from experiments.studies.reports_of_study import reports_of

    study(options.folder, tuple(options.seeds), tuple(options.tasks))
    found = told(reports_of(options.folder, "scrambling"))
    print(found.to_string(index=False, float_format="{:.1f}".format, na_rep=""))
    return 0


def _cost(options: argparse.Namespace) -> int:
    from analysis.cost.break_even import cost_summary
    from experiments.studies.cost_study import study
    from experiments.studies.reports_of_study import reports_of

    study(options.folder, tuple(options.seeds))
    print(cost_summary(reports_of(options.folder, "cost")).to_string(index=False, float_format="{:.4g}".format))
    return 0


def _table(options: argparse.Namespace) -> int:
    from dpcomp.lab.results.comparison import compare

    print(compare(options.folder).to_string(index=False, float_format="{:.2f}".format))
    return 0


def _figures(options: argparse.Namespace) -> int:
    from experiments.publish.figures import draw_all

    for path in draw_all(options.configs, options.folder):
        print(path)
    return 0


def _numbers(options: argparse.Namespace) -> int:
    from experiments.publish.paper import write_numbers

    print(write_numbers(options.configs, options.paper))
    return 0


def _epsilon(options: argparse.Namespace) -> int:
    from dpcomp.lab.config.grid import points

    for point in points(options.config):
        if point.labels:
            print(f"{point.title}:")
        experiment = point.experiment
        pipeline = experiment.make_pipeline()
        print(pipeline)
        units = experiment.federation["clients"] if experiment.unit == "client" else experiment.make_task().population
        print(pipeline.guarantee(experiment.steps, experiment.delta, population=units))
    return 0


def _data(options: argparse.Namespace) -> int:
    data_set = DATA_SETS[options.name](options.root)
    print(f"{data_set.name}: {len(data_set.train):,} training and {len(data_set.test):,} test images, digest checked")
    return 0
