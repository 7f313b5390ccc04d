"""Values as tables, and back."""

import pickle
import re
import subprocess
import sys
from dataclasses import dataclass, field, is_dataclass

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.calls import as_table, as_toml_table, from_table
from dpcomp.lab.config.calls import CALLS
from dpcomp.pipeline import PARTS

PIPELINES = [
    dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.5))),
    dp.Pipeline(
        mechanism=(dp.RandomK(0.1), dp.Clip(0.3), dp.Gaussian(1e-3)),
        codec=dp.Codec(quantize=dp.Uniform(dp.Waterfill(2.5), rounding=dp.Dithered()), entropy=dp.FixedWidth()),
        downlink=dp.Codec(sparsify=dp.TopK(0.01, per="layer"), quantize=dp.Rotated()),
        sampling=dp.Poisson(0.25),
        feedback=False,
    ),
    dp.Pipeline(
        mechanism=dp.unsafe('no "guarantee"\\ at all', dp.Clip(1.0), dp.TopK(0.5)),
        codec=dp.Codec(predict=dp.LastBroadcast(), quantize=dp.Uniform(dp.FixedStep(0.125))),
        unit="client",
        trust="server",
    ),
    dp.Pipeline(mechanism=dp.unsafe("nothing at all"), codec=dp.Codec(quantize=dp.Sign())),
]


@dataclass(frozen=True)
class Halves:
    """A sparsifier of somebody's own."""

    first: bool = True
    name: str | None = "half"

    def select(self, vector, candidates, context):
        return candidates


@pytest.mark.parametrize("pipeline", PIPELINES, ids=range(len(PIPELINES)))
def test_a_pipeline_is_what_its_toml_says(pipeline):
    again = dp.Pipeline.from_toml(pipeline.to_toml())
    assert again == pipeline
    assert again.channel.identity == pipeline.channel.identity
    assert dp.Pipeline.from_table(pipeline.to_table()) == pipeline


def test_pipelines_that_differ_have_different_names():
    identities = {pipeline.channel.identity for pipeline in PIPELINES}
    assert len(identities) == len(PIPELINES)
    loud = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.5)), feedback=False)
    assert loud.channel.identity not in identities


def test_a_part_of_ones_own_is_written_and_read():
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=Halves(first=False)))
    assert "Halves" in pipeline.to_toml()
    assert dp.Pipeline.from_toml(pipeline.to_toml(), parts=(Halves,)) == pipeline
    with pytest.raises(dp.ConfigError, match="'Halves', which is unknown"):
        dp.Pipeline.from_toml(pipeline.to_toml())


def test_none_that_toml_cannot_express_is_refused():
    with pytest.raises(ValueError, match=re.escape("sparsify.Halves.name is None, which TOML cannot express")):
        as_toml_table(Halves(name=None), "sparsify")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"Clip": {"norm": 1.0}, "Gaussian": {}}, "is no call"),
        ({"Clipp": {"norm": 1.0}}, "the nearest is 'Clip'"),
        ({"Clip": {"nrom": 1.0}}, "the nearest is 'norm'"),
        ({"Clip": 1.0}, "arguments have names"),
        ({"Clip": {"norm": -1.0}}, "finite number above 0"),
    ],
)
def test_a_table_that_is_no_call_is_refused_with_its_place(table, words):
    with pytest.raises(dp.ConfigError, match=words) as refusal:
        from_table(table, "mechanism", PARTS)
    assert str(refusal.value).startswith("mechanism")


def test_a_text_that_is_no_toml_is_refused():
    with pytest.raises(dp.ConfigError, match="no TOML"):
        dp.Pipeline.from_toml("mechanism = [")


class Plain:
    """A sparsifier that is no dataclass."""

    def select(self, vector, candidates, context):
        return candidates


@dataclass
class Thawed(Plain):
    """One that can be changed after the fingerprint was taken."""


@dataclass(frozen=True)
class WithArray(Plain):
    """One with an array, which has no description."""

    positions: object = None


@pytest.mark.parametrize("part", [Plain(), Thawed(), WithArray(np.arange(3)), WithArray(lambda: 0)])
def test_a_part_without_a_description_is_refused_where_it_is_made(part):
    with pytest.raises(TypeError, match=r"@dataclass\(frozen=True\)"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=part))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pickle_that_names_a_pipeline_where_users_import_it_is_read(pipeline):
    module = f"c{type(pipeline).__module__}\n".encode()
    written = pickle.dumps(pipeline, protocol=2)
    assert module in written
    read = pickle.loads(written.replace(module, b"cdpcomp.pipeline\n"))
    assert read == pipeline
    assert read.channel.identity == pipeline.channel.identity


def test_every_process_gives_a_pipeline_one_name():
    script = (
        "import dpcomp as dp\nfrom tests.core.test_calls import Halves\n"
        "codec = dp.Codec(sparsify=Halves(), quantize=dp.Uniform(4))\n"
        "print(dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec).channel.identity.hex())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    codec = dp.Codec(sparsify=Halves(), quantize=dp.Uniform(4))
    here = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec).channel.identity
    assert other == f"{here.hex()}\n"


def test_numbers_of_any_library_are_written_as_pythons():
    assert as_table((np.float64(0.5), np.int64(3), True, None, "x"), "here") == [0.5, 3, True, None, "x"]


def test_a_table_may_name_every_part_that_a_folder_exports():
    folders = ("dpcomp.codec.", "dpcomp.sparsify.", "dpcomp.wire.feedback")
    public = [getattr(dp, name) for name in dp.__all__ if is_dataclass(getattr(dp, name))]
    stages = [part for part in public if callable(getattr(part, "claim", None))]
    parts = [*stages, dp.Poisson, *(part for part in public if part.__module__.startswith(folders))]
    assert set(PARTS) == {part.__name__ for part in parts}
    assert set(PARTS) <= set(CALLS)


@pytest.mark.parametrize("part", [dp.Uniform(4), dp.RangeCoder(), dp.LastBroadcast(), dp.Clip, 3])
def test_what_is_no_stage_is_refused_with_the_place_where_it_belongs(part):
    words = "is a class" if isinstance(part, type) else "lacks: claim" if part == 3 else r"give it to dp\.Codec\("
    with pytest.raises(TypeError, match=rf"stage 1\).*{words}"):
        dp.Pipeline(mechanism=(part, dp.Gaussian(1.0)))


def test_an_own_class_with_the_name_of_a_part_is_refused():
    own = dataclass(frozen=True)(type("Ternary", (dp.Ternary,), {}))()
    with pytest.raises(ValueError, match="an own class Ternary, but dpcomp has a part of that name"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=own))


@dataclass(frozen=True)
class Prepared:
    """A sparsifier with a field that it computes from another."""

    k: int
    last: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "last", self.k - 1)

    def select(self, vector, candidates, context):
        return dp.Listed(np.arange(self.k))


def test_a_field_that_is_computed_is_not_written():
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=Prepared(3)))
    assert dp.Pipeline.from_toml(pipeline.to_toml(), parts=[Prepared]) == pipeline
