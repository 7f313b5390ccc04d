"""What a TOML file may call by name: dpcomp's own parts, and the dataclasses of the files that it imports."""

from collections.abc import Callable
from typing import Any

from dpcomp.core.errors import ConfigError
from dpcomp.federated.absence import Decay, Drop, Keep
from dpcomp.federated.server.late import Reject, Weigh
from dpcomp.federated.server.optimizers import ServerAdagrad, ServerAdam, ServerOptimizer, ServerYogi
from dpcomp.lab.config.experiment import Experiment, names_in
from dpcomp.pipeline import PARTS
from dpcomp.simulation import IID, ByClientId, Dirichlet, Faults, Fixed, Versioned
from dpcomp.simulation.network.unversioned import Unversioned
from dpcomp.simulation.probes import Clipping, SignalToNoise, TopKOverlap
from dpcomp.training.schedule import Cosine

CALLS: dict[str, Callable[..., Any]] = PARTS | {
    call.__name__: call
    for call in (
        *(IID, Dirichlet, ByClientId, Fixed, TopKOverlap, Clipping, SignalToNoise, Cosine),
        *(ServerOptimizer, ServerAdam, ServerYogi, ServerAdagrad),
        *(Faults, Versioned, Unversioned, Keep, Decay, Drop, Reject, Weigh),
    )
}


def calls_of(experiment: Experiment) -> dict[str, Callable[..., Any]]:
    """Return what the experiment's tables may call, by name: CALLS, and the dataclasses of its imports.

    Raises:
        ConfigError: An import can't be run, defines a name that is dpcomp's or another file's, or a class that is
            called and is no dataclass.
    """
    calls = dict(CALLS)
    named = names_in((experiment.task, experiment.pipeline, experiment.federation)) if experiment.imports else set()
    for place, source in enumerate(experiment.imports):
        if source.path in {earlier.path for earlier in experiment.imports[:place]}:
            raise ConfigError(f"imports: {source.name} stands twice: leave one out")
        own = source.dataclasses()
        if plain := sorted(named & source.plain_classes()):
            raise ConfigError(
                f"imports: {plain[0]} in {source.name} is no dataclass, so a config cannot call it: write "
                "@dataclass(frozen=True, kw_only=True) over the class, and its arguments as fields"
            )
        if taken := sorted(set(own) & set(CALLS)):
            raise ConfigError(f"imports: {source.name} defines {taken[0]}, which is dpcomp's own: give it another name")
        if twice := sorted(set(own) & set(calls)):
            raise ConfigError(f"imports: {source.name} defines {twice[0]}, as another file does: rename one")
        calls |= own
    return calls
