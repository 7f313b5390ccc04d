"""Closed forms for bits: what supports cost, what noise adds to that, what values and predictions are worth."""

import math

import numpy as np
from scipy.special import entr, ndtr


def binary_entropy(probability: float) -> float:
    """Compute the binary entropy H₂(p) = −p log₂p − (1 − p) log₂(1 − p), in bits.

    Source: Cover & Thomas (2006), Elements of information theory, eq. 2.5.

    Raises:
        ValueError: The probability is not in [0, 1].

    Examples:
        >>> binary_entropy(0.5)
        1.0
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"binary_entropy: probability = {probability}; a probability lies in [0, 1]")
    return float(entr(probability) + entr(1 - probability)) / math.log(2)


def temporal_index_bits(*, density: float, overlap: float) -> float:
    """Compute the bits a kept coordinate of a support that shares r of its coordinates with the last one.

        h(r) = H₂(r) + ((1 − κ)/κ)·H₂((1 − r)κ/(1 − κ))

    The code names which of the k last coordinates stay, log₂C(k, rk) bits, and which (1 − r)k of the d − k others
    are new, log₂C(d − k, (1 − r)k) bits; divided by k, h(r) is their limit as d grows. It depends on counts alone, so
    it holds even where some coordinates stay more easily than others; only a code that knows which ones does better.
    Its largest value is at r = κ, the overlap of independent supports: H₂(κ)/κ, the bits of a support that nothing
    predicts, from log₂C(d, k) = d H₂(κ) − O(log d) (Cover & Thomas 2006, example 11.1.3).

    Source: Cover (1973), Enumerative source encoding, IEEE Trans. Inf. Theory 19, for the code of each part; as d
    grows, the conditional entropy of a two-state Markov chain, Cover & Thomas (2006), section 4.2.

    Args:
        density: κ = k/d, in (0, 1), the same for both supports.
        overlap: r, in [max(0, 2 − 1/κ), 1]: two sets of more than half of the coordinates must meet.

    Raises:
        ValueError: The density or the overlap is outside of its range.

    Examples:
        >>> round(temporal_index_bits(density=0.01, overlap=0.8), 2)
        2.8
        >>> round(temporal_index_bits(density=0.01, overlap=0.01), 2)  # as good as random
        8.08
    """
    if not 0 < density < 1:
        raise ValueError(f"density = {density}: a top-k keeps a share k/d of the coordinates in (0, 1)")
    least = max(0.0, 2 - 1 / density)
    if not least <= overlap <= 1:
        raise ValueError(
            f"temporal_index_bits: overlap = {overlap}; two supports of density {density} share between {least:g} and "
            "1 of their coordinates"
        )
    entering = min(1.0, (1 - overlap) * density / (1 - density))
    return binary_entropy(overlap) + (1 - density) / density * binary_entropy(entering)


def efficiency_loss(*, density: float, value_bits: float, overlap: float, noisy_overlap: float) -> float:
    """Compute the share of the compression ratio that is lost when the supports' overlap falls from r to r′.

        loss = 1 − (b + h(r))/(b + h(r′)), with h of `temporal_index_bits`

    A payload of k coordinates takes k(b + h) bits, headers and tables apart. The loss is complete, the pattern
    random, at r′ = κ. Below zero, the noise made supports more alike.

    Args:
        density: κ = k/d, in (0, 1).
        value_bits: b, the bits of a kept value, not negative; the same with and without noise.
        overlap: r, of consecutive supports without noise.
        noisy_overlap: r′, of consecutive supports with noise.

    Returns:
        The loss, a share of the ratio without noise.

    Raises:
        ValueError: `value_bits` is negative, or `temporal_index_bits` refuses the density or an overlap.

    Examples:
        >>> loss = efficiency_loss(density=0.01, value_bits=8, overlap=0.8, noisy_overlap=0.01)
        >>> f"{loss:.1%}"
        '32.8%'
    """
    if not value_bits >= 0:
        raise ValueError(f"efficiency_loss: value_bits = {value_bits}; a value takes no fewer than 0 bits")
    before = value_bits + temporal_index_bits(density=density, overlap=overlap)
    after = value_bits + temporal_index_bits(density=density, overlap=noisy_overlap)
    return 1 - before / after if after else 0.0


def noise_floor_rate(*, clients: float, noise_share: float, noise_multiplier: float, coordinates: float) -> float:
    """Compute the bits a coordinate at which a client's quantisation hides under the noise: ½ log₂(1 + n/(ηz²d)).

    n clients send updates of norm C, hence of C²/d a coordinate on average, and their sum gets noise of standard
    deviation zC. Their n independent quantisation errors of variance D may add up to the share η of that noise:
    nD = ηz²C². A Gaussian test channel of noise D conveys at most ½ log₂(1 + C²/(dD)) bits a coordinate (Cover &
    Thomas 2006, section 9.1), with equality for Gaussian updates; entropy-coded dithered quantisation takes at most
    ½ log₂(2πe/12) = 0.255 bits more, at every rate (Zamir & Feder 1992, On universal quantization by randomized
    uniform/lattice quantizers, IEEE Trans. Inf. Theory 38), and `dithered_excess_bits` more for Gaussian updates.

    Times d it stays below n/(2 ln2·ηz²) bits a client however large d is. For ε ≤ 1 that is the order nε² which
    suffices for the optimal error of a private mean (Chen, Song, Özgür & Kairouz 2023, arXiv 2304.01541, abstract).

    Args:
        clients: n, in the sum.
        noise_share: η, the variance of the quantisation error ÷ that of the noise, both in the sum.
        noise_multiplier: z of the sum, standard deviation ÷ C. Where each client adds noise of its own it is √n times
            a client's.
        coordinates: d.

    Returns:
        Bits a coordinate.

    Raises:
        ValueError: An argument is not positive.

    Examples:
        >>> rate = noise_floor_rate(clients=10, noise_share=0.1, noise_multiplier=1.0, coordinates=26_000)
        >>> round(rate * 26_000 / 8)  # bytes an update
        9
    """
    if not (clients > 0 and noise_share > 0 and noise_multiplier > 0 and coordinates > 0):
        raise ValueError(
            f"noise_floor_rate: clients = {clients}, noise_share = {noise_share}, noise_multiplier = "
            f"{noise_multiplier}, coordinates = {coordinates}; all four must be positive"
        )
    return math.log2(1 + clients / (noise_share * noise_multiplier * noise_multiplier * coordinates)) / 2


def dithered_excess_bits(*, signal_to_error: float) -> float:
    """Compute by how many bits entropy-coded dithered quantisation of a Gaussian exceeds ½ log₂(1 + s²/D).

    Given the dither the levels' entropy is h(X + U) − log₂ Δ, with U uniform on a step Δ, D = Δ²/12. The excess grows
    from 0 to ½ log₂(2πe/12) = 0.255 bits with s²/D. Where s²/D is small it is much less than that, and yet many times
    ½ log₂(1 + s²/D) itself.

    Source: Zamir & Feder (1992), On universal quantization by randomized uniform/lattice quantizers, IEEE Trans. Inf.
    Theory 38, theorem 1.

    Args:
        signal_to_error: s²/D, the variance of a coordinate ÷ that of the quantisation error; positive.

    Returns:
        Bits a coordinate.

    Raises:
        ValueError: `signal_to_error` is not positive and finite.

    Examples:
        >>> [round(dithered_excess_bits(signal_to_error=ratio), 3) for ratio in (4e-4, 1.0, 1e4)]
        [0.015, 0.251, 0.255]
    """
    if not 0 < signal_to_error < math.inf:
        raise ValueError(f"dithered_excess_bits: signal_to_error = {signal_to_error}; it must be positive and finite")
    deviation = math.sqrt(signal_to_error / 12)  # in steps
    reach = 10 * deviation
    flat = max(0.0, 0.5 - reach)
    sums = np.concatenate([np.linspace(0, flat, 1001)[:-1], np.linspace(flat, 0.5 + reach, 100_001)])
    density = ndtr((sums + 0.5) / deviation) - ndtr((sums - 0.5) / deviation)
    entropy = 2 * np.trapezoid(entr(density), sums) / math.log(2)  # of X + U, symmetric about 0
    return float(entropy - math.log2(1 + signal_to_error) / 2)


def prediction_bits(*, snr: float, clients: float, correlation: float = 1.0) -> float:
    """Compute the bits a coordinate that coding a noisy update against the last broadcast saves: ½ log₂(1/(1 − ρ²)).

    An update is X + N, the broadcast before it the mean of n clients' X′ + N′, with the X of all clients alike and
    correlated by c from round to round, and independent noises: ρ² = c²/((1 + 1/SNR)(1 + 1/(n·SNR))), about
    c²·n·SNR² where noise dominates. The innovation has 1 − ρ² of the variance; for a Gaussian that is the rate saved
    at high resolution, and at every rate at which both rates are positive.

    Source: differential coding, Jayant & Noll (1984), Digital coding of waveforms, section 6.2; Cover & Thomas (2006),
    theorem 10.3.2, for the rate.

    Args:
        snr: s²/σ² of a client's coordinate, at least 0, may be infinite.
        clients: n, in the mean.
        correlation: c, in [−1, 1]; within (−1, 1) where the SNR is infinite.

    Returns:
        Bits a coordinate, at least 0.

    Raises:
        ValueError: An argument is outside of its range, or the broadcast equals the update (ρ² = 1).

    Examples:
        >>> round(prediction_bits(snr=10.0, clients=10), 2), round(prediction_bits(snr=0.01, clients=10), 4)
        (1.66, 0.0006)
    """
    if not (snr >= 0 and clients > 0 and abs(correlation) <= 1):
        raise ValueError(
            f"prediction_bits: snr = {snr}, clients = {clients}, correlation = {correlation}; the first must be at "
            "least 0, the second positive, the third within ±1"
        )
    if snr == 0:
        return 0.0
    share = correlation**2 / ((1 + 1 / snr) * (1 + 1 / (clients * snr)))
    if share == 1:
        raise ValueError(
            f"prediction_bits: snr = {snr} and correlation = {correlation} make the broadcast equal to the update, "
            "which saves all bits; give a finite snr or |correlation| < 1"
        )
    return -math.log1p(-share) / (2 * math.log(2))
