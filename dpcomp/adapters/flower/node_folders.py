"""Folders of nodes: where a node keeps its policy, its ledger and its state between Flower's messages."""

import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context

from dpcomp.core.database.kind import DatabaseExists
from dpcomp.core.errors import DpcompError
from dpcomp.core.storage import make_folder
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.terms import ClientPolicy

POLICY, LEDGER = "client.toml", "ledger.db"
KEY = "dpcomp-folder"

FolderOf = Callable[[Context], Path]


def folder_in_node_config(context: Context) -> Path:
    """Return the folder that the node's operator has named: `flower-supernode --node-config 'dpcomp-folder="..."'`.

    Raises:
        DpcompError: None is named.
    """
    place = context.node_config.get(KEY)
    if not isinstance(place, str):
        raise DpcompError(
            f"the node's configuration names no folder: start it with --node-config '{KEY}=\"...\"', a folder that "
            "prepare_node has made; in a simulation, give PrivateClientApp(folder=simulated_folders(...))"
        )
    return Path(place)


def prepare_node(folder: str | os.PathLike[str], policy: ClientPolicy) -> None:
    """Make the folder of a node, once: its policy in `client.toml`, and an empty ledger with the policy's budget.

    Args:
        folder: The folder; it is made if it does not exist.
        policy: What the node allows of a federation.

    A call that was cut short is finished by the next one.

    Raises:
        DpcompError: The folder holds a ledger already, which is never replaced; but for an empty one without a policy,
            which a process has left that ended before it wrote the policy.
        OSError: The folder can't be written.

    Examples:
        >>> import dpcomp as dp
        >>> from dpcomp.adapters.flower import prepare_node
        >>> from dpcomp.terms import ClientPolicy
        >>> prepare_node("node-0", ClientPolicy(budget=dp.Budget(epsilon=8.0, delta=1e-5)))
    """
    place = Path(folder)
    make_folder(place)
    try:
        ledger = Ledger.create(place / LEDGER, policy.budget)
    except DatabaseExists:
        if (place / POLICY).exists():
            raise
        ledger = Ledger(place / LEDGER, policy.budget)
    with ledger:
        if ledger.clients:
            raise DpcompError(
                f"{place} holds {LEDGER}, which was charged, and no {POLICY}: write the policy that the charges were "
                "allowed by, ClientPolicy(...).write(path); a ledger is never replaced"
            )
        policy.write(place / POLICY)


def simulated_folders(root: str | os.PathLike[str], policy: ClientPolicy) -> FolderOf:
    """Return what gives each node of Flower's simulation a folder of its own, made when the node is first asked.

    Args:
        root: The folder that holds them.
        policy: What every node allows.
    """

    def folder_of(context: Context) -> Path:
        place = Path(root) / f"{context.node_id:016x}"
        if not (place / POLICY).exists():
            prepare_node(place, policy)
        return place

    return folder_of
