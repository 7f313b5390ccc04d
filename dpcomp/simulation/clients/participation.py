"""Participation: the clients that take part in a round."""

from dpcomp.core.errors import NotPrivate
from dpcomp.federated.cohort import Cohort
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson


def refuse_second_sampling(pipeline: Pipeline, participation: Poisson | None) -> None:
    """Refuse `participation` beside a pipeline whose own sampling draws the clients.

    Raises:
        NotPrivate: The unit is the client, so the draw of clients is what the guarantee is about.
    """
    if participation is not None and not pipeline.trust_model.releases_local_steps:
        raise NotPrivate(
            f"participation={participation} stands beside unit={pipeline.unit!r}, where the draw of clients is what "
            f"the guarantee is about: use Pipeline(sampling={participation}) instead"
        )


def public_cohort(pipeline: Pipeline, participation: Poisson | None) -> Cohort | None:
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
