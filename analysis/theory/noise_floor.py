"""A closed form for the error that a compressor adds to the noise of privacy."""

from analysis.theory.mean_of_supports import excess_second_moment

# ‖error‖²/‖x‖² of `dp.Rotated` by its bits: D/(1 − D) for the distortion D of the best quantiser of a Gaussian.
ROTATED = {1: 0.5708, 2: 0.1331, 3: 0.03578, 4: 0.009588}  # Max 1960, Table I


def added_error(
    *, bits: int | None, density: float = 1.0, clients: int, signal_to_noise: float, own_supports: bool = True
) -> float:
    """Compute η, the error that supports and rotated levels add to the mean of a round, by the energy of its noise.

    n clients send gradients that are alike, clipped and with noise, on public supports of density κ that are drawn
    before the clip, with b rotated bits a value. Scaled so that the mean is that of dense updates, the noise has the
    energy that it has without supports, as long as the clip binds on the support too. Beside it stand the choice of the
    supports, whose share of the signal's energy is `excess_second_moment`, and the quantiser, whose share q(b) is of
    the noise and of the n signals, each 1/(κn) of the mean's:

        η = q(b)·(1 + SNR/(κn)) + excess·SNR.

    With rotated bits of all coordinates training lost what it loses by 1 + η times the variance of the noise; with
    sparse supports it lost more (the paper, section 8). Own supports are dealt, so that those of a round share no
    coordinate as long as κn ≤ 1, as `RandomK(per="client")` deals them; beyond that they count as independent.

    Args:
        bits: b, of `dp.Rotated`; None for float32.
        density: κ = k/d, in (0, 1].
        clients: n, the number of clients in a round.
        signal_to_noise: The energy of the mean of dense clean updates by that of its noise.
        own_supports: Whether the clients of a round have supports of their own, or a common one.

    Raises:
        ValueError: The bits are none of `dp.Rotated`; or density or clients are out of their range.

    Examples:
        >>> round(added_error(bits=1, clients=10, signal_to_noise=0.0), 2)
        0.57
        >>> round(added_error(bits=1, density=0.01, clients=10, signal_to_noise=0.05), 2)
        1.31
        >>> round(added_error(bits=2, density=0.06, clients=10, signal_to_noise=0.05), 2)
        0.18
    """
    if bits is not None and bits not in ROTATED:
        raise ValueError(f"bits = {bits}: dp.Rotated has {min(ROTATED)} to {max(ROTATED)}; None is float32")
    own = "dealt" if density * clients <= 1 else "own"
    excess = excess_second_moment(density=density, clients=clients, supports=own if own_supports else "common")
    quantiser = 0.0 if bits is None else ROTATED[bits] * (1 + signal_to_noise / (density * clients))
    return quantiser + excess * signal_to_noise
