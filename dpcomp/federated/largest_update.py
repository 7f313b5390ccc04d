"""How large an honest update can be, from public numbers alone."""

import math


def largest_update(
    *,
    clip_norm: float,
    noise_multiplier: float,
    coordinates: int,
    releases: int = 1,
    learning_rate: float = 1.0,
    expected_batch_size: float | None = None,
    rounds: int = 1,
    chance: float = 1e-10,
) -> float:
    """Return a norm that an honest client's decoded update exceeds with a probability of at most `chance`.

    It bounds the sum of R = `rounds` updates, each η · Σ (clipped sum + noise) ÷ B over E = `releases` releases:

    - A clipped sum of n examples has norm ≤ nC. Of a Poisson batch, n ≤ B + √(2BL) + L but for a probability e⁻ᴸ each
      (Bernstein's inequality). Where the unit is the client, n = B = 1.
    - The noise of all releases together is Gaussian with standard deviation s = η√(RE) zC ÷ B a coordinate, so its norm
      is ≤ s(√k + √(2L)) but for a probability e⁻ᴸ (Laurent & Massart 2000, lemma 1).

    L = log((RE + 1) ÷ chance), so that all of it fails with probability ≤ `chance`. Error feedback adds what earlier
    rounds dropped, at most what they released: give R = the rounds of the whole run; without feedback, 1.
    `MomentumCorrection` adds up to 1/(1 − m) of each update: give that times η. `EF21` adds up differences of two
    averages of updates: give 2η. A codec whose error is at most the norm of its input (top-k, random-k, sign, nearest
    rounding from 2 bits on) decodes to at most twice the norm that went in, and the result holds this factor of 2.
    `Ternary` and stochastic rounding to few bits have larger errors, and get no bound here.

    **Privacy:** the bound protects the model from a client that sends anything, not a client's data. It uses no data.

    Args:
        clip_norm: C, of the mechanism.
        noise_multiplier: z, of the mechanism.
        coordinates: k, the number of coordinates that a release holds.
        releases: E, the number of releases in an update: the local steps, or 1 where the unit is the client.
        learning_rate: η, the largest by which a client multiplies a release; 1 where the unit is the client.
        expected_batch_size: B, by which a client divides a release; None where the unit is the client.
        rounds: R, the rounds of the run where the pipeline has error feedback, else 1.
        chance: The probability to refuse an honest update, in (0, 1).

    Returns:
        An L2 norm, for `Server(largest_update=...)`.

    Raises:
        ValueError: A number lies outside its range.

    Examples:
        >>> bound = largest_update(clip_norm=1.0, noise_multiplier=1.0, coordinates=10_000)
        >>> print(round(bound, 1))  # the noise alone has norm 100
        215.8
    """
    divisor = 1.0 if expected_batch_size is None else expected_batch_size
    positive = (clip_norm, coordinates, releases, learning_rate, divisor, rounds)
    if not all(number > 0 for number in positive) or noise_multiplier < 0 or not 0 < chance < 1:
        raise ValueError(
            f"largest_update({clip_norm=}, {noise_multiplier=}, {coordinates=}, {releases=}, {learning_rate=}, "
            f"{expected_batch_size=}, {rounds=}, {chance=}): all are above 0, and chance below 1"
        )
    updates = rounds * releases
    failures = math.log((updates + 1) / chance)
    most = 1.0 if expected_batch_size is None else divisor + math.sqrt(2 * divisor * failures) + failures
    clipped = learning_rate * updates * most * clip_norm * (1 + 1e-5) / divisor
    stddev = learning_rate * math.sqrt(updates) * noise_multiplier * clip_norm / divisor
    return 2 * (clipped + stddev * (math.sqrt(coordinates) + math.sqrt(2 * failures)))
