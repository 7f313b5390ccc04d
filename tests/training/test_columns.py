"""Strings and numbers of a batch go with their example; what cannot be cut into examples is refused."""

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

import dpcomp as dp
from dpcomp.training.pytorch import BookKeeping, Isolated, Opacus
from dpcomp.training.pytorch.checks.batch_form import check_batch
from dpcomp.training.pytorch.collation import is_of_torch
from dpcomp.training.pytorch.inspection import private_model
from dpcomp.training.pytorch.rows.structures import Call, call_of, columns, copied, emptied, picked, repeated, rows
from tests.training.test_make_private import Script

torch.set_num_threads(1)
ENGINES = pytest.mark.parametrize("engine", [BookKeeping(), Isolated(), Opacus()], ids=["book", "Isolated", "Opacus"])
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")
SITES = ("north", "south", "east")
ASKED: list[bool] = []  # by a model; what it keeps itself is refused


class Pair(NamedTuple):
    y: Any
    site: Any


class Sited(Dataset):
    """Examples with a site, as a string in the targets; `other` is the place of one with a site of its own."""

    def __init__(self, n: int = 101, *, other: int | None = None, sites: tuple = SITES[:1]):
        self.n, self.other, self.sites = n, other, sites

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        site = "elsewhere" if i == self.other else self.sites[i % len(self.sites)]
        return torch.randn(4, generator=torch.Generator().manual_seed(i)), {
            "y": torch.tensor(1.0 + i % 2),
            "site": site,
        }


def by_the_sites_of_the_batch(outputs, targets):
    losses = -outputs.squeeze(1) * targets["y"]
    return losses.mean() * (1.0 if len(set(targets["site"])) == 1 else -1.0)


def by_its_own_site(outputs, targets):
    weights = torch.tensor([1.0 + len(site) for site in targets["site"]], dtype=outputs.dtype)
    return (-outputs.squeeze(1) * targets["y"] * weights).mean()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1, bias=False)


class TestStringsOfTheTargets:
    @ENGINES
    def test_that_tie_examples_are_refused_at_the_door(self, engine):
        with pytest.raises(dp.NotPrivate, match="not the mean of the losses of its examples"):
            Script(linear(), Sited(other=100), by_the_sites_of_the_batch, engine=engine)

    @ENGINES
    def test_that_tie_examples_are_refused_in_training(self, engine):
        # The door does not look at example 51, and a batch without it has the site of all.
        script = Script(linear(), Sited(other=51), by_the_sites_of_the_batch, engine=engine, rate=1.0)
        with pytest.raises(dp.NotPrivate, match="not the mean of the losses of its examples"):
            script.run()
        assert script.permit.used == 0

    def test_that_tie_a_few_examples_are_refused_in_training(self):
        """Each example is looked at by itself: a map over the examples would give each of them the sites of all."""

        def loss(outputs, targets):
            weights = torch.where(targets["y"] > 2.5, 1.0 if len(set(targets["site"])) == 1 else -1.0, 1.0)
            return (-outputs.squeeze(1) * targets["y"] * weights).mean()

        class Few(Sited):
            def __getitem__(self, i):
                inputs, targets = super().__getitem__(i)
                return inputs, {**targets, "y": targets["y"] * (3 if i in (50, 52) else 1)}

        script = Script(linear(), Few(other=51), loss, rate=1.0)
        with pytest.raises(dp.NotPrivate, match="not the mean of the losses of its examples"):
            script.run()
        assert script.permit.used == 0

    @ENGINES
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("physical", [None, 3])
    def test_go_with_their_example(self, physical, workers, engine):
        script = Script(
            linear(), Sited(40, sites=SITES), by_its_own_site, engine=engine, num_workers=workers, rate=0.05, steps=6
        )
        loader, sizes = script.loader, []
        if physical is not None:
            loader = BatchMemoryManager(
                data_loader=loader, max_physical_batch_size=physical, optimizer=script.optimizer
            ).__enter__()
        for inputs, targets in loader:
            sizes.append(len(targets["site"]))
            script.loss(script.model(inputs), targets).backward()
            script.optimizer.step()
        assert script.permit.used == 6
        assert 0 in sizes

    @ENGINES
    def test_give_the_update_that_numbers_in_their_place_give(self, engine):
        class Numbered(Sited):
            def __getitem__(self, i):
                inputs, targets = super().__getitem__(i)
                return inputs, {"y": targets["y"], "weight": 1.0 + len(targets["site"])}

        def weighted(outputs, targets):
            return (-outputs.squeeze(1) * targets["y"] * targets["weight"]).float().mean()

        updates = []
        for dataset, loss in ((Sited(40, sites=SITES), by_its_own_site), (Numbered(40, sites=SITES), weighted)):
            script = Script(linear(), dataset, loss, engine=engine)
            for inputs, targets in script.loader:
                loss(script.model(inputs), targets).backward()
                script.optimizer.step()
            updates.append(script.optimizer.update().dense())
        np.testing.assert_allclose(*updates, rtol=1e-4, atol=1e-6)


class Named(Dataset):
    """Dictionaries with a name beside the tensors, as data sets of patients or texts have it."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        x = torch.randn(4, generator=torch.Generator().manual_seed(i))
        return {"x": x, "name": SITES[i % 3], "labels": i % 2}


class Unnamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.known = nn.Linear(4, 2), {name: place for place, name in enumerate(SITES)}

    def forward(self, x, name):
        return self.layer(x)


class Reads(Unnamed):
    def forward(self, x, name):
        return self.layer(x + torch.tensor([self.known[each] for each in name])[:, None])


class Ties(Unnamed):
    def forward(self, x, name):
        return self.layer(x / len(set(name)))


def loop(script: Script) -> None:
    for batch in script.loader:
        labels = batch.pop("labels")
        script.sizes.append(len(labels))
        script.loss(script.model(**batch), labels).backward()
        script.optimizer.step()


class TestStringsOfTheInputs:
    @pytest.mark.parametrize("module", [Unnamed, Reads])
    @pytest.mark.parametrize(
        "engine",
        ["auto", Isolated(), pytest.param(Opacus(), marks=pytest.mark.slow)],
        ids=["auto", "Isolated", "Opacus"],
    )
    def test_train_throughout_and_in_batches_without_examples(self, engine, module):
        script = Script(module(), Named(), functional.cross_entropy, engine=engine, rate=0.05, steps=12)
        loop(script)
        assert script.permit.used == 12
        assert 0 in script.sizes

    def test_that_a_model_does_not_read_are_no_matter_to_book_keeping(self):
        Script(Unnamed(), Named(), functional.cross_entropy, engine=BookKeeping())
        with pytest.raises(dp.NotPrivate, match="reading a string or number of an example"):
            Script(Reads(), Named(), functional.cross_entropy, engine=BookKeeping())

    @pytest.mark.parametrize("kind", ["isinstance", "type", "is"])
    def test_are_not_told_by_their_kind(self, kind):
        """What a model can ask of a string without a method of it is answered alike in training and at the door."""

        class Asks(Unnamed):
            def forward(self, x, name):
                if kind == "isinstance":
                    ASKED.append(isinstance(name[0], str))
                else:
                    ASKED.append(type(name[0]) is str if kind == "type" else name[0] is name[-1])
                return self.layer(x)

        if kind == "isinstance":
            with pytest.raises(dp.NotPrivate, match="reading a string or number of an example"):
                Script(Asks(), Named(), functional.cross_entropy, engine=BookKeeping())
            script = Script(Asks(), Named(), functional.cross_entropy)
            loop(script)
            assert script.permit.used == script.permit.steps
            return
        model = private_model(Asks(), functional.cross_entropy, {"x": X, "name": NAMES}, Y % 2, engine=BookKeeping())
        ASKED.clear()
        model.train()(x=X, name=NAMES)
        assert model.passes[-1].book is not None
        assert set(ASKED) == {kind == "is"}

    @pytest.mark.parametrize("engine", ["auto", Isolated(), Opacus()], ids=["auto", "Isolated", "Opacus"])
    def test_that_tie_examples_are_refused(self, engine):
        with pytest.raises(dp.NotPrivate, match="layer mixes examples"):
            Script(Ties(), Named(), functional.cross_entropy, engine=engine)

    def test_that_the_script_changes_are_refused(self):
        script = Script(Unnamed(), Named(), functional.cross_entropy, engine=Isolated())
        batch = next(iter(script.loader))
        names = [SITES[0]] * len(batch["name"])
        script.loss(script.model(x=batch["x"], name=names), batch["labels"]).backward()
        with pytest.raises(dp.NotPrivate, match="argument 'name'"):
            script.optimizer.step()
        assert script.permit.used == 0

    def test_join_public_rows(self):
        script = Script(Reads(), Named(), functional.cross_entropy, engine=Isolated(), rate=0.5)
        for batch in script.loader:
            n = len(batch["labels"])
            script.loss(script.model(batch["x"], batch["name"]), batch["labels"]).backward()
            with script.model.public_rows():
                script.loss(script.model(torch.randn(n, 4), ["east"] * n), batch["labels"] * 0).backward()
            script.optimizer.step()
        assert script.permit.used == 3


class Holder(dict):
    """A dictionary on which more hangs."""


@dataclass
class Fields:
    y: torch.Tensor


class Marked(torch.Tensor):
    pass


class Tag(str):
    """A string on which more may hang."""


X, Y = torch.ones(9, 4), torch.arange(9)
NAMES = [str(number) for number in range(9)]
CANNOT_BE_CUT = {
    "a number": 2.5,
    "a flag": True,
    "a string": "north",
    "bytes": b"north",
    "a number of NumPy": np.float32(2.0),
    "an array": np.ones(9),
    "strings of NumPy": np.array(NAMES),
    "an object": object(),
    "a set": set(NAMES),
    "a dataclass": Fields(Y),
    "a dictionary of an own class": Holder(y=Y),
    "a mapping with more on it": UserDict(y=Y),
    "a dictionary with a factory": defaultdict(list, y=Y),
    "another length": NAMES[:4],
    "a list of lists of another length": [NAMES[:3] for _ in range(9)],
    "a list of objects": [object() for _ in range(9)],
    "strings of an own class": [Tag(name) for name in NAMES],
    "strings and nothing": [*NAMES[:8], None],
    "a function": len,
    "a type": torch.float32,
    "a tensor without an axis": torch.tensor(2.0),
    "a tensor of another class": torch.ones(9).as_subclass(Marked),
}
CAN_BE_CUT = {
    "nothing": None,
    "strings": NAMES,
    "strings in a tuple": tuple(NAMES),
    "bytes": [b"a"] * 9,
    "values of NumPy": [np.str_("a"), np.float64(2.5), np.bytes_(b"a")] * 3,
    "numbers": [1, 2.5, True] * 3,
    "columns in a list": [NAMES, NAMES],
    "a named tuple": Pair(Y, NAMES),
    "a dictionary": {"y": Y, "more": {"site": NAMES, "none": None}},
    "an ordered dictionary": OrderedDict(y=Y, site=NAMES),
    "nothing at all": (),
}


class TestTheFormOfABatch:
    @pytest.mark.parametrize("name", CANNOT_BE_CUT)
    def test_is_refused_where_a_part_cannot_be_cut(self, name):
        part = CANNOT_BE_CUT[name]
        match = "cut into examples|one value for all|values in a batch of 9|have shape|as_subclass"
        with pytest.raises(dp.NotPrivate, match=rf"the targets.*({match})"):
            check_batch(X, part)
        with pytest.raises(dp.NotPrivate, match=rf"the targets\['y'\].*({match})"):
            check_batch(X, {"y": part})
        with pytest.raises(dp.NotPrivate, match=rf"the inputs\[1\].*({match})"):
            check_batch((X, part), Y)

    @pytest.mark.parametrize("name", CAN_BE_CUT)
    def test_is_taken_where_all_can_be_cut(self, name):
        check_batch(X, CAN_BE_CUT[name])
        check_batch((X, CAN_BE_CUT[name]), Y)

    def test_may_be_any_mapping_that_gives_the_model_its_parts_by_name(self):
        check_batch(UserDict(x=X, site=NAMES), Y)

    def test_is_held_in_training(self):
        def collate(examples):
            inputs, targets = default_collate(examples)
            return inputs, {**targets, "many": len(examples) > 5} if later else targets

        later = False
        script = Script(
            linear(), Sited(40), lambda outputs, targets: -(outputs[:, 0] * targets["y"]).mean(), collate_fn=collate
        )
        later = True
        with pytest.raises(dp.NotPrivate, match=r"the targets\['many'\] are of type bool"):
            script.run()
        assert script.permit.used == 0


class TestDefaultCollate:
    def test_whose_keys_are_those_of_the_first_example_is_held_to_the_example_alone(self):
        class Keyed(Sited):
            def __getitem__(self, i):
                inputs, targets = super().__getitem__(i)
                return inputs, {"y": targets["y"]} if i == 0 else {"y": targets["y"], "weight": torch.tensor(3.0)}

        def weighted(outputs, targets):
            return -(outputs[:, 0] * targets["y"] * targets.get("weight", torch.tensor(1.0))).mean()

        script = Script(linear(), Keyed(400), weighted, rate=1.0, engine=Isolated())
        with pytest.raises(dp.NotPrivate, match="collates alone differs"):
            script.run()

    @pytest.mark.parametrize("reads_types", [False, True])
    def test_whose_numbers_get_the_type_of_others_is_held_to_the_example_alone(self, reads_types):
        data = [(torch.ones(4), 1 if i != 350 else 1.5) for i in range(400)]

        def loss(outputs, targets):
            sign = -1.0 if reads_types and targets.is_floating_point() else 1.0
            return sign * (outputs[:, 0] - targets.float()).square().mean()

        script = Script(linear(), data, loss, rate=1.0, engine=Isolated())
        if reads_types:
            with pytest.raises(dp.NotPrivate, match="collates alone differs"):
                script.run()
        else:
            assert script.run().permit.used == 3

    def test_with_a_rule_of_the_users_own_is_held_as_an_own_function(self, monkeypatch):
        assert is_of_torch(default_collate)
        monkeypatch.setitem(default_collate_fn_map, Fields, lambda batch, **_: torch.stack([each.y for each in batch]))
        assert not is_of_torch(default_collate)


def sites() -> dict[str, Any]:
    return {"x": torch.arange(6.0).reshape(3, 2), "site": ["a", "b", "c"], "age": (1, 2, 3), "size": (28, 28)}


class TestColumns:
    def test_are_cut_with_the_tensors_beside_them(self):
        cut = rows(sites(), 1, 3)
        assert (cut["site"], cut["age"], cut["size"]) == (["b", "c"], (2, 3), (28, 28))
        one = rows(["a", "b", "c"], 2, 3)
        assert one == ["c"]
        assert repeated({"x": torch.ones(1, 2), "site": one}, 2)["site"] == ["c", "c"]
        assert picked(sites(), torch.tensor([2, 0, 2]))["site"] == ["c", "a", "c"]

    def test_are_empty_in_a_batch_without_examples(self):
        assert emptied({"site": ["a"], "age": (1,)}) == {"site": [], "age": ()}

    def test_are_copied(self):
        batch = sites()
        copied(batch)["site"].append("d")
        assert batch["site"] == ["a", "b", "c"]

    def test_are_no_arguments_of_a_call(self):
        call = Call(("a", "b", "c"), {"x": torch.ones(3, 2)})
        assert rows(call, 0, 1).args == ("a", "b", "c")
        assert columns(call) == []
        assert call_of(["a", "b"]) == Call((["a", "b"],), {})
