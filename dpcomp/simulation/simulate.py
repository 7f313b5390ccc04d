"""Simulate: a whole federation on one machine, with real payloads and every release charged before its noise."""

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from dpcomp.core.checks import check_type, whole_number
from dpcomp.core.errors import DpcompWarning
from dpcomp.core.processes import Backend
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.federated.aggregation import ServerOptimizer
from dpcomp.federated.cohort import Fixed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson
from dpcomp.privacy.accounting.epsilon import check_delta
from dpcomp.simulation.clients.participation import check_participation, expected_in_a_round
from dpcomp.simulation.clients.side_by_side import opened_side_by_side
from dpcomp.simulation.clients.trainer_recipe import TrainerRecipe
from dpcomp.simulation.evaluation_rounds import TailAverage, evaluated, rounds_between
from dpcomp.simulation.faulty_network import Faults
from dpcomp.simulation.partition import IID, Partition
from dpcomp.simulation.probes import Probe, Watched
from dpcomp.simulation.progress import numbered_rounds
from dpcomp.simulation.protocol import ProtocolVariant, Versioned
from dpcomp.simulation.run import Run
from dpcomp.simulation.run_guarantee import columns_of_clean_data, epsilon_column, run_guarantee
from dpcomp.simulation.run_warnings import run_warnings, warn_of
from dpcomp.simulation.simulated_federation import SimulatedFederation, opened_federation
from dpcomp.simulation.task import Task
from dpcomp.training.trainer import Trainer, TrainerConfig


def simulate(
    task: Task,
    pipeline: Pipeline,
    *,
    clients: int,
    rounds: int,
    trainer: TrainerConfig | None = None,
    server: ServerOptimizer = ServerOptimizer(),
    partition: Partition = IID(),
    participation: Poisson | Fixed | None = None,
    seed: int = 0,
    secret: SecretSeed | None = None,
    delta: float = 1e-5,
    evaluate_every: int | None = None,
    tail: float = 0.0,
    protocol: ProtocolVariant = Versioned(),
    faults: Faults = Faults(),
    probes: Iterable[Probe] = (),
    memory_budget: int = 2**30,
    jobs: int = 1,
    backend: Backend = "loky",
    progress: bool = True,
) -> Run:
    """Train a task with simulated clients in rounds, and account for every byte and every release.

    Args:
        task: What is learned; it has what the trainer asks for.
        pipeline: Mechanism and codec, with the unit and trust that the guarantee is about.
        clients: The number of clients.
        rounds: The number of rounds.
        trainer: How clients train: a framework with its local steps and learning rate, or a trainer of your own. None:
            `PyTorch()` of `dpcomp.training.pytorch`.
        server: Makes the server's step of the mean update: its learning rate and momentum.
        partition: Cuts the examples among the clients: `IID()`, `Dirichlet(concentration)`, or `ByClientId()` by a
            column of the task.
        participation: With `unit="example"`, the clients that a round asks: `Poisson(rate)` each with a probability,
            `Fixed(count)` so many of them; None asks all. It amplifies nothing, since the server sees who sends. With
            `unit="client"`, `pipeline.sampling` draws them.
        seed: Masks, dither, partition, first weights and faults are drawn from it in public, and noise and batches too,
            unless `secret` is given. The same seed gives the same run. Every payload names it, so the noise of a run
            without `secret` hides nothing.
        secret: Where noise and batches are drawn from. `SecretSeed()` draws them from the operating system.
        delta: δ of the guarantee, in (0, 1).
        evaluate_every: Rounds between evaluations. None: so many that evaluation takes about 5 % of all passes through
            the model, and the first round too; or 1, if the trainer does not say how many examples it trains and tests.
            The last round is always evaluated.
        tail: The share of the last rounds whose models are averaged, in [0, 1]; 0: none. The average is evaluated once,
            beside the last model.
        protocol: `Versioned(late_policy=..., absence_policy=...)`, or `Unversioned()` for study.
        faults: What goes wrong on the network and at its ends.
        probes: Measurements of clean data, for research.
        memory_budget: The most bytes of clients' residuals that are kept in memory between their rounds, at 4·d bytes
            for each client that has taken part, 8·d with a momentum; those beyond are in a file in the system's
            temporary folder. With faults of the network, every client keeps its state in memory.
        jobs: The number of clients that train at a time, each in a process of its own; -1 for as many as there are
            cores. The ledger is charged in this process, before a client's work is sent to another. A seeded run is the
            same whatever `jobs`, if this process computes on one thread too, as each worker does: with PyTorch,
            `torch.set_num_threads(1)`.
        backend: Whose processes train: "loky" for this machine's, "ray" or "dask" for a cluster's.
        progress: Whether a progress bar is shown on stderr.

    Returns:
        The rows of all rounds, the guarantee and the last model.

    **Privacy:** the average of the last rounds' models is a function of the broadcasts, which are released or made of
    what is: it is post-processing, and costs nothing.

    Raises:
        TypeError, ValueError: A number lies outside its range, or the task does not suit the trainer; or the trainer
            cannot train in other processes.
        NotPrivate: The model mixes examples, or `participation` stands beside a pipeline that draws clients itself; or
            a numbered `secret` would have to leave this process.
        DpcompError: A worker process died.

    Examples:
        Five clients learn handwritten digits, and send the top 5 % of each noisy update in 4 bits:

        >>> import dpcomp as dp
        >>> from dpcomp.lab.tasks import digits
        >>> from dpcomp.simulation import simulate
        >>> from dpcomp.training.pytorch import PyTorch
        >>> pipeline = dp.Pipeline(
        ...     mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        ...     codec=dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4)),
        ...     sampling=dp.Poisson(0.25),
        ... )
        >>> trainer = PyTorch(local_steps=2, learning_rate=2.0)
        >>> run = simulate(digits(), pipeline, clients=5, rounds=3, trainer=trainer, delta=1e-4, progress=False)
        >>> print(run.guarantee)  # doctest: +ELLIPSIS
        ε ≤ ... at δ = 0.0001 · one example, add/remove · Poisson 0.25 × 6 · PLD · trusts nobody · ...
        >>> [row["participants"] for row in run.rows]
        [5, 5, 5]
    """
    with _opened(
        task,
        pipeline,
        clients=clients,
        rounds=rounds,
        trainer=trainer,
        server=server,
        partition=partition,
        participation=participation,
        seed=seed,
        secret=secret,
        delta=delta,
        evaluate_every=evaluate_every,
        tail=tail,
        protocol=protocol,
        faults=faults,
        probes=probes,
        memory_budget=memory_budget,
        jobs=jobs,
        backend=backend,
    ) as (federation, local, watched):
        first = local.evaluate(local.initial_model)  # before anything is spent: it tries test set and metrics too
        rows: list[dict[str, float]] = []
        average = TailAverage(tail=tail, rounds=rounds)
        between = rounds_between(local, expected_in_a_round(pipeline, participation, clients))
        with numbered_rounds(rounds, task.name, shown=progress) as numbers:
            for number in numbers:
                started = time.perf_counter()
                outcome = federation.play_round()
                average.take(number, federation.server.model)
                row: dict[str, float] = {"round": number, **outcome.columns(local.layout)}
                if evaluated(number, rounds, evaluate_every, between):
                    row |= local.evaluate(federation.server.model)
                    row |= epsilon_column(federation.ledger, delta)
                if faults != Faults():
                    row |= outcome.fault_columns()
                row["seconds"] = time.perf_counter() - started
                rows.append(row | watched.take_means())
    tail_model = average.model()
    if tail_model is not None:
        rows[-1] |= {f"tail_{name}": value for name, value in local.evaluate(tail_model).items()}
    units = {"example": task.population, "client": clients}[pipeline.unit]
    wrong = run_warnings(rows, first, watched, delta=delta, units=units)
    warn_of(wrong)
    with warnings.catch_warnings(action="ignore", category=DpcompWarning):  # of δ, as above
        guarantee = run_guarantee(
            pipeline, federation.ledger, delta, clients=clients, units=units, assumptions=local.assumptions
        )
    return Run(
        rows=tuple(rows),
        guarantee=guarantee,
        layout=local.layout,
        model=federation.server.model,
        tail_model=tail_model,
        probed=columns_of_clean_data(pipeline, rows, watched.columns),
        warnings=wrong,
    )


def check_simulation(task: Task, pipeline: Pipeline, **arguments: Any) -> None:
    """Raise what `simulate` would raise before its first round: make the trainer, open the federation, and close it.

    Args:
        task: What is learned.
        pipeline: Mechanism and codec.
        arguments: Arguments of `simulate`, but for `progress`.

    Raises:
        TypeError, ValueError: A number lies outside its range, or the task does not suit the trainer.
        NotPrivate: The model mixes examples, or parts of the setting are not private together.
    """
    given = signature(simulate).bind(task, pipeline, **arguments)
    given.apply_defaults()
    with _opened(**{name: value for name, value in given.arguments.items() if name != "progress"}):
        pass


@contextmanager
def _opened(
    task: Task,
    pipeline: Pipeline,
    *,
    clients: int,
    rounds: int,
    trainer: TrainerConfig | None,
    server: ServerOptimizer,
    partition: Partition,
    participation: Poisson | Fixed | None,
    seed: int,
    secret: SecretSeed | None,
    delta: float,
    evaluate_every: int | None,
    tail: float,
    protocol: ProtocolVariant,
    faults: Faults,
    probes: Iterable[Probe],
    memory_budget: int,
    jobs: int,
    backend: Backend,
) -> Iterator[tuple[SimulatedFederation, Trainer, Watched]]:
    """Open a federation before its first round, after all arguments were checked."""
    check_type(pipeline, Pipeline, f"simulate(pipeline={pipeline!r}): give a dp.Pipeline(mechanism=..., codec=...)")
    check_type(server, ServerOptimizer, f"simulate(server={server!r}): give a ServerOptimizer(learning_rate=...)")
    check_type(faults, Faults, f"simulate(faults={faults!r}): give a Faults(drop=...)")
    check_type(protocol, ProtocolVariant, f"simulate(protocol={protocol!r}): give Versioned() or Unversioned()")
    clients = whole_number(clients, "simulate(clients)", least=1)
    every = 1 if evaluate_every is None else evaluate_every
    for name, count in (("rounds", rounds), ("evaluate_every", every)):
        whole_number(count, f"simulate({name})", least=1)
    TailAverage(tail=tail, rounds=rounds)
    whole_number(memory_budget, "simulate(memory_budget)", least=0)
    check_delta(delta)
    check_participation(pipeline, participation, clients)
    _check_server(pipeline, server)
    if jobs != -1:
        whole_number(jobs, "simulate(jobs)", least=1)
    if trainer is None:
        from dpcomp.training.pytorch import PyTorch  # here: a simulation with another trainer needs no torch

        trainer = PyTorch()
    number = seed if secret is None else None
    public, secret = PublicSeed(seed), SecretSeed(seed) if secret is None else secret
    watched = Watched.of(pipeline, tuple(probes))
    recipe = TrainerRecipe(
        trainer=trainer, task=task, pipeline=watched, clients=clients, partition=partition, seed=public
    )
    with ExitStack() as stack:
        side_by_side = None
        if jobs == 1:
            local = recipe.make(secret)
        else:
            local, side_by_side = stack.enter_context(
                opened_side_by_side(recipe, secret, number=number, jobs=jobs, backend=backend)
            )
        federation = stack.enter_context(
            opened_federation(
                watched,
                local,
                clients=clients,
                optimizer=server,
                participation=participation,
                protocol=protocol,
                faults=faults,
                seed=public,
                secret=secret,
                memory_budget=memory_budget,
                side_by_side=side_by_side,
            )
        )
        yield federation, local, watched


def _check_server(pipeline: Pipeline, server: ServerOptimizer) -> None:
    """Refuse a server optimiser that the codec cannot work with."""
    if pipeline.codec.averaged_clients and (server.learning_rate, server.momentum) != (1.0, 0.0):
        raise ValueError(
            f"server={server} beside {pipeline.codec.quantize}, which takes broadcasts for means of updates: use "
            "server=ServerOptimizer(learning_rate=1.0, momentum=0.0), or leave out clients= of the allocator"
        )
