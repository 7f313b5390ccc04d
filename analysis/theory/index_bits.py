"""What a support must cost in bits, what noise takes from it, and how few bits the noise leaves worth sending."""

import math

from scipy.special import entr


def binary_entropy(probability: float) -> float:
    """H₂(p) = −p log₂p − (1 − p) log₂(1 − p), in bits.

    Source: Cover & Thomas (2006), Elements of information theory, eq. 2.5.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"binary_entropy: probability = {probability}; a probability lies in [0, 1]")
    return float(entr(probability) + entr(1 - probability)) / math.log(2)


def random_index_bits(density: float) -> float:
    """Bits a kept coordinate for a support that nothing predicts: H₂(κ)/κ.

    log₂C(d, k) = d H₂(κ) − O(log d) bits for k = κd of d coordinates: Cover & Thomas (2006), example 11.1.3.
    """
    _refuse_density(density)
    return binary_entropy(density) / density


def temporal_index_bits(*, density: float, overlap: float) -> float:
    """Bits a kept coordinate for a support of which a share r stood in the last one.

    h(r) = H₂(r) + ((1 − κ)/κ)·H₂((1 − r)κ/(1 − κ)).

    The code says which of the k last coordinates stay, log₂C(k, rk) bits, and which (1 − r)k of the d − k others
    come, log₂C(d − k, (1 − r)k): over k, as d grows, h(r). It depends on counts alone, so that it holds whatever makes
    some coordinates stay more easily than others; only a code that knows which ones does better. It is largest at
    r = κ, the overlap of independent supports, and there it is H₂(κ)/κ.

    Source: the enumerative code of Cover (1973), IEEE Trans. Inf. Theory 19, for the two parts; as d grows, the
    conditional entropy of a two-state Markov chain, Cover & Thomas (2006), section 4.2.

    Raises:
        ValueError: the density is not in (0, 1), or two such supports can't overlap by r: max(0, 2 − 1/κ) ≤ r ≤ 1.
    """
    _refuse_density(density)
    least = max(0.0, 2 - 1 / density)
    if not least <= overlap <= 1:
        raise ValueError(
            f"temporal_index_bits: overlap = {overlap}; supports of density {density} overlap by [{least:g}, 1] of each"
        )
    entering = min(1.0, (1 - overlap) * density / (1 - density))
    return binary_entropy(overlap) + (1 - density) / density * binary_entropy(entering)


def efficiency_loss(*, density: float, value_bits: float, overlap: float, noisy_overlap: float) -> float:
    """The share of the compression ratio that is lost when the supports' overlap falls from r to r′.

    1 − (b + h(r))/(b + h(r′)), h the index bits of `temporal_index_bits`.

    A payload of k coordinates has k(b + h) bits, headers apart. The whole loss, of a pattern that has become random,
    is at r′ = κ: at κ = 1 %, b = 8 and r = 0.8 it is 32.8 %. Below zero, the noise made supports more alike.

    value_bits: b, the bits a kept value, not negative.
    """
    if not value_bits >= 0:
        raise ValueError(f"efficiency_loss: value_bits = {value_bits}; a value takes no fewer than 0 bits")
    before = value_bits + temporal_index_bits(density=density, overlap=overlap)
    after = value_bits + temporal_index_bits(density=density, overlap=noisy_overlap)
    return 1 - before / after if after else 0.0


def noise_floor_rate(*, n: float, eta: float, z: float, d: float) -> float:
    """Bits a coordinate that a client must send for its quantisation to hide under the noise: ½ log₂(1 + n/(ηz²d)).

    n clients send updates of norm C, so of C²/d a coordinate on average, and their sum gets noise of standard
    deviation zC. Their n independent quantisation errors of variance D may add up to η of that noise: nD = ηz²C².
    A Gaussian test channel of noise D conveys at most ½ log₂(1 + C²/(dD)) bits a coordinate (Cover & Thomas 2006,
    section 9.1), with equality for Gaussian updates; entropy-coded dithered quantisation takes at most
    ½ log₂(2πe/12) = 0.255 bits more (Zamir & Feder 1992, IEEE Trans. Inf. Theory 38).

    Times d it stays below n/(2 ln2·ηz²) bits a client however large d is: the order nε² that suffices for the
    optimal error of a private mean (Chen, Song, Özgür & Kairouz 2023, arXiv 2304.01541, abstract).

    n: clients in the sum. eta: η, the variance of the quantisation ÷ that of the noise, in the sum.
    z: the noise multiplier of the sum, stddev ÷ C; where each client adds noise of its own, √n times a client's.
    d: coordinates.
    """
    if not (n > 0 and eta > 0 and z > 0 and d > 0):
        raise ValueError(f"noise_floor_rate: n = {n}, eta = {eta}, z = {z}, d = {d}; all four are positive")
    return math.log2(1 + n / (eta * z * z * d)) / 2


def prediction_bits(*, snr: float, clients: float, correlation: float = 1.0) -> float:
    """Bits a coordinate that coding a noisy update against the last broadcast saves: ½ log₂(1/(1 − ρ²)).

    An update is X + N, the broadcast before it the mean of n clients' X′ + N′, with the X of all clients alike and
    correlated by c from round to round, and independent noises: ρ² = c²/((1 + 1/SNR)(1 + 1/(n·SNR))), about
    c²·n·SNR² where noise rules. The innovation has 1 − ρ² of the variance; of a Gaussian that is the rate that is
    saved at high resolution, and at every rate where both rates are positive.

    Source: differential coding, Jayant & Noll (1984), section 6.2; Cover & Thomas (2006), theorem 10.3.2, for the rate.

    snr: s²/σ² of a client's coordinate, may be infinite. clients: n. correlation: c, |c| < 1 without noise.

    Raises:
        ValueError: the SNR is negative, n is not positive, |c| > 1, or the broadcast tells all there is to send.
    """
    if not (snr >= 0 and clients > 0 and abs(correlation) <= 1):
        raise ValueError(
            f"prediction_bits: snr = {snr}, clients = {clients}, correlation = {correlation}; the first is not "
            "negative, the second positive, the third within ±1"
        )
    if snr == 0:
        return 0.0
    share = correlation**2 / ((1 + 1 / snr) * (1 + 1 / (clients * snr)))
    if share == 1:
        raise ValueError("prediction_bits: the broadcast is the update; give a finite snr or |correlation| < 1")
    return -math.log1p(-share) / (2 * math.log(2))


def _refuse_density(density: float) -> None:
    if not 0 < density < 1:
        raise ValueError(f"density = {density}: a top-k keeps a share k/d of the coordinates in (0, 1)")
