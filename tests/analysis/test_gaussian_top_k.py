import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from analysis.theory.gaussian_top_k import (
    gaussian_overlap,
    gaussian_retention,
    gaussian_threshold,
    gaussian_top_energy,
    small_snr_recall,
)

DENSITIES = (0.001, 0.01, 0.1)


def by_plackett(density, correlation):
    """The overlap by integrating dP/dρ = φ₂ from independence on (Plackett 1954), with ρ = sin α."""
    t = gaussian_threshold(density)

    def slope(angle):
        return (math.exp(-t * t / (1 + math.sin(angle))) - math.exp(-t * t / (1 - math.sin(angle)))) / math.pi

    return density + quad(slope, 0, math.asin(correlation), epsabs=1e-16, epsrel=1e-12, limit=500)[0] / density


@pytest.mark.parametrize("correlation", [1e-8, 1e-4, 0.01, 0.5, 0.9, 0.9999, 1 - 1e-8])
@pytest.mark.parametrize("density", [1e-6, *DENSITIES, 0.5, 0.95])
def test_the_gaussian_overlap_is_the_integral_over_the_correlation(density, correlation):
    assert gaussian_overlap(density=density, correlation=correlation) == pytest.approx(
        by_plackett(density, correlation), abs=1e-9
    )


@pytest.mark.parametrize("correlation", [0.01, 0.7, 0.99])
@pytest.mark.parametrize("density", DENSITIES)
def test_the_gaussian_overlap_is_scipys_bivariate_normal(density, correlation):
    t, corners = gaussian_threshold(density), 0.0
    for sign in (-1, 1):
        law = stats.multivariate_normal(cov=[[1, sign * correlation], [sign * correlation, 1]])
        corners += 2 * law.cdf([-t, -t])
    assert gaussian_overlap(density=density, correlation=correlation) == pytest.approx(corners / density, abs=1e-6)


def test_a_correlation_and_its_opposite_overlap_alike_for_magnitudes_have_no_sign():
    assert gaussian_overlap(density=0.1, correlation=-0.6) == gaussian_overlap(density=0.1, correlation=0.6)


@pytest.mark.parametrize("density", DENSITIES)
def test_the_limits_of_noise_alone_and_of_none(density):
    noise = gaussian_retention(density=density, snr=0.0)
    assert (noise.recall, noise.overlap, noise.captured_energy) == pytest.approx((density,) * 3, rel=1e-12)
    clean = gaussian_retention(density=density, snr=math.inf)
    assert (clean.recall, clean.overlap) == pytest.approx((1, 1), abs=1e-12)
    assert clean.captured_energy == pytest.approx(gaussian_top_energy(density))


@pytest.mark.parametrize("density", DENSITIES)
def test_everything_grows_with_the_signal(density):
    computed = [
        list(vars(gaussian_retention(density=density, snr=float(snr))).values()) for snr in np.geomspace(1e-4, 1e4, 50)
    ]
    assert (np.diff(computed, axis=0) > 0).all()


@pytest.mark.parametrize("density", DENSITIES)
def test_the_small_snr_expansion_has_the_right_constant_and_falls_short_by_the_next_term(density):
    t = gaussian_threshold(density)
    next_term = stats.norm.pdf(t) ** 2 * t**2 * (t**2 - 3) ** 2 / (6 * density)
    for snr in (1e-3, 1e-4):
        squared = snr / (1 + snr)
        exact = gaussian_retention(density=density, snr=snr).recall
        assert small_snr_recall(density=density, snr=snr) == pytest.approx(
            density + 2 * squared * t**2 * stats.norm.pdf(t) ** 2 / density, rel=1e-12
        )
        assert exact - small_snr_recall(density=density, snr=snr) == pytest.approx(
            next_term * squared**2, rel=0.02, abs=1e-13
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gaussian_retention(density=1.0, snr=1.0), "density = 1"),
        (lambda: gaussian_retention(density=0.1, snr=-1.0), "snr = -1"),
        (lambda: gaussian_retention(density=0.1, snr=math.nan), "snr = nan"),
        (lambda: gaussian_overlap(density=0.1, correlation=1.5), "correlation = 1.5"),
    ],
)
def test_impossible_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_closed_forms_import_no_framework():
    script = (
        "import sys\nfrom analysis.theory import gaussian_top_k, noisy_top_k, index_bits, remote_rate\n"
        "print([name for name in ('torch', 'opacus', 'jax') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
