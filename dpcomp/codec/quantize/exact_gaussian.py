"""ExactGaussian: a layered quantiser whose error is Gaussian noise, a client's share of the noise of a release."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from dpcomp.codec.quantize.laplace_code import LaplaceReader, LaplaceWriter, Margins, ScaleSearch, scale_of
from dpcomp.codec.quantize.layers import Layers, LayerStream
from dpcomp.codec.quantize.quantizer import Bounds, equal_bounds, layer_blocks
from dpcomp.core.checks import whole_number
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import NoiseShare, PublicContext

LARGEST_COHORT = 2**24  # clients, whose decoded values float64 adds up without rounding
CLIP_SLACK = 2e-5  # by which a clipped vector may be longer than the clip norm, in clip norms: twice the clip's own


@dataclass(frozen=True, kw_only=True)
class ExactGaussian:
    """Quantise so that the error of each value is exactly Gaussian: a client's share of the noise of a trusted server.

    Under `trust="server"` and `unit="client"` a pipeline of `Clip(C)` and `Gaussian(z)` adds noise of the variance z²C²
    to the sum of a round. With this quantiser the clients' errors are that noise: each client clips its update to C,
    and its error is N(0, z²C²/m) in each coordinate, independent of the update, where m is `cohort`. The server adds
    what is missing for the clients that came. So a message needs hundreds of bits where 4-bit levels need
    d·4: at m = 10 and z = 1, about 80 bytes for 26,010 coordinates.

    The layer of each value (its step) and its dither are drawn from a secret key of the client with the server. The
    levels are range-coded under the probabilities that they have, given layers and dither, for Laplace values with a
    scale a layer of the model.

    Source: Hegazy & Li 2022, "Randomized Quantization with Exact Error Distribution", §III (direct layered quantiser);
    Hegazy et al. 2023, "Compression with Exact Error Distribution for Federated Learning" (2310.20682), §4; Wilson
    2000, "Layered Multishift Coupling".

    **Privacy:** the release is the clipped sum plus N(0, z²C²), whoever came, so it is the Gaussian mechanism for all
    who know nothing of the dither. It holds against the readers of the released model, not against the server or who
    reads the channel. A client knows its own error; clients that pool theirs, `colluding` of them at most, leave
    1 − colluding/m of the variance, and the event of the release has the noise multiplier z·√(1 − colluding/m). With a
    public or shared dither there would be no guarantee (PRIVACY_RULES 16). The proof stands in
    docs/guides/quantiser-noise.md.

    Args:
        cohort: m, the most clients of a round, 2 or more: a public constant. A `Server` refuses to have more clients,
            unless they are sampled so that more than m are drawn with a probability below 2⁻⁶⁴; then it draws again.
        colluding: The most clients that pool what they know of their own dither, from 1 to m − 1.

    Raises:
        TypeError: One of the two is not a whole number.
        ValueError: One of the two lies outside its range.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(
        ...     unit="client",
        ...     trust="server",
        ...     mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        ...     codec=dp.Codec(quantize=dp.ExactGaussian(cohort=10)),
        ...     downlink=dp.Codec(),
        ...     feedback=False,
        ... )
        >>> pipeline.cost.event  # doctest: +ELLIPSIS
        GaussianDpEvent(noise_multiplier=0.9486...)
    """

    cohort: int
    colluding: int = 1

    unbiased = True
    codes_itself = True

    def __post_init__(self):
        object.__setattr__(
            self, "cohort", whole_number(self.cohort, "ExactGaussian(cohort)", least=2, most=LARGEST_COHORT)
        )
        colluding = whole_number(self.colluding, "ExactGaussian(colluding)", least=1)
        if colluding >= self.cohort:
            raise ValueError(
                f"ExactGaussian(cohort={self.cohort}, colluding={colluding}): clients that pool all errors of a round "
                "leave no noise; colluding is a number below cohort"
            )
        object.__setattr__(self, "colluding", colluding)

    @property
    def hidden(self) -> float:
        """The part of the noise variance that clients which collude do not know: 1 − colluding ÷ cohort."""
        return 1.0 - self.colluding / self.cohort

    def share(self, stddev: float) -> float:
        """Return the standard deviation of one client's error, of noise with this standard deviation."""
        return stddev / math.sqrt(self.cohort)

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Refuse: the whole body is coded here, and its length depends on the values."""
        raise ValueError(f"{self} has no side information of a known length: a codec hands it the whole body")

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """Return equal bounds: there are no levels for an entropy coder."""
        return equal_bounds(len(context.layout.shapes), 0, 0)

    def levels(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int[np.ndarray, "none"], bytes]:
        """Return no levels, and the coded levels as side information.

        Raises:
            ValueError: The values are longer than the clip norm, so their error would not hide them.
        """
        share = _share_of(context)
        length = float(np.linalg.norm(values.astype(np.float64)))
        if not length <= share.clip_norm * (1 + CLIP_SLACK / 2):
            raise ValueError(
                f"{self}: the vector has the norm {length:g}, above the clip norm {share.clip_norm:g}: clip it before "
                "it is encoded, as pipeline.send does"
            )
        drawn = LayerStream(share.dither_key)
        magnitudes = np.zeros(len(counts))
        for block, layers, _ in layer_blocks(counts):
            size = block.stop - block.start
            of_value = np.broadcast_to(layers, size)
            magnitudes += np.bincount(of_value, weights=np.abs(values[block]), minlength=len(counts))
        search = ScaleSearch(magnitudes / np.maximum(counts, 1), share.clip_norm, len(values))
        kept = list[tuple[Int64[np.ndarray, "n"], Margins, Int64[np.ndarray, "n"]]]()
        for block, of_value in _blocks(counts):
            dither, step = _with_steps(drawn.draw(len(of_value)), share)
            reflected = _reflected(np.rint(values[block] / step + dither).astype(np.int64), dither)
            margins = Margins.of(dither, step)
            search.add(reflected, margins, of_value)
            kept.append((reflected, margins, of_value))
        writer, numbers = LaplaceWriter(), search.best()
        writer.scales(numbers, len(values))
        scales = scale_of(numbers, share.clip_norm)
        for reflected, margins, of_value in kept:
            writer.levels(reflected, margins.places(scales[of_value]))
        return np.empty(0, dtype=np.int32), writer.finish()

    def values(
        self,
        levels: Int[np.ndarray, "none"],
        side: bytes,
        counts: Int64[np.ndarray, "layers"],
        context: PublicContext,
    ) -> Float32[np.ndarray, "k"]:
        """Return (level − dither) × step of each value, rounded to the grid of the noise share.

        Raises:
            CorruptPayload: The bytes are none that a sender writes, which are the shortest of their levels; or no
                vector within the clip norm has these levels.
        """
        share = _share_of(context)
        reader, writer, drawn = LaplaceReader(side), LaplaceWriter(), LayerStream(share.dither_key)
        numbers = reader.scales(len(counts), int(counts.sum()))
        writer.scales(numbers, int(counts.sum()))
        scales, values = scale_of(numbers, share.clip_norm), np.empty(int(counts.sum()), dtype=np.float32)
        square, grid = 0.0, share.grid
        for block, of_value in _blocks(counts):
            dither, step = _with_steps(drawn.draw(len(of_value)), share)
            places = Margins.of(dither, step).places(scales[of_value])
            reflected = reader.levels(places)
            writer.levels(reflected, places)
            offset = _reflected(reflected, dither) - dither
            least = np.maximum(np.abs(offset) - 0.5, 0.0) * step  # the least magnitude of a value with this level
            square += float(np.dot(least, least))
            if not square <= (share.clip_norm * (1 + CLIP_SLACK)) ** 2:
                raise CorruptPayload(
                    f"no vector within the clip norm {share.clip_norm:g} has the levels of this message: its sender "
                    "did not clip"
                )
            values[block] = np.rint(offset * step / grid) * grid
        if writer.finish() != side:
            raise CorruptPayload("the coded levels are not as a sender writes them: the body was changed, or goes on")
        return values


def _blocks(counts: Int64[np.ndarray, "layers"]):
    """Yield where each block of values lies, and the number of each value's layer."""
    for block, layers, _ in layer_blocks(counts):
        yield block, np.broadcast_to(layers, block.stop - block.start)


def _with_steps(drawn: Layers, share: NoiseShare) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """Return the dither and the steps: a step is the whole width of the layer that was drawn."""
    return drawn.dither, drawn.half * (2.0 * share.stddev)


def _reflected(levels: Int64[np.ndarray, "n"], dither: Float64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Return the levels with the sign of their dither; twice gives them back."""
    return np.where(dither < 0, -levels, levels)


def _share_of(context: PublicContext) -> NoiseShare:
    if context.noise_share is None:
        raise ValueError(
            "ExactGaussian is a part of a pipeline: its step follows from Clip and Gaussian, and its dither from a key "
            "of the client with the server. Send updates with pipeline.send"
        )
    return context.noise_share
