"""The benchmarks compare the same work, give well-formed rows, and are what the page shows."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dpcomp as dp
from benchmarks.__main__ import BENCHMARKS, FIGURE, chosen_benchmarks
from benchmarks.harness.page import PLACE
from benchmarks.harness.records import FOLDER, Record
from benchmarks.harness.turns import QUICK
from benchmarks.peers.federation import FederationSettings, Images
from benchmarks.peers.steps import (
    StepSettings,
    channels_last_sgd_step,
    dpcomp_step,
    opacus_ghost_step,
    opacus_step,
    sgd_step,
)
from benchmarks.round_trip import RoundTrip
from benchmarks.speed.figure import drawn_steps
from benchmarks.speed.messages import SMALL
from benchmarks.speed.private_step import GHOST, HOOKS, SGD, Case, rows_of

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "benchmarks.md"
# Opacus' hooks make torch say this of every first layer.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 10))


def trained(make_step, **noise):
    """The weights after three steps with a clip that clips nothing, and without noise."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn((6, 1, 8, 8), generator=generator), torch.randint(0, 10, (6,), generator=generator))
        for _ in range(2)
    ]
    module = small_cnn()
    step = make_step(module, batches, StepSettings(clip_norm=1e3, noise_multiplier=0.0, learning_rate=0.5), **noise)
    for _ in range(3):
        step()
    return weights(module)


def weights(module):
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


@pytest.mark.parametrize("make_step", [channels_last_sgd_step, opacus_step, opacus_ghost_step, dpcomp_step])
def test_all_steps_do_the_same_work(make_step):
    expected = trained(sgd_step)
    assert float((expected - weights(small_cnn())).abs().max()) > 0.01
    noise = {"noise": False} if make_step is dpcomp_step else {}
    torch.testing.assert_close(trained(make_step, **noise), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make_step", [dpcomp_step, opacus_step, opacus_ghost_step])
def test_the_noise_of_a_private_step_is_that_of_its_settings(make_step):
    torch.manual_seed(0)
    module = nn.Linear(50, 10, bias=False)
    before = weights(module)
    faint = 1e-4 * torch.randn(8, 50)  # whose gradients are small beside the noise
    settings = StepSettings(clip_norm=2.0, noise_multiplier=3.0, learning_rate=4.0)
    make_step(module, [(faint, torch.zeros(8, dtype=torch.int64))], settings)()
    moved = float((weights(module) - before).std())
    assert moved == pytest.approx(4.0 * 2.0 * 3.0 / 8, rel=0.15)  # rate · C · z ÷ batch size


@pytest.fixture(scope="module")
def step_rows():
    case = Case(name="tiny", make=lambda: nn.Linear(5, 10), shape=(5,), batch_sizes=(2, 4), peers=(SGD, HOOKS, GHOST))
    with warnings.catch_warnings(action="ignore"):
        return list(rows_of(case, QUICK))


def test_rows_of_steps_name_every_peer_at_every_batch_size(step_rows):
    assert [(row.settings["batch"], row.peer) for row in step_rows] == [
        (batch, peer) for batch in (2, 4) for peer in (SGD, HOOKS, GHOST)
    ]
    for row in step_rows:
        assert row.turns == QUICK.turns
        assert 0 < row.ratio.lowest <= row.ratio.median <= row.ratio.highest
        assert row.figure.median > 0 < row.peer_figure.median


def test_the_figure_has_a_panel_a_model_and_dpcomp_at_its_ratios(step_rows):
    figure = drawn_steps([Record.of("step-tiny", "Tiny", step_rows, QUICK)])
    (panel,) = figure.axes
    assert panel.get_title() == "tiny"
    curves = {container.get_label(): container[0] for container in panel.containers}
    expected = [row.ratio.median for row in step_rows if row.peer == SGD]
    assert curves["private: dpcomp"].get_ydata().tolist() == expected
    (ghost,) = (line for line in panel.lines if line.get_label() == "private: Opacus, ghost clipping")
    ghosts = [row.peer_figure.median for row in step_rows if row.peer == GHOST]
    plain = [row.peer_figure.median for row in step_rows if row.peer == SGD]
    np.testing.assert_allclose(ghost.get_ydata(), np.divide(ghosts, plain))


def test_benchmarks_are_chosen_by_the_first_letters_of_their_names():
    assert chosen_benchmarks([]) == list(BENCHMARKS)
    assert {one.name for one in chosen_benchmarks(["step-l", "noise"])} == {"step-linear", "noise"}
    with pytest.raises(ValueError, match="no benchmark is called 'nosuch': there are step-cnn"):
        chosen_benchmarks(["noise", "nosuch"])


def test_no_two_benchmarks_have_one_name():
    names = [one.name for one in BENCHMARKS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("second", [False, True])
def test_a_round_trip_sends_the_same_bytes_each_time_and_reads_them(second):
    rng = np.random.default_rng(0)
    rounds = [rng.standard_normal(1000).astype(np.float32) for _ in range(2)]
    trip = RoundTrip(SMALL[0].codec, rounds, dp.Layout.of(1000), feedback=True, second=second)
    payload = trip.send()
    assert trip.send() == payload
    received = trip.receive(payload)
    largest = np.sort(np.argsort(np.abs(trip.target))[-10:])
    np.testing.assert_array_equal(received.support.indices(1000), largest)
    np.testing.assert_array_equal(trip.receive(payload).values, received.values)
    assert np.array_equal(trip.target, rounds[0]) is not second


def test_the_page_shows_every_benchmark_once_and_nothing_else():
    shown = [place["name"] for place in PLACE.finditer(PAGE.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(one.name for one in BENCHMARKS)


def test_records_are_of_benchmarks_that_there_are_and_at_full_size():
    by_name = {one.name: one for one in BENCHMARKS}
    paths = [path for path in FOLDER.glob("*.json") if path.stem in by_name]
    assert paths
    for path in paths:
        record = Record.read(path)
        assert (record.benchmark, record.about) == (path.stem, by_name[path.stem].about)
        assert record.effort["full_size"]
        assert record.rows
    assert (FOLDER / FIGURE).exists()


def test_clients_and_batches_of_a_federation_are_drawn_from_its_own_examples():
    settings, rng = FederationSettings(clients=4, together=2, examples=50, batch_size=10), np.random.default_rng(0)
    assert sorted(set(settings.draw_clients(rng).tolist())) == sorted(settings.draw_clients(np.random.default_rng(0)))
    batches = [settings.draw_batch(3, rng) for _ in range(200)]
    assert all(((batch >= 150) & (batch < 200)).all() for batch in batches)
    assert np.mean([len(batch) for batch in batches]) == pytest.approx(10, rel=0.1)


@pytest.mark.slow
def test_the_loops_of_jax_and_opacus_end_at_the_same_model():
    jnp = pytest.importorskip("jax.numpy")
    from benchmarks.peers.rounds_jax import jax_rounds, logits
    from benchmarks.peers.rounds_opacus import opacus_rounds
    from experiments.data.models import fashion_cnn

    settings = FederationSettings(clients=4, together=2, local_steps=3, noise_multiplier=0.0, learning_rate=1.0)
    images, module = Images.drawn(4 * 600, 500), fashion_cnn(seed=0)
    before = module(torch.from_numpy(images.test_inputs)).detach().numpy()
    trained_by_jax = jax_rounds({name: part.numpy() for name, part in module.state_dict().items()}, images, settings)(2)
    opacus_rounds(module, images, settings)(2)
    after = module(torch.from_numpy(images.test_inputs)).detach().numpy()
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(logits(trained_by_jax, jnp.asarray(images.test_inputs[:, 0])), after, atol=2e-5)


@pytest.mark.slow
def test_the_task_for_jax_is_the_model_that_torch_trains():
    jax = pytest.importorskip("jax")
    from benchmarks.speed.jax_images import JaxImages
    from dpcomp.training.jax import JaxTask
    from experiments.data.models import fashion_cnn

    images = Images.drawn(4, 8)
    task = JaxImages(images)
    assert isinstance(task, JaxTask)
    inputs, labels = task.test()
    outputs = jax.vmap(task.apply, (None, 0))(task.parameters(3), inputs)
    expected = fashion_cnn(seed=3)(torch.from_numpy(images.test_inputs)).detach()
    np.testing.assert_allclose(outputs, expected.numpy(), atol=2e-6)
    losses = jax.vmap(task.loss)(outputs, labels)
    assert float(losses.mean()) == pytest.approx(float(nn.functional.cross_entropy(expected, torch.from_numpy(labels))))


def test_compressors_of_lone_vectors_read_what_they_wrote():
    pytest.importorskip("numcodecs")
    from benchmarks.peers.compressors import dense_peers, sparse_peers

    layout = dp.Layout.of({"matrix": (30, 20), "bias": (30,), "kernel": (4, 3, 2, 2)})
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(layout.size).astype(np.float32)
    vector[:600] = np.outer(rng.standard_normal(30), rng.standard_normal(20)).reshape(
        -1
    )  # of rank 1, so PowerSGD has it whole
    top, squeezed, power = sparse_peers(layout, 0.1)
    payload = top.compress(vector)
    assert len(payload) == 8 * round(0.1 * layout.size)
    decoded = top.decompress(payload)
    largest = np.sort(np.argsort(np.abs(vector))[-round(0.1 * layout.size) :])
    np.testing.assert_array_equal(np.flatnonzero(decoded), largest)
    np.testing.assert_array_equal(decoded[largest], vector[largest])
    np.testing.assert_array_equal(squeezed.decompress(squeezed.compress(vector)), decoded)
    payload = power.compress(vector)
    assert len(payload) == 4 * ((30 + 20) + 30 + (4 + 12))
    decoded = power.decompress(payload)
    np.testing.assert_allclose(decoded[:600], vector[:600], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(decoded[600:630], vector[600:630])
    assert np.linalg.matrix_rank(decoded[630:].reshape(4, 12)) == 1
    zstd, blosc, rounded = dense_peers()
    for one in (zstd, blosc):
        np.testing.assert_array_equal(one.decompress(one.compress(vector)), vector)
    error = np.abs(rounded.decompress(rounded.compress(vector)) - vector).max() / np.abs(vector).max()
    assert 0 < error <= 0.005
