"""PipelineFields: the fields of a pipeline, as its checks and what it prints read them."""

from typing import Protocol

from dpcomp.codec import Codec
from dpcomp.privacy import Poisson, Unsafe
from dpcomp.privacy.claim import Stage
from dpcomp.privacy.trust import Trust, TrustModel, Unit
from dpcomp.wire.feedback import Feedback


class PipelineFields(Protocol):
    """The protocol of a pipeline's fields; `Pipeline` says what each is."""

    @property
    def mechanism(self) -> tuple[Stage, ...] | Unsafe:
        """The stages of the private side, or an unsafe mechanism."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the mechanism, with or without a guarantee."""
        ...

    @property
    def codec(self) -> Codec:
        """How updates are coded."""
        ...

    @property
    def downlink(self) -> Codec | None:
        """How broadcasts are coded; None for the same as `codec`."""
        ...

    @property
    def sampling(self) -> Poisson | None:
        """How units are sampled for a release; None for all units."""
        ...

    @property
    def feedback(self) -> Feedback:
        """What a client adds to its next update."""
        ...

    @property
    def unit(self) -> Unit:
        """What one neighbour adds or removes."""
        ...

    @property
    def trust(self) -> Trust:
        """Who may see values before the noise."""
        ...

    @property
    def trust_model(self) -> TrustModel:
        """The unit and the trust."""
        ...
