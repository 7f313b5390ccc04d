"""The error that a compressor adds to the noise, held to messages that are really coded."""

import numpy as np
import pytest

import dpcomp as dp
from analysis.theory.noise_floor import added_error, fewest_bits, least_error

D, CLIENTS, ROUNDS = 4096, 4, 40


@pytest.mark.parametrize("draw", [0.0, 0.2])
@pytest.mark.parametrize("bits", [None, 1, 2, 3])
@pytest.mark.parametrize(("density", "own"), [(1.0, True), (0.125, True), (0.125, False)])
def test_what_is_decoded_errs_as_the_form_says(bits, density, own, draw):
    rng, codec = np.random.default_rng(0), dp.Codec(quantize=None if bits is None else dp.Rotated(bits))
    signal, ratio, k = rng.standard_normal(D) / np.sqrt(D), 0.3, round(density * D)
    deviation = np.sqrt(CLIENTS / (ratio * D))  # of a client's coordinate
    added = 0.0
    for number in range(ROUNDS):
        mean, dealt = np.zeros(D), rng.permutation(D)
        noise = np.zeros(D)
        for client in range(CLIENTS):
            begin = client * k if own and density * CLIENTS <= 1 else 0
            support = dp.Listed(np.sort(dealt[begin : begin + k]))
            drawn = rng.standard_normal(k) * deviation
            context = dp.PublicContext(
                layout=dp.Layout.of(D), public_support=support, dither_key=1 + 97 * number + client
            )
            sent = signal[support.positions] + np.sqrt(draw) * deviation * rng.standard_normal(k)
            values = (sent / np.sqrt(density) + drawn).astype(np.float32)
            decoded = codec.encode(values, support, context)[1]
            mean[support.positions] += decoded / (CLIENTS * np.sqrt(density))
            noise[support.positions] += drawn / (CLIENTS * np.sqrt(density))
        added += np.square(mean - signal).sum() / np.square(noise).sum() - 1
    expected = added_error(
        bits=bits, density=density, clients=CLIENTS, signal_to_noise=ratio, draw_to_noise=draw, own_supports=own
    )
    assert added / ROUNDS - draw == pytest.approx(expected, rel=0.1, abs=0.02)  # dense updates have the draws too


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="bits = 5"):
        added_error(bits=5, clients=1, signal_to_noise=0.0)


SETTING = {"coordinates": 26_010, "clients": 10, "signal_to_noise": 0.05, "draw_to_noise": 0.003}


@pytest.mark.parametrize(("bits", "density"), [(1, 0.01), (2, 0.01), (2, 0.06), (4, 0.1), (1, 1.0)])
def test_no_code_of_as_many_bits_errs_less_than_the_least(bits, density):
    ratios = {key: value for key, value in SETTING.items() if key != "coordinates"}
    code = added_error(bits=bits, density=density, **ratios)
    assert least_error(message_bits=bits * density * 26_010, **SETTING) < code


@pytest.mark.parametrize("message_bits", [50, 256, 3000, 26_010, 100_000])
def test_no_density_errs_less_than_the_least(message_bits):
    ratios = {key: value for key, value in SETTING.items() if key != "coordinates"}

    def error(density):
        of_a_client = (ratios["signal_to_noise"] / 10 + ratios["draw_to_noise"]) / density
        quantiser = (1 + of_a_client) / np.expm1(min(2 * np.log(2) * message_bits / (density * 26_010), 500))
        return added_error(bits=None, density=density, **ratios) + quantiser

    least = min(error(density) for density in (0.1, *np.geomspace(1 / 26_010, 1, 2000)))
    assert least_error(message_bits=message_bits, **SETTING) == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("error", [0.05, 0.5, 2.0])
def test_the_fewest_bits_have_that_error_and_fewer_have_a_larger_one(error):
    fewest = fewest_bits(error=error, **SETTING)
    assert least_error(message_bits=fewest, **SETTING) == pytest.approx(error, rel=1e-3)
    assert least_error(message_bits=0.9 * fewest, **SETTING) > error
