"""The table of what compressors lose beside more noise."""

import numpy as np
import pandas as pd
import pytest

from analysis.figures.noise_floor import draw
from analysis.tables import noise_floor
from analysis.tables.noise_floor import Code, above_line, code_of, explained, ratios_of

TABLE = pd.DataFrame(
    {
        "method": ["0 more", "1 more", "own 1 %", "own 6 %, 2 bits"],
        "dense": [True, True, False, False],
        "error": [0.0, 1.0, 0.5, 0.25],
        "difference": [0.0, -2.0, -1.2, -0.4],
        "half": [0.0, 0.5, 0.5, float("nan")],
        "foretold": [0.0, -2.0, -1.0, -0.5],
        "setting": "alike",
    }
)


def test_what_is_explained_is_the_share_of_the_variance():
    assert explained(TABLE) == pytest.approx(1 - (0.2**2 + 0.1**2) / (0.4**2 + 0.4**2))


def test_what_is_above_the_line_is_taken_seed_by_seed():
    noise = {"0": {0: 0.80, 1: 0.70}, "1": {0: 0.78, 1: 0.68}}
    above = above_line({0: 0.77, 1: 0.70}, {0: 0.80, 1: 0.70}, 0.5, noise)
    assert above == pytest.approx({0: -0.02, 1: 0.01})


def test_methods_are_read_by_their_names():
    assert code_of("own 0.5 %, 2 bits") == Code(2, 0.005, own_supports=True)
    assert code_of("shared 1 %") == Code(1, 0.01, own_supports=False)
    assert code_of("dense, 1 bit") == Code(1, 1.0, own_supports=False)
    assert code_of("own 1 %, float32") == Code(None, 0.01, own_supports=True)
    assert [code_of(name) for name in ("dense", "own 1 %, momentum", "top 1 %, feedback")] == [None] * 3


def test_every_method_is_named_in_the_figure():
    (legend,) = draw(TABLE).legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense, more noise", "own 6 %, 2 bits", "own 1 %"]


def test_signal_and_draws_are_told_apart_by_vectors_of_known_energy(monkeypatch, tmp_path):
    rng, d, clients, rounds = np.random.default_rng(0), 2000, 10, 40
    each, whole = [], []
    for number in range(1, rounds + 1):
        signal = np.sqrt(0.05 if number <= rounds // 2 else 0.02) * rng.standard_normal(d)
        updates = signal + np.sqrt(0.3) * rng.standard_normal((clients, d))
        energies = np.square(updates).sum(axis=1) / d
        each += [{"round": number, "share": "0", "participants": clients, "signal_to_noise": x} for x in energies]
        each += [{"round": number, "share": "1", "participants": clients, "signal_to_noise": np.nan}]
        # The mean of the clients' noise has a tenth of its energy.
        whole.append({"round": number, "signal_to_noise": np.square(updates.mean(axis=0)).sum() / d * clients})
    frames = {"noise_floor.toml": pd.DataFrame(each), "noise_floor_mean.toml": pd.DataFrame(whole)}
    monkeypatch.setattr(noise_floor, "rounds_of", lambda path: frames[path.name])
    assert ratios_of(tmp_path) == pytest.approx((0.035 * clients, 0.3), rel=0.05)
    assert ratios_of(tmp_path, after=0.5) == pytest.approx((0.02 * clients, 0.3), rel=0.05)
