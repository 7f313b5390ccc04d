"""A whole federation on one machine: real clients, real bytes, every round charged before it is noised."""

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.federated.aggregation import ServerOptimizer
from dpcomp.federated.server import Server, TrustedRelease
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson
from dpcomp.privacy.epsilon import check_delta
from dpcomp.privacy.ledger import Ledger
from dpcomp.simulation.crashes import Misfortune
from dpcomp.simulation.faulty_network import Faults
from dpcomp.simulation.participation import cohort
from dpcomp.simulation.partition import IID, Partition
from dpcomp.simulation.probes import Probe, Watched
from dpcomp.simulation.protocol import Ends, Versioned
from dpcomp.simulation.run import Run
from dpcomp.simulation.task import Task
from dpcomp.simulation.traffic import Counts, Traffic
from dpcomp.training.pytorch.devices import device_of, on
from dpcomp.training.pytorch.parameters import layout_of, read
from dpcomp.training.pytorch.trainers import evaluate, local_trainer
from dpcomp.training.schedule import Schedule
from dpcomp.wire.bits_by_part import layer_bits

BITS_OF = "bits of "


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
    protocol: Ends = Versioned(),
    faults: Faults = Faults(),
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
        protocol: what both ends do with what comes late, or has been away.
        faults: what goes wrong on the network, and at its ends; drawn from the seed.
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
    ledgers = [Ledger() for _ in range(clients)]
    participants = [
        protocol.participant(
            pipeline.channel,
            pipeline.init_client(layout, seed=public, client=client),
            model,
            ledger,
            absence_policy=protocol.absence_policy,
        )
        for client, ledger in enumerate(ledgers)
    ]
    server_ledger = Ledger()
    trusted_release = TrustedRelease(
        pipeline=watched or pipeline, secret=secret, ledger=server_ledger, divisor=rate * clients
    )
    optimizer = ServerOptimizer(learning_rate=server_learning_rate, momentum=server_momentum)
    rows: list[dict[str, float]] = []
    with ExitStack() as stack:
        bar = stack.enter_context(_progress_bar(shown=progress))
        folder = stack.enter_context(TemporaryDirectory()) if faults.server_restart else None
        server = protocol.server(
            pipeline.channel,
            pipeline.init_server(layout, seed=public),
            model,
            optimizer=optimizer,
            late_policy=protocol.late_policy,
            trusted_release=trusted_release if pipeline.trust == "server" else None,
            clients=clients,
            folder=folder,
        )
        stack.callback(server.close)
        traffic = Traffic(server, participants, faults, public.stream("network"))
        misfortune = Misfortune(faults, clients, public.stream("misfortune"))
        traffic.run()  # everybody says hello: a part of the first round's bytes
        for number in bar.track(range(1, rounds + 1), description=task.name):
            began = time.perf_counter()
            refused, bits = server.refusals.copy(), []
            misfortune.strike(traffic, server)
            asked = cohort(pipeline, participation, clients, server.memory, secret)
            traffic.invite(asked)
            for client in asked:
                participant = participants[client]
                if client not in traffic.away and participant.may_train:
                    state = participant.state
                    update = trainer.train(state.model, *data[client], state.memory, ledgers[client])
                    messages = misfortune.trained(client, participant, update, traffic)
                    if pipeline.codec.allocates and messages:
                        bits.append(layer_bits(pipeline.channel, messages[0], state.memory))
            traffic.run()
            accepted = [one.payload_bytes for one in server.accepted]
            traffic.broadcast(server.close_round())
            traffic.run()
            row = {"round": number, **_bytes(traffic.counts, accepted, layout)}
            traffic.counts = Counts()
            for name in bits[0] if bits else ():
                row[BITS_OF + name] = float(np.mean([spent[name] for spent in bits]))
            if number % evaluate_every == 0 or number == rounds:
                row["test_accuracy"], row["test_loss"] = evaluate(module, task.loss, server.model, *tests)
            if faults != Faults():
                row |= _troubles(server, refused, traffic)
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
        seen = seen | {"participants", "payload_bytes", "compression_ratio", "seconds"}
        seen = seen | {"uplink_bytes", "downlink_bytes", "control_bytes"}  # an answer's length tells of its question
        clean = (BITS_OF, "refused_")
        seen = seen | {column for row in rows for column in row if column.startswith(clean)}
    probed = tuple(sorted(seen))
    return Run(rows=tuple(rows), guarantee=guarantee, layout=layout, model=server.model, probed=probed)


def _bytes(counts: Counts, accepted: list[int], layout: Layout) -> dict[str, float]:
    """What went over the wire in a round; where nothing was accepted there is no mean payload."""
    row: dict[str, float] = {
        "participants": len(accepted),
        "uplink_bytes": counts.uplink,
        "downlink_bytes": counts.downlink,
        "control_bytes": counts.control,
    }
    if accepted:
        row["payload_bytes"] = sum(accepted) / len(accepted)
        row["compression_ratio"] = 4 * layout.size * len(accepted) / sum(accepted)
    return row


def _troubles(server: Server, refused: Counter[str], traffic: Traffic) -> dict[str, float]:
    """What did not go as it should in a round: refusals by reason, and the clients that were away."""
    counted: dict[str, float] = {f"refused_{reason}": n for reason, n in (server.refusals - refused).items()}
    return counted | {"away": len(traffic.away)}


def _progress_bar(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
        if not whole or count < 1:
            raise ValueError(f"simulate({name}={count!r}): it is a whole number, at least 1")
