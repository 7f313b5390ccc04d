"""The command line of this project's research: all commands of dpcomp with the project's tasks, and those of the paper.

python -m experiments --help
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpcomp.lab.cli import Commands, make_parser, run_command

if TYPE_CHECKING:
    from dpcomp.lab.tasks.classification import Classification

CONFIGS = Path("experiments/configs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Those of the command line; None for the process's own.

    Returns:
        The exit status, as `dpcomp.lab.cli.main`'s.
    """
    parser, commands = make_parser("python -m experiments", _tasks)
    _add_studies(commands)
    figures = commands.add_parser(
        "paper-figures", help="draw every figure of the paper from the results; trains nothing"
    )
    figures.add_argument("--configs", type=Path, default=CONFIGS, help=f"the configs (default: {CONFIGS})")
    figures.add_argument("--folder", type=Path, default=Path("docs/figures"), help="where they go (docs/figures)")
    figures.set_defaults(command=_figures)
    numbers = commands.add_parser("numbers", help="write the numbers that the paper quotes from the results")
    numbers.add_argument("--configs", type=Path, default=CONFIGS, help=f"the configs (default: {CONFIGS})")
    numbers.add_argument("--paper", type=Path, default=Path("paper"), help="the folder of paper.tex (default: paper)")
    numbers.set_defaults(command=_numbers)
    data = commands.add_parser("data", help="obtain and check a data set")
    data.add_argument("name", metavar="DATA_SET")
    data.add_argument("--root", type=Path, default=None, help="a folder in torchvision's layout to look in first")
    data.set_defaults(command=_data)
    return run_command(parser, arguments)


def _add_studies(commands: Commands) -> None:
    study = commands.add_parser("study", help="measure a claim; what is measured already is skipped")
    studies = study.add_subparsers(required=True, metavar="STUDY")
    scrambling = studies.add_parser("scrambling", help="what noise costs a compressor, on recorded updates")
    scrambling.add_argument(
        "--tasks", nargs="+", default=["fashion_mnist", "cifar10"], help="of the updates (default: both)"
    )
    scrambling.set_defaults(command=_scrambling)
    cost = studies.add_parser("cost", help="bytes, CPU seconds and memory of every codec, and where it pays")
    cost.set_defaults(command=_cost)
    audits = studies.add_parser("audit", help="what shipped and naive mechanisms show, against the ε that they claim")
    audits.add_argument("--configs", type=Path, default=CONFIGS, help="results go where those of audit.toml here would")
    audits.set_defaults(command=_audits)
    for parser, name in ((scrambling, "scrambling"), (cost, "cost")):
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one case each (default: 0 1 2)")
        parser.add_argument(
            "--configs", type=Path, default=CONFIGS, help=f"results go where those of a config {name}.toml here would"
        )


def _tasks() -> "Mapping[str, Callable[[], Classification]]":
    from experiments.data.tasks import TASKS

    return TASKS


def _scrambling(options: argparse.Namespace) -> int:
    from analysis.tables.noise_losses import claim_table
    from analysis.tables.studies import study_reports
    from dpcomp.core.calls import check_keys
    from dpcomp.lab.results.results_file import results_of
    from experiments.studies import noise_study

    check_keys(options.tasks, [chosen.task for chosen in noise_study.STUDIES], "--tasks")
    source = options.configs / "scrambling"
    noise_study.study(results_of(source).path, tuple(options.seeds), tuple(options.tasks), _tasks())
    table = claim_table(study_reports(source))
    print(table.to_string(index=False, float_format="{:.1f}".format, na_rep=""))
    return 0


def _cost(options: argparse.Namespace) -> int:
    from analysis.cost.break_even import cost_summary
    from analysis.tables.studies import study_reports
    from dpcomp.lab.results.results_file import results_of
    from experiments.studies import cost_study

    source = options.configs / "cost"
    cost_study.study(results_of(source).path, tuple(options.seeds), _tasks())
    print(cost_summary(study_reports(source)).to_string(index=False, float_format="{:.4g}".format))
    return 0


def _audits(options: argparse.Namespace) -> int:
    from analysis.tables.studies import audits_of
    from dpcomp.lab.results.results_file import results_of
    from experiments.studies.audit import study

    source = options.configs / "audit"
    study.study(results_of(source).path)
    columns = ["kind", "case", "claimed_epsilon", "shown_epsilon", "broken"]
    print(audits_of(source)[columns].round(2).to_string(index=False))
    return 0


def _figures(options: argparse.Namespace) -> int:
    from experiments.publish.figures import draw_all

    for path in draw_all(options.configs, options.folder):
        print(path)
    return 0


def _numbers(options: argparse.Namespace) -> int:
    from experiments.publish.paper import write_numbers

    print(write_numbers(options.configs, options.paper, _tasks()))
    return 0


def _data(options: argparse.Namespace) -> int:
    from dpcomp.core.calls import check_known
    from experiments.data.tasks import DATA_SETS

    check_known(options.name, DATA_SETS, "data")
    data_set = DATA_SETS[options.name](options.root)
    print(f"{data_set.name}: {len(data_set.train):,} training and {len(data_set.test):,} test images, digest checked")
    return 0
