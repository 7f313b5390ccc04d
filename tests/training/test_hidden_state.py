"""Hidden state: what a model keeps in objects of compiled code, on tensors and on functions, and what is no state."""

import abc
import argparse
import array
import collections
import collections.abc
import copy
import ctypes
import dataclasses
import datetime
import enum
import functools
import io
import itertools
import logging
import pathlib
import re
import threading
import types
import typing
import uuid
import weakref
from typing import ClassVar

import numpy as np
import pydantic
import pytest
import torch
import torch.fx
from torch import nn

import dpcomp as dp
from dpcomp.lab.tasks import digits
from dpcomp.training.pytorch import Isolated
from dpcomp.training.pytorch.checks.anatomy import Objects
from dpcomp.training.pytorch.checks.unmoved import Unmoved
from dpcomp.training.pytorch.inspection import private_model
from dpcomp.training.pytorch.rows.opacus_hooks import OpacusRows
from tests.training.private_client import Client, examples, noisy


def bare():
    return lambda: 0


def generator():
    yield from range(9)


class Settings(pydantic.BaseModel):
    width: int
    names: dict[str, int] = {}


class Helper:
    """An object of a script, with functions that may keep something."""

    __slots__ = ("__dict__", "__hidden", "open")

    def with_default(self, box=[]):  # noqa: B006
        return box

    def with_keyword(self, *, box=[]):  # noqa: B006
        return box

    @staticmethod
    def static(box=[]):  # noqa: B006
        return box

    @property
    def width(self):
        return 6

    @functools.cached_property
    def seen(self):
        return []

    def hide(self):
        self.__hidden = 1


class Inherits(Helper):
    """A helper whose functions are those of another class."""


class Words(dict):
    """A dictionary with functions and data of its class."""

    others: ClassVar = []

    def add(self, to=[]):  # noqa: B006
        return to


class Word(str):
    """A string with attributes."""


class Rate(float):
    """A number with attributes."""


class Like:
    """An object whose class has an attribute that is named as those that Cython makes."""

    __pyx_vtable__: ClassVar = {}


class Level(enum.Enum):
    """An enumeration."""

    LOW = 1


def with_seen():
    helper = Helper()
    assert helper.seen == []
    return helper


KEPT = {
    "a default of a helper's method": (Helper, lambda v: Helper.with_default.__defaults__[0].append(1)),
    "a default of an inherited method": (Inherits, lambda v: Helper.with_default.__defaults__[0].append(1)),
    "a default by keyword": (Helper, lambda v: Helper.with_keyword.__kwdefaults__["box"].append(1)),
    "a default of a static method": (Helper, lambda v: v.static().append(1)),
    "an attribute of a helper's method": (Helper, lambda v: setattr(Helper.with_default, "seen", uuid.uuid4())),
    "an attribute of a helper's property": (Helper, lambda v: setattr(Helper.width.fget, "seen", uuid.uuid4())),
    "a slot": (Helper, lambda v: setattr(v, "open", 1)),
    "a private slot": (Helper, lambda v: v.hide()),
    "what a cached property keeps": (with_seen, lambda v: v.seen.append(1)),
    "what a cached property adds": (Helper, lambda v: v.seen.append(1)),
    "another value of a cached property": (with_seen, lambda v: setattr(v, "seen", [1])),
    "a default of a method of a dictionary": (Words, lambda v: v.add.__defaults__[0].append(1)),
    "an attribute of a dictionary's class": (Words, lambda v: v.others.append(1)),
    "an attribute of a string": (lambda: Word("a"), lambda v: setattr(v, "seen", 1)),
    "an attribute of a number": (lambda: Rate(1), lambda v: setattr(v, "seen", 1)),
    "an attribute of a member": (lambda: Level.LOW, lambda v: setattr(v, "seen", uuid.uuid4())),
    "what is named as a table of Cython": (Like, lambda v: v.__pyx_vtable__.update(seen=uuid.uuid4())),
    "an attribute of a logger": (
        lambda: logging.getLogger("kept"),
        lambda v: setattr(v, "seen", uuid.uuid4()),
    ),
    "bytes": (lambda: bytearray(1), lambda v: v.__setitem__(0, 1)),
    "an array": (lambda: array.array("d", [0]), lambda v: v.__setitem__(0, 1)),
    "a number of C": (lambda: ctypes.c_double(0), lambda v: setattr(v, "value", 1)),
    "a stream": (io.BytesIO, lambda v: v.write(b"1")),
    "a generator of NumPy": (lambda: np.random.default_rng(0), lambda v: v.random()),
    "a generator of torch": (torch.Generator, lambda v: torch.rand(1, generator=v)),
    "a count": (itertools.count, next),
    "an iterator": (lambda: iter([0, 1]), next),
    "a cache": (lambda: functools.lru_cache(maxsize=None)(str), lambda v: v(1)),
    "an array of objects": (lambda: np.array([{"a": 0}], dtype=object), lambda v: v[0].update(a=1)),
    "an array with attributes": (
        lambda: np.ma.masked_array([1, 2], mask=[0, 0]),
        lambda v: v.mask.__setitem__(0, True),
    ),
    "an object in a set": (lambda: {bare()}, lambda v: setattr(next(iter(v)), "seen", 1)),
    "a distribution": (lambda: torch.distributions.Normal(0.0, 1.0), lambda v: setattr(v, "seen", 1)),
    "an attribute of a function": (bare, lambda v: setattr(v, "seen", 1)),
    "an attribute of a tensor": (lambda: torch.zeros(1), lambda v: setattr(v, "seen", 1)),
    "an event": (threading.Event, lambda v: v.set()),
    "the level of a logger": (lambda: logging.getLogger("kept"), lambda v: v.setLevel(v.level + 1)),
    "a lock": (threading.Lock, lambda v: v.acquire()),
}


class Keeps(nn.Module):
    """A linear layer beside something that is kept."""

    def __init__(self, kept=None):
        super().__init__()
        self.layer, self.kept = nn.Linear(6, 3), kept

    def forward(self, x, first=[]):  # noqa: B006
        return self.layer(x)

    @functools.wraps(forward)
    def also(self, x):
        return self.layer(x)

    @property
    def width(self):
        return 6


@pytest.mark.parametrize("kind", KEPT)
def test_what_an_object_keeps_is_found(kind):
    make, keep = KEPT[kind]
    module = Keeps(make())
    guard = Unmoved(module)
    assert guard.moved() == []
    guard.remember()
    assert guard.moved() == []
    keep(module.kept)
    assert guard.moved() == ["attribute 'kept' of the model (Keeps)"]
    assert Unmoved(module).moved() == []


def test_what_a_cached_property_adds_is_what_it_gives_again():
    module = Keeps(Helper())
    guard = Unmoved(module)
    assert module.kept.seen == []
    assert guard.moved() == []
    guard.remember()
    del module.kept.seen
    assert guard.moved() == []
    guard.remember()
    assert module.kept.seen == []
    guard.remember()
    assert Objects(module, None, ignored=frozenset()).same()
    module.kept.seen.append(1)
    assert guard.moved() == ["attribute 'kept' of the model (Keeps)"]


class Times:
    """A loss of a script's own class."""

    def __init__(self, by=1):
        self.by = by

    def scaled(self, loss, seen=[]):  # noqa: B006
        return loss * self.by

    def __call__(self, outputs, targets):
        return self.scaled(nn.functional.cross_entropy(outputs, targets))


class TimesAsModule(nn.Module):
    """A loss that is a module."""

    forward, scaled, by = Times.__call__, Times.scaled, 1


@pytest.mark.parametrize("loss", [Times, TimesAsModule])
def test_what_a_method_of_a_loss_keeps_is_found(loss):
    guard = Unmoved(Keeps(), loss())
    assert guard.moved() == []
    loss.scaled.__defaults__[0].append(1)
    assert guard.moved() == [f"methods of the loss ({loss.__name__})"]


NAMES_OF_ENGINES = {
    "max_batch_len": lambda m: m,
    "_flat_weight_refs": lambda m: m.layer,
    "_forward_counter": lambda m: m.layer.weight,
    "_current_grad_sample": lambda m: m.layer.weight,
}


@pytest.mark.parametrize("name", NAMES_OF_ENGINES)
def test_what_has_the_name_that_an_engine_or_a_layer_uses_is_found(name):
    module = Keeps()
    guard = Unmoved(module)
    setattr(NAMES_OF_ENGINES[name](module), name, [1])
    assert len(guard.moved()) == 1
    if name != "_flat_weight_refs":
        assert Unmoved(module, ignored=OpacusRows.keeps).moved() == []
        guard = Unmoved(module, ignored=OpacusRows.keeps)
        setattr(NAMES_OF_ENGINES[name](module), name, [2])
        assert guard.moved() == []


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_what_recurrent_layers_keep_of_their_weights_is_no_state(layer):
    module = layer(6, 3)
    guard = Unmoved(module)
    module.flatten_parameters()
    module._flat_weights = list(module._flat_weights)
    module._init_flat_weights()
    assert guard.moved() == []


def making(outputs):
    """Return a model whose forward makes an object of a class."""

    class Makes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return outputs(logits=self.layer(x))

    return Makes()


def test_names_of_slots_that_a_copy_leaves_on_a_class_are_no_state():
    class Outputs(collections.OrderedDict):
        __slots__ = ("__hidden", "open")

    module = making(Outputs)
    guard = Unmoved(module)
    copy.copy(Outputs(a=1))
    assert "__slotnames__" in vars(Outputs)
    assert guard.moved() == []
    guard.remember()
    Outputs.__slotnames__.append("seen")
    assert guard.moved() == ["method 'forward' of class Makes"]


def test_annotations_that_were_empty_are_held():
    class Bare(nn.Linear):
        """A layer without annotations."""

    Bare.__annotations__ = {}
    guard = Unmoved(Bare(6, 3))
    assert guard.moved() == []
    Bare.__annotations__["seen"] = 1
    assert guard.moved() == ["attribute '__annotations__' of the model (Bare)"]


def test_outputs_of_a_class_that_a_function_made_are_taken():
    class Outputs(dict):
        """Outputs by name."""

    client = Client(noisy(), making(Outputs), (6,), loss=lambda o, t: nn.functional.cross_entropy(o["logits"], t))
    client.step(*examples(5))
    copy.copy(Outputs())
    client.step(*examples(5))
    assert len(client.gradients) == 2


ON_THE_CLASS = {
    "an attribute of a parameter": (lambda m: setattr(m.layer.weight, "seen", 1), "attributes of 'layer.weight'"),
    "a default of a method": (lambda m: type(m).forward.__defaults__[0].append(1), "method 'forward' of class Other"),
    "an attribute of a method": (lambda m: setattr(type(m).also, "seen", 1), "method 'also' of class Other"),
    "an attribute of a property": (lambda m: setattr(type(m).width.fget, "seen", 1), "method 'width' of class Other"),
}


@pytest.mark.parametrize("kind", ON_THE_CLASS)
def test_what_is_kept_on_tensors_and_methods_is_found(kind):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, first=[]):  # noqa: B006
            return self.layer(x)

        @functools.wraps(forward)
        def also(self, x):
            return self.layer(x)

        @property
        def width(self):
            return 6

    keep, name = ON_THE_CLASS[kind]
    module = Other()
    guard = Unmoved(module)
    guard.remember()
    assert guard.moved() == []
    keep(module)
    assert guard.moved() == [name]


class Seen:
    """An object with an attribute of its class."""

    seen = 0


class Descriptor:
    """A descriptor that gives itself."""

    def __get__(self, *_):
        return self


IN_A_CLASS = {
    "bytes": (bytearray(1), lambda kind: kind.kept.__setitem__(0, 1)),
    "a namespace": (types.SimpleNamespace(seen=0), lambda kind: setattr(kind.kept, "seen", 1)),
    "an own object": (Seen(), lambda kind: setattr(kind.kept, "seen", 1)),
    "a count": (itertools.count(), lambda kind: next(kind.kept)),
    "a generator of NumPy": (np.random.default_rng(0), lambda kind: kind.kept.random()),
    "a descriptor": (Descriptor(), lambda kind: setattr(kind.kept, "seen", 1)),
    "a method with an argument": (
        functools.partialmethod(Keeps.forward, []),
        lambda kind: vars(kind)["kept"].args[0].append(1),
    ),
    "a method by type": (
        functools.singledispatchmethod(lambda self, x, seen=[]: x),
        lambda kind: vars(kind)["kept"].func.__defaults__[0].append(1),
    ),
    "a class": (type("Inner", (), {"__module__": __name__}), lambda kind: setattr(kind.kept, "seen", 1)),
    "an object that comes": (None, lambda kind: setattr(kind, "more", object())),
    "a name of Python's form": (None, lambda kind: setattr(kind, "__more__", 1)),
}


@pytest.mark.parametrize("name", IN_A_CLASS)
def test_what_a_class_keeps_is_found(name):
    value, keep = IN_A_CLASS[name]
    kind = type("Other", (Keeps,), {"kept": value, "__module__": __name__})
    module = kind()
    del module.kept
    guard = Unmoved(module)
    guard.remember()
    assert guard.moved() == []
    keep(kind)
    assert len(guard.moved()) == 1 and guard.moved()[0].startswith("attribute")


class Length(abc.ABC):  # noqa: B024
    """An abstract class."""


class Richer(Keeps, Length):
    """A network with what classes of honest ones have."""

    config_class, colour, limit, __version__ = Length, functools.partial(max, 1), itertools.repeat(3), "1"
    pattern = re.compile("a+")
    width_of: int

    @functools.singledispatchmethod
    def scaled(self, by, x):
        return x * by

    @scaled.register
    def _(self, by: str, x):
        return x * float(by)

    @functools.cache  # noqa: B019
    def table(self, n):
        return torch.arange(n)

    def forward(self, x):
        self.table(len(x))
        assert isinstance(self, Length) and type(self).__annotations__
        return super().forward(self.scaled("1", self.scaled(1, x)))


def test_a_class_with_other_attributes_is_taken():
    inputs, targets = examples(4)
    private_model(Richer(), nn.functional.cross_entropy, inputs, targets, engine=Isolated())


def test_what_a_hook_keeps_is_found():
    class Hook:
        seen = 0

        def __call__(self, *_):
            return None

    module, hook = Keeps(), Hook()
    module.layer.register_forward_hook(hook)
    guard = Unmoved(module)
    assert guard.moved() == []
    hook.seen = 1
    assert guard.moved() == ["hooks of layer 'layer' (Linear)"]


@pytest.mark.parametrize("make", [generator, threading.local], ids=["a generator", "a local of threads"])
def test_what_cannot_be_read_is_refused_by_name(make):
    kept = make()
    loss = functools.partial(lambda kept, outputs, targets: nn.functional.cross_entropy(outputs, targets), kept)
    with pytest.raises(
        dp.NotPrivate, match=rf"'kept' of the model \(Keeps\) holds an object of type {type(kept).__name__}"
    ):
        Unmoved(Keeps(kept))
    with pytest.raises(
        dp.NotPrivate, match=rf"argument of the loss .* type {type(kept).__name__}, whose state cannot be"
    ):
        private_model(nn.Linear(6, 3), loss, *examples(4))


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1


@dataclasses.dataclass
class Config:
    """A configuration, as networks of libraries have one."""

    width: int = 6
    rope: dict = dataclasses.field(default_factory=lambda: {"theta": 1e4})


HONEST = {
    "a configuration": Config,
    "a logger": lambda: logging.getLogger("dpcomp.tests.honest"),
    "an enumeration": lambda: Colour.RED,
    "a path": lambda: pathlib.Path("weights"),
    "a pattern": lambda: re.compile("a+"),
    "a date": lambda: datetime.datetime(2024, 1, 1),
    "a range": lambda: range(3),
    "a slice": lambda: slice(0, 3),
    "a class": lambda: nn.Linear,
    "an alias of a type": lambda: collections.abc.Callable[[], int],
    "a union of types": lambda: int | None,
    "a task whose fields have such types": digits,
    "a function of torch": lambda: torch.relu,
    "an operation of torch": lambda: torch.ops.aten.relu,
    "an overload of torch": lambda: torch.ops.aten.relu.default,
    "a function of Python": lambda: bare,
    "a built-in function": lambda: max,
    "a partial": lambda: functools.partial(torch.softmax, dim=-1),
    "a default dictionary": lambda: collections.defaultdict(list),
    "an ordered dictionary": lambda: collections.OrderedDict(a=1),
    "a weak reference": lambda: weakref.ref(Config),
    "a distribution with properties": lambda: torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "a generator of torch": torch.Generator,
    "a generator of NumPy": lambda: np.random.default_rng(0),
    "a device": lambda: torch.device("cpu"),
    "a size": lambda: torch.Size([1, 2]),
    "a memory format": lambda: torch.channels_last,
    "a layer in a list": lambda: [nn.ReLU()],
    "a type that is named ahead": lambda: typing.ForwardRef("int"),
    "an older generator of NumPy": lambda: np.random.RandomState(0),
    "a class of pydantic": lambda: Settings(width=6),
    "a class of pydantic in a function": lambda: of_a_function(),
    "a class of pydantic with a lambda": lambda: Validated(),
    "a data class with slots": lambda: Slotted(),
    "an object with a cached property": Helper,
}
NOT_COPIED = {"a generator of torch"}  # by copy.deepcopy, as a trial copies the model


class Uses(Keeps):
    """A linear layer, which looks at what is kept."""

    def forward(self, x):
        logging.getLogger("dpcomp.tests.honest").isEnabledFor(logging.DEBUG)
        if isinstance(self.kept, torch.distributions.MultivariateNormal):
            _ = self.kept.covariance_matrix, self.kept.precision_matrix
        if isinstance(self.kept, Helper):
            _ = self.kept.seen
        return self.layer(x)


@dataclasses.dataclass(slots=True)
class Slotted:
    """A configuration with slots."""

    width: int = 6
    rope: dict = dataclasses.field(default_factory=lambda: {"theta": 1e4})


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A frozen configuration, with a cached property."""

    rope: dict = dataclasses.field(default_factory=lambda: {"theta": 1e4})

    @functools.cached_property
    def width(self):
        return [6]


def of_a_function():
    class Local(pydantic.BaseModel):
        rope: dict[str, float] = {"theta": 1e4}

    return Local()


class Validated(pydantic.BaseModel):
    """Settings that a lambda checks."""

    rope: typing.Annotated[dict[str, float], pydantic.AfterValidator(lambda v: v)] = {"theta": 1e4}


def with_width(frozen):
    assert frozen.width == [6]
    return frozen


# Configurations, and what changes them. They are compared by the objects that they are made of.
FAST = {
    "a data class": (Config, lambda v: v.rope.update(theta=1.0)),
    "an attribute of a data class": (Config, lambda v: setattr(v, "width", 7)),
    "a field of a data class": (
        Config,
        lambda v: setattr(Config.__dataclass_fields__["width"], "compare", uuid.uuid4()),
    ),
    "a data class with slots": (Slotted, lambda v: v.rope.update(theta=1.0)),
    "a slot": (Slotted, lambda v: setattr(v, "width", 7)),
    "a frozen data class": (Frozen, lambda v: v.rope.update(theta=1.0)),
    "a cached property of a frozen one": (lambda: with_width(Frozen()), lambda v: v.width.append(1)),
    "settings of pydantic": (of_a_function, lambda v: v.rope.update(theta=1.0)),
    "an attribute of settings": (of_a_function, lambda v: setattr(v, "rope", {})),
    "settings that a lambda checks": (Validated, lambda v: v.rope.update(theta=1.0)),
    "an enumeration": (lambda: Level.LOW, lambda v: setattr(v, "seen", uuid.uuid4())),
    "a partial": (lambda: functools.partial(max, key={}), lambda v: v.keywords.update(key=1)),
    "a namespace": (lambda: argparse.Namespace(a=[1]), lambda v: v.a.append(1)),
    "a helper": (Helper, lambda v: Helper.with_default.__defaults__[0].append(1)),
    "a private slot": (Helper, lambda v: v.hide()),
    "a dictionary of a script": (Words, lambda v: v.add.__defaults__[0].append(1)),
    "an attribute of a dictionary's class": (Words, lambda v: v.others.append(1)),
    "a string with attributes": (lambda: Word("a"), lambda v: setattr(v, "seen", 1)),
    "a class": (lambda: Like, lambda v: v.__pyx_vtable__.update(seen=uuid.uuid4())),
    "a type of numbers": (lambda: {"a": torch.float32}, lambda v: v.update(a=torch.float64)),
}


@pytest.mark.parametrize("kind", FAST)
def test_a_configuration_is_compared_by_the_objects_in_it(kind):
    make, change = FAST[kind]
    module = Keeps(make())
    objects, guard = Objects(module, None, ignored=frozenset()), Unmoved(module)
    assert objects.same()
    assert guard.moved() == []
    change(module.kept)
    assert not objects.same()
    assert guard.moved() == ["attribute 'kept' of the model (Keeps)"]


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_attribute_is_taken(kind):
    module = Uses(HONEST[kind]())
    inputs, targets = examples(4)
    if kind not in NOT_COPIED:
        private_model(module, nn.functional.cross_entropy, inputs, targets, engine=Isolated())
    guard = Unmoved(module)
    module(inputs)
    assert guard.moved() == []
    guard.remember()
    module(inputs)
    assert guard.moved() == []


def test_a_plain_model_is_compared_by_its_objects_alone():
    assert Objects(Keeps(), None, ignored=frozenset()).same()


def test_what_an_engine_keeps_on_parameters_is_no_state():
    module = Keeps()
    guard = Unmoved(module)
    vars(module.layer.weight).update(grad_sample=torch.zeros(1), summed_grad=None)
    assert guard.moved() == []
    assert Objects(module, None, ignored=frozenset()).same()


def test_an_object_may_refer_back_to_the_model_whose_weights_move():
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    private_model(module, nn.functional.cross_entropy, *examples(4), engine=Isolated())
    guard = Unmoved(module)
    with torch.no_grad():
        module.get_parameter("0.weight").add_(1)
    assert guard.moved() == ["0.weight"]
    next(iter(module.graph.nodes)).meta["seen"] = 1
    assert "attribute '_graph' of the model" in str(guard.moved())


class Vocabulary:
    """Plain objects of Python, as tokenisers and configurations are."""

    languages: ClassVar = ["en"]

    def __init__(self):
        self.words = ["a", "b"]
        self.numbers = {word: number for number, word in enumerate(self.words)}


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.words.append("c"),
        lambda v: v.numbers.update(a=2),
        lambda v: setattr(v, "more", 1),
        lambda v: setattr(v, "words", ["a", "c"]),
        lambda v: Vocabulary.languages.append("de"),
    ],
)
def test_a_plain_object_is_compared_by_the_objects_in_it_and_in_its_class(change, monkeypatch):
    monkeypatch.setattr(Vocabulary, "languages", ["en"])
    module = Keeps()
    module.vocabulary = Vocabulary()
    assert Objects(module, None, ignored=frozenset()).same()
    guard, objects = Unmoved(module), Objects(module, None, ignored=frozenset())
    change(module.vocabulary)
    assert not objects.same()
    assert guard.moved()


def test_a_capsule_over_the_memory_of_a_tensor_is_refused():
    module = nn.Sequential(nn.Linear(6, 3))
    module[0].capsule = torch.utils.dlpack.to_dlpack(torch.zeros(1))
    with pytest.raises(dp.NotPrivate, match="capsule"):
        Unmoved(module)
