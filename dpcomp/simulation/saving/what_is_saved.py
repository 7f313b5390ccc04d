"""Which simulations can go on from a saved state, and what tells the secret seed of one from another's."""

from dpcomp.core.errors import NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.federated.participant import Participant
from dpcomp.pipeline import Pipeline
from dpcomp.simulation.network.faulty_network import Faults
from dpcomp.simulation.network.protocol import ProtocolVariant


def refuse_unsavable(pipeline: Pipeline, secret: SecretSeed | None, protocol: ProtocolVariant, faults: Faults) -> None:
    """Refuse a simulation whose state a folder cannot hold, or that would release anew what it released before.

    Args:
        pipeline: Mechanism and codec.
        secret: The secret seed; None for the number of the public one.
        protocol: The classes of both ends.
        faults: What goes wrong.

    Raises:
        NotPrivate: The noise is not a function of a number, so a round that is played again would draw other noise.
        ValueError: Clients stand apart between two rounds: by faults, an own protocol, or a tracked signal.
    """
    if secret is not None and not secret.seeded:
        raise NotPrivate(
            f"simulate(folder=...) beside secret={secret}, which draws other noise each time: rounds that were played "
            "after the last saved state would be released twice and charged once. Leave secret out, or give a "
            "SecretSeed(number)"
        )
    if faults != Faults():
        raise ValueError(
            f"simulate(folder=...) beside {faults}: messages that are under way, and clients that are away, are not "
            "saved. Leave out one of the two"
        )
    if protocol.participant is not Participant:
        raise ValueError(f"simulate(folder=...) beside {protocol}: the states of its clients are not saved")
    if pipeline.codec.averaged_clients:
        raise ValueError(
            f"simulate(folder=...) beside {pipeline.codec.quantize}, which tracks a signal for each client that is not "
            "saved: leave out clients= of the allocator, or the folder"
        )


def fingerprint(secret: SecretSeed) -> int:
    """Return a number that tells a secret seed from another; it does not tell the seed, but confirms a guess of it.

    Args:
        secret: A secret seed with a number.
    """
    return int(secret.stream("folder").integers(2**62))
