"""SideBySide: the clients of a round train in other processes; the ledger and all state stay in this one."""

import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float32

from dpcomp.core.errors import DpcompError, NotPrivate
from dpcomp.core.extras import require
from dpcomp.core.processes import Backend, processes
from dpcomp.core.randomness import SecretSeed
from dpcomp.privacy.ledger.grant import Grant
from dpcomp.privacy.ledger.granted_ledger import GrantedLedger
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.simulation.clients.trainer_recipe import TrainerRecipe
from dpcomp.simulation.probes import Seen, Watched
from dpcomp.training.trainer import CohortTrainer, LocalWork, ParallelTrainer, Trainer
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sent:
    """The work of one client, as a worker process gets it.

    Args:
        trainer: Names the trainer that the worker has made, or is to make.
        start: The model that the client starts from, as a (d,) vector.
        memory: The client's memory.
        grant: What was charged; None where the update is clean.
        claims: The folder in which a worker notes that a grant is used.
    """

    trainer: str
    start: Float32[np.ndarray, "d"]
    memory: ClientMemory
    grant: Grant | None
    claims: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class _Done:
    """What a worker process returns of one client's work: the update, and what its ledger and its probes noted."""

    update: Update
    assumed: tuple[str, ...]
    seen: Seen


@dataclass(frozen=True, kw_only=True, eq=False)
class SideBySide:
    """Trains the clients of a round in worker processes; `opened_side_by_side` makes it.

    The ledger is charged here before any work is sent, and each permit is handed over as a grant that is good for one
    use. A worker makes its trainer once, when the first work reaches it, and keeps it.

    Args:
        parallel: joblib's processes.
        made_of: The pickled recipe of the trainer, and the number of its secret seed or None.
        name: Names this simulation's trainer among those that a worker process has made.
        releases: The number of releases that a client's round is charged for.
        pipeline: The pipeline with the probes that columns are filled from.
        seeded: Whether noise comes from a number.
        claims: The folder in which workers note that a grant is used.
    """

    parallel: Any
    made_of: bytes
    name: str
    releases: int
    pipeline: Watched
    seeded: bool
    claims: Path

    def train(self, work: Sequence[LocalWork]) -> list[Update]:
        """Charge all clients, then train them, and return their updates in the order of the work.

        Args:
            work: What each client starts from.

        Raises:
            BudgetExhausted: An address was charged before, or the budget does not allow a charge; nothing was sent.
            DpcompError: A worker process died.
        """
        permits = [self._charged(each) for each in work]
        sent = [
            _Sent(
                trainer=self.name,
                start=each.start,
                memory=replace(each.memory, dither_key=None),  # which stays here, where payloads are made
                grant=None if permit is None else permit.hand_over(seeded=self.seeded),
                claims=self.claims,
            )
            for each, permit in zip(work, permits, strict=True)
        ]
        done = self._run([(each, None) for each in sent])
        if missing := [place for place, result in enumerate(done) if result is None]:
            again = self._run([(sent[place], self.made_of) for place in missing])
            for place, result in zip(missing, again, strict=True):
                done[place] = result
        updates: list[Update] = []
        for permit, result in zip(permits, done, strict=True):
            assert result is not None
            if permit is not None:
                permit.assume(result.assumed)
            self.pipeline.add(result.seen)
            updates.append(result.update)
        return updates

    def _charged(self, work: LocalWork) -> Permit | None:
        if not self.releases:
            return None
        return work.ledger.charge(self.pipeline.cost, work.memory.address, steps=self.releases)

    def _run(self, work: Sequence[tuple[_Sent, bytes | None]]) -> list[_Done | None]:
        from joblib import delayed  # here: a simulation in one process needs no joblib

        try:
            return list(self.parallel(delayed(_train)(*each) for each in work))
        except BrokenProcessPool as error:
            raise DpcompError(
                "a worker process died while clients trained, as one does that the system kills for its memory: what "
                "was charged stays charged, and no update of this round was sent. Simulate again with fewer jobs"
            ) from error


@contextmanager
def opened_side_by_side(
    recipe: TrainerRecipe, secret: SecretSeed, *, number: int | None, jobs: int, backend: Backend
) -> Iterator[tuple[Trainer, SideBySide]]:
    """Make a trainer here, and open the processes in which others like it train clients.

    Args:
        recipe: What the trainer is made of.
        secret: The secret seed of this process.
        number: Its number; None where it has none, and each process draws from the operating system.
        jobs: The number of clients that train at a time; -1 for as many as there are cores.
        backend: Whose processes they are: "loky", "ray" or "dask".

    Yields:
        The trainer of this process, which evaluates; and the others, which train.

    Raises:
        NotPrivate: The secret seed has a number, which may not leave this process.
        TypeError: The trainer does not say what a client's round costs, or its recipe cannot be pickled.
        ValueError: The trainer trains whole cohorts; or the backend's library is not installed.
    """
    if secret.seeded and number is None:
        raise NotPrivate(
            f"secret={secret} has a number, and stays in this process: with jobs={jobs} leave secret out, so that "
            "`seed` serves, or give dp.SecretSeed()"
        )
    with ExitStack() as stack:
        stack.enter_context(processes(backend, jobs))
        require("lab", "cloudpickle")
        import cloudpickle
        import joblib

        made_of = cloudpickle.dumps((recipe, number))  # before the trainer is made: one may be its own configuration
        trainer = recipe.make(secret)
        if isinstance(trainer, CohortTrainer):
            raise ValueError(
                f"jobs={jobs} beside {recipe.trainer}, which trains all clients of a round at once: leave it out"
            )
        if not isinstance(trainer, ParallelTrainer):
            raise TypeError(
                f"jobs={jobs}: {recipe.trainer} does not say what a client's round costs, so nothing can be charged "
                "before the work is sent. Add `releases` to the trainer, as dpcomp.training.ParallelTrainer says, or "
                "leave jobs out"
            )
        folder = Path(stack.enter_context(TemporaryDirectory()))
        # No memory maps: joblib keeps their files until the context ends, a model a round.
        options: dict[str, Any] = {"batch_size": 1, "max_nbytes": None, "pre_dispatch": "all"}
        parallel = joblib.Parallel(**options)
        yield (
            trainer,
            SideBySide(
                parallel=stack.enter_context(parallel),
                made_of=made_of,
                name=secrets.token_hex(16),
                releases=trainer.releases,
                pipeline=recipe.pipeline,
                seeded=secret.seeded,
                claims=folder,
            ),
        )


_trainers: dict[str, tuple[Trainer, Watched]] = {}  # of this worker process: the trainer of its last simulation


def _train(sent: _Sent, made_of: bytes | None) -> _Done | None:
    """Train a client in this process; None if the trainer is not made yet, and it is not said of what."""
    if sent.trainer not in _trainers:
        if made_of is None:
            return None
        _trainers.clear()
        _trainers[sent.trainer] = _made(made_of)
    trainer, pipeline = _trainers[sent.trainer]
    with closing(GrantedLedger(sent.grant, sent.claims)) as ledger:
        update = trainer.train(sent.memory.client, sent.start, sent.memory, ledger)
    return _Done(update=update, assumed=ledger.assumed, seen=pipeline.take_seen())


def _made(made_of: bytes) -> tuple[Trainer, Watched]:
    import cloudpickle

    # Only the process that asked for this one's work has written these bytes, as all that joblib brings here.
    recipe, number = cloudpickle.loads(made_of)
    return recipe.make(SecretSeed(number)), recipe.pipeline
