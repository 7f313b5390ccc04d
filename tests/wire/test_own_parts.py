"""Parts of somebody's own work as ours do."""

from dataclasses import dataclass

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.codec.quantize.quantizer import Bounds
from dpcomp.wire.bits_by_part import measure_payload
from dpcomp.wire.headers import unsealed

D, SEED = 10_000, dp.PublicSeed(0)


@dataclass(frozen=True)
class OwnMask:
    """RandomK, written by somebody else."""

    fraction: float

    def claim(self, before, where):
        return before

    def public_support(self, context):
        return dp.Seeded(seed=context.mask_key, k=round(self.fraction * context.layout.size))

    def apply(self, value, context):
        return value.restrict(self.public_support(context))

    def select(self, vector, candidates, context):
        return self.public_support(context)


@dataclass(frozen=True)
class BFloat16:
    """A float format of somebody's own: the upper half of a float32."""

    unbiased = False

    def bounds(self, side, context):
        nothing = np.zeros(len(context.layout.shapes), np.int32)
        return Bounds(nothing, nothing)

    def side_bytes(self, counts, context):
        return 2 * int(counts.sum())

    def levels(self, values, counts, context):
        return np.empty(0, np.int32), (values.view(np.uint32) >> 16).astype("<u2").tobytes()

    def values(self, levels, side, counts, context):
        return (np.frombuffer(side, "<u2").astype(np.uint32) << 16).view(np.float32)


def sent(pipeline):
    memory, server = pipeline.init_client(D, SEED, client=0), pipeline.init_server(D, SEED)
    permit = dp.Ledger().charge(pipeline.cost, memory.address)
    block = np.random.default_rng(0).normal(size=(1, D)).astype(np.float32)
    update = pipeline.release([block], memory, dp.SecretSeed(1), permit)
    payload, _ = pipeline.send(update, memory)
    received, _ = pipeline.receive(payload, server)
    return payload, received, measure_payload(pipeline.channel, payload, server)[1]


@pytest.mark.parametrize("place", ["mechanism", "codec"])
def test_a_public_mask_of_ones_own_costs_what_ours_costs(place):
    payloads = {}
    for mask in (dp.RandomK(0.01), OwnMask(0.01)):
        before = (mask,) if place == "mechanism" else ()
        codec = dp.Codec(sparsify=mask if place == "codec" else None, quantize=dp.Uniform(4))
        pipeline = dp.Pipeline(mechanism=(*before, dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec, feedback=False)
        payload, received, bits = sent(pipeline)
        assert bits.index == 0
        assert bits.total == 8 * len(payload)
        assert isinstance(received.support, dp.Seeded)
        payloads[type(mask)] = bytes(unsealed(payload).body)
    assert payloads[OwnMask] == payloads[dp.RandomK]


def test_two_public_supports_are_refused_whoever_wrote_them():
    with pytest.raises(ValueError, match="public support"):
        dp.Pipeline(mechanism=(OwnMask(0.1), dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=dp.RandomK(0.1)))


def test_the_values_of_an_own_float_format_are_counted_as_values():
    pipeline = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=BFloat16()), feedback=False
    )
    payload, received, bits = sent(pipeline)
    assert (bits.value, bits.side) == (16 * D, 0)
    assert bits.total == 8 * len(payload)
    np.testing.assert_array_equal(received.values.view(np.uint32) & 0xFFFF, 0)


def test_the_side_of_our_own_quantisers_stays_side_information():
    quantizers = (dp.Uniform(4), dp.Sign(), dp.Ternary(), dp.Rotated(), dp.Uniform(dp.Waterfill(0.01)))
    for quantize in quantizers:
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=quantize))
        payload, _, bits = sent(pipeline)
        assert bits.side > 0, quantize
        assert bits.total == pytest.approx(8 * len(payload))


@dataclass(frozen=True)
class Steps:
    """A quantiser of somebody's own, with a mistake of somebody's choice."""

    mistake: str = ""

    unbiased = False

    def bounds(self, side, context):
        layers = np.zeros(len(context.layout.shapes) + (self.mistake == "bounds"), np.int32)
        return (layers, layers + 7) if self.mistake == "no bounds" else Bounds(layers - 7, layers + 7)

    def side_bytes(self, counts, context):
        return {"side bytes": 1, "half a byte": 0.5}.get(self.mistake, 0)

    def levels(self, values, counts, context):
        levels = np.clip(np.rint(values), -7, 7).astype(np.int32)
        match self.mistake:
            case "level":
                levels[-1] = 9
            case "level type":
                return levels.astype(np.float32), b""
            case "level list":
                return levels.tolist(), b""
            case "level count":
                return levels[:-1], b""
            case "side type":
                return levels, np.empty(0, np.uint8)
            case "wide":
                return levels.astype(np.int64), b""
            case "no pair":
                return levels
        return levels, b""

    def values(self, levels, side, counts, context):
        match self.mistake:
            case "value type":
                return levels.astype(np.float64)
            case "value count":
                return levels[:-1].astype(np.float32)
            case "not finite":
                return np.full(len(levels), np.inf, np.float32)
        assert levels.dtype == np.int32  # at both ends, whatever `levels` returned
        return levels.astype(np.float32)


LAYOUT = dp.Layout.of({"first": (3,), "empty": (0,), "last": (2,)})
CODERS = pytest.mark.parametrize("entropy", [dp.FixedWidth(), dp.RangeCoder()], ids=str)


@CODERS
@pytest.mark.parametrize(
    ("mistake", "error", "words"),
    [
        ("level", ValueError, "levels returned the level 9 in layer 'last', outside its bounds, -7 to 7: clip"),
        ("level type", TypeError, "levels returned float32: return whole numbers"),
        ("level list", TypeError, "levels returned list: return whole numbers"),
        ("level count", ValueError, r"levels have the shape \(4,\): return one for each value, \(5,\)"),
        ("side bytes", ValueError, "levels returned 0 bytes of side information, but side_bytes returned 1"),
        ("side type", TypeError, "levels returned side information of ndarray: return bytes"),
        ("bounds", ValueError, r"bounds have the shape \(4,\): .* for each layer, \(3,\)"),
        ("no pair", TypeError, "levels returned a ndarray: return the pair levels, side"),
        ("half a byte", TypeError, "side_bytes is 0.5"),
        ("not finite", ValueError, "values returned numbers that are not finite"),
        ("no bounds", TypeError, "bounds returned a tuple: return Bounds"),
        ("value type", TypeError, "values returned float64: return a float32 array"),
        ("value count", ValueError, r"values have the shape \(4,\): return one for each level, \(5,\)"),
    ],
)
def test_the_mistakes_of_an_own_quantiser_are_named_at_the_sender(entropy, mistake, error, words):
    codec, values = dp.Codec(quantize=Steps(mistake), entropy=entropy), np.array([1, -2, 3, 4, 5], np.float32)
    with pytest.raises(error, match=rf"Steps\(mistake='{mistake}'\): {words}"):
        codec.encode(values, dp.Everywhere(), dp.PublicContext(layout=LAYOUT))


@CODERS
def test_levels_of_any_integer_type_are_decoded_alike_at_both_ends(entropy):
    context, values = dp.PublicContext(layout=LAYOUT), np.array([1, -2, 3, 4, 50], np.float32)
    bodies = []
    for mistake in ("", "wide"):
        codec = dp.Codec(quantize=Steps(mistake), entropy=entropy)
        body, decoded = codec.encode(values, dp.Everywhere(), context)
        assert decoded.tobytes() == codec.decode(body, context)[0].tobytes()
        bodies.append(body)
    assert bodies[0] == bodies[1]


@dataclass(frozen=True)
class FirstLayerAlone(Steps):
    """It codes one layer, and leaves in the others what it likes."""

    def bounds(self, side, context):
        highest = np.array([7, 0, 0], np.int32)
        return Bounds(-highest, highest)


@CODERS
def test_layers_that_are_not_coded_decode_alike_at_both_ends(entropy):
    codec, context = dp.Codec(quantize=FirstLayerAlone(), entropy=entropy), dp.PublicContext(layout=LAYOUT)
    body, decoded = codec.encode(np.array([1, -2, 3, 4, 5], np.float32), dp.Everywhere(), context)
    np.testing.assert_array_equal(decoded, [1, -2, 3, 0, 0])
    np.testing.assert_array_equal(codec.decode(body, context)[0], decoded)


@dataclass(frozen=True)
class Chosen:
    """A sparsifier that returns what it is told to."""

    positions: tuple[int, ...]
    listed: bool = True

    def select(self, vector, candidates, context):
        positions = np.array(self.positions)
        return dp.Listed(positions) if self.listed else positions


def test_the_mistakes_of_an_own_sparsifier_are_named_at_the_sender():
    vector, context = np.zeros(5, np.float32), dp.PublicContext(layout=LAYOUT)
    with pytest.raises(
        TypeError, match=r"Chosen\(.*\): select returned a ndarray: give a support, such as dp.Listed\(positions\)"
    ):
        dp.Codec(sparsify=Chosen((1, 2), listed=False)).select(vector, dp.Everywhere(), context)
    outside = dp.Codec(sparsify=Chosen((1, 5)))
    with pytest.raises(ValueError, match=r"Chosen\(.*position 5 lies outside a vector of 5.*return positions below 5"):
        outside.select(vector, dp.Everywhere(), context)
    candidates = dp.Listed(np.array([0, 1, 4]))
    with pytest.raises(ValueError, match=r"Chosen\(.*position 2, which is not among the 3 candidates"):
        dp.Codec(sparsify=Chosen((1, 2))).select(vector, candidates, context)
    allowed = dp.Codec(sparsify=Chosen((1, 4)))
    assert allowed.select(vector, candidates, context) == dp.Listed(np.array([1, 4]))


@dataclass(frozen=True)
class Half:
    """What somebody has written of a quantiser so far."""

    def side_bytes(self, counts, context):
        return 0

    def levels(self, values, counts, context):
        return np.zeros(len(values), np.int32), b""


def test_a_slot_names_what_its_part_lacks():
    with pytest.raises(
        TypeError, match=r"Codec\(quantize=Half\(\)\) is no Quantizer; it lacks: unbiased, bounds, values"
    ):
        dp.Codec(quantize=Half())
    with pytest.raises(TypeError, match=r"Codec\(sparsify=0.1\) is no Sparsifier; it lacks: select"):
        dp.Codec(sparsify=0.1)
    with pytest.raises(TypeError, match=r"Codec\(entropy=None\) is no EntropyCoder; it lacks: packed, writer, reader"):
        dp.Codec(entropy=None)
    with pytest.raises(TypeError, match=r"Codec\(quantize=Sign\) is a class: give an instance of it, such as Sign\("):
        dp.Codec(quantize=dp.Sign)
    with pytest.raises(TypeError, match=r"Codec\(predict=Half\(\)\): .*dp.LastBroadcast\(\): give that"):
        dp.Codec(predict=Half())


@pytest.mark.parametrize(
    ("part", "call"),
    [
        (dp.Uniform(4), r"dp.Codec\(quantize=Uniform\(bits=4"),
        (dp.TopK(0.1), r"dp.Codec\(sparsify=TopK\(fraction=0.1"),
        (dp.RandomK(0.1), r"dp.Codec\(sparsify=RandomK\(fraction=0.1"),
        (dp.FixedWidth(), r"dp.Codec\(entropy=FixedWidth\(\)\)"),
        (dp.LastBroadcast(), r"dp.Codec\(predict=LastBroadcast\(\)\)"),
        (4, r"dp.Codec\(quantize=dp.Uniform\(4\)\), or dp.Codec\(\)"),
        (dp.Uniform, r"dp.Codec\(quantize=dp.Uniform\(4\)\), or dp.Codec\(\)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["codec", "downlink"])
def test_a_pipeline_says_how_a_part_becomes_a_codec(part, call, name):
    with pytest.raises(TypeError, match=rf"Pipeline\({name}=.*\) is no Codec: write {call}"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), **{name: part})


def test_a_pipeline_refuses_sampling_and_feedback_of_another_type():
    mechanism = (dp.Clip(1.0), dp.Gaussian(1.0))
    with pytest.raises(TypeError, match=r"Pipeline\(sampling=0.1\): give dp.Poisson\(rate\), or None"):
        dp.Pipeline(mechanism=mechanism, sampling=0.1)
    with pytest.raises(TypeError, match=r"Pipeline\(feedback='no'\): give True or False"):
        dp.Pipeline(mechanism=mechanism, feedback="no")


@pytest.mark.parametrize(
    ("lowest", "highest", "words"),
    [
        ([-7], [7], "is of list: give an int32 array"),
        (np.float32([-7]), np.float32([7]), "is of float32"),
        (np.array([7]), np.array([-7]), "the lowest may not be above the highest"),
        (np.array([-7]), np.array([7, 7]), "for each layer"),
        (np.array([-(2**31)]), np.array([2**31 - 1]), "the entropy coders take levels from -32767"),
        (np.array([0], np.uint32), np.array([2**32 - 1], np.uint32), "goes from 4294967295"),
    ],
)
def test_bounds_that_no_entropy_coder_can_keep_are_refused(lowest, highest, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Bounds(lowest, highest)


@CODERS
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_bounds_of_any_integer_type_decode_alike_at_both_ends(entropy, dtype):
    lowest = -127 if np.iinfo(dtype).min < 0 else 0

    @dataclass(frozen=True)
    class Narrow(Steps):
        def bounds(self, side, context):
            layers = len(context.layout.shapes)
            return Bounds(np.full(layers, lowest, dtype), np.full(layers, 127, dtype))

    codec, context = dp.Codec(quantize=Narrow(), entropy=entropy), dp.PublicContext(layout=LAYOUT)
    body, decoded = codec.encode(np.array([1, 2, 3, 4, 5], np.float32), dp.Everywhere(), context)
    np.testing.assert_array_equal(decoded, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(codec.decode(body, context)[0], decoded)


@dataclass(frozen=True)
class Writing(Steps):
    """It computes in the array that it was given."""

    def levels(self, values, counts, context):
        values *= 2
        return super().levels(values, counts, context)

    def select(self, vector, candidates, context):
        np.abs(vector, out=vector)
        return dp.Listed(np.arange(3))


@pytest.mark.parametrize("slot", ["quantize", "sparsify"])
@pytest.mark.parametrize("feedback", [True, False])
def test_an_own_part_cannot_change_what_the_sender_keeps(slot, feedback):
    codec = dp.Codec(**{slot: Writing()})
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a test", dp.Clip(1.0)), codec=codec, feedback=feedback)
    with pytest.raises(ValueError, match="read-only"):
        sent(pipeline)


@dataclass(frozen=True)
class ListedMask(OwnMask):
    """A public mask that lists in one method what it draws in the other."""

    def apply(self, value, context):
        return value.restrict(dp.Listed(self.public_support(context).indices(D)))

    def select(self, vector, candidates, context):
        return dp.Listed(self.public_support(context).indices(D))


@pytest.mark.parametrize("place", ["mechanism", "codec"])
def test_a_support_is_its_positions_however_it_says_them(place):
    lengths = []
    for mask in (OwnMask(0.01), ListedMask(0.01)):
        before = (mask,) if place == "mechanism" else ()
        codec = dp.Codec(sparsify=mask if place == "codec" else None)
        payload, _, bits = sent(dp.Pipeline(mechanism=(*before, dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec))
        assert bits.index == 0
        lengths.append(len(payload))
    assert lengths[0] == lengths[1]


@dataclass(frozen=True)
class Unmasked(OwnMask):
    """A stage that keeps all coordinates, and says that it does not."""

    def apply(self, value, context):
        return value


@dataclass(frozen=True)
class Unsaid(OwnMask):
    """A stage that forgets to return its support."""

    def public_support(self, context):
        super().public_support(context)


def test_a_sparsifier_without_the_support_that_it_promises_is_refused():
    codec = dp.Codec(sparsify=Unsaid(0.01))
    with pytest.raises(TypeError, match=r"Unsaid.* public_support returned a NoneType"):
        sent(dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec))


@pytest.mark.parametrize(
    ("mask", "words"),
    [(Unmasked(0.01), "apply keeps .* not the .* of its"), (Unsaid(0.01), "given a NoneType: give a support")],
)
def test_a_stage_that_keeps_another_support_than_it_says_is_refused(mask, words):
    with pytest.raises((TypeError, ValueError), match=words):
        sent(dp.Pipeline(mechanism=(mask, dp.Clip(1.0), dp.Gaussian(1.0))))


def test_own_parts_cannot_write_to_what_they_are_given():
    found = []

    def attempt(array):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0.0
        found.append(array)

    @dataclass(frozen=True)
    class Writes:
        def initial_history(self, layout):
            return np.zeros(layout.size, np.float32)

        def update_history(self, history, broadcast, layout):
            attempt(history)
            attempt(broadcast)
            return kept[0]

        def select(self, vector, candidates, context):
            attempt(vector)
            attempt(context.history)
            return candidates

    kept = [np.ones(8, np.float32)]  # the part goes on to hold it, and writes to it
    codec = dp.Codec(sparsify=Writes())
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec)
    client = pipeline.init_client(8, dp.PublicSeed(0), client=0)
    server = pipeline.init_server(8, dp.PublicSeed(0))
    update = pipeline.release([], client, dp.SecretSeed(), dp.Ledger().charge(pipeline.cost, client.address))
    payload, client = pipeline.send(update, client)
    estimate, server = pipeline.receive(payload, server)
    down, server = pipeline.broadcast(estimate, server)
    client = pipeline.follow(down, client)
    assert len(found) >= 6
    kept[0][:] = 7.0
    np.testing.assert_array_equal(client.shared.history, np.ones(8))
    np.testing.assert_array_equal(server.shared.history, np.ones(8))
