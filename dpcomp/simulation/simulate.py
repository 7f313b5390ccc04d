"""Simulate: a whole federation on one machine, with real payloads and every release charged before its noise."""

import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

import numpy as np
from jaxtyping import Float32

from dpcomp.core.checks import check_type, missing_members, whole_number
from dpcomp.core.errors import DpcompWarning
from dpcomp.core.layout import Layout
from dpcomp.core.processes import Backend
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.core.read_only import read_only
from dpcomp.federated.server.cohort import Fixed
from dpcomp.federated.server.optimizers import ServerOptimizer, ServerRule
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson
from dpcomp.privacy.accounting.epsilon import check_delta
from dpcomp.simulation.callbacks.callback import Callback, RunInProgress, check_callbacks
from dpcomp.simulation.clients.participation import check_participation, expected_in_a_round
from dpcomp.simulation.clients.side_by_side import opened_side_by_side
from dpcomp.simulation.clients.trainer_recipe import TrainerRecipe
from dpcomp.simulation.evaluation_rounds import TailAverage, evaluated, rounds_between
from dpcomp.simulation.network.faulty_network import Faults
from dpcomp.simulation.network.protocol import ProtocolVariant, Versioned
from dpcomp.simulation.partition import IID, Partition
from dpcomp.simulation.probes import Probe, Watched
from dpcomp.simulation.progress import shown_rounds
from dpcomp.simulation.run import Run
from dpcomp.simulation.run_guarantee import columns_of_clean_data, epsilon_column, run_guarantee
from dpcomp.simulation.run_warnings import run_warnings, warn_of
from dpcomp.simulation.saving.run_folder import Facts, RunFolder, RunState, opened_run_folder
from dpcomp.simulation.saving.settings import described, versions
from dpcomp.simulation.saving.what_is_saved import fingerprint, refuse_unsavable
from dpcomp.simulation.simulated_federation import SimulatedFederation, opened_federation
from dpcomp.simulation.task import Task
from dpcomp.training.trainer import Trainer, TrainerConfig

# Arguments that change nothing in what is computed, or whose value stands in the settings under another name.
DECIDE_NOTHING = frozenset({"folder", "memory_budget", "jobs", "backend", "secret", "initial_model"})


def simulate(
    task: Task,
    pipeline: Pipeline,
    *,
    clients: int,
    rounds: int,
    trainer: TrainerConfig | None = None,
    server: ServerRule = ServerOptimizer(),
    partition: Partition = IID(),
    participation: Poisson | Fixed | None = None,
    seed: int = 0,
    secret: SecretSeed | None = None,
    delta: float = 1e-5,
    evaluate_every: int | None = None,
    tail: float = 0.0,
    initial_model: Float32[np.ndarray, "d"] | None = None,
    protocol: ProtocolVariant = Versioned(),
    faults: Faults = Faults(),
    probes: Iterable[Probe] = (),
    callbacks: Iterable[Callback] = (),
    folder: str | os.PathLike[str] | None = None,
    save_every: int = 10,
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
        server: Makes the server's step of the mean update: `ServerOptimizer(learning_rate=..., momentum=...)`,
            `ServerAdam()`, `ServerYogi()` or `ServerAdagrad()` of `dpcomp.federated`.
        partition: Cuts the examples among the clients: `IID()`, `Dirichlet(concentration)`, or `ByClientId()` by a
            column of the task.
        participation: With `unit="example"`, the clients that a round asks: `Poisson(rate)` each with a probability,
            `Fixed(count)` so many of them; None asks all. It amplifies nothing, since the server sees who sends; but a
            client pays for the rounds alone in which it was asked, and the run's ε is that of the client that was asked
            most often. With `unit="client"`, `pipeline.sampling` draws them.
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
        initial_model: The model of round 1, as a (d,) vector, such as `Run.model` of another run; None for that of the
            task and the seed. It is public: one that was trained on the same data has an ε of its own to add.
        protocol: `Versioned(late_policy=..., absence_policy=...)`, or `Unversioned()` for study.
        faults: What goes wrong on the network and at its ends.
        probes: Measurements of clean data, for research.
        callbacks: What is called as the run starts, after each round, and as it ends: `StopEarly(...)`,
            `TensorBoard(...)`, `MLflow(...)`, `WeightsAndBiases(...)`, or a `Callback` of your own.
        folder: Where the state is saved, so that the same call goes on from there, bit for bit, after its process was
            killed; a call whose run has ended returns its result. It holds what clients keep of their clean updates
            under a trusted server: keep it as private as the data. None saves nothing.
        save_every: The rounds between two saved states; the last round is always saved.
        memory_budget: The most bytes of clients' residuals that are kept in memory between their rounds, at 4·d bytes
            for each client that has taken part, 8·d with a momentum; those beyond are in a file in the system's
            temporary folder. With faults of the network, every client keeps its state in memory.
        jobs: The number of clients that train at a time, each in a process of its own; -1 for as many as there are
            cores. The ledger is charged in this process, before a client's work is sent to another. A seeded run is the
            same whatever `jobs`, if this process computes on one thread too, as each worker does: with PyTorch,
            `torch.set_num_threads(1)`.
        backend: Whose processes train: "loky" for this machine's, "ray" or "dask" for a cluster's.
        progress: Whether the rounds are shown on stderr: as a bar on a terminal, elsewhere as one line at the end, and
            not at all in a notebook.

    Returns:
        The rows of all rounds, the guarantee and the last model.

    **Privacy:** the average of the last rounds' models is a function of the broadcasts, which are released or made of
    what is: it is post-processing, and costs nothing. A run that a callback stops has the ε of all rounds that were
    asked for, since its results decided how many came (PRIVACY_RULES 23). A run goes on from its folder only where
    noise is a function of the seed: a round that was played before the process ended makes the same releases again,
    which are charged once; fresh noise would be a second release (hazard 19).

    Raises:
        TypeError, ValueError: A number lies outside its range, or the task does not suit the trainer; or the trainer
            cannot train in other processes; or a state of this setting cannot be saved.
        NotPrivate: The model mixes examples, or `participation` stands beside a pipeline that draws clients itself; or
            a numbered `secret` would have to leave this process; or `folder` is given with a secret without a number.
        DpcompError: A worker process died; or the folder is in use, is damaged, cannot be written, or holds the run of
            another call.

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
    watching = check_callbacks(callbacks)
    save_every = whole_number(save_every, "simulate(save_every)", least=1)
    rounds = whole_number(rounds, "simulate(rounds)", least=1)
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
        initial_model=initial_model,
        protocol=protocol,
        faults=faults,
        probes=probes,
        folder=folder,
        memory_budget=memory_budget,
        jobs=jobs,
        backend=backend,
    ) as opened:
        federation, local, watched = opened.federation, opened.trainer, opened.watched
        first = local.evaluate(opened.first_model)  # before anything is spent: it tries test set and metrics too
        average, rows, stopped = TailAverage(tail=tail, rounds=rounds), list[dict[str, float]](), ""
        if opened.saved is not None:
            facts = opened.saved.facts
            rows, stopped, average.sum = list(facts.rows), facts.stopped, facts.tail
            watched.go_on(facts.counts, facts.columns)

        def run_so_far() -> RunInProgress:
            return RunInProgress(
                task=task.name,
                rounds=rounds,
                rows=tuple(rows),
                probed=columns_of_clean_data(pipeline, rows, watched.columns),
                layout=local.layout,
                model=read_only(federation.server.model),
                evaluated=tuple(first),
            )

        between = rounds_between(local, expected_in_a_round(pipeline, participation, clients))
        for callback in watching:
            callback.start(beginning := run_so_far())
            if beginning.stopped:
                raise ValueError(
                    f"{callback!r} calls run.stop({beginning.stopped!r}) in start(), where no round of this call has "
                    "come yet: stop in round(), or raise an exception"
                )
        with shown_rounds(rounds, task.name, done=len(rows), shown=progress) as bar:
            while len(rows) < rounds and not stopped:
                number, started = len(rows) + 1, time.perf_counter()
                clip_norm = federation.server.memory.clip_norm
                outcome = federation.play_round()
                average.take(number, federation.server.model)
                row: dict[str, float] = {"round": number, **outcome.columns(local.layout)}
                measured = evaluated(number, rounds, evaluate_every, between)
                if measured:
                    row |= local.evaluate(federation.server.model)
                    row |= epsilon_column(federation.ledger, delta)
                if clip_norm is not None:
                    row["clip_norm"] = clip_norm
                if faults != Faults():
                    row["away"] = outcome.away
                row["seconds"] = time.perf_counter() - started
                rows.append(row | watched.take_means())
                if watching:
                    in_progress = run_so_far()
                    for callback in watching:
                        callback.round(in_progress)
                    stopped = in_progress.stopped
                if stopped and not measured:
                    rows[-1] |= local.evaluate(federation.server.model)
                    rows[-1] |= epsilon_column(federation.ledger, delta)
                if opened.folder is not None and (number % save_every == 0 or number == rounds or stopped):
                    facts = Facts(
                        rows=tuple(rows),
                        stopped=stopped,
                        counts=watched.counts,
                        columns=tuple(sorted(watched.columns)),
                        tail=average.sum,
                    )
                    opened.folder.save(facts, federation.server, federation.clients, federation.ledger)
                bar.advance(rows[-1])
        tail_model = average.model(len(rows))
        if tail_model is not None:
            rows[-1] |= {f"tail_{name}": value for name, value in local.evaluate(tail_model).items()}
        units = {"example": task.population, "client": clients}[pipeline.unit]
        wrong = run_warnings(
            rows,
            first,
            watched,
            delta=delta,
            units=units,
            model=federation.server.model,
        )
        warn_of(wrong)
        assumptions = local.assumptions
        if initial_model is not None:
            assumptions = (*assumptions, "the first model was not made of this data")
        with warnings.catch_warnings(action="ignore", category=DpcompWarning):  # of δ, as above
            guarantee = run_guarantee(
                pipeline,
                federation.ledger,
                delta,
                clients=clients,
                units=units,
                assumptions=assumptions,
                forgone=rounds - len(rows),
            )
        if stopped and "epsilon" in rows[-1]:  # by results: what came so far is no number that was fixed before
            rows[-1] = rows[-1] | {"epsilon": guarantee.epsilon}
        run = Run(
            rows=tuple(rows),
            guarantee=guarantee,
            layout=local.layout,
            model=federation.server.model,
            tail_model=tail_model,
            probed=columns_of_clean_data(pipeline, rows, watched.columns),
            warnings=wrong,
            stopped=stopped,
        )
        for callback in watching:
            callback.end(run)
    return run


def check_simulation(task: Task, pipeline: Pipeline, **arguments: Any) -> None:
    """Raise what `simulate` would raise before its first round: make the trainer, open the federation, and close it.

    Args:
        task: What is learned.
        pipeline: Mechanism and codec.
        arguments: Arguments of `simulate`; its `folder` is left as it is.

    Raises:
        TypeError, ValueError: A number lies outside its range, or the task does not suit the trainer.
        NotPrivate: The model mixes examples, or parts of the setting are not private together.
    """
    given = signature(simulate).bind(task, pipeline, **arguments)
    given.apply_defaults()
    check_callbacks(given.arguments["callbacks"])
    unused = ("progress", "callbacks", "save_every")
    opened = {name: value for name, value in given.arguments.items() if name not in unused}
    with _opened(**{**opened, "folder": None}):
        pass


@dataclass(frozen=True, kw_only=True, eq=False)
class _Opened:
    """What a simulation plays its rounds with.

    Args:
        federation: The server, the clients and the messages between them.
        trainer: Trains, and evaluates.
        watched: The pipeline with its probes.
        first_model: The model of round 1, as a (d,) vector.
        folder: Where the state is saved; None for nowhere.
        saved: The state from which the run goes on; None where it begins.
    """

    federation: SimulatedFederation
    trainer: Trainer
    watched: Watched
    first_model: Float32[np.ndarray, "d"]
    folder: RunFolder | None
    saved: RunState | None


@contextmanager
def _opened(
    task: Task,
    pipeline: Pipeline,
    *,
    clients: int,
    rounds: int,
    trainer: TrainerConfig | None,
    server: ServerRule,
    partition: Partition,
    participation: Poisson | Fixed | None,
    seed: int,
    secret: SecretSeed | None,
    delta: float,
    evaluate_every: int | None,
    tail: float,
    initial_model: Float32[np.ndarray, "d"] | None,
    protocol: ProtocolVariant,
    faults: Faults,
    probes: Iterable[Probe],
    folder: str | os.PathLike[str] | None,
    memory_budget: int,
    jobs: int,
    backend: Backend,
) -> Iterator[_Opened]:
    """Open a federation before its first round, or the one after a saved round, after all arguments were checked."""
    settings = {name: value for name, value in locals().items() if name not in DECIDE_NOTHING}
    check_type(pipeline, Pipeline, f"simulate(pipeline={pipeline!r}): give a dp.Pipeline(mechanism=..., codec=...)")
    if missing := missing_members(server, ServerRule):
        raise TypeError(
            f"simulate(server={server!r}), which has no {' and no '.join(missing)}: give a "
            "ServerOptimizer(learning_rate=...), or another rule of dpcomp.federated"
        )
    check_type(faults, Faults, f"simulate(faults={faults!r}): give a Faults(drop=...)")
    check_type(protocol, ProtocolVariant, f"simulate(protocol={protocol!r}): give Versioned() or Unversioned()")
    clients = whole_number(clients, "simulate(clients)", least=1)
    rounds = whole_number(rounds, "simulate(rounds)", least=1)
    if evaluate_every is not None:
        evaluate_every = whole_number(evaluate_every, "simulate(evaluate_every)", least=1)
    TailAverage(tail=tail, rounds=rounds)
    memory_budget = whole_number(memory_budget, "simulate(memory_budget)", least=0)
    check_delta(delta)
    check_participation(pipeline, participation, clients)
    _check_server(pipeline, server)
    if jobs != -1:
        jobs = whole_number(jobs, "simulate(jobs)", least=1)
    if trainer is None:
        from dpcomp.training.pytorch import PyTorch  # here: a simulation with another trainer needs no torch

        trainer = PyTorch()
    if folder is not None:
        refuse_unsavable(pipeline, secret, protocol, faults)
    number = seed if secret is None else None
    public, secret = PublicSeed(seed), SecretSeed(seed) if secret is None else secret
    watched = Watched.of(pipeline, _checked_probes(probes))
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
        first_model = local.initial_model if initial_model is None else _checked_model(initial_model, local.layout)
        run_folder = saved = None
        if folder is not None:
            settings |= {"trainer": trainer, "secret": fingerprint(secret), "first_model": first_model}
            settings |= {"layout": local.layout, "population": task.population, "name": task.name}
            settings["versions"] = versions()
            run_folder = stack.enter_context(opened_run_folder(folder, described(settings)))
            saved = run_folder.read(watched.channel)
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
                first_model=first_model,
                saved=saved,
            )
        )
        yield _Opened(
            federation=federation,
            trainer=local,
            watched=watched,
            first_model=first_model,
            folder=run_folder,
            saved=saved,
        )


def _checked_probes(probes: object) -> tuple[Probe, ...]:
    several = isinstance(probes, Iterable) and not isinstance(probes, str)
    given = tuple(cast("Iterable[object]", probes)) if several else (probes,)
    wrong = [probe for probe in given if isinstance(probe, type) or missing_members(probe, Probe)]
    if wrong or not several:
        raise TypeError(
            f"simulate(probes=...) is {probes!r}: give a tuple of instances, such as (TopKOverlap(0.05),) of "
            "dpcomp.simulation.probes"
        )
    return cast("tuple[Probe, ...]", given)


def _checked_model(model: Float32[np.ndarray, "d"], layout: Layout) -> Float32[np.ndarray, "d"]:
    """Return a first model that was given, if it fits the layout."""
    given = np.array(model, dtype=np.float32)  # a copy: the caller may go on to change theirs
    if given.shape != (layout.size,):
        raise ValueError(
            f"simulate(initial_model) has shape {given.shape}, and the model of the task has {layout.size} trainable "
            f"coordinates: give a vector of shape ({layout.size},), such as `model` of a Run of this task"
        )
    if not np.isfinite(given).all():
        raise ValueError("simulate(initial_model) holds values that are not finite: give a model that has not diverged")
    return given


def _check_server(pipeline: Pipeline, server: ServerRule) -> None:
    """Refuse a server optimiser that the codec cannot work with."""
    if pipeline.codec.averaged_clients and server not in (ServerOptimizer(), ServerOptimizer(behind_feedback=True)):
        raise ValueError(
            f"server={server} beside {pipeline.codec.quantize}, which takes broadcasts for means of updates: use "
            "server=ServerOptimizer(learning_rate=1.0, momentum=0.0), or leave out clients= of the allocator"
        )
