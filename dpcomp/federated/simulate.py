"""A whole federation on one machine: real clients, real bytes, every round charged before it is noised."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float32
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpcomp.accounting import check_delta
from dpcomp.exchange import layer_bits
from dpcomp.federated.cohort import cohort
from dpcomp.federated.partition import IID, Partition
from dpcomp.federated.probe import Probe, Watched
from dpcomp.federated.server import ServerOptimizer, mean_of_released, release_mean
from dpcomp.federated.task import Task
from dpcomp.guarantee import Guarantee
from dpcomp.ledger import Ledger
from dpcomp.mechanism import Poisson
from dpcomp.memory import ServerMemory
from dpcomp.pipeline import Pipeline
from dpcomp.randomness import PublicSeed, SecretSeed
from dpcomp.training.clients import evaluate, local_trainer
from dpcomp.training.devices import device_of, on
from dpcomp.training.parameters import layout_of, read
from dpcomp.training.schedule import Schedule
from dpcomp.update import Layout

BITS_OF = "bits of "


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What came of a simulation.

    `rows` has a mapping a round: round (from 1; an address counts from 0), participants, payload_bytes (mean of an
    uplink payload), uplink_bytes and downlink_bytes (sums over clients), compression_ratio (uplink), seconds, and
    where the round was evaluated test_accuracy and test_loss; where an allocator spreads the bits, `bits of <layer>`, a
    value; and the columns of the probes. `probed` names the
    columns that saw clean data.
    `model` is the last vector of parameters, that of a client that followed every broadcast.
    """

    rows: tuple[dict[str, float], ...]
    guarantee: Guarantee
    layout: Layout
    model: Float32[np.ndarray, "d"]
    probed: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """A tidy frame, one row a round."""
        return pd.DataFrame(list(self.rows))


def simulate(
    task: Task,
    pipeline: Pipeline,
    *,
    clients: int,
    rounds: int,
    local_steps: int = 1,
    seed: int = 0,
    secret: SecretSeed | None = None,
    delta: float = 1e-5,
    partition: Partition = IID(),
    participation: Poisson | None = None,
    learning_rate: float | Schedule = 0.5,
    momentum: float = 0.0,
    server_learning_rate: float = 1.0,
    server_momentum: float = 0.0,
    expected_batch_size: float | None = None,
    local_sampling: Poisson = Poisson(0.1),
    physical_batch_size: int = 512,
    evaluate_every: int = 1,
    device: str = "cpu",
    probes: Iterable[Probe] = (),
    progress: bool = True,
) -> Run:
    """Train a task in rounds, and account for every byte and every release.

    Args:
        local_steps: E. Example-level, each step is a release of its own and is charged; client-level they are free.
        seed: of everything: masks, partition and first weights, in public; noise and sampling, unless `secret`
            is given. Same seed, same run; and every payload names it, so a seeded run hides nothing.
        secret: where noise and sampling come from; `SecretSeed()` is the system's entropy, and no run repeats.
        participation: which clients a round asks, where the noise is example-level; None asks all. It
            amplifies nothing: the server sees who sends. Client-level, `pipeline.sampling` says it.
        learning_rate: of the local steps; a number, or a schedule over the rounds, like `Cosine`.
        expected_batch_size: the divisor of example-level steps, a public constant; None: the sampling rate ×
            the task's public population ÷ clients.
        local_sampling: the local batches of client-level clients; no privacy depends on it.
        evaluate_every: rounds between evaluations on the public test set; the last round is always evaluated.
        device: where models train and are evaluated, "cpu" or "cuda"; all else is the host's. On a GPU runs repeat
            up to the order in which its kernels add.
        probes: what may look at clean data, for research.

    Raises:
        TypeError, ValueError: a count is no whole number above 0, δ none in (0, 1), or the device not here.
        NotPrivate: the model mixes examples, or `participation` stands beside a client-level pipeline.
    """
    _check_counts(clients=clients, rounds=rounds, local_steps=local_steps, evaluate_every=evaluate_every)
    _check_counts(physical_batch_size=physical_batch_size)
    check_delta(delta)
    if pipeline.codec.averaged_clients and (server_learning_rate, server_momentum) != (1.0, 0.0):
        raise ValueError(
            f"{pipeline.codec.quantize} takes broadcasts for means of updates: server_learning_rate=1, "
            "server_momentum=0, or leave out clients="
        )
    place = device_of(device)
    public, secret = PublicSeed(seed), SecretSeed(seed) if secret is None else secret
    inputs, targets = task.train()
    tests = on(place, *task.test())
    module = task.model(seed)
    layout, model = layout_of(module), read(module)
    data = [on(place, inputs[part], targets[part]) for part in partition.part(targets.numpy(), clients, public)]
    watched = Watched.of(pipeline, tuple(probes)) if probes else None
    rate = 1.0 if pipeline.sampling is None else pipeline.sampling.rate
    divisor = rate * task.population / clients if expected_batch_size is None else expected_batch_size
    trainer = local_trainer(
        task.model(seed),
        task.loss,
        inputs[0],
        watched or pipeline,
        secret=secret,
        local_steps=local_steps,
        learning_rate=learning_rate,
        momentum=momentum,
        expected_batch_size=divisor,
        local_sampling=local_sampling,
        physical_batch_size=physical_batch_size,
    )
    memories = [pipeline.init(layout, seed=public, client=client) for client in range(clients)]
    ledgers = [Ledger() for _ in range(clients)]
    server, server_ledger = pipeline.init_server(layout, seed=public), Ledger()
    optimizer = ServerOptimizer(learning_rate=server_learning_rate, momentum=server_momentum)
    rows: list[dict[str, float]] = []
    with _progress_bar(shown=progress) as bar:
        for number in bar.track(range(1, rounds + 1), description=task.name):
            began = time.perf_counter()
            payloads, updates, bits = [], [], []
            for client in cohort(pipeline, participation, memories, secret):
                update = trainer.train(model, *data[client], memories[client], ledgers[client])
                payload, memories[client] = pipeline.send(update, memories[client])
                if pipeline.codec.allocates:
                    bits.append(layer_bits(pipeline, payload, server))
                received, server = pipeline.receive(payload, server)
                payloads.append(payload)
                updates.append(received)
            if pipeline.trust == "server":
                mean = release_mean(watched or pipeline, updates, server, secret, server_ledger, rate * clients)
            else:
                mean = mean_of_released(pipeline, updates, server)
            step, optimizer = optimizer.step(mean)
            down, server = pipeline.broadcast(step, server)
            memories = [pipeline.follow(down, memory) for memory in memories]
            model = model + step_of(server)
            row = {"round": number, **_bytes(payloads, down, layout, clients)}
            for name in bits[0] if bits else ():
                row[BITS_OF + name] = float(np.mean([spent[name] for spent in bits]))
            if number % evaluate_every == 0 or number == rounds:
                row["test_accuracy"], row["test_loss"] = evaluate(module, task.loss, model, *tests)
            rows.append(row | {"seconds": time.perf_counter() - began} | (watched.row() if watched else {}))
    spent = [server_ledger] if pipeline.trust == "server" else ledgers
    units = task.population if pipeline.unit == "example" else clients
    guarantee = max((ledger.guarantee(delta, units) for ledger in spent), key=lambda g: g.epsilon)
    if guarantee.steps == 0:  # nobody ever took part
        guarantee = pipeline.guarantee(0, delta, units)
    divided = divisor if pipeline.unit == "example" else rate * clients
    declared = f"the divisor {divided:g} and the number of {pipeline.unit}s, {units:,}, are public"
    guarantee = replace(guarantee, assumptions=(*guarantee.assumptions, declared))
    seen = watched.columns if watched else set()
    if pipeline.trust == "server":  # sizes of a secret cohort, and lengths of clean messages
        seen = seen | {"participants", "uplink_bytes", "payload_bytes", "compression_ratio", "seconds"}
        seen = seen | {column for row in rows for column in row if column.startswith(BITS_OF)}
    probed = tuple(sorted(seen))
    return Run(rows=tuple(rows), guarantee=guarantee, layout=layout, model=model, probed=probed)


def step_of(memory: ServerMemory) -> Float32[np.ndarray, "d"]:
    """The last broadcast, as every end decoded it.

    Raises:
        ValueError: there was none.
    """
    if memory.shared.reference is None:
        raise ValueError("there was no broadcast yet")
    return memory.shared.reference.dense()


def _bytes(payloads: list[bytes], down: bytes, layout: Layout, clients: int) -> dict[str, float]:
    """What went over the wire in a round; of a round without senders there is no mean payload."""
    uplink = sum(map(len, payloads))
    row: dict[str, float] = {
        "participants": len(payloads),
        "uplink_bytes": uplink,
        "downlink_bytes": len(down) * clients,
    }
    if payloads:
        row["payload_bytes"] = uplink / len(payloads)
        row["compression_ratio"] = 4 * layout.size * len(payloads) / uplink
    return row


def _progress_bar(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
        if not whole or count < 1:
            raise ValueError(f"simulate({name}={count!r}): it is a whole number, at least 1")
