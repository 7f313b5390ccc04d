"""What a sender tracks of the broadcasts, and what an allocator that sees the noise makes of it."""

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.codec.wiener import TrackedSignal
from dpcomp.wire.update import with_claim

SIZES = (5_000, 5_000, 5_000)
LAYOUT = dp.Layout.of({str(number): (size,) for number, size in enumerate(SIZES)})
SIGNALS = np.array([1.0, 0.2, 0.02])  # standard deviations of the layers
CLIENTS, NOISE = 4, 0.5


def vectors(rng, count):
    """The signal of a round, and updates that carry noise of their own."""
    signal = np.repeat(SIGNALS, SIZES) * rng.standard_normal(LAYOUT.size)
    noisy = signal + NOISE * rng.standard_normal((count, LAYOUT.size))
    return signal, noisy.astype(np.float32)


def noisy_pipeline(bits, clients=CLIENTS):
    return dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(NOISE)),
        codec=dp.Codec(quantize=dp.Uniform(dp.Waterfill(bits, clients=clients))),
        downlink=dp.Codec(),
        feedback=False,
    )


def federation(pipeline, rounds, seed=0):
    """Rounds of clients that send one signal under noise; yields the signal, what was received, and the memories."""
    rng, public = np.random.default_rng(seed), dp.PublicSeed(0)
    memories = [pipeline.init_client(LAYOUT, public, client=client) for client in range(CLIENTS)]
    server = pipeline.init_server(LAYOUT, public)
    for _ in range(rounds):
        signal, noisy = vectors(rng, CLIENTS)
        received, sizes = [], []
        for client, memory in enumerate(memories):
            update = with_claim(
                dp.Update(values=noisy[client], layout=LAYOUT, address=memory.address, noise_stddev=NOISE),
                pipeline.claim,
            )
            payload, memories[client] = pipeline.send(update, memory)
            estimate, server = pipeline.receive(payload, server)
            received.append(estimate.dense())
            sizes.append(len(payload))
        down, server = pipeline.broadcast(np.mean(received, axis=0), server)
        memories = [pipeline.follow(down, memory) for memory in memories]
        yield signal, noisy, received, memories, sizes


def test_the_signal_is_found_under_the_noise():
    *_, (_, _, _, memories, _) = federation(noisy_pipeline(6), 20)
    for memory in memories:
        assert memory.tracked is not None
        assert np.sqrt(memory.tracked.variance[:2]) == pytest.approx(SIGNALS[:2], rel=0.1)
        # The last layer is far below the noise of the mean: no more is known of it than that.
        assert memory.tracked.variance[2] < NOISE**2 / CLIENTS


def test_seeing_the_noise_comes_nearer_to_the_signal_for_the_same_bytes():
    excess, spent = {}, {}
    factors = np.repeat(SIGNALS**2 / (SIGNALS**2 + NOISE**2), SIZES)
    for name, clients in (("classic", None), ("noise-aware", CLIENTS)):
        errors, rates = [], []
        for signal, noisy, received, _, sizes in [*federation(noisy_pipeline(2, clients), 12)][6:]:
            for sent, found in zip(noisy, received, strict=True):
                decoded = factors * found if clients is None else found  # the same Wiener decoder for both rules
                errors.append(np.sum((decoded - signal) ** 2) - np.sum((factors * sent - signal) ** 2))
            rates += sizes
        excess[name], spent[name] = np.mean(errors), np.mean(rates)
    assert spent["noise-aware"] == pytest.approx(spent["classic"], rel=0.02)
    assert excess["classic"] > 1.4 * excess["noise-aware"]


def test_a_layer_that_was_given_no_bits_drifts_back():
    tracked = TrackedSignal.initial(LAYOUT)
    for _ in range(20):
        tracked = tracked.with_factors(NOISE, CLIENTS).after_broadcast(np.ones(LAYOUT.size, np.float32), LAYOUT)
    before = tracked.variance[2]
    silent = np.repeat([1, 1, 0], SIZES).astype(np.float32)
    for _ in range(10):
        tracked = tracked.with_factors(NOISE, CLIENTS).after_broadcast(silent, LAYOUT)
    assert tracked.variance[2] > 2 * before


def test_before_anything_was_seen_updates_go_as_they_are():
    tracked = TrackedSignal.initial(LAYOUT)
    assert np.isnan(tracked.variance).all()
    assert tracked.with_factors(NOISE, CLIENTS).factors.tolist() == [1.0, 1.0, 1.0]


def test_an_update_that_does_not_say_its_noise_is_refused():
    pipeline = noisy_pipeline(2)
    memory = pipeline.init_client(LAYOUT, dp.PublicSeed(0), client=0)
    values = np.ones(LAYOUT.size, np.float32)
    update = with_claim(dp.Update(values=values, layout=LAYOUT, address=memory.address), pipeline.claim)
    with pytest.raises(ValueError, match="noise_stddev"):
        pipeline.send(update, memory)


def test_a_release_says_its_noise():
    pipeline = noisy_pipeline(2)
    memory = pipeline.init_client(dp.Layout.of(60_000), dp.PublicSeed(0), client=0)  # 2 % are seven deviations
    permit = dp.Ledger().charge(pipeline.cost, memory.address)
    released = pipeline.release([], memory, dp.SecretSeed(), permit)
    assert released.noise_stddev == pytest.approx(np.std(released.dense()), rel=0.02)


SEES = dp.Codec(quantize=dp.Uniform(dp.Waterfill(2, clients=4)))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"codec": SEES}, "feedback"),
        ({"codec": dp.Codec(sparsify=dp.TopK(0.1), quantize=SEES.quantize), "feedback": False}, "TopK"),
        ({"codec": dp.Codec(sparsify=dp.RandomK(0.1), quantize=SEES.quantize), "feedback": False}, "RandomK"),
        ({"codec": SEES, "feedback": False, "unit": "client", "trust": "server"}, "server"),
    ],
)
def test_where_the_estimate_would_be_wrong_it_is_refused_at_birth(parts, why):
    with pytest.raises(ValueError, match=why):
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), **parts)


def test_a_random_part_before_the_noise_is_refused_too():
    with pytest.raises(ValueError, match="RandomK"):
        dp.Pipeline(mechanism=(dp.RandomK(0.1), dp.Clip(1.0), dp.Gaussian(1.0)), codec=SEES, feedback=False)
