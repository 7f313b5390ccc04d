"""Closed forms for the mean of updates that were sent on random supports."""

from typing import Literal


def excess_second_moment(*, density: float, clients: int, supports: Literal["common", "own", "dealt"]) -> float:
    """Compute by what share the second moment of a mean of updates exceeds that of the mean that it estimates.

    n clients send one signal s on random supports of density κ, and the server divides the sum by κn: u has the mean s
    over the supports, and E‖u‖² = (1 + excess)·‖s‖². Of a coordinate, u is s/κ times the share of clients that sent it,
    whose mean is κ and whose variance is κ(1 − κ) with a common support and κ(1 − κ)/n with independent ones:

    - common: (1 − κ)/κ;
    - own, drawn independently: (1 − κ)/(κn), that of a common support of density about κn;
    - dealt without overlap, where κn ≤ 1: each coordinate is sent by one client with probability κn, by no two:
      1/(κn) − 1.

    It holds for clients whose updates are alike; where they differ, a coordinate is moved by those that have it.

    Source: Konečný et al. 2016, "Federated Learning: Strategies for Improving Communication Efficiency", section 2, for
    the masks; the forms are the variances of a Bernoulli and a binomial share.

    Args:
        density: κ = k/d, in (0, 1].
        clients: n, the number of clients in a round.
        supports: Whether the clients of a round have a common support, own ones, or own ones that share no coordinate.

    Raises:
        ValueError: The density or the number is outside of its range; or so many supports must share coordinates.

    Examples:
        >>> round(excess_second_moment(density=0.01, clients=10, supports="common"), 1)
        99.0
        >>> round(excess_second_moment(density=0.01, clients=10, supports="own"), 1)
        9.9
        >>> round(excess_second_moment(density=0.1, clients=1, supports="common"), 1)  # of ten times the bytes
        9.0
    """
    if not 0 < density <= 1:
        raise ValueError(f"density = {density}: a support holds a share k/d of the coordinates in (0, 1]")
    if clients < 1:
        raise ValueError(f"clients = {clients}: a mean is of one client or more")
    if supports == "common":
        return (1 - density) / density
    if supports == "own":
        return (1 - density) / (density * clients)
    if density * clients > 1 + 1e-12:
        raise ValueError(
            f"{clients} supports of density {density} share coordinates: of more than all none can be dealt without "
            'overlap; use supports="own"'
        )
    return 1 / (density * clients) - 1
