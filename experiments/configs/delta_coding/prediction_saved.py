"""A probe of what coding a release against the last broadcast saves at the same error, beside what theory foretells."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64

import dpcomp as dp
from analysis.theory.index_bits import prediction_bits
from dpcomp.codec.allocation import FixedStep
from dpcomp.simulation.probes import Observation


@dataclass(frozen=True)
class PredictionSaved:
    """Encode each release twice with the same step, as it is and as its difference from a prediction.

    The prediction is that of `LastBroadcast` from the mean of the last round's releases; nothing else is lost on the
    way. Columns, means over a round's releases: `saved_bits`, bits a coordinate of the payload's body, the gains' bytes
    counted; `foretold_bits`, by `prediction_bits` from each layer's correlation ρ; `squared_correlation`, the mean of
    ρ² over coordinates; `error` and `predicted_error`, squared, in units of Δ²/12.

    Attributes:
        relative_step: Δ, the quantiser's step, ÷ the root mean square of a release's coordinates.
    """

    relative_step: float
    _rounds: dict[int, list[Float32[np.ndarray, "d"]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def measure(self, seen: Observation) -> Mapping[str, float]:
        """Return the five columns; none in the first round, before which there is no broadcast."""
        vector, number = seen.released.dense(), seen.released.address.round
        self._rounds.setdefault(number, []).append(vector)
        for old in [each for each in self._rounds if each < number - 1]:
            del self._rounds[old]
        if number - 1 not in self._rounds:
            return {}
        mean = np.mean(self._rounds[number - 1], axis=0, dtype=np.float32)
        broadcast, layout = np.asarray(mean, dtype=np.float32), seen.released.layout
        predictor = dp.LastBroadcast()
        gains = predictor.gains(vector, broadcast, layout)
        prediction = predictor.prediction(broadcast, gains, layout)
        step = self.relative_step * float(np.sqrt(np.mean(vector.astype(np.float64) ** 2)))
        codec = dp.Codec(quantize=dp.Uniform(FixedStep(step)))
        context = dp.PublicContext(layout=layout)
        plain, decoded = codec.encode(vector, dp.Everywhere(), context)
        predicted, difference = codec.encode(vector - prediction, dp.Everywhere(), context)
        squares, clients = squared_correlations(vector, broadcast, layout), len(self._rounds[number - 1])
        # With an infinite signal-to-noise ratio ρ is the correlation that the formula is given.
        foretold = [prediction_bits(snr=np.inf, clients=clients, correlation=each**0.5) for each in squares]
        sizes = np.diff(layout.edges) / layout.size
        unit = step**2 / 12
        return {
            "saved_bits": 8 * (len(plain) - len(predicted) - len(gains)) / layout.size,
            "foretold_bits": float(sizes @ foretold),
            "squared_correlation": float(sizes @ squares),
            "error": float(np.mean((vector - decoded) ** 2)) / unit,
            "predicted_error": float(np.mean((vector - prediction - difference) ** 2)) / unit,
        }


def squared_correlations(
    vector: Float32[np.ndarray, "d"], other: Float32[np.ndarray, "d"], layout: dp.Layout
) -> Float64[np.ndarray, "layers"]:
    """Compute ⟨x, y⟩²/(‖x‖²‖y‖²) of each layer, without its expectation under no correlation, 1 ÷ its size; at least 0.

    Args:
        vector: The (d,) x.
        other: The (d,) y.
        layout: The layers.

    Returns:
        (layers,) ρ², in [0, 1).
    """
    found = np.zeros(len(layout.shapes))
    for number, (start, stop) in enumerate(zip(layout.edges, layout.edges[1:], strict=False)):
        x, y = vector[start:stop].astype(np.float64), other[start:stop].astype(np.float64)
        powers = float(x @ x) * float(y @ y)
        chance = 1 / (stop - start)
        found[number] = max(0.0, float(x @ y) ** 2 / powers - chance) if powers else 0.0
    return found
