"""Participation: the clients that take part in a round."""

from dpcomp.core.errors import NotPrivate
from dpcomp.federated.server.cohort import Cohort, Draw, Fixed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson


def check_participation(pipeline: Pipeline, participation: Draw | None, clients: int) -> None:
    """Refuse `participation` beside a pipeline whose own sampling draws the clients, or of more clients than there are.

    Args:
        pipeline: The mechanism and codec.
        participation: Draws the clients of a round; None for all.
        clients: The number of clients.

    Raises:
        NotPrivate: The unit is the client, so the draw of clients is what the guarantee is about.
        TypeError: `participation` is neither `Poisson` nor `Fixed`.
        ValueError: It asks for more clients than there are.
    """
    if participation is None:
        return
    if not isinstance(participation, Poisson | Fixed):
        raise TypeError(
            f"simulate(participation={participation!r}): give dp.Poisson(rate), Fixed(count), or None for all clients"
        )
    if not pipeline.trust_model.releases_local_steps:
        instead = (
            f"use Pipeline(sampling={participation})"
            if isinstance(participation, Poisson)
            else ("a fixed number is not what is charged there, so use Pipeline(sampling=dp.Poisson(rate))")
        )
        raise NotPrivate(
            f"participation={participation} stands beside unit={pipeline.unit!r}, where the draw of clients is what "
            f"the guarantee is about: {instead} instead"
        )
    if isinstance(participation, Fixed) and participation.count > clients:
        raise ValueError(
            f"participation={participation} asks for more than the {clients} clients: give {clients} at most"
        )


def expected_in_a_round(pipeline: Pipeline, participation: Draw | None, clients: int) -> float:
    """Return the expected number of clients that train in a round, a public constant.

    Args:
        pipeline: Its sampling draws clients, unless it draws examples.
        participation: Draws the clients where the pipeline draws examples; None for all clients.
        clients: The number of clients.
    """
    draw = participation if pipeline.trust_model.releases_local_steps else pipeline.sampling
    if isinstance(draw, Fixed):
        return draw.count
    return clients * (draw.rate if isinstance(draw, Poisson) else 1.0)


def public_cohort(pipeline: Pipeline, participation: Draw | None) -> Cohort | None:
    """Return how a server that is not trusted draws the clients of a round; a trusted one asks its pipeline.

    **Privacy:** the server sees who sends, so the draw is public and amplifies nothing.

    Args:
        pipeline: Its sampling draws clients, unless it draws examples.
        participation: Draws the clients where the pipeline draws examples; None for all clients.

    Returns:
        The draw; None for all clients, or for a trusted server.
    """
    trust = pipeline.trust_model
    sampling = participation if trust.releases_local_steps else pipeline.sampling
    return None if sampling is None or trust.cohort_is_secret else Cohort(sampling=sampling)
