"""The table of what compressors lose beside more noise."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis.figures.noise_floor import draw
from analysis.tables import noise_floor
from analysis.tables.noise_floor import (
    Code,
    Ratios,
    above_line,
    code_of,
    explained,
    floor_of,
    looser_floor_of,
    ratios_of,
    resampled_fits,
)
from dpcomp.lab.config.experiment import Experiment

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
    lost, foretold = np.array([-1.2, -0.4]), np.array([-1.0, -0.5])
    assert explained(lost, foretold) == pytest.approx(1 - (0.2**2 + 0.1**2) / (0.4**2 + 0.4**2))
    assert explained(lost, lost) == 1
    assert explained(lost, np.full(2, -0.8)) == 0


def test_what_is_above_the_line_is_taken_seed_by_seed():
    noise = {"0": {0: 0.80, 1: 0.70}, "1": {0: 0.78, 1: 0.68}}
    above = above_line({0: 0.77, 1: 0.70}, {0: 0.80, 1: 0.70}, 0.5, noise)
    assert above == pytest.approx({0: -0.02, 1: 0.01})


FEDERATION = {"clients": 10, "rounds": 300}
MECHANISM = [{"Clip": {"norm": 0.1}}, {"Gaussian": {}}]
ROTATED = {"Codec": {"quantize": {"Rotated": {}}}}
TWO_BITS = {"Codec": {"quantize": {"Rotated": {"bits": 2}}}}
OWN = [{"RandomK": {"fraction": 0.0098424, "per": "client"}}, *MECHANISM]


@pytest.mark.parametrize(
    ("mechanism", "codec", "federation", "code"),
    [
        (OWN, TWO_BITS, {}, Code(2, 0.0098424, own_supports=True)),
        ([{"RandomK": {"fraction": 0.06}}, *MECHANISM], ROTATED, {}, Code(1, 0.06, own_supports=False)),
        (OWN, {}, {}, Code(None, 0.0098424, own_supports=True)),
        (MECHANISM, ROTATED, {}, Code(1, 1.0, own_supports=False)),
        (MECHANISM, {}, {}, None),
        (OWN, ROTATED, {"server_momentum": 0.9}, None),
        (MECHANISM, {"Codec": {"sparsify": {"TopK": {"fraction": 0.01}}, "quantize": {"Rotated": {}}}}, {}, None),
        (OWN, {"Codec": {"quantize": {"Uniform": {"bits": 4}}}}, {}, None),
    ],
)
def test_what_is_sent_is_read_from_the_pipeline(mechanism, codec, federation, code):
    pipeline = {"mechanism": mechanism} | ({"codec": codec} if codec else {})
    assert code_of(Experiment(task="digits", pipeline=pipeline, federation=FEDERATION | federation)) == code


def test_a_law_of_methods_with_momentum_reads_those_alone():
    def code(mechanism, momentum):
        federation = FEDERATION | {"server_momentum": momentum}
        pipeline = {"mechanism": mechanism, "codec": TWO_BITS if mechanism is OWN else {}}
        return code_of(Experiment(task="digits", pipeline=pipeline, federation=federation), momentum=0.9)

    assert code(OWN, 0.9) == Code(2, 0.0098424, own_supports=True)
    assert code(OWN, 0.0) is None
    assert code(MECHANISM, 0.9) is None


def test_every_method_is_named_in_the_figure():
    (legend,) = draw(TABLE).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "dense, more noise",
        "own 6 %, 2 bits",
        "own 1 %, 1 bit",
    ]


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


def test_a_looser_epsilon_is_held_against_dense_updates_by_the_variance_of_their_noise(monkeypatch, tmp_path):
    """Where accuracy falls linearly with that variance, codes lose what is foretold, whatever the ε."""
    loose, shares = 0.5, ("0", "1", "2")  # the variance at the looser ε, by that at the stricter one

    def accuracy(variance: float, seed: int) -> float:
        return 0.9 - 0.05 * variance + 0.01 * seed

    code = Code(1, 1.0, own_supports=False)
    monkeypatch.setattr(noise_floor, "codes_of", lambda path: {"1 bit": code})
    monkeypatch.setattr(noise_floor, "ratios_of", lambda folder: Ratios(signal=0.1, draw=0.02))
    monkeypatch.setattr(noise_floor, "rounds_of", lambda path: pd.DataFrame({"participants": [10]}))
    stages = {"noise_floor.toml": 2.0, "fashion_mnist_epsilon_8.toml": 2.0 * loose**0.5}
    monkeypatch.setattr(noise_floor, "outcomes", lambda path: [SimpleNamespace(reports=[path.name])])
    monkeypatch.setattr(noise_floor, "noise_multiplier", stages.__getitem__)
    error = noise_floor.added_error(**code._asdict(), clients=10, signal_to_noise=0.2, draw_to_noise=0.04)
    seeds = range(3)
    methods = [
        {"grid.method": name, "seed": seed, "test_accuracy": accuracy(loose * (1 + added), seed)}
        for name, added in (("dense", 0.0), ("1 bit", error))
        for seed in seeds
    ]
    more = [
        {"share": share, "seed": seed, "test_accuracy": accuracy(1 + float(share), seed)}
        for share in shares
        for seed in range(5)
    ]
    tables = {"fashion_mnist_epsilon_8.toml": pd.DataFrame(methods), "noise_floor.toml": pd.DataFrame(more)}
    monkeypatch.setattr(noise_floor, "trials_of", lambda path: tables[path.name])
    (row,) = looser_floor_of(tmp_path).to_dict("records")
    assert row["error"] == pytest.approx(error)
    assert row["foretold"] == pytest.approx(-5 * loose * error)
    assert row["difference"] == pytest.approx(row["foretold"])
    assert (row["excess"], row["half"]) == pytest.approx((0, 0), abs=1e-9)


def test_the_first_fit_is_that_of_all_seeds_and_the_draws_spread_around_it():
    folder = Path("experiments/configs/erased")
    table = floor_of(folder)
    codes = table[~table["dense"] & table["foretold"].notna()]
    fits = resampled_fits(folder, 0.75, 40)
    assert fits.whole_run[0] == pytest.approx(explained(codes["difference"].to_numpy(), codes["foretold"].to_numpy()))
    assert fits.furthest[0] == pytest.approx((codes["difference"] - codes["foretold"]).abs().max())
    assert min(fits.whole_run[1:]) < fits.whole_run[0]
    assert len(set(fits.whole_run[1:])) > 30
