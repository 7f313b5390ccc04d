"""Participation: the clients that take part in a round."""

from dpcomp.core.address import SERVER
from dpcomp.core.errors import NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson
from dpcomp.wire.memory import ServerMemory


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


def drawn_cohort(
    pipeline: Pipeline, participation: Poisson | None, clients: int, memory: ServerMemory, secret: SecretSeed
) -> list[int]:
    """Return the clients that are asked for an update in a round.

    **Privacy:** where the draw amplifies (a trusted server), it comes from the secret seed. Elsewhere the server sees
    who sends, so the draw is public and amplifies nothing.

    Args:
        pipeline: Its sampling draws clients, unless it draws examples.
        participation: Draws the clients where the pipeline draws examples; None for all clients.
        clients: The number of clients.
        memory: The server's, whose address places the draw.
        secret: Where a secret draw comes from.

    Returns:
        Their numbers, ascending; under sampling sometimes none.
    """
    trust = pipeline.trust_model
    sampling = participation if trust.releases_local_steps else pipeline.sampling
    if sampling is None:
        return list(range(clients))
    if trust.cohort_is_secret:
        stream = secret.stream("cohort", memory.address.run, SERVER, memory.address.round)
    else:
        stream = memory.seed.stream("cohort", memory.address.round)
    return sampling.draw(clients, stream).tolist()
