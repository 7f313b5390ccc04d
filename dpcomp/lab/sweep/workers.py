"""Trials side by side in joblib's processes, here or on a cluster; none takes the others down."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any

import joblib

from dpcomp.lab.config.calls import nearest
from dpcomp.lab.sweep.trial import LOCK, Attempt, Trial, attempt
from experiments.data.tasks import TASKS


@contextmanager
def _loky() -> Iterator[dict[str, Any]]:
    """Processes of this machine."""
    yield {"backend": "loky", "inner_max_num_threads": 1}


@contextmanager
def _ray() -> Iterator[dict[str, Any]]:
    """The cluster at $RAY_ADDRESS, or this machine."""
    from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]

    register_ray()
    yield {"backend": "ray"}


@contextmanager
def _dask() -> Iterator[dict[str, Any]]:
    """The cluster at $DASK_SCHEDULER_ADDRESS, or this machine."""
    from dask import config  # pyright: ignore[reportMissingImports]
    from distributed import Client  # pyright: ignore[reportMissingImports]

    # A cluster's workers have the threads that they were started with: --nthreads 1 is what trials want.
    with Client() if config.get("scheduler-address", None) else Client(threads_per_worker=1):
        yield {"backend": "dask"}


BACKENDS = {"loky": _loky, "ray": _ray, "dask": _dask}


@contextmanager
def workers(backend: str, jobs: int) -> Iterator[None]:
    """For as long as the block lasts `finish` runs `jobs` trials at a time (-1: as many as there are cores) there.

    Raises:
        ConfigError: there is no such backend.
        ValueError: its library is not installed.
    """
    nearest(backend, BACKENDS, "backend")
    with ExitStack() as stack:
        try:
            options = stack.enter_context(BACKENDS[backend]())
        except ImportError as error:
            raise ValueError(
                f"the backend {backend} needs a library that can't be imported ({error}): pip install 'dpcomp[cluster]'"
            ) from error
        stack.enter_context(joblib.parallel_config(n_jobs=jobs, **options))
        yield


def finish(trials: Sequence[Trial], *, advance: Callable[[int], None], rounds_shown: bool = False) -> list[Attempt]:
    """Run these trials; what another process holds is waited for when all others have ended.

    `advance` is told how many more have ended.
    """
    for task in dict.fromkeys(trial.experiment.task for trial in trials):
        TASKS[task]().train()  # obtain data here, once, before workers ask for it side by side
    attempts = _side_by_side(trials, advance, patient=False, rounds_shown=rounds_shown)
    if held := [found.trial for found in attempts if found.held]:
        advance(-len(held))
        waited = _side_by_side(held, advance, patient=True, rounds_shown=rounds_shown)
        attempts = [found for found in attempts if not found.held] + waited
    return attempts


def _side_by_side(
    trials: Sequence[Trial], advance: Callable[[int], None], *, patient: bool, rounds_shown: bool
) -> list[Attempt]:
    try:
        return _parallel(trials, advance, patient=patient, rounds_shown=rounds_shown)
    except BrokenProcessPool:
        # A worker died, as one does that asks for too much memory, and joblib ended the others with it.
        left = [trial for trial in trials if trial.finished() is None]
        begun = [trial for trial in left if (trial.folder / LOCK).exists()] or left
        others = [trial for trial in left if trial not in begun]
        rest = _side_by_side(others, advance, patient=patient, rounds_shown=False) if others else []
        return [*rest, *(_alone(trial, advance, patient=patient) for trial in begun)]


def _alone(trial: Trial, advance: Callable[[int], None], *, patient: bool) -> Attempt:
    """A trial in a process of its own, for it may have killed one before."""
    try:
        return _parallel([trial], advance, patient=patient, rounds_shown=False, jobs=2)[0]
    except BrokenProcessPool:
        advance(1)
        return Attempt(trial=trial, error="its process died, as one does that the system kills for its memory")


def _parallel(
    trials: Sequence[Trial],
    advance: Callable[[int], None],
    *,
    patient: bool,
    rounds_shown: bool,
    jobs: int | None = None,
) -> list[Attempt]:
    begin = joblib.delayed(attempt)
    ran: Any = _Counting(advance, jobs)(begin(trial, patient=patient, rounds_shown=rounds_shown) for trial in trials)
    return ran


class _Counting(joblib.Parallel):
    """joblib.Parallel that tells how many tasks have ended; Ray's backend knows that, but gives no result early."""

    def __init__(self, advance: Callable[[int], None], jobs: int | None):
        # No more trials wait in a worker's queue than it runs: one whose parent was killed ends after its trial.
        super().__init__(n_jobs=jobs, batch_size=1, pre_dispatch="n_jobs")  # pyright: ignore[reportArgumentType]
        self._advance, self._told = advance, 0

    def print_progress(self) -> None:
        """Called by joblib whenever a task has ended."""
        self._advance(self.n_completed_tasks - self._told)
        self._told = self.n_completed_tasks
