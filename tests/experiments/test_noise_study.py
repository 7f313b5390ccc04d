"""The scrambling study, on small vectors and a small network."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import dpcomp as dp
from analysis.figures import efficiency, energy, overlap
from analysis.tables.noise_losses import (
    at_equal_density,
    at_equal_energy,
    claim_table,
    energy_with_feedback,
    spread,
    table_of,
)
from analysis.tables.studies import study_reports
from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.results_file import FORMAT, ResultsFile
from dpcomp.lab.tasks import SHIPPED_TASKS, digits
from dpcomp.sparsify.top_k_indices import top_k_indices
from experiments.cli import main
from experiments.studies import noise_study as scrambling
from experiments.studies.noise_study import Study, config_of, measured, name_of
from experiments.studies.noise_tables import payloads
from experiments.studies.recorded_updates import Recording, Rounds, record
from experiments.studies.replay import released, session

LAYOUT = dp.Layout.of({"dense": (2000,), "sparse": (18000,)})
DENSITIES = (0.01, 0.1)
WARMUP = 12  # rounds, enough for feedback at the larger density alone
RECORDING = Recording(phases={"early": 1, "late": 3}, batches=(30,), rounds=3, densities=DENSITIES, warmup=WARMUP)
STUDY = Study(task="digits", recording=RECORDING, noise_multipliers=(0.0, 1.0, 8.0))
PARTS = ["header_bits", "index_bits", "side_bits", "value_bits", "rounding_bits"]


def rounds_of(seed: int, batch: int = 30) -> Rounds:
    """Vectors that move a little from round to round, one layer larger than the other."""
    rng, public = np.random.default_rng(seed), dp.PublicSeed(seed)
    steady = rng.standard_t(4, LAYOUT.size) * np.repeat([0.2, 0.1], LAYOUT.sizes)
    before = [(steady + 0.05 * rng.standard_t(4, LAYOUT.size)).astype(np.float32) for _ in range(WARMUP + 3)]
    vectors = before[WARMUP:]
    contexts = [dp.PublicContext(layout=LAYOUT, mask_key=public.key("mask", number)) for number in range(len(vectors))]
    whole = [dp.Total(layers=(vector,), layout=LAYOUT, units=batch) for vector in before]
    restricted = {
        density: tuple(
            dp.Total(layers=(vector[support.indices(LAYOUT.size)],), layout=LAYOUT, support=support, units=batch)
            for vector, support in zip(
                vectors, [dp.RandomK(density).public_support(context) for context in contexts], strict=True
            )
        )
        for density in DENSITIES
    }
    return Rounds(
        layout=LAYOUT,
        seed=public,
        batch=batch,
        clip_norm=0.1,
        whole=tuple(whole),
        restricted=restricted,
        training_loss=1.0,
        warmup=WARMUP,
    )


@pytest.fixture(scope="module")
def reports():
    return [json.loads(json.dumps(report_of(seed))) for seed in range(2)]


def report_of(seed):
    case = ("early", 30)
    about = {"format": FORMAT, "trial": name_of(STUDY, case, seed), "config": config_of(STUDY, case), "seed": seed}
    return about | measured(STUDY, rounds_of(seed))


@pytest.fixture(scope="module")
def losses(reports):
    return at_equal_density(table_of(reports, "payloads"), table_of(reports, "supports"))


def test_the_parts_of_all_payloads_add_up_to_their_bytes(losses):
    assert (losses[PARTS].sum(axis=1) - 8 * losses["payload_bytes"]).abs().max() < 0.1  # six digits are kept
    assert np.allclose(losses["loss_of_index"] + losses["loss_of_values"], losses["loss"])


def test_every_setting_is_there_once(losses):
    keys = [*("order", "trust", "link", "feedback", "density", "bits", "noise_multiplier", "seed")]
    assert not losses.duplicated(keys).any()
    nobody = 2 * 2 + 2 + 1  # densities and orders; more bits; and feedback at one density
    server = 2 * 2 * 2  # densities, orders and links
    assert len(losses) == 2 * (3 * nobody + 2 * server)


def test_without_noise_nothing_is_lost_and_nothing_foretold(losses):
    still = losses[losses["noise_multiplier"] == 0]
    assert (still["loss"] == 0).all()
    for name in ("closed_form", "by_layer", "with_values", "of_sent"):
        assert (still[name].dropna() == 0).all()


def test_at_much_noise_the_loss_is_that_of_a_random_support(losses):
    most = losses[(losses["noise_multiplier"] == 8) & (losses["order"] == "noise first") & (losses["feedback"] == 0)]
    noisy = most[most["trust"] == "nobody"]
    assert len(noisy) == 2 * 4  # seeds; densities and bits
    assert (noisy["loss"] > 5).all()
    assert (noisy["with_values"] - noisy["loss"]).abs().max() < 1
    assert (noisy["closed_form"] - noisy["random"]).abs().max() < 0.5
    assert (noisy["sent_overlap"] - noisy["density"]).abs().max() < 0.03
    uplink = most[(most["trust"] == "server") & (most["link"] == "uplink")]
    assert (uplink["loss"] == 0).all() and (uplink["random"] == 0).all()
    downlink = most[(most["trust"] == "server") & (most["link"] == "downlink")]
    assert (downlink["loss"] > 5).all()


def test_a_support_that_is_known_takes_no_index(losses):
    seeded = losses[losses["order"] == "support first"]
    assert (seeded["index_bits"] == 0).all() and (seeded["by_layer"].dropna() == 0).all()
    assert (losses.loc[losses["order"] == "noise first", "index_bits"] > 0).all()


def test_what_is_sent_without_feedback_is_the_noisy_top_k(losses):
    plain = losses[(losses["order"] == "noise first") & (losses["trust"] == "nobody") & (losses["feedback"] == 0)]
    assert (plain["sent_overlap"] == plain["noisy_overlap"]).all()
    assert (plain["sent_recall"] == plain["recall"]).all()
    assert (plain["captured_energy"] == plain["energy"]).all()


def test_expectations_are_met(losses):
    for found, expected in (("noisy_overlap", "expected_overlap"), ("recall", "expected_recall"), ("energy",) * 2):
        assert (losses[found] - losses[expected]).abs().max() < 0.03


def test_at_equal_energy_noise_costs_bytes_and_a_random_support_costs_them_from_the_start(reports):
    table = at_equal_energy(table_of(reports, "energies"))
    assert (table["captured_energy"] - table["energy_share"]).abs().max() < 0.03
    noise_first = table[table["order"] == "noise first"]
    seeded = table[table["order"] == "support first"]
    most = [rows.loc[rows["noise_multiplier"] == 8, "loss"].to_numpy() for rows in (noise_first, seeded)]
    assert (most[0] > 80).all() and (most[1] < 50).all()  # heavy tails need fewer bits a value than noise does
    assert seeded["payload_bytes"].min() > noise_first.loc[noise_first["noise_multiplier"] == 0, "payload_bytes"].max()


def test_energy_with_feedback_is_read_between_the_densities(reports):
    payloads = table_of(reports, "payloads")
    table = energy_with_feedback(payloads, 0.3)
    still = table[(table["noise_multiplier"] == 0) & (table["order"] == "noise first")]
    assert still.loc[still["feedback"] == 0, "payload_bytes"].notna().all()
    assert table.loc[table["order"] == "support first", "payload_bytes"].isna().all()


def test_a_spread_is_that_over_seeds(losses):
    found = spread(losses, ["density", "noise_multiplier"], ["loss"])
    assert found["loss_deviation"].gt(0).any()
    assert found.xs(0.0, level="noise_multiplier")["loss_deviation"].eq(0).all()


def test_the_claim_is_told_and_drawn(reports, losses):
    text = claim_table(reports).to_string()
    assert "top 1.0%" in text and "energy 25%" in text
    for draw in (efficiency.draw, overlap.draw):
        draw(losses).canvas.draw()
    energy.draw(at_equal_energy(table_of(reports, "energies"))).canvas.draw()


def test_a_study_goes_on_from_what_is_finished(tmp_path, monkeypatch):
    asked = []

    def from_memory(task, recording, seed, wanted):
        asked.append(sorted(wanted))
        for phase, batch in wanted:
            yield phase, batch, rounds_of(seed)

    monkeypatch.setattr(scrambling, "record", from_memory)
    small = replace(
        STUDY, recording=replace(RECORDING, densities=(0.1,)), noise_multipliers=(0.0,), energy_shares=(0.3,)
    )
    file = ResultsFile(path=tmp_path / "scrambling.jsonl")

    def study(chosen):
        scrambling.study(file.path, (0,), ("digits",), SHIPPED_TASKS, (chosen,))

    study(small)
    first, _ = file.read()
    file.replace([first])
    study(small)
    study(small)
    assert asked == [[("early", 30), ("late", 30)], [("late", 30)], []]
    reports = study_reports(tmp_path / "scrambling")
    assert [report["trial"] for report in reports] == [f"digits/batch-30/{phase}/seed-0" for phase in ("early", "late")]
    assert reports[0] == first
    with pytest.raises(ConfigError, match="another study"):
        study(replace(small, bits=5))


def test_the_command_measures_what_is_asked_for_and_tells_the_claim(tmp_path, monkeypatch, capsys, reports):
    asked = []
    monkeypatch.setattr(scrambling, "study", lambda *given: asked.append(given))
    file = ResultsFile(path=tmp_path / "scrambling.jsonl")
    file.replace(reports)
    assert main(["study", "scrambling", "--configs", str(tmp_path), "--tasks", "cifar10", "--seeds", "0", "2"]) == 0
    assert [given[:3] for given in asked] == [(file.path, (0, 2), ("cifar10",))]
    assert "noise first" in capsys.readouterr().out


def test_a_study_without_results_says_what_to_run(tmp_path, capsys):
    with pytest.raises(ConfigError, match="python -m experiments study scrambling"):
        study_reports(tmp_path / "scrambling")
    assert main(["study", "scrambling", "--configs", str(tmp_path), "--tasks", "cifar"]) == 1
    assert "the nearest is 'cifar10'" in capsys.readouterr().err


def test_recorded_rounds_are_a_function_of_the_seed_and_of_nothing_else():
    both = [("early", 30), ("late", 30)]
    runs = [dict_of(record(digits(), RECORDING, 5, wanted)) for wanted in (both, both, both[1:])]
    for name in both[1:]:
        for total, *others in zip(*(run[name].whole for run in runs), strict=True):
            assert all(total.vector().tobytes() == other.vector().tobytes() for other in others)
    early, late = (runs[0][name] for name in both)
    assert early.training_loss > late.training_loss
    assert all(np.linalg.norm(vector) <= 30 * 0.1 * 1.001 for vector in early.vectors)
    assert (len(early.whole), len(early.warm.whole)) == (WARMUP + 3, 3)
    supports = [total.support for total in early.restricted[0.1]]
    assert len(set(supports)) == 3  # a new one every round
    for total, whole in zip(early.restricted[0.1], early.warm.vectors, strict=True):
        there = whole[total.support.indices(early.layout.size)]
        # Clipped on the support, units keep more of their norm there.
        assert np.linalg.norm(total.vector()) > np.linalg.norm(there)


def dict_of(recorded):
    return {(phase, batch): rounds for phase, batch, rounds in recorded}


def test_the_clean_top_k_is_the_clean_vectors(reports):
    vectors = rounds_of(0).warm.vectors
    own = [set(top_k_indices(vector, 200).tolist()) for vector in vectors]
    expected = np.mean([len(one & other) / 200 for one, other in pairwise(own)])
    table = table_of(reports[:1], "supports")
    assert np.allclose(table.loc[table["density"] == 0.01, "clean_overlap"], expected)


def test_what_is_sent_with_feedback_is_measured_behind_the_warmup():
    rounds = rounds_of(0)
    setting = next(each for each in STUDY.settings(0.0) if each.feedback)
    sent = [each for each in session(setting, rounds, released(setting, rounds)) if each.number >= WARMUP]
    own = [set(each.support.indices(LAYOUT.size).tolist()) for each in sent]
    expected = np.mean([len(one & other) / len(one) for one, other in pairwise(own)])
    (row,) = payloads(rounds, {0.0: [setting]}).to_dict("records")
    assert row["sent_overlap"] == pytest.approx(expected) and len(sent) == 3
    (at_once,) = payloads(rounds.warm, {0.0: [setting]}).to_dict("records")
    assert at_once["sent_overlap"] > 2 * row["sent_overlap"]  # an empty residual chooses as if there were no feedback
