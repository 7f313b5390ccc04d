"""Who takes part in a round."""

from dpcomp.core.address import SERVER
from dpcomp.core.errors import NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson
from dpcomp.wire.memory import ServerMemory


def cohort(
    pipeline: Pipeline, participation: Poisson | None, clients: int, memory: ServerMemory, secret: SecretSeed
) -> list[int]:
    """The clients of the round, below `clients`.

    Client-level, the pipeline's sampling says who takes part, and under a trusted server the draw is secret,
    for the amplification rests on it. Example-level, `participation` says it, in public.

    Raises:
        NotPrivate: `participation` beside a client-level pipeline, whose own sampling is what is charged.
    """
    if pipeline.unit == "client" and participation is not None:
        raise NotPrivate(
            f"participation={participation} beside unit='client': who takes part is what the guarantee is about; "
            f"say it as Pipeline(sampling={participation})"
        )
    sampling = pipeline.sampling if pipeline.unit == "client" else participation
    if sampling is None:
        return list(range(clients))
    if pipeline.trust == "server":
        stream = secret.stream("cohort", memory.address.run, SERVER, memory.address.round)
    else:
        stream = memory.seed.stream("cohort", memory.address.round)
    return sampling.draw(clients, stream).tolist()
