"""Whole sessions: after any run of sent, lost, repeated and reordered messages all ends know the same, bit for bit."""

from dataclasses import dataclass, field
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dpcomp as dp
from dpcomp.wire.update import with_claim

CLIENTS = 3
JAX = 0.05  # of the arrays in a long session: it compiles something for every new shape
FAST_ROUNDS, SLOW_ROUNDS = 40, 500
LAYOUTS = {
    "scalars": {"a": (), "b": (), "c": (1, 1), "d": (7,)},
    "some empty": {"a": (0,), "b": (6, 5), "c": (3, 0, 2), "d": (30,), "e": (0,)},
    "one giant": {"giant": (30, 40), "bias": (3,), "scale": ()},
    "many tiny": {str(number): (number % 4,) for number in range(60)},
    "one coordinate": 1,
    "one layer": 500,
}
QUANTIZERS = (
    None,
    dp.Float32(),
    dp.Float16(),
    dp.Uniform(2),
    dp.Uniform(8),
    dp.Uniform(16),
    dp.Uniform(3, rounding=dp.Stochastic()),
    dp.Uniform(5, rounding=dp.Dithered()),
    dp.Uniform(dp.Equal(3)),
    dp.Uniform(dp.Equal(6), rounding=dp.Dithered()),
    dp.Uniform(dp.Waterfill(2.5)),
    dp.Uniform(dp.Waterfill(1.3), rounding=dp.Stochastic()),
    dp.Uniform(dp.Waterfill(0.4), rounding=dp.Dithered()),
    dp.Uniform(dp.FixedStep(0.05)),
    dp.Uniform(dp.FixedStep(0.5), rounding=dp.Dithered()),
    dp.Uniform(dp.Waterfill(3.0, clients=CLIENTS)),
    dp.Sign(),
    dp.Ternary(),
    dp.Rotated(),
)
SPARSIFIERS = (None, dp.TopK(0.2), dp.TopK(0.9), dp.TopK(0.1, per="layer"), dp.TopK(0.5, per="layer"), dp.RandomK(0.3))
NOISE = (dp.Clip(1.0), dp.Gaussian(0.5))
FATES = ("accepted", "repeated", "sent again", "replaced", "never arrives", "overtaken")


def one_of(rng, options):
    return options[rng.integers(len(options))]


def sees_noise(quantize):
    """Whether it estimates the signal in whole updates, and so wants neither feedback nor a sparsifier."""
    return getattr(getattr(quantize, "bits", None), "clients", None) is not None


def random_codec(rng, quantize, sparsifiers=SPARSIFIERS, may_predict=True):
    """A codec with this quantiser in which everything else is drawn."""
    bits = getattr(quantize, "bits", None)
    return dp.Codec(
        predict=dp.LastBroadcast() if may_predict and rng.random() < 0.5 else None,
        sparsify=None if sees_noise(quantize) else one_of(rng, sparsifiers),
        quantize=quantize,
        entropy=dp.RangeCoder() if isinstance(bits, dp.FixedStep) or rng.random() < 0.5 else dp.FixedWidth(),
    )


def random_pipeline(rng, quantize):
    """Any pipeline that there is with this quantiser on the way up."""
    up = random_codec(rng, quantize)
    downwards = [other for other in QUANTIZERS if not sees_noise(other)]
    unmasked = SPARSIFIERS[:-1]
    down = None if rng.random() < 0.4 else random_codec(rng, one_of(rng, downwards), unmasked)
    whole = up.predict or (down and down.predict) or isinstance(up.sparsify, dp.RandomK) or sees_noise(quantize)
    masked = not whole and rng.random() < 0.5
    return dp.Pipeline(
        mechanism=(dp.RandomK(0.4), *NOISE) if masked else NOISE,
        codec=up,
        downlink=down,
        feedback=not sees_noise(quantize) and rng.random() < 0.7,
    )


def dressed(rng, vector, jax):
    """The vector as a caller may hold it, and the float32 values that it then has."""
    small = np.abs(vector).max(initial=0) < 6e4
    half, doubled = vector.astype(np.float16) if small else None, np.repeat(vector, 2)
    choices = [
        (vector.astype(np.float64), vector),
        (vector[::-1].copy()[::-1], vector),
        (doubled[::2], vector),
        (np.stack([vector, vector], axis=1)[:, 1], vector),
        (torch.from_numpy(vector.copy()), vector),
        (torch.from_numpy(doubled.astype(np.float64))[::2], vector),
    ]
    if small:
        choices += [(dress, half.astype(np.float32)) for dress in (half, torch.from_numpy(half.copy()))]
    if rng.random() < jax:
        choices = [(jnp.asarray(vector), vector)]
        choices += [(jnp.asarray(half), half.astype(np.float32))] if small else []
    dress, values = one_of(rng, choices)
    return dress, np.array(values, dtype=np.float32)


def random_block(rng, layout, units, jax):
    """A block of gradients of one framework, its layers of one dtype, whole or a layer at a time."""
    rows = rng.standard_normal((units, layout.size)).astype(np.float32)
    whole = rng.random() < 0.3
    dtype = one_of(rng, (np.float16, np.float32, np.float64))
    layers = [rows] if whole else [rows[:, start:stop] for start, stop in pairwise(layout.edges)]
    shapes = [(layout.size,)] if whole else [shape for _, shape in layout.shapes]
    framework = jnp.asarray if rng.random() < jax else one_of(rng, (np.asarray, torch.from_numpy))
    if framework is jnp.asarray and dtype is np.float64:
        dtype = np.float32  # JAX has no other without its 64-bit mode, and warns
    arrays = [layer.astype(dtype).reshape(units, *shape) for layer, shape in zip(layers, shapes, strict=True)]
    return framework(arrays[0]) if whole else tuple(framework(array) for array in arrays)


def shared_state(memory):
    """What everyone knows, as values."""
    shared, step = memory.shared, memory.step
    moved = None if step is None else (step.dense().tobytes(), step.support)
    reference = None if shared.reference is None else shared.reference.tobytes()
    return shared.version, shared.digest, moved, reference, shared.last_support


def state(memory):
    """All that a memory holds, as values."""
    residual = None if memory.residual is None else memory.residual.tobytes()
    if isinstance(memory, dp.ServerMemory):
        return shared_state(memory), residual, dict(memory.links)
    tracked = memory.tracked
    seen = None if tracked is None else (tracked.total.tobytes(), tracked.weight.tobytes(), tracked.factors.tobytes())
    return shared_state(memory), residual, memory.link, seen


def refused(act, payload, memory):
    """That sound bytes in the wrong place are refused for that reason, and leave no trace."""
    before = state(memory)
    with pytest.raises(dp.VersionMismatch):
        act(payload, memory)
    assert state(memory) == before


def balanced(before, went_in, came_out, after, expected):
    """That nothing is lost but float32's rounding: residual + what went in = what came out + new residual."""
    numbers = [np.asarray(part, dtype=np.float64) for part in (before, went_in, came_out, after)]
    passed = sum(map(np.abs, numbers)) + 4 * np.abs(expected)  # a prediction is at most twice the last broadcast
    error = np.abs(numbers[0] + numbers[1] - numbers[2] - numbers[3])
    assert (error <= 2.0**-22 * passed + 1e-44).all()


@dataclass
class Session:
    """One server and its clients; every message is checked as it passes."""

    seed: int
    pipeline: dp.Pipeline
    layout: dp.Layout
    jax: float = JAX
    fates: dict = field(default_factory=dict)

    def __post_init__(self):
        self.rng, public = np.random.default_rng(self.seed), dp.PublicSeed(self.seed)
        self.server = self.pipeline.init_server(self.layout, public)
        self.clients = [self.pipeline.init_client(self.layout, public, client=number) for number in range(CLIENTS)]
        self.missed = [[] for _ in range(CLIENTS)]
        self.late, self.estimates, self.charged = [], [], set()
        self.ledger, self.secret = dp.Ledger(), dp.SecretSeed(self.seed)
        self.scale = 10.0 ** self.rng.integers(-12, 13)

    def vector(self):
        """Values that change their size, that are often zero, and that resemble the last broadcast at times."""
        vector = self.rng.standard_normal(self.layout.size) * self.scale * 10.0 ** self.rng.integers(-2, 3)
        vector[self.rng.random(len(vector)) < one_of(self.rng, (0.0, 0.5, 0.95, 1.0))] = 0
        if self.server.step is not None and self.rng.random() < 0.5:
            vector = 0.3 * vector + one_of(self.rng, (-1.5, 0.5, 1.0)) * self.server.step.dense()
        return vector.astype(np.float32)

    def support(self, memory):
        d, rng = self.layout.size, self.rng
        masks = [stage for stage in self.pipeline.stages if isinstance(stage, dp.RandomK)]
        if masks:  # a release has this support, and what is derived of it at most this one
            public = masks[0].public_support(self.pipeline.channel.context(memory))
            within = public.indices(d)[rng.random(public.count(d)) < one_of(rng, (0.0, 0.1, 0.6, 1.0))]
            return public if rng.random() < 0.8 else dp.Listed(within)
        listed = dp.Listed(np.flatnonzero(rng.random(d) < one_of(rng, (0.0, 0.1, 0.6, 1.0))))
        seeded = dp.Seeded(int(rng.integers(2**63)), int(rng.integers(d + 1)))
        return one_of(rng, (dp.Everywhere(), listed, seeded))

    def update(self, memory):
        """A release, or an update made by hand of any arrays on any support."""
        if memory.address not in self.charged and self.rng.random() < 0.2:
            self.charged.add(memory.address)
            block = random_block(self.rng, self.layout, units=one_of(self.rng, (0, 2)), jax=self.jax)
            blocks = [block] * self.rng.integers(3)
            permit = self.ledger.charge(self.pipeline.cost, memory.address)
            return self.pipeline.release(blocks, memory, self.secret, permit)
        support = self.support(memory)
        values, expected = dressed(self.rng, self.vector()[support.indices(self.layout.size)], self.jax)
        place = {"layout": self.layout, "address": memory.address, "support": support}
        made = dp.Update(values=values, noise_stddev=float(self.scale), **place)
        made = with_claim(made, self.pipeline.claim)
        assert made.values.tobytes() == expected.tobytes()
        return made

    def sent(self, update, memory):
        before, values = state(memory), update.values.tobytes()
        payload, after = self.pipeline.send(update, memory)
        again, after_again = self.pipeline.send(update, memory)
        assert again == payload
        assert state(after_again) == state(after)
        assert (state(memory), update.values.tobytes()) == (before, values)
        return payload, after

    def accepted(self, update, payload, before, after):
        """The server takes it, and decodes what the sender believes was sent."""
        server = state(self.server)
        estimate, new_server = self.pipeline.receive(payload, self.server)
        assert state(self.server) == server
        self.server, self.clients[before.client] = new_server, after
        assert new_server.link(before.client) == after.link
        assert new_server.link(before.client).count == before.link.count + 1
        assert shared_state(new_server) == shared_state(after)
        assert (estimate.address, estimate.claim) == (update.address, self.pipeline.claim)
        reference = np.zeros(1) if before.step is None else before.step.dense()
        if self.pipeline.feedback:
            balanced(before.residual, update.dense(), estimate.dense(), after.residual, reference)
        elif isinstance(self.pipeline.codec.quantizer, dp.Float32) and self.pipeline.codec.sparsify is None:
            balanced(np.zeros(1), update.dense(), estimate.dense(), np.zeros(1), reference)
        self.estimates.append(estimate)

    def upwards(self, number):
        """One client sends, and its message meets a fate."""
        memory = self.clients[number]
        update = self.update(memory)
        payload, after = self.sent(update, memory)
        if memory.shared.version != self.server.shared.version:
            refused(self.pipeline.receive, payload, self.server)  # it lags: the client stays what it was
            return
        fate = one_of(self.rng, FATES)
        self.fates[fate] = self.fates.get(fate, 0) + 1
        if fate == "never arrives":
            self.late.append(payload)
        elif fate == "replaced":
            other = self.update(memory)
            replacement, after_other = self.sent(other, memory)
            self.accepted(other, replacement, memory, after_other)
            refused(self.pipeline.receive, payload, self.server)
        elif fate == "overtaken":
            second = self.update(after)
            ahead, after_second = self.sent(second, after)
            refused(self.pipeline.receive, ahead, self.server)
            self.accepted(update, payload, memory, after)
            self.accepted(second, ahead, after, after_second)
        else:
            if fate == "sent again":
                payload, after = self.sent(update, memory)
            self.accepted(update, payload, memory, after)
            if fate == "repeated":
                refused(self.pipeline.receive, payload, self.server)
        refused(self.pipeline.follow, payload, memory)

    def downwards(self):
        """The server broadcasts what it decoded on average, in any dress, or a single update."""
        before, found = self.server, self.estimates
        mean = sum((one.dense() for one in found), np.zeros(self.layout.size, np.float32)) / np.float32(len(found) or 1)
        aggregate, expected = dressed(self.rng, mean.astype(np.float32), self.jax)
        if len(found) == 1:
            aggregate, expected = found[0], found[0].dense()
        payload, self.server = self.pipeline.broadcast(aggregate, before)
        assert self.pipeline.broadcast(aggregate, before)[0] == payload
        if self.pipeline.feedback:
            reference = np.zeros(1) if before.step is None else before.step.dense()
            sent = self.server.step.dense()
            balanced(before.residual, expected, sent, self.server.residual, reference)
        for late in self.late:
            refused(self.pipeline.receive, late, self.server)
        refused(self.pipeline.receive, payload, self.server)
        self.late, self.estimates = [], []
        for number in range(CLIENTS):
            self.missed[number].append(payload)

    def caught_up(self, number):
        """A client follows all that it missed, and nothing out of turn."""
        missed, memory = self.missed[number], self.clients[number]
        if len(missed) > 1:
            refused(self.pipeline.follow, missed[-1], memory)
        for payload in missed:
            before = state(memory)
            after = self.pipeline.follow(payload, memory)
            assert state(memory) == before
            assert (after.link, after.shared.version) == (memory.link, memory.shared.version + 1)
            refused(self.pipeline.follow, payload, after)
            memory = after
        self.clients[number], self.missed[number] = memory, []
        assert shared_state(memory) == shared_state(self.server)
        assert memory.link == self.server.link(number)

    def run(self, rounds):
        for _ in range(rounds):
            for number in self.rng.permutation(CLIENTS):
                self.upwards(number)
            self.downwards()
            for number in range(CLIENTS):
                if self.rng.random() < 0.9:
                    self.caught_up(number)
        for number in range(CLIENTS):
            self.caught_up(number)
        assert self.server.shared.version == rounds


# What NumPy says of torch's tensors has a test of its own: it must not hide what sessions find.
TORCH_IS_HEARD_ELSEWHERE = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def session(number, quantize, layout, jax=JAX):
    rng = np.random.default_rng((number, 1))
    return Session(seed=number, pipeline=random_pipeline(rng, quantize), layout=dp.Layout.of(layout), jax=jax)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_an_update_takes_a_torch_tensor_as_it_is(dtype):
    values, place = torch.arange(6, dtype=dtype)[::2], dp.Address(0, 1, 0)
    assert dp.Update(values=values, layout=dp.Layout.of(3), address=place).values.tolist() == [0, 2, 4]


@TORCH_IS_HEARD_ELSEWHERE
def test_a_session_of_forty_rounds_keeps_all_ends_the_same():
    lossy = dp.Codec(predict=dp.LastBroadcast(), sparsify=dp.TopK(0.2), quantize=dp.Uniform(4, rounding=dp.Dithered()))
    pipeline = dp.Pipeline(mechanism=NOISE, codec=lossy, downlink=dp.Codec(quantize=dp.Rotated()))
    found = Session(seed=0, pipeline=pipeline, layout=dp.Layout.of(LAYOUTS["some empty"]))
    found.run(FAST_ROUNDS)
    assert set(found.fates) == set(FATES)


@TORCH_IS_HEARD_ELSEWHERE
@pytest.mark.parametrize("quantize", QUANTIZERS, ids=str)
def test_a_few_rounds_of_every_quantizer_keep_all_ends_the_same(quantize):
    for name, layout in LAYOUTS.items():
        session(QUANTIZERS.index(quantize) * 100 + len(name), quantize, layout, jax=0.0).run(2)


@TORCH_IS_HEARD_ELSEWHERE
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quantize", QUANTIZERS, ids=str)
def test_a_long_session_keeps_all_ends_the_same(quantize, layout):
    found = session(QUANTIZERS.index(quantize) * 100 + 50 + list(LAYOUTS).index(layout), quantize, LAYOUTS[layout])
    found.run(SLOW_ROUNDS // (1 if layout == "some empty" else 10))
    assert set(found.fates) == set(FATES)
