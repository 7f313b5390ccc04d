"""Closed forms for the error that a compressor adds to the noise of privacy, and for the least that it can add."""

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from analysis.theory.mean_of_supports import excess_second_moment

# ‖error‖²/‖x‖² of `dp.Rotated` by its bits: D/(1 − D) for the distortion D of the best quantiser of a Gaussian.
ROTATED = {1: 0.5708, 2: 0.1331, 3: 0.03578, 4: 0.009588}  # Max 1960, Table I


def added_error(
    *,
    bits: int | None,
    density: float = 1.0,
    clients: int,
    signal_to_noise: float,
    draw_to_noise: float = 0.0,
    own_supports: bool = True,
) -> float:
    """Compute η, the error that supports and rotated levels add to the mean of a round, by the energy of its noise.

    n clients send gradients that are alike but for the draws of their batches, clipped and with noise, on public
    supports of density κ that are drawn before the clip, with b rotated bits a value. Scaled so that the mean is that
    of dense updates, the noise has the energy that it has without supports, as long as the clip binds on the support
    too. Beside it stand the choice of the supports, whose share of the signal's energy is `excess_second_moment`; the
    draws of the batches, of which a coordinate has the average over κn clients, and not over n; and the quantiser,
    whose share q(b) is of the noise and of all that a client sends on its support:

        η = q(b)·(1 + (SNR/n + B)/κ) + excess·SNR + (1 − κ)/κ·B.

    Training loses what dense updates lose to 1 + η times the variance of the noise, with SNR and B averaged over all of
    its rounds (the paper, section 8). Where clients differ, that counts in B too, and training lost less than the
    form says. Own supports are dealt, so that those of a round share no coordinate as long as κn ≤ 1, as
    `RandomK(per="client")` deals them; beyond that they count as independent.

    Args:
        bits: b, of `dp.Rotated`; None for float32.
        density: κ = k/d, in (0, 1].
        clients: n, the number of clients in a round.
        signal_to_noise: SNR, the energy of the mean of dense clean updates without the draws of batches, by that of
            its noise.
        draw_to_noise: B, the energy that the draw of its batch adds to a client's dense clean update, by that of the
            client's noise.
        own_supports: Whether the clients of a round have supports of their own, or a common one.

    Raises:
        ValueError: The bits are none of `dp.Rotated`; or density or clients are out of their range.

    Examples:
        >>> round(added_error(bits=1, clients=10, signal_to_noise=0.0), 2)
        0.57
        >>> round(added_error(bits=1, density=0.01, clients=10, signal_to_noise=0.05), 2)
        1.31
        >>> round(added_error(bits=1, density=0.01, clients=10, signal_to_noise=0.05, draw_to_noise=0.003), 2)
        1.77
    """
    if bits is not None and bits not in ROTATED:
        raise ValueError(f"bits = {bits}: dp.Rotated has {min(ROTATED)} to {max(ROTATED)}; None is float32")
    return _added_error(
        quantiser=0.0 if bits is None else ROTATED[bits],
        density=density,
        clients=clients,
        signal_to_noise=signal_to_noise,
        draw_to_noise=draw_to_noise,
        own_supports=own_supports,
    )


def _added_error(
    *,
    quantiser: float,
    density: float,
    clients: int,
    signal_to_noise: float,
    draw_to_noise: float,
    own_supports: bool = True,
) -> float:
    """Compute η for a quantiser whose share of the energy that it codes is q(b)."""
    own = "dealt" if density * clients <= 1 else "own"
    excess = excess_second_moment(density=density, clients=clients, supports=own if own_supports else "common")
    coded = 1 + (signal_to_noise / clients + draw_to_noise) / density  # by the energy of the noise
    return quantiser * coded + excess * signal_to_noise + (1 - density) / density * draw_to_noise


def least_error(
    *, message_bits: float, coordinates: int, clients: int, signal_to_noise: float, draw_to_noise: float = 0.0
) -> float:
    """Compute the least η of messages of so many bits, by the best density and the best quantiser that there can be.

    It is `added_error` with own supports and q(b) = 1/(2^(2b) − 1), that of the distortion-rate function of a Gaussian,
    b bits a value, which a code of long blocks comes near to; at the density κ where it is least, for b = bits/(κd).

    Args:
        message_bits: The bits of a client's message, its header not counted.
        coordinates: d.
        clients: n, the number of clients in a round.
        signal_to_noise: As for `added_error`.
        draw_to_noise: As for `added_error`.

    Examples:
        >>> ratios = {"signal_to_noise": 0.05, "draw_to_noise": 0.003}
        >>> round(least_error(message_bits=256, coordinates=26_010, clients=10, **ratios), 2)
        1.36
        >>> round(added_error(bits=1, density=256 / 26_010, clients=10, **ratios), 2)
        1.79
    """

    def error(log_density: float) -> float:
        density = math.exp(log_density)
        exponent = 2 * math.log(2) * message_bits / (density * coordinates)
        return _added_error(
            quantiser=1 / math.expm1(min(exponent, 500.0)),
            density=density,
            clients=clients,
            signal_to_noise=signal_to_noise,
            draw_to_noise=draw_to_noise,
        )

    # There may be several minima, and a step where supports begin to share coordinates: the best of a grid is refined.
    grid = np.sort(np.append(np.linspace(-math.log(coordinates), 0.0, 200), -math.log(clients)))
    best = int(np.argmin([error(each) for each in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found: Any = minimize_scalar(error, bounds=bounds, method="bounded")
    return min(float(found.fun), error(float(grid[best])))


def fewest_bits(
    *, error: float, coordinates: int, clients: int, signal_to_noise: float, draw_to_noise: float = 0.0
) -> float:
    """Compute the fewest bits of a message whose η is no more than an error, by `least_error`.

    Args:
        error: The largest η, above 0.
        coordinates: d.
        clients: n, the number of clients in a round.
        signal_to_noise: As for `added_error`.
        draw_to_noise: As for `added_error`.

    Examples:
        >>> ratios = {"clients": 10, "signal_to_noise": 0.05, "draw_to_noise": 0.003}
        >>> round(fewest_bits(error=1.36, coordinates=26_010, **ratios), -1)
        260.0
    """

    def above(log_bits: float) -> float:
        least = least_error(
            message_bits=math.exp(log_bits),
            coordinates=coordinates,
            clients=clients,
            signal_to_noise=signal_to_noise,
            draw_to_noise=draw_to_noise,
        )
        return math.log(least / error)

    found: Any = brentq(above, 0.0, math.log(64.0 * coordinates))
    return math.exp(found)
