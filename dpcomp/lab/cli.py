"""The command line: demo, run, sweep, table, figures, epsilon, ledger, federation, audit, benchmark.

It imports what a command needs when the command runs, so that `--help` is there at once.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpcomp.core.errors import ConfigError, DpcompError
from dpcomp.core.extras import require

if TYPE_CHECKING:
    from dpcomp.simulation import Task

HTTP = ("httpx", "starlette", "uvicorn")
LAB = ("torch", "opacus", "filelock", "joblib", "matplotlib", "pandas", "rich", "sklearn", "seaborn")

LoadTasks = Callable[[], "Mapping[str, Callable[[], Task]]"]
Commands = argparse._SubParsersAction


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of `dpcomp`.

    Args:
        arguments: The arguments after the program's name; None for those of this process.

    Returns:
        0 if the command did its work, 1 if something was refused or failed, or an audit contradicted a claim, 130 if it
        was interrupted, 143 if it was asked to end (SIGTERM). What argparse refuses exits with 2.
    """
    parser, _ = make_parser("dpcomp", _shipped_tasks)
    return run_command(parser, arguments)


def make_parser(program: str, load_tasks: LoadTasks) -> tuple[argparse.ArgumentParser, Commands]:
    """Return a parser with all commands of `dpcomp`, and argparse's group of commands, to which a program adds its own.

    To add a command, call `commands.add_parser(name)`, and on what it returns `set_defaults(command=run)`, where
    `run` takes the parsed options (an `argparse.Namespace`) and returns the exit status.

    Args:
        program: The program's name in usage lines and errors, such as "dpcomp".
        load_tasks: A function that returns the tasks that configs may name: from each name to a function that makes
            the task, whose arguments, if it has any, have defaults. These functions must be at the top level of
            modules, because worker processes import them. It is called when a command needs tasks.

    Returns:
        The parser, for `run_command`, and the group of its commands.
    """
    parser = argparse.ArgumentParser(
        prog=program, description="Compressed federated learning under differential privacy."
    )
    parser.add_argument("--version", action=_Version, help="show the version of dpcomp and exit")
    parser.set_defaults(load_tasks=load_tasks, extra="lab", packages=LAB)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="train four pipelines on real digits: a table and figures, in two minutes")
    demo.add_argument("--folder", type=Path, default=Path("demo"), help="where the figures go (default: demo)")
    demo.add_argument(
        "--results", type=Path, default=None, metavar="FILE", help="where the results go (default: FOLDER/demo.jsonl)"
    )
    demo.add_argument("--seed", type=int, default=0, help="of every training (default: 0)")
    demo.set_defaults(command=_demo)
    run = commands.add_parser("run", help="run the one experiment of a config; print a row a trial")
    run.add_argument("config", type=Path, metavar="CONFIG")
    run.add_argument(
        "--jobs", type=int, default=1, help="how many trials run at a time, each on one thread (default: 1)"
    )
    run.set_defaults(command=_run)
    sweep = commands.add_parser("sweep", help="run all trials of a config with a [grid], or of a folder of configs")
    sweep.add_argument("target", type=Path, metavar="CONFIG_OR_FOLDER")
    sweep.add_argument(
        "--jobs", type=int, default=None, help="how many trials run at a time (default: 1; on a cluster all)"
    )
    sweep.add_argument(
        "--backend",
        default="loky",
        help="whose processes run the trials: loky, this machine's (the default); ray or dask, a cluster's, which "
        "$RAY_ADDRESS or $DASK_SCHEDULER_ADDRESS names",
    )
    sweep.set_defaults(command=_sweep)
    table = commands.add_parser("table", help="compare the methods of a config or a folder of configs; nothing is run")
    table.add_argument("target", type=Path, metavar="CONFIG_OR_FOLDER")
    table.set_defaults(command=_table)
    _add_figures(commands)
    epsilon = commands.add_parser("epsilon", help="print the guarantee of each experiment of a config; nothing is run")
    epsilon.add_argument("config", type=Path, metavar="CONFIG")
    epsilon.add_argument(
        "--no-imports", action="store_true", help="refuse a config with `imports`, whose files are run to read it"
    )
    epsilon.set_defaults(command=_epsilon)
    _add_ledger(commands)
    _add_federation(commands)
    audit = commands.add_parser(
        "audit", help="run a pipeline with and without a canary: the claimed ε, and a lower bound of it"
    )
    audit.add_argument("pipeline", type=Path, metavar="PIPELINE", help="a TOML file, as Pipeline.to_toml() writes it")
    audit.add_argument(
        "--trials", type=int, default=2000, help="runs that are counted, with the canary and without (default: 2000)"
    )
    audit.add_argument("--delta", type=float, default=1e-5, help="δ of both ε (default: 1e-5)")
    audit.add_argument("--rounds", type=int, default=1, help="of a run, over which state is kept (default: 1)")
    audit.add_argument("--coordinates", type=int, default=32, help="of the gradients (default: 32)")
    audit.add_argument(
        "--error", type=float, default=1e-5, help="the largest probability of a false alarm (default: 1e-5)"
    )
    audit.add_argument("--seed", type=int, default=0, help="the public seed, of masks and canary (default: 0)")
    audit.set_defaults(command=_audit)
    _add_benchmarks(commands)
    return parser, commands


def _add_figures(commands: Commands) -> None:
    figures = commands.add_parser(
        "figures", help="draw results as PNG, PDF and SVG: curves, accuracy against bytes, Pareto front, overlap"
    )
    figures.add_argument(
        "target", type=Path, metavar="TARGET", help="a config, a results file, or a folder of configs or of results"
    )
    figures.add_argument("--x", metavar="COLUMN", help="of the horizontal axis (default: round, and bytes)")
    figures.add_argument(
        "--y", metavar="COLUMN", help="of the vertical axis (default: the test metric of the configs, or test_accuracy)"
    )
    figures.add_argument(
        "--by", metavar="COLUMN", default="method", help="a line for each of its values (default: method)"
    )
    figures.add_argument(
        "--style", choices=("paper", "slides", "dark"), default="paper", help="how they look (default: paper)"
    )
    figures.add_argument("--folder", type=Path, default=Path("figures"), help="where they go (default: figures)")
    figures.add_argument(
        "--forms",
        choices=("png", "pdf", "svg"),
        nargs="+",
        default=["png", "pdf", "svg"],
        help="the kinds of files (default: all)",
    )
    figures.set_defaults(command=_figures, packages=("filelock", "matplotlib", "pandas", "seaborn"))


def _add_ledger(commands: Commands) -> None:
    ledger = commands.add_parser(
        "ledger", help="read a ledger, which may be in use: what was charged, ε at any δ, what the budget leaves"
    )
    ledger.add_argument("file", type=Path, metavar="FILE", help="a ledger, as dp.Ledger.create(FILE) makes it")
    ledger.add_argument("--delta", type=float, default=None, help="δ (default: the budget's, or 1e-5)")
    ledger.add_argument(
        "--most", type=int, default=None, metavar="N", help="histories to list, the largest ε first (default: 10)"
    )
    form = ledger.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "--csv",
        choices=("clients", "entries"),
        nargs="?",
        const="clients",
        help="print a CSV row for each client, or for each entry (default: clients; all of them without --most)",
    )
    ledger.add_argument(
        "--what-if", metavar="MECHANISM", help="what further steps would cost, such as 'Gaussian(1.1)'; none is charged"
    )
    ledger.add_argument("--steps", type=int, default=1, help="how many further steps of --what-if (default: 1)")
    ledger.add_argument(
        "--rate", type=float, default=1.0, help="the sampling rate of --what-if (default: 1, no sampling)"
    )
    ledger.add_argument(
        "--client", type=int, default=None, help="whom --what-if charges (default: every client of the ledger)"
    )
    ledger.add_argument("--figure", type=Path, metavar="FILE", help="draw ε over time into a PNG, PDF or SVG file")
    ledger.set_defaults(command=_ledger, packages=())


def _add_federation(commands: Commands) -> None:
    federation = commands.add_parser("federation", help="run a federation, and look after it")
    tasks = federation.add_subparsers(required=True, metavar="TASK")
    serve = tasks.add_parser("serve", help="serve the federation of a folder over HTTP until SIGTERM")
    serve.add_argument("folder", type=Path, metavar="FOLDER", help="federation.toml, the first model and senders.toml")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8765, help="the port (default: 8765)")
    serve.add_argument(
        "--plain-because", default="", metavar="WHY", help="what protects the way to another machine, if not TLS here"
    )
    serve.set_defaults(command=_serve_federation, extra="http", packages=HTTP)
    status = tasks.add_parser(
        "status", help="say where it stands: version, who is current, refusals, bytes, ε; a process may be using it"
    )
    status.add_argument("folder", type=Path, metavar="FOLDER", help="of a server or of a client, or one above several")
    status.add_argument("--delta", type=float, default=None, help="δ (default: that of each ledger's budget, or 1e-5)")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(command=_federation_status, packages=())


def _add_benchmarks(commands: Commands) -> None:
    benchmark = commands.add_parser("benchmark", help="compare methods at one ε: error, bytes, trust")
    benchmarks = benchmark.add_subparsers(required=True, metavar="BENCHMARK")
    mean = benchmarks.add_parser(
        "mean-estimation", help="the mean of vectors of the unit ball: error beside the Gaussian mechanism's, and bytes"
    )
    mean.add_argument("--clients", type=int, default=500, help="n (default: 500)")
    mean.add_argument("--dimensions", type=int, default=1000, help="d, coordinates of a vector (default: 1000)")
    mean.add_argument(
        "--epsilons", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0], help="ε (default: 0.5 1 2 4 8)"
    )
    mean.add_argument("--delta", type=float, default=1e-6, help="δ (default: 1e-6)")
    mean.add_argument("--rounds", type=int, default=6, help="estimates of each method and ε (default: 6)")
    mean.add_argument("--seed", type=int, default=0, help="of vectors and noise (default: 0)")
    mean.add_argument(
        "--folder", type=Path, default=Path("mean_estimation"), help="where the figure goes (mean_estimation)"
    )
    mean.add_argument(
        "--results",
        type=Path,
        default=None,
        metavar="FILE",
        help="where results go and are found again (default: FOLDER/mean_estimation.jsonl)",
    )
    mean.set_defaults(command=_mean_estimation)
    federated = benchmarks.add_parser(
        "federated", help="train one federation by every method, noise at the clients: accuracy, and bytes both ways"
    )
    federated.add_argument(
        "--task", default="digits", help="digits (the default: minutes), or fashion_mnist of python -m experiments"
    )
    federated.add_argument(
        "--methods", nargs="+", default=None, metavar="NAME", help="train these alone (default: every method)"
    )
    federated.add_argument("--quick", action="store_true", help="two rounds, one seed, nothing tuned: a smoke test")
    federated.add_argument("--folder", type=Path, default=Path("federated"), help="where the figure goes (federated)")
    federated.add_argument(
        "--results",
        type=Path,
        default=None,
        metavar="FILE",
        help="where results go and are found again (default: FOLDER/federated_benchmark.jsonl)",
    )
    federated.add_argument(
        "--others",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="results of sweeps, whose trials are taken over where they are the benchmark's",
    )
    federated.set_defaults(command=_federated)


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Run the command that the arguments name; a refusal is one line on standard error.

    Args:
        parser: The parser that `make_parser` returned.
        arguments: The arguments after the program's name; None for those of this process.

    Returns:
        The exit status, as `main`'s.
    """
    options = parser.parse_args(arguments)
    try:
        with _terminated_by_exception():
            require(options.extra, *options.packages)
            return options.command(options)
    except (DpcompError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails when it ends
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; the same command goes on from what is finished", file=sys.stderr)
        return 130
    except _Terminated:
        print(f"{parser.prog}: ended by SIGTERM; the same command goes on from what is finished", file=sys.stderr)
        return 143


class _Terminated(BaseException):
    """This process was asked to end."""


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """Raise _Terminated where SIGTERM arrives, so that worker processes end and finished results are kept.

    Later ones are ignored meanwhile: a system that cannot wait kills.
    """

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main one may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Version(argparse.Action):
    """Prints the version and exits; it is looked up when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str):
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"dpcomp {version('dpcomp')}")
        parser.exit()


def _shipped_tasks() -> "Mapping[str, Callable[[], Task]]":
    from dpcomp.lab.tasks import SHIPPED_TASKS

    return SHIPPED_TASKS


def _demo(options: argparse.Namespace) -> int:
    from dpcomp.lab.demo import demo

    demo(options.folder, results=options.results, seed=options.seed)
    return 0


def _run(options: argparse.Namespace) -> int:
    from dpcomp.lab.config.experiment import load
    from dpcomp.lab.results.frames import summary
    from dpcomp.lab.sweep.comparison import notes
    from dpcomp.lab.sweep.sweep import run
    from dpcomp.lab.sweep.table import printed, write_figures

    load(options.config)  # refuses a grid
    standing = run(options.config, options.load_tasks(), jobs=options.jobs)
    (outcome,) = standing.outcomes()
    reports = {options.config.stem: outcome.reports}
    judged = outcome.point.experiment
    write_figures(standing.results.path, reports, judged.metric)
    print(printed(summary(reports, judged.metric, judged.measure), decimals=None))
    print(outcome.reports[0]["guarantee"]["text"])
    _note(notes([standing]))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from dpcomp.lab.sweep.comparison import notes
    from dpcomp.lab.sweep.plan import configs_in
    from dpcomp.lab.sweep.sweep import failure_text, sweep
    from dpcomp.lab.sweep.table import printed, table, write

    configs = configs_in(options.target)
    local = options.backend == "loky"
    jobs = options.jobs if options.jobs is not None else 1 if local else -1
    swept = sweep(configs, options.load_tasks(), backend=options.backend, jobs=jobs)
    for standing in swept.standings:
        write(standing)
    rows = table(swept.outcomes).drop(columns="trials")
    if len(configs) > 1:
        names = [outcome.point.config.relative_to(options.target).with_suffix("") for outcome in swept.outcomes]
        rows.insert(0, "config", names)
    print(printed(rows))
    _note(notes(swept.standings))
    if swept.failures:
        _note([failure_text(swept.failures)])
    return 1 if swept.failures else 0


def _table(options: argparse.Namespace) -> int:
    from dpcomp.lab.sweep.comparison import comparison, notes, standings_in
    from dpcomp.lab.sweep.table import printed

    standings = standings_in(options.target)
    print(printed(comparison(standings, options.target)))
    _note(notes(standings))
    return 0


def _figures(options: argparse.Namespace) -> int:
    from dpcomp.lab.figures.gallery import draw_gallery
    from dpcomp.lab.sweep.rounds import rounds_in

    frame, metric, notes = rounds_in(options.target)
    written = draw_gallery(
        frame,
        options.folder,
        x=options.x,
        y=options.y or f"test_{metric}",
        by=options.by,
        style=options.style,
        forms=options.forms,
    )
    for path in written:
        print(path)
    _note(notes)
    return 0


def _epsilon(options: argparse.Namespace) -> int:
    from dpcomp.lab.config.build import checked_points, make_pipeline, make_task
    from dpcomp.lab.config.experiment import refuse_imports

    if options.no_imports:
        refuse_imports(options.config)
    tasks = options.load_tasks()
    points = checked_points(options.config, tasks)
    for point in points:
        if point.labels:
            print(f"{point.title}:")
        experiment = point.experiment
        pipeline = make_pipeline(experiment)
        print(pipeline)
        task = make_task(experiment, tasks)
        units = task.population if experiment.trust_model.releases_local_steps else experiment.federation["clients"]
        print(pipeline.guarantee(experiment.steps, experiment.delta, population=units))
    if any("participation" in point.experiment.federation for point in points):
        _note(
            [
                "with `participation`, this is the ε of a client that is asked in every round; a run's is that of the "
                "client that was asked most often"
            ]
        )
    return 0


def _serve_federation(options: argparse.Namespace) -> int:
    from dpcomp.adapters.http import serve_folder

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    serve_folder(options.folder, host=options.host, port=options.port, plain_because=options.plain_because)
    return 0


def _ledger(options: argparse.Namespace) -> int:
    from dpcomp.lab.ledger_report import LedgerReport, WhatIf, csv_of_clients, csv_of_entries, figure, json_text, text
    from dpcomp.privacy.ledger.ledger import Ledger

    if options.figure is not None:
        require("lab", "matplotlib", "seaborn")
    question = None
    if options.what_if is not None:
        question = WhatIf(mechanism=options.what_if, steps=options.steps, rate=options.rate, client=options.client)
    record = Ledger.read(options.file)
    most = options.most if options.most is not None or options.csv else 10
    if options.csv == "entries":
        sys.stdout.writelines(csv_of_entries(record))
    else:
        report = LedgerReport.of(record, delta=options.delta, most=most, question=question)
        if options.csv:
            sys.stdout.writelines(csv_of_clients(report))
        else:
            print(json_text(report) if options.json else text(report))
    if options.figure is not None:
        figure(record, options.delta, options.figure)
    return 0


def _federation_status(options: argparse.Namespace) -> int:
    from dpcomp.lab.federation_report import FederationReport, json_text, text

    report = FederationReport.read(options.folder, options.delta)
    print(json_text(report) if options.json else text(report))
    return 0


def _audit(options: argparse.Namespace) -> int:
    from dpcomp.audit import Blocks, ClaimOfReleases, audit
    from dpcomp.pipeline import Pipeline

    try:
        text = options.pipeline.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{options.pipeline} cannot be read: {error}") from error
    pipeline = Pipeline.from_toml(text)
    result = audit(
        Blocks.with_spikes(pipeline, coordinates=options.coordinates, rounds=options.rounds, seed=options.seed),
        ClaimOfReleases(cost=pipeline.cost, steps=options.rounds),
        runs=options.trials,
        delta=options.delta,
        confidence=1 - options.error,
    )
    print(result)
    return 1 if result.broken else 0


def _mean_estimation(options: argparse.Namespace) -> int:
    from dpcomp.lab.mean_estimation.benchmark import benchmark
    from dpcomp.lab.mean_estimation.setting import Setting

    settings = [
        Setting(clients=options.clients, dimensions=options.dimensions, epsilon=epsilon, delta=options.delta)
        for epsilon in options.epsilons
    ]
    benchmark(options.folder, settings, results=options.results, rounds=options.rounds, seed=options.seed)
    return 0


def _federated(options: argparse.Namespace) -> int:
    from dpcomp.core.calls import check_known
    from dpcomp.lab.federated_benchmark.benchmark import benchmark
    from dpcomp.lab.federated_benchmark.methods import METHODS
    from dpcomp.lab.federated_benchmark.setting import SETTINGS

    tasks, settings = options.load_tasks(), {setting.task: setting for setting in SETTINGS}
    check_known(options.task, tasks.keys() & settings.keys(), "--task")
    methods = {method.name: method for method in METHODS}
    for name in options.methods or ():
        check_known(name, methods, "--methods")
    setting = settings[options.task]
    benchmark(
        options.folder,
        setting.quick() if options.quick else setting,
        tasks[options.task],
        results=options.results,
        methods=METHODS if options.methods is None else [methods[name] for name in options.methods],
        others=options.others,
    )
    return 0


def _note(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"dpcomp: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
