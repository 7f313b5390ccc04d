"""The trust model of a pipeline."""

from dpcomp.pipeline import Pipeline
from dpcomp.privacy.trust import TrustModel


def trust_model_of(pipeline: Pipeline) -> TrustModel:
    """Return the pipeline's unit and trust as one value, which says what follows from them."""
    return TrustModel(unit=pipeline.unit, trust=pipeline.trust)
