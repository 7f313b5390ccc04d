"""The keys of a TOML file's [federation] and [tune]: where each value goes, and under which name there.

The keys are a table of their own, so that a parameter may be renamed without a change of any file or result.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Owner = Literal["simulate", "trainer", "server"]


class Destination(NamedTuple):
    """The function or value that takes an argument, and the argument's name there."""

    owner: Owner
    argument: str


FEDERATION_KEYS: Mapping[str, Destination] = {
    "clients": Destination("simulate", "clients"),
    "rounds": Destination("simulate", "rounds"),
    "partition": Destination("simulate", "partition"),
    "participation": Destination("simulate", "participation"),
    "evaluate_every": Destination("simulate", "evaluate_every"),
    "tail": Destination("simulate", "tail"),
    "protocol": Destination("simulate", "protocol"),
    "faults": Destination("simulate", "faults"),
    "probes": Destination("simulate", "probes"),
    "trainer": Destination("simulate", "trainer"),
    "local_steps": Destination("trainer", "local_steps"),
    "learning_rate": Destination("trainer", "learning_rate"),
    "momentum": Destination("trainer", "momentum"),
    "proximal": Destination("trainer", "proximal"),
    "expected_batch_size": Destination("trainer", "expected_batch_size"),
    "local_sampling": Destination("trainer", "local_sampling"),
    "physical_batch_size": Destination("trainer", "physical_batch_size"),
    "device": Destination("trainer", "device"),
    "server": Destination("simulate", "server"),
    "server_learning_rate": Destination("server", "learning_rate"),
    "server_momentum": Destination("server", "momentum"),
    "server_momentum_behind_feedback": Destination("server", "behind_feedback"),
}

# Keys that permit a setting and change nothing in what it gives: results do not hold them.
PERMISSIONS = frozenset({"server_momentum_behind_feedback"})
