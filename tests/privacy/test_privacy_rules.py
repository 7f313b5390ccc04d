"""PRIVACY_RULES and the table of units and trust, row by row: what the surface can say has the verdict given there."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

import dpcomp as dp
from dpcomp.privacy.accounting.epsilon import epsilon
from dpcomp.privacy.accounting.events import composed

Z, D = 1.1, 400
GAUSSIAN = (dp.Clip(1.0), dp.Gaussian(Z))
CHARGED = GaussianDpEvent(Z / (1 + 1e-5))  # floating point may exceed the clip norm by 10⁻⁵
CODED = dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4))


def spent(pipeline, steps=10, delta=1e-5):
    return pipeline.guarantee(steps, delta).epsilon


def of_event(event, steps=10, delta=1e-5):
    return epsilon(composed(event, steps), delta)[0]


def released(pipeline, memory, block, secret, ledger):
    return pipeline.release([block], memory, secret, ledger.charge(pipeline.cost, memory.address))


# Which orders are private


def test_rule_1_whatever_follows_the_noise_is_free():
    plain = dp.Pipeline(mechanism=GAUSSIAN)
    assert spent(plain) == of_event(CHARGED)
    for codec in (CODED, dp.Codec(sparsify=dp.RandomK(0.1)), dp.Codec(quantize=dp.Uniform(2), entropy=dp.FixedWidth())):
        # Rule 9: error feedback and momentum behind the noise.
        for feedback in (True, False, dp.MomentumCorrection(masking=False), dp.EF21()):
            assert spent(dp.Pipeline(mechanism=GAUSSIAN, codec=codec, feedback=feedback)) == spent(plain)


def test_rules_2_and_3_a_public_support_costs_what_none_costs_and_its_noise_stands_on_it_alone():
    secret = dp.SecretSeed(7)
    for mechanism in ((dp.RandomK(0.1), *GAUSSIAN), (dp.Clip(1.0), dp.RandomK(0.1), dp.Gaussian(Z))):
        pipeline = dp.Pipeline(mechanism=mechanism)
        assert spent(pipeline) == of_event(CHARGED)
        memory = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
        update = released(pipeline, memory, np.zeros((3, D), np.float32), secret, dp.Ledger())
        assert isinstance(update.support, dp.Seeded)
        assert len(update.values) == D // 10
        assert np.count_nonzero(update.dense()) == D // 10


def test_rule_2_masking_before_the_clip_spends_the_clip_norm_on_the_support():
    block = np.ones((1, D), np.float32)
    sums = {}
    for name, mechanism in {
        "before": (dp.RandomK(0.1), dp.Clip(1.0)),
        "after": (dp.Clip(1.0), dp.RandomK(0.1)),
    }.items():
        pipeline = dp.Pipeline(mechanism=dp.unsafe("to see the sum", *mechanism))
        total = pipeline.clip(block, pipeline.init_client(D, seed=dp.PublicSeed(0), client=0))
        sums[name] = np.linalg.norm(total.vector())
    assert sums["before"] == pytest.approx(1.0, rel=1e-4)
    assert sums["after"] == pytest.approx(math.sqrt(0.1), rel=1e-4)


@pytest.mark.parametrize("trust", ["nobody", "server"])
def test_rule_4_clip_then_top_k_then_noise_does_not_exist(trust):
    with pytest.raises(dp.NotPrivate, match=r"TopK \(stage 2\) chooses coordinates from private data, so Gaussian"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.TopK(0.01), dp.Gaussian(Z)), unit="client", trust=trust)


def test_rule_4_can_be_studied_by_name_and_says_so():
    pipeline = dp.Pipeline(mechanism=dp.unsafe("how much it leaks", dp.Clip(1.0), dp.TopK(0.01), dp.Gaussian(Z)))
    guarantee = pipeline.guarantee(10, 1e-5)
    assert guarantee.epsilon == math.inf
    assert "how much it leaks" in str(guarantee)
    memory = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
    update = released(pipeline, memory, np.arange(D, dtype=np.float32)[None], dp.SecretSeed(0), dp.Ledger())
    assert update.support == dp.Listed(np.arange(D - 4, D))


def test_rule_5_top_k_of_each_unit_before_the_clip_is_private_and_noised_everywhere():
    pipeline = dp.Pipeline(mechanism=(dp.TopK(0.05), *GAUSSIAN))
    assert spent(pipeline) == of_event(CHARGED)
    memory = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
    block = np.random.default_rng(0).standard_normal((2, D)).astype(np.float32)
    update = released(pipeline, memory, block, dp.SecretSeed(0), dp.Ledger())
    assert update.support == dp.Everywhere()
    assert np.count_nonzero(update.values) == D


@pytest.mark.parametrize(
    "mechanism",
    [
        (),
        (dp.Clip(1.0),),
        (dp.Gaussian(Z),),
        (dp.RandomK(0.1), dp.Gaussian(Z)),
        (dp.TopK(0.1), dp.Gaussian(Z)),
        (dp.Clip(1.0), dp.Gaussian(0.0)),
        (dp.Clip(1.0), dp.RandomK(0.1)),
    ],
)
def test_without_clip_or_noise_there_is_no_guarantee(mechanism):
    with pytest.raises(dp.NotPrivate):
        dp.Pipeline(mechanism=mechanism)


@pytest.mark.parametrize(
    "mechanism",
    [
        (*GAUSSIAN, dp.TopK(0.1)),
        (*GAUSSIAN, dp.RandomK(0.1)),
        (*GAUSSIAN, dp.Gaussian(Z)),
        (*GAUSSIAN, dp.Clip(1.0)),
        (dp.Clip(1.0), dp.Clip(1.0), dp.Gaussian(Z)),
    ],
)
def test_stages_in_the_wrong_room_are_told_where_to_go(mechanism):
    with pytest.raises(ValueError, match="stage"):
        dp.Pipeline(mechanism=mechanism)


def test_rule_8_to_16_stages_that_do_not_exist_cannot_be_smuggled_in():
    @dataclass(frozen=True)
    class Dither:
        def claim(self, before, where):
            return before

    with pytest.raises(dp.NotPrivate, match="ends without noise"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), Dither()))


def test_rules_14_and_16_signs_behind_the_noise_are_free_and_a_public_dither_is_no_noise():
    signs = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=dp.Sign()))
    plain = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    assert signs.guarantee(5, 1e-5).epsilon == plain.guarantee(5, 1e-5).epsilon
    dithered = dp.Codec(quantize=dp.Uniform(8, rounding=dp.Dithered()))
    with pytest.raises(dp.NotPrivate, match="noise"):
        dp.Pipeline(mechanism=(dp.Clip(1.0),), codec=dithered)
    for stage in (dp.Dithered(), dp.Uniform(8), dp.Sign()):
        with pytest.raises(TypeError, match="stage"):
            dp.Pipeline(mechanism=(dp.Clip(1.0), stage))


def test_rule_12_what_an_allocator_tracks_is_the_broadcasts_alone():
    codec = dp.Codec(quantize=dp.Uniform(dp.Waterfill(3, clients=2)))
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec, downlink=dp.Codec(), feedback=False)
    memory, server = pipeline.init_client(50, dp.PublicSeed(0), client=1), pipeline.init_server(50, dp.PublicSeed(0))
    clean = dp.Update(values=np.ones(50), layout=memory.layout, address=memory.address, noise_stddev=1.0)
    with pytest.raises(dp.NotPrivate):
        pipeline.send(clean, memory)
    before = memory.tracked.variance
    released = pipeline.release([], memory, dp.SecretSeed(), dp.Ledger().charge(pipeline.cost, memory.address))
    payload, memory = pipeline.send(released, memory)
    np.testing.assert_array_equal(memory.tracked.variance, before)  # sending says nothing; following does
    estimate, server = pipeline.receive(payload, server)
    memory = pipeline.follow(pipeline.broadcast(estimate, server)[0], memory)
    assert np.isfinite(memory.tracked.variance).all()


@pytest.mark.parametrize("feedback", [True, dp.MomentumCorrection()], ids=str)
def test_rule_10_a_clean_uplink_with_feedback_is_clipped_again_and_noised_everywhere(feedback):
    mechanism = (dp.Clip(1.0), dp.Gaussian(1e-6))
    pipeline = dp.Pipeline(mechanism=mechanism, codec=CODED, feedback=feedback, unit="client", trust="server")
    seed, ledger = dp.PublicSeed(0), dp.Ledger()
    server = pipeline.init_server(D, seed=seed)
    clients = [pipeline.init_client(D, seed=seed, client=client) for client in range(3)]
    estimates = []
    for memory in clients:
        update = dp.Update(values=np.full(D, 9.0), layout=memory.layout, address=memory.address)
        estimate, server = pipeline.receive(pipeline.send(update, memory)[0], server)
        estimates.append(estimate.dense())
        assert np.linalg.norm(estimates[-1]) > 10
    update = released(pipeline, server, np.stack(estimates), dp.SecretSeed(0), ledger)
    assert update.support == dp.Everywhere()
    assert np.linalg.norm(update.dense()) <= 3 * (1 + 1e-3)


def test_rules_11_and_12_clean_values_neither_leave_nor_come_back():
    nobody = dp.Pipeline(mechanism=GAUSSIAN, codec=CODED)
    memory = nobody.init_client(D, seed=dp.PublicSeed(0), client=0)
    clean = dp.Update(values=np.ones(D), layout=memory.layout, address=memory.address)
    with pytest.raises(dp.NotPrivate, match="made by hand"):
        nobody.send(clean, memory)
    trusting = dp.Pipeline(mechanism=GAUSSIAN, codec=CODED, unit="client", trust="server")
    memory = trusting.init_client(D, seed=dp.PublicSeed(0), client=0)
    server = trusting.init_server(D, seed=dp.PublicSeed(0))
    estimate, server = trusting.receive(trusting.send(clean, memory)[0], server)
    for decoded in (estimate, estimate.dense(), estimate.derive(estimate.dense())):
        with pytest.raises(dp.NotPrivate, match="never released"):
            trusting.broadcast(decoded, server)


def test_rule_17_local_steps_compose_and_a_client_level_update_is_one_event():
    example = dp.Pipeline(mechanism=GAUSSIAN, sampling=dp.Poisson(0.1))
    ledger = dp.Ledger()
    for number in range(4):
        ledger.charge(example.cost, dp.Address(0, 0, number), steps=3)
    assert ledger.guarantee(1e-5).epsilon == spent(example, steps=12)
    assert ledger.guarantee(1e-5).steps == 12


def test_rule_19_the_sampling_that_is_charged_is_poisson():
    rate = 0.05
    sampled = PoissonSampledDpEvent(rate, CHARGED)
    assert spent(dp.Pipeline(mechanism=GAUSSIAN, sampling=dp.Poisson(rate))) == of_event(sampled)
    sizes = [len(dp.Poisson(rate).draw(1000, dp.SecretSeed(0).stream("sample", step))) for step in range(300)]
    assert np.var(sizes) == pytest.approx(1000 * rate * (1 - rate), rel=0.3)  # a fixed size would have no variance
    assert not dp.Poisson(1e-9).draw(100, dp.SecretSeed(0).stream("sample")).size
    assert dp.Poisson(1.0).draw(100, dp.SecretSeed(0).stream("sample")).size == 100


def test_rule_21_sampling_clients_under_the_servers_eyes_amplifies_nothing():
    seen = dp.Pipeline(mechanism=GAUSSIAN, unit="client", trust="nobody", sampling=dp.Poisson(0.1))
    assert spent(seen) == of_event(CHARGED)
    assert "no amplification" in str(seen.guarantee(10, 1e-5))


def test_rule_22_under_a_trusted_server_the_sampled_event_is_charged_and_a_second_update_refused():
    pipeline = dp.Pipeline(mechanism=GAUSSIAN, unit="client", trust="server", sampling=dp.Poisson(0.1))
    assert spent(pipeline) == of_event(PoissonSampledDpEvent(0.1, CHARGED))
    memory = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
    server = pipeline.init_server(D, seed=dp.PublicSeed(0))
    update = dp.Update(values=np.ones(D), layout=memory.layout, address=memory.address)
    first, memory = pipeline.send(update, memory)
    second, memory = pipeline.send(update, memory)
    _, server = pipeline.receive(first, server)
    with pytest.raises(dp.VersionMismatch, match="twice the sensitivity"):
        pipeline.receive(second, server)


def test_rule_23_events_that_were_mixed_are_accounted_by_rdp():
    ledger = dp.Ledger()
    for number, noise in enumerate((1.0, 1.3, 2.0)):
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(noise)), sampling=dp.Poisson(0.1))
        ledger.charge(pipeline.cost, dp.Address(0, 0, number), steps=5)
    guarantee = ledger.guarantee(1e-5)
    assert guarantee.accountant == "RDP"
    assert "RDP filter" in str(guarantee)


# Units and trust


def test_example_level_under_a_trusted_server_is_refused():
    with pytest.raises(dp.NotPrivate, match="clean local steps"):
        dp.Pipeline(mechanism=GAUSSIAN, unit="example", trust="server", sampling=dp.Poisson(0.1))


@pytest.mark.parametrize("terms", [{"unit": "user"}, {"trust": "everyone"}])
def test_other_units_and_trusts_do_not_exist(terms):
    with pytest.raises(ValueError, match=r"unit=|trust="):
        dp.Pipeline(mechanism=GAUSSIAN, **terms)


@pytest.mark.parametrize(("unit", "trust"), [("example", "nobody"), ("client", "nobody"), ("client", "server")])
def test_the_noise_stands_where_the_trust_says(unit, trust):
    pipeline = dp.Pipeline(mechanism=GAUSSIAN, unit=unit, trust=trust)
    client = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
    server = pipeline.init_server(D, seed=dp.PublicSeed(0))
    right, wrong = (server, client) if trust == "server" else (client, server)
    block, secret, ledger = np.ones((1, D), np.float32), dp.SecretSeed(0), dp.Ledger()
    assert released(pipeline, right, block, secret, ledger).values.shape == (D,)
    with pytest.raises(dp.NotPrivate, match="release there"):
        released(pipeline, wrong, block, secret, ledger)


def test_every_guarantee_states_unit_trust_and_sampling():
    for unit, trust in (("example", "nobody"), ("client", "nobody"), ("client", "server")):
        line = str(dp.Pipeline(mechanism=GAUSSIAN, unit=unit, trust=trust, sampling=dp.Poisson(0.1)).guarantee(3, 1e-5))
        assert f"one {unit}, add/remove" in line
        assert ("trusts nobody" in line) == (trust == "nobody")
        assert "Poisson 0.1" in line or "no amplification" in line


def test_a_seeded_release_says_so_and_an_unseeded_one_does_not():
    pipeline = dp.Pipeline(mechanism=GAUSSIAN)
    for secret, said in ((dp.SecretSeed(3), True), (dp.SecretSeed(), False)):
        ledger = dp.Ledger()
        memory = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
        released(pipeline, memory, np.ones((1, D), np.float32), secret, ledger)
        assert ("SEEDED" in str(ledger.guarantee(1e-5))) == said


def test_an_unsafe_mechanism_needs_a_reason():
    with pytest.raises(ValueError, match="say in words why"):
        dp.unsafe(" ", dp.Clip(1.0))


# What others may add


@dataclass(frozen=True)
class Rounded:
    """An honest stage of rule 15: rounding to a grid moves a sum of d values by up to grid·√d more."""

    grid: float

    def claim(self, before, where):
        return dp.Bounded(l2=before.l2 + self.grid * math.sqrt(D))

    def apply(self, value, context):
        return value


def test_noise_is_scaled_to_what_the_stages_before_it_prove():
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), Rounded(0.5), dp.Gaussian(Z)))
    memory = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
    update = released(pipeline, memory, np.zeros((1, D), np.float32), dp.SecretSeed(0), dp.Ledger())
    assert update.values.std() == pytest.approx(Z * (1 + 0.5 * math.sqrt(D)), rel=0.15)


def test_a_stage_that_admits_a_private_support_is_refused():
    class Threshold(Rounded):
        def claim(self, before, where):
            return dp.Bounded(l2=before.l2, support_is_public=False)

    with pytest.raises(dp.NotPrivate, match="support before Gaussian"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), Threshold(0), dp.Gaussian(Z)))


def test_a_release_that_no_gaussian_made_is_refused():
    class Magic(Rounded):
        def claim(self, before, where):
            return dp.Released(event=GaussianDpEvent(1.0))

    class Keeps(Rounded):
        def claim(self, before, where):
            return before

    for mechanism in ((dp.Clip(1.0), Magic(0)), (*GAUSSIAN, Keeps(0))):
        with pytest.raises(dp.NotPrivate, match="has a single Gaussian, which is its last stage"):
            dp.Pipeline(mechanism=mechanism)


def test_a_total_is_noised_by_the_mechanism_that_made_it_and_counts_every_unit_once():
    loose, tight = (dp.Pipeline(mechanism=(dp.Clip(norm), dp.Gaussian(Z))) for norm in (10.0, 1.0))
    memories = [pipeline.init_client(D, seed=dp.PublicSeed(0), client=0) for pipeline in (loose, tight)]
    total = loose.clip(np.ones((1, D), np.float32), memories[0])
    permit = dp.Ledger().charge(tight.cost, memories[1].address)
    with pytest.raises(dp.NotPrivate, match="not made by this pipeline"):
        tight.noise(total, memories[1], dp.SecretSeed(0), permit)
    assert permit.used == 0
    with pytest.raises(ValueError, match="count twice"):
        total + total


def test_a_client_is_one_unit():
    pipeline = dp.Pipeline(mechanism=GAUSSIAN, unit="client")
    memory = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
    with pytest.raises(dp.NotPrivate, match="2 units in a client's release"):
        released(pipeline, memory, np.ones((2, D), np.float32), dp.SecretSeed(0), dp.Ledger())


def test_a_release_of_one_mechanism_does_not_pass_for_that_of_another():
    private, bare = (dp.Pipeline(mechanism=mechanism) for mechanism in (GAUSSIAN, dp.unsafe("bare", dp.Clip(1.0))))
    memory = private.init_client(D, seed=dp.PublicSeed(0), client=0)
    clean = released(
        bare,
        bare.init_client(D, seed=dp.PublicSeed(0), client=0),
        np.ones((1, D), np.float32),
        dp.SecretSeed(0),
        dp.Ledger(),
    )
    with pytest.raises(dp.NotPrivate, match="another mechanism"):
        private.send(clean, memory)
    server = private.init_server(D, seed=dp.PublicSeed(0))
    with pytest.raises(dp.NotPrivate, match="another mechanism"):
        private.broadcast(clean, server)


def test_a_residual_does_not_change_hands_between_pipelines():
    trusting = dp.Pipeline(mechanism=GAUSSIAN, codec=CODED, unit="client", trust="server")
    nobody = dp.Pipeline(mechanism=GAUSSIAN, codec=CODED, unit="client")
    memory = trusting.init_client(D, seed=dp.PublicSeed(0), client=0)
    _, memory = trusting.send(dp.Update(values=np.ones(D), layout=memory.layout, address=memory.address), memory)
    permit = dp.Ledger().charge(nobody.cost, memory.address)
    with pytest.raises(dp.VersionMismatch, match="memory is of pipeline"):
        nobody.release([], memory, dp.SecretSeed(0), permit)


def test_a_permit_is_for_the_terms_it_was_charged_on():
    client = dp.Pipeline(mechanism=GAUSSIAN, unit="client")
    example = dp.Pipeline(mechanism=GAUSSIAN, unit="example")
    memory = example.init_client(D, seed=dp.PublicSeed(0), client=0)
    permit = dp.Ledger().charge(client.cost, memory.address)
    with pytest.raises(dp.BudgetExhausted, match="was charged for"):
        example.release([], memory, dp.SecretSeed(0), permit)


def test_mixed_precision_does_not_change_the_clip():
    import torch

    pipeline = dp.Pipeline(mechanism=GAUSSIAN)
    memory = pipeline.init_client(D, seed=dp.PublicSeed(0), client=0)
    block = torch.randn((3, D), generator=torch.Generator().manual_seed(0))
    expected = pipeline.clip(block, memory).vector()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(pipeline.clip(block, memory).vector(), expected)


@pytest.mark.parametrize(
    "parts",
    [{"mechanism": dp.Clip}, {"codec": dp.TopK(0.1)}, {"codec": dp.Codec}, {"sampling": 0.1}, {"downlink": 4}],
)
def test_parts_of_the_wrong_kind_are_named(parts):
    with pytest.raises(TypeError, match=f"{next(iter(parts))}"):
        dp.Pipeline(**{"mechanism": GAUSSIAN, **parts})
