"""Measures dpcomp beside its peers and its limits: python -m benchmarks [NAME …]

Each benchmark runs in a process of its own, on one thread and one core. The table has a line for each peer or limit. A
run at full size also writes docs/benchmarks/NAME.json, and draws docs/benchmarks/private_step.png.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from benchmarks.harness.processes import Failed, run_alone
from benchmarks.harness.records import FOLDER, Record
from benchmarks.harness.rows import Row
from benchmarks.harness.table import printed_table
from benchmarks.harness.turns import QUICK, Effort
from benchmarks.speed import (
    accounting,
    codec_alone,
    federated_rounds,
    many_clients,
    messages,
    noise,
    private_step,
    selection,
)

MOST_SECONDS = 7200.0
FIGURE = "private_step.png"
STEPS = "step-"  # what the names of benchmarks begin with that the figure shows


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What can be measured by its name."""

    name: str
    about: str
    measure: Callable[[Effort], list[Row]]


BENCHMARKS = (
    Benchmark(
        name="step-cnn",
        about="A private step of a small CNN, spot check and noise included, beside plain SGD and Opacus",
        measure=private_step.cnn,
    ),
    Benchmark(
        name="step-linear",
        about="The same for a linear model, whose plain step takes half a millisecond",
        measure=private_step.linear,
    ),
    Benchmark(name="step-resnet", about="The same for a ResNet-18 with group norm", measure=private_step.resnet),
    Benchmark(
        name="step-resnet-memory",
        about="The peak memory of a process that trains the ResNet-18",
        measure=private_step.resnet_memory,
    ),
    Benchmark(
        name="federated-rounds",
        about="Rounds a second of a federation under local DP, with payloads, error feedback and ledger, "
        "beside loops without them",
        measure=federated_rounds.federated_rounds,
    ),
    Benchmark(
        name="noise",
        about="Normal draws from a stream cipher, beside generators that are no ciphers",
        measure=noise.noise,
    ),
    Benchmark(
        name="many-clients",
        about="What a simulated round of many clients costs beside training, and its memory",
        measure=many_clients.many_clients,
    ),
    Benchmark(
        name="messages-large",
        about="Sending and receiving the update of a ResNet-18, beside a copy of the vector",
        measure=messages.large_messages,
    ),
    Benchmark(
        name="messages-small",
        about="Sending and receiving the update of a small CNN, beside a copy of the vector",
        measure=messages.small_messages,
    ),
    Benchmark(
        name="codec-alone",
        about="Compressing and decompressing real gradients without a federation, beside other compressors",
        measure=codec_alone.codec_alone,
    ),
    Benchmark(
        name="selection",
        about="Selecting the largest 1 % of a long vector, beside a copy of it and other selections",
        measure=selection.selection,
    ),
    Benchmark(
        name="accounting",
        about="ε of many steps, and noise for a target ε, beside dp_accounting's privacy loss distributions",
        measure=accounting.accounting,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line names, print the table, and write the records.

    Args:
        arguments: The arguments after the program's name; None for those of this process.

    Returns:
        0 if all was measured, 1 if a benchmark failed.
    """
    about = "Measure dpcomp beside its peers and its limits: a table, and docs/benchmarks/NAME.json."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=about)
    names = ", ".join(benchmark.name for benchmark in BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what is measured, by the first letters: {names}")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that all runs, in minutes, and writes nothing"
    )
    options = parser.parse_args(arguments)
    try:
        chosen = chosen_benchmarks(options.names)
    except ValueError as error:
        parser.error(str(error))
    effort = QUICK if options.quick else Effort()
    console, rows, failed = Console(width=160), [], False
    for benchmark in chosen:
        began = time.perf_counter()
        try:
            measured: list[Row] = run_alone(benchmark.measure, effort, most_seconds=MOST_SECONDS).value
        except Failed as failure:
            console.print(f"{benchmark.name}: {failure}")
            failed = True
            continue
        console.print(f"{benchmark.name}: {time.perf_counter() - began:.0f} s")
        if effort.full_size:
            Record.of(benchmark.name, benchmark.about, measured, effort).write()
            rows += measured
        else:
            rows += [replace(row, goal=None) for row in measured]  # goals are about the full sizes
    title = (
        "dpcomp beside its peers and limits"
        if effort.full_size
        else "small sizes, to see that all runs: the figures mean nothing"
    )
    console.print(printed_table(title, rows))
    if effort.full_size and any(benchmark.name.startswith(STEPS) for benchmark in chosen):
        draw_private_step()
    return int(failed)


def chosen_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """Return the benchmarks whose names begin with one of those given, in order; without names, all.

    Raises:
        ValueError: No benchmark has such a name.
    """
    for name in names:
        if not any(benchmark.name.startswith(name) for benchmark in BENCHMARKS):
            known = ", ".join(benchmark.name for benchmark in BENCHMARKS)
            raise ValueError(f"no benchmark is called {name!r}: there are {known}")
    return [one for one in BENCHMARKS if not names or one.name.startswith(tuple(names))]


def draw_private_step() -> None:
    """Draw the figure of the private step from the records that there are."""
    from benchmarks.speed.figure import drawn_steps

    paths = [FOLDER / f"{one.name}.json" for one in BENCHMARKS if one.name.startswith(STEPS)]
    drawn_steps(Record.read(path) for path in paths if path.exists()).savefig(FOLDER / FIGURE)


if __name__ == "__main__":
    sys.exit(main())
