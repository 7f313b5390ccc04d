"""One release a micro-batch: a total, its sums and its copies are noised once, by the pipeline that was charged."""

import copy
import dataclasses
import pickle
import threading
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pytest
import torch

import dpcomp as dp

PIPELINE = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
MEMORY = PIPELINE.init_client(6, seed=dp.PublicSeed(0), client=3)
BLOCK = np.arange(12, dtype=np.float32).reshape(2, 6)


def clipped(pipeline=PIPELINE):
    return pipeline.clip(BLOCK, MEMORY)


def permit_of(steps=8, pipeline=PIPELINE):
    return dp.Ledger().charge(pipeline.cost, MEMORY.address, steps=steps)


def noised(total, permit, pipeline=PIPELINE):
    return pipeline.noise(total, MEMORY, dp.SecretSeed(), permit)


def refused(total, permit, match="released before"):
    used = permit.used
    with pytest.raises(dp.NotPrivate, match=match):
        noised(total, permit)
    assert permit.used == used


def test_a_total_is_released_once():
    total, permit = clipped(), permit_of()
    noised(total, permit)
    refused(total, permit)
    assert permit.used == 1


def test_an_empty_total_is_released_once_too():
    total, permit = PIPELINE.empty_total(MEMORY), permit_of()
    noised(total, permit)
    refused(total, permit)


@pytest.mark.parametrize("first", ["part", "sum"])
def test_of_a_sum_and_its_parts_one_is_released(first):
    a, b, permit = clipped(), clipped(), permit_of()
    both = a + b
    noised(a if first == "part" else both, permit)
    if first == "part":
        noised(b, permit)  # its own units are in no release yet
    for total in (a, b, both):
        refused(total, permit)


def test_a_total_may_be_in_two_sums_of_which_one_is_released():
    a, b, c, permit = clipped(), clipped(), clipped(), permit_of()
    first, second = a + b, a + c
    noised(first, permit)
    refused(second, permit)
    noised(c, permit)


def test_a_sum_goes_on_after_another_sum_grew_out_of_it():
    a, b, c, d = (clipped() for _ in range(4))
    permit = permit_of()
    start = a + b
    left, right = start + c, start + d
    noised(left, permit)
    refused(right, permit)
    noised(d, permit)


def test_no_sum_counts_a_total_twice():
    a, b, c = clipped(), clipped(), clipped()
    ab, ac = a + b, a + c
    for add in (lambda: ab + a, lambda: b + ab, lambda: ab + ac, lambda: (ab + c) + ac, lambda: ab + copy.copy(a)):
        with pytest.raises(dp.NotPrivate, match="count twice"):
            add()
    with pytest.raises(ValueError, match="count twice"):
        a + a


def test_a_sum_with_a_part_that_was_released_is_not():
    a, b, permit = clipped(), clipped(), permit_of()
    noised(a, permit)
    refused(a + b, permit)
    refused(b + a, permit)
    noised(b, permit)


def test_a_copy_is_the_same_total():
    total, permit = clipped(), permit_of()
    noised(copy.copy(total), permit)
    refused(total, permit)
    refused(copy.copy(total), permit)


@pytest.mark.parametrize(
    "forge",
    [
        copy.deepcopy,
        lambda total: dataclasses.replace(total),
        lambda total: dataclasses.replace(total, units=1),
        lambda total: dataclasses.replace(total, layers=(np.full(6, 9.0),)),
        lambda total: dp.Total(layers=total.layers, layout=total.layout, units=total.units),
        lambda total: dp.Total(layers=(np.full(6, 9.0),), layout=total.layout, units=1),
    ],
)
def test_a_total_that_no_clip_returned_is_not_released(forge):
    total = clipped()
    refused(forge(total), permit_of(), match="not made by this pipeline")


@pytest.mark.parametrize(
    ("name", "value"), [("units", 1), ("layers", (np.full(6, 9.0),)), ("remainders", (np.ones(6),))]
)
def test_a_total_that_was_altered_is_not_released(name, value):
    total = clipped()
    object.__setattr__(total, name, value)
    refused(total, permit_of(), match="changed")


def test_a_total_does_not_leave_its_process():
    for total in (clipped(), clipped() + clipped()):
        with pytest.raises(dp.NotPrivate, match="stays in its process"):
            pickle.dumps(total)


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
def test_a_total_is_read_only_and_does_not_share_memory_with_the_block(array):
    block = BLOCK.copy()
    total = PIPELINE.clip(array(block), MEMORY)
    before = total.vector()
    block[:] = 100.0
    np.testing.assert_array_equal(total.vector(), before)
    for each in (total, total + clipped()):
        with pytest.raises(ValueError, match="read-only"):
            each.layers[0][:] = 100.0


def test_threads_release_a_total_once():
    for _ in range(20):
        total, permit, outcomes = clipped() + clipped(), permit_of(16), []
        start = threading.Barrier(8)

        def release(total=total, permit=permit, outcomes=outcomes, start=start):
            start.wait()
            try:
                noised(total, permit)
                outcomes.append("released")
            except dp.NotPrivate:
                outcomes.append("refused")

        threads = [threading.Thread(target=release) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["refused"] * 7 + ["released"]
        assert permit.used == 1


def test_a_total_is_not_used_up_where_no_noise_was_drawn():
    total, permit = clipped(), permit_of(steps=1)
    noised(clipped(), permit)
    with pytest.raises(dp.BudgetExhausted, match="used up"):
        noised(total, permit)
    noised(total, permit_of())


def test_many_micro_batches_are_added_in_time_that_does_not_grow():
    parts = [PIPELINE.clip(BLOCK[:1], MEMORY) for _ in range(600)]
    total, permit = reduce(lambda sum_, part: sum_ + part, parts), permit_of()
    assert total.units == 600
    noised(total, permit)
    for part in (parts[0], parts[300], parts[-1]):
        refused(part, permit)


# Parts are values


@dataclass(frozen=True)
class Keeps:
    """A stage that changes nothing."""

    content: object = 1.0

    def claim(self, before, where):
        return before

    def apply(self, value, context):
        return value


@dataclass
class Thawed:
    content: object = 1.0

    def claim(self, before, where):
        return before

    def apply(self, value, context):
        return value


@dataclass(frozen=True)
class Remembers(Keeps):
    def __post_init__(self):
        object.__setattr__(self, "found", [])


@pytest.mark.parametrize(
    "stage", [Thawed(), Keeps([1.0]), Keeps(([1.0],)), Keeps({"a": 1}), Keeps(np.ones(2)), Keeps(Thawed()), Remembers()]
)
def test_a_stage_that_can_change_is_refused(stage):
    with pytest.raises(TypeError, match=r"frozen|list|beside its fields"):
        dp.Pipeline(mechanism=(stage, dp.Clip(1.0), dp.Gaussian(1.0)))


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (lambda pipeline: pipeline.stages[1], "norm", 100.0),
        (lambda pipeline: pipeline.stages[2], "noise_multiplier", 1e-3),
        (lambda pipeline: pipeline.stages[0], "content", 2.0),
        (lambda pipeline: pipeline.stages[0], "hidden", 2.0),
        (lambda pipeline: pipeline.codec.quantize, "bits", 3),
        (lambda pipeline: pipeline.sampling, "rate", 1e-3),
        (lambda pipeline: pipeline, "mechanism", (dp.Clip(100.0), dp.Gaussian(1.0))),
        (lambda pipeline: pipeline, "sampling", None),
        (lambda pipeline: pipeline, "unit", "client"),
    ],
)
@pytest.mark.parametrize("when", ["before the clip", "between clip and noise"])
def test_a_pipeline_with_a_changed_part_releases_nothing(part, name, value, when):
    mechanism = (Keeps(), dp.Clip(1.0), dp.Gaussian(1.0))
    pipeline = dp.Pipeline(mechanism=mechanism, codec=dp.Codec(quantize=dp.Uniform(4)), sampling=dp.Poisson(0.1))
    memory = pipeline.init_client(6, seed=dp.PublicSeed(0), client=3)
    permit = dp.Ledger().charge(pipeline.cost, memory.address)
    total = pipeline.clip(BLOCK, memory)
    object.__setattr__(part(pipeline), name, value)
    go_on = {
        "before the clip": lambda: pipeline.clip(BLOCK, memory),
        "between clip and noise": lambda: pipeline.noise(total, memory, dp.SecretSeed(), permit),
    }
    with pytest.raises(dp.NotPrivate, match="changed after the pipeline was made"):
        go_on[when]()
    assert permit.used == 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda pipeline: pickle.loads(pickle.dumps(pipeline))])
@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (lambda pipeline: pipeline, "mechanism", (dp.Clip(100.0), dp.Gaussian(1.0))),
        (lambda pipeline: pipeline.stages[0], "norm", 100.0),
        (lambda pipeline: pipeline.stages[1], "noise_multiplier", 1e-3),
    ],
)
def test_a_copy_of_a_pipeline_with_a_changed_part_releases_nothing(copied, part, name, value):
    pipeline = copied(dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1)))
    memory = pipeline.init_client(6, seed=dp.PublicSeed(0), client=3)
    permit = dp.Ledger().charge(pipeline.cost, memory.address, steps=2)
    pipeline.release([BLOCK], memory, dp.SecretSeed(), permit)
    object.__setattr__(part(pipeline), name, value)
    with pytest.raises(dp.NotPrivate, match="changed after the pipeline was made"):
        pipeline.release([BLOCK], memory, dp.SecretSeed(), permit)
    assert permit.used == 1


def test_a_copy_of_a_pipeline_is_checked_as_a_new_one_is():
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    object.__setattr__(pipeline, "mechanism", (dp.TopK(0.5), dp.Gaussian(1.0)))
    with pytest.raises(dp.NotPrivate):
        copy.copy(pipeline)


def test_a_changed_clip_does_not_reach_the_noise_by_another_pipeline():
    clip = dp.Clip(100.0)
    loose = dp.Pipeline(mechanism=(clip, dp.Gaussian(1.0)))
    total = loose.clip(BLOCK, MEMORY)
    object.__setattr__(clip, "norm", 1.0)
    tight = dp.Pipeline(mechanism=loose.mechanism)
    memory = tight.init_client(6, seed=dp.PublicSeed(0), client=3)
    with pytest.raises(dp.NotPrivate, match="not made by this pipeline"):
        tight.noise(total, memory, dp.SecretSeed(), permit_of(pipeline=tight))


BOUND = [1.0]


def test_a_claim_that_depends_on_more_than_the_stage_is_noticed_when_it_moves():
    @dataclass(frozen=True)
    class Elsewhere:
        def claim(self, before, where):
            return dp.Bounded(l2=BOUND[0])

        def apply(self, value, context):
            return value

    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), Elsewhere(), dp.Gaussian(1.0)))
    memory = pipeline.init_client(6, seed=dp.PublicSeed(0), client=3)
    permit = dp.Ledger().charge(pipeline.cost, memory.address)
    BOUND[0] = 0.01
    try:
        with pytest.raises(dp.NotPrivate, match="changed"):
            pipeline.release([BLOCK], memory, dp.SecretSeed(), permit)
    finally:
        BOUND[0] = 1.0
    pipeline.release([BLOCK], memory, dp.SecretSeed(), permit)


def test_a_stage_gets_the_block_read_only():
    @dataclass(frozen=True)
    class Writes(Keeps):
        def apply(self, value, context):
            value.layers[0][:] = 0.0
            return value

    pipeline = dp.Pipeline(mechanism=(Writes(), dp.Clip(1.0), dp.Gaussian(1.0)))
    with pytest.raises(ValueError, match="read-only"):
        pipeline.clip(BLOCK.copy(), pipeline.init_client(6, seed=dp.PublicSeed(0), client=3))
