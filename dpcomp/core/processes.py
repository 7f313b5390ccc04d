"""Processes in which work runs side by side: of this machine, or of a Ray or Dask cluster, through joblib."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from dpcomp.core.calls import check_known
from dpcomp.core.extras import require

Backend = Literal["loky", "ray", "dask"]


@contextmanager
def _loky() -> Iterator[dict[str, Any]]:
    """Set up joblib for processes of this machine."""
    yield {"backend": "loky", "inner_max_num_threads": 1}


@contextmanager
def _ray() -> Iterator[dict[str, Any]]:
    """Set up joblib for the Ray cluster at $RAY_ADDRESS, or for this machine."""
    from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]

    register_ray()
    yield {"backend": "ray"}


@contextmanager
def _dask() -> Iterator[dict[str, Any]]:
    """Set up joblib for the Dask cluster at $DASK_SCHEDULER_ADDRESS, or for this machine."""
    from dask import config  # pyright: ignore[reportMissingImports]
    from distributed import Client  # pyright: ignore[reportMissingImports]

    # A cluster's workers have the threads that they were started with: --nthreads 1 is what this work wants.
    with Client() if config.get("scheduler-address", None) else Client(threads_per_worker=1):
        yield {"backend": "dask"}


BACKENDS = {"loky": _loky, "ray": _ray, "dask": _dask}


@contextmanager
def processes(backend: str, jobs: int) -> Iterator[None]:
    """Choose the processes in which `joblib.Parallel` runs work, for as long as the block lasts.

    Args:
        backend: "loky" for processes of this machine, "ray" or "dask" for those of a cluster.
        jobs: How much runs at a time; -1 for as many as there are cores.

    Raises:
        ConfigError: There is no such backend.
        MissingExtra: joblib is not installed.
        ValueError: The backend's library is not installed.
    """
    check_known(backend, BACKENDS, "backend")
    require("lab", "joblib")
    import joblib  # here: most of dpcomp needs none

    with ExitStack() as stack:
        try:
            options = stack.enter_context(BACKENDS[backend]())
        except ImportError as error:
            raise ValueError(
                f"the backend {backend} needs a library that can't be imported ({error}): pip install 'dpcomp[cluster]'"
            ) from error
        stack.enter_context(joblib.parallel_config(n_jobs=jobs, **options))
        yield
