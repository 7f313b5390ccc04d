"""What a TOML file may call by name: dpcomp's own parts, and the dataclasses of the files that it imports."""

from collections.abc import Callable
from typing import Any

from dpcomp.core.errors import ConfigError
from dpcomp.federated.absence import Decay, Drop, Keep
from dpcomp.federated.late import Reject, Weigh
from dpcomp.federated.server_optimizers import ServerAdagrad, ServerAdam, ServerOptimizer, ServerYogi
from dpcomp.lab.config.experiment import Experiment
from dpcomp.pipeline import PARTS
from dpcomp.simulation import IID, Dirichlet, Faults, Fixed, Versioned
from dpcomp.simulation.network.unversioned import Unversioned
from dpcomp.simulation.probes import Clipping, SignalToNoise, TopKOverlap
from dpcomp.training.schedule import Cosine

CALLS: dict[str, Callable[..., Any]] = PARTS | {
    call.__name__: call
    for call in (
        *(IID, Dirichlet, Fixed, TopKOverlap, Clipping, SignalToNoise, Cosine),
        *(ServerOptimizer, ServerAdam, ServerYogi, ServerAdagrad),
        *(Faults, Versioned, Unversioned, Keep, Decay, Drop, Reject, Weigh),
    )
}


def calls_of(experiment: Experiment) -> dict[str, Callable[..., Any]]:
    """Return what the experiment's tables may call, by name: CALLS, and the dataclasses of its imports.

    Raises:
        ConfigError: An import can't be run, or defines a name that is dpcomp's or another file's.
    """
    calls = dict(CALLS)
    for source in experiment.imports:
        own = source.dataclasses()
        if taken := sorted(set(own) & set(CALLS)):
            raise ConfigError(f"imports: {source.name} defines {taken[0]}, which is dpcomp's own: give it another name")
        if twice := sorted(set(own) & set(calls)):
            raise ConfigError(f"imports: {source.name} defines {twice[0]}, as another file does: rename one")
        calls |= own
    return calls
