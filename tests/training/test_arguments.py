"""What all rows of a batch share among the arguments of the model says nothing of the batch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset, default_collate

import dpcomp as dp
from dpcomp.training.pytorch import Isolated, Opacus
from dpcomp.training.pytorch.arguments import Arguments, tried_call
from dpcomp.training.pytorch.rows.structures import Call
from tests.training.private_client import Client, examples, noisy, refused
from tests.training.test_make_private import Script

torch.set_num_threads(1)
ENGINES = pytest.mark.parametrize("engine", [Isolated(), Opacus()], ids=["Isolated", "Opacus"])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs, scale=1.0, flip=None, **more):
        return self.layer((inputs if not flip else -inputs) / float(np.max(scale)))


def client(engine, **arguments) -> Client:
    return Client(noisy(), Scaled(), examples(4), engine=engine, **arguments)


def step(client: Client, inputs, targets, *args, **kwargs) -> None:
    client.draw((inputs, targets))
    forward(client, inputs, targets, *args, **kwargs)
    client.optimizer.step()


def forward(client: Client, inputs, targets, *args, **kwargs) -> None:
    functional.cross_entropy(client.model(inputs, *args, **kwargs), targets).backward()


class Other:
    def __array__(self, dtype=None, copy=None):
        return np.ones(())


@pytest.mark.filterwarnings("ignore:Full backward hook")
class TestArguments:
    @ENGINES
    @pytest.mark.parametrize(
        "scale",
        [
            lambda inputs: inputs.abs().max().item(),
            lambda inputs: int(inputs.abs().max()) + 1,
            len,
            lambda inputs: np.float32(inputs.abs().max()),
            lambda inputs: inputs.abs().max(dim=1).values.numpy(),
            lambda inputs: [1.0, float(inputs.max())],
            lambda _: Other(),
        ],
        ids=["float", "int", "length", "of NumPy", "array", "in a list", "object"],
    )
    @pytest.mark.parametrize("named", [True, False])
    def test_that_the_loader_did_not_deliver_are_refused_by_name(self, scale, named, engine):
        mine, (inputs, targets) = client(engine), examples(5)
        mine.draw((inputs, targets))
        value = scale(inputs)
        forward(mine, inputs, targets, **{"scale": value}) if named else forward(mine, inputs, targets, value)
        with refused(mine, r"argument 'scale'.*attribute of the model before make_private.*constants="):
            mine.optimizer.step()

    @ENGINES
    @pytest.mark.parametrize(
        ("first", "then"),
        [(False, True), (None, True), ("a", "b"), (torch.float32, torch.float64), (True, None), (0.0, -0.0)],
    )
    def test_that_are_no_longer_what_was_declared_are_refused_by_name(self, first, then, engine):
        mine = client(engine, constants={"flip": first})
        step(mine, *examples(5), flip=first)
        step(mine, *examples(5, seed=1), flip=first)
        mine.draw(examples(5))
        forward(mine, *examples(5), flip=then)
        with refused(mine, rf"argument 'flip' of the model is {then!r}, and was {first!r} when make_private tried it"):
            mine.optimizer.step()

    @ENGINES
    @pytest.mark.parametrize("value", [True, "a", 0, torch.float32])
    def test_that_were_not_declared_are_refused_in_the_first_batch(self, value, engine):
        mine = client(engine)
        mine.draw(examples(5))
        forward(mine, *examples(5), flip=value)
        with refused(mine, rf"'flip' of the model is {value!r}, and was None when make_private tried it.*constants="):
            mine.optimizer.step()

    @ENGINES
    def test_that_are_unknown_to_the_trial_are_refused_in_the_first_batch(self, engine):
        mine = client(engine)
        mine.draw(examples(5))
        forward(mine, *examples(5), other=True)
        with refused(mine, r"called with \['inputs', 'other'\], and make_private tried it with \['inputs'\]"):
            mine.optimizer.step()

    @ENGINES
    def test_that_were_declared_and_are_not_given_are_refused(self, engine):
        mine = client(engine, constants={"other": True})
        mine.draw(examples(5))
        forward(mine, *examples(5))
        with refused(mine, r"called with \['inputs'\], and make_private tried it with \['inputs', 'other'\]"):
            mine.optimizer.step()

    @ENGINES
    def test_that_were_declared_are_taken_and_told(self, engine):
        mine = client(engine, constants={"flip": True, "scale": 2.0, "other": "a"})
        for number in range(2):
            step(mine, *examples(5, seed=number), flip=True, scale=2.0, other="a")
        step(mine, *examples(5), 2.0, True, other="a")  # by position
        assert mine.permit.used == 3
        clause = "the arguments flip=True, scale=2.0, other='a' of the model are public constants"
        assert clause in str(mine.ledger.guarantee(delta=1e-5))

    def test_that_are_the_defaults_are_as_good_as_left_out(self):
        mine = client(Isolated())
        step(mine, *examples(5), flip=None)
        step(mine, *examples(5), 1.0, None)
        step(mine, *examples(5))
        assert mine.permit.used == 3
        assert "public constants" not in str(mine.ledger.guarantee(delta=1e-5))

    def test_are_tried_at_the_door(self):
        class Flipped(Scaled):
            def forward(self, inputs, centred):
                return self.layer(inputs - inputs.mean(0) if centred else inputs)

        Client(noisy(), Flipped(), examples(4), engine=Isolated(), constants={"centred": False})
        with pytest.raises(dp.NotPrivate, match="layer mixes examples"):
            Client(noisy(), Flipped(), examples(4), engine=Isolated(), constants={"centred": True})

    @pytest.mark.parametrize("value", [torch.ones(2), [1], {"a": 1}, np.float32(1.0), object()])
    def test_of_other_types_are_no_constants(self, value):
        with pytest.raises(TypeError, match=r"constants has 'flip' of type \w+.*attribute of the model"):
            client(Isolated(), constants={"flip": value})

    def test_of_the_batch_are_no_constants(self):
        inputs, targets = examples(4)
        with pytest.raises(ValueError, match=r"constants has \['inputs'\], which each batch has too"):
            Client(noisy(), Scaled(), ({"inputs": inputs}, targets), constants={"inputs": 1})

    def test_that_change_from_round_to_round_are_refused(self):
        mine = client(Isolated(), constants={"flip": True})
        step(mine, *examples(5), flip=True)
        mine.optimizer.begin(mine.memory, mine.ledger.charge(mine.optimizer.pipeline.cost, dp.Address(1, 0, 1)))
        with pytest.raises(dp.NotPrivate, match="'flip' of the model is False, and was True"):
            step(mine, *examples(5), flip=False)

    def test_of_views_are_held_to_the_same(self):
        mine, (inputs, targets) = client(Isolated(), views=2), examples(5)
        mine.draw((inputs, targets))
        forward(mine, inputs, targets)
        forward(mine, inputs + 1, targets, scale=float(inputs.max()))
        with refused(mine, "argument 'scale'"):
            mine.optimizer.step()


class Two(nn.Module):
    def forward(self, a, b=None, *rest, size=(2, 3), **more):
        return a


A, B = examples(5)[0], examples(5, seed=1)[0]


def traced(inputs, *args, constants=None, **kwargs):
    arguments = Arguments(Two().forward, tried_call(inputs, constants or {}))
    return arguments.trace(Call(args, kwargs), inputs)


IMAGES = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(2)) * 1.9
LOOKS = {
    "bool": lambda x: x.bool(),
    "int": lambda x: x.int(),
    "bfloat16": lambda x: x.bfloat16(),
    "double": lambda x: x.double(),
    "another shape": lambda x: x.reshape(len(x), 1, 9, 4),
    "another number of axes": lambda x: x.flatten(2),
}


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x):
        return self.layer(x.float().flatten(2).amax(2))


class TestForms:
    """A cast or a shape that a script gives some batches says something of these batches."""

    @ENGINES
    @pytest.mark.parametrize("look", LOOKS)
    @pytest.mark.parametrize("first", [True, False])
    def test_that_some_batches_have_are_refused(self, look, first, engine):
        mine, targets = Client(noisy(), Pooled(), (1, 6, 6), engine=engine), torch.zeros(5, dtype=torch.int64)
        inputs = IMAGES.round() if look in ("bool", "int", "bfloat16") else IMAGES
        inputs = inputs.clamp(0, 1) if look == "bool" else inputs
        changed = LOOKS[look](inputs), inputs
        mine.draw((inputs, targets))
        forward(mine, changed[not first], targets)
        mine.optimizer.step()
        mine.draw((inputs, targets))
        forward(mine, changed[first], targets)
        with refused(mine, r"argument 'x' of the model (is torch|has shape).*in the first pass.*every batch alike"):
            mine.optimizer.step()

    @ENGINES
    @pytest.mark.parametrize("look", LOOKS)
    def test_that_all_batches_have_are_taken(self, look, engine):
        mine, targets = Client(noisy(), Pooled(), (1, 6, 6), engine=engine), torch.zeros(5, dtype=torch.int64)
        for n in (5, 1, 4):
            inputs = IMAGES[:n].round().clamp(0, 1)
            mine.draw((inputs, targets[:n]))
            forward(mine, LOOKS[look](inputs), targets[:n])
            mine.optimizer.step()
        assert mine.permit.used == 3

    @pytest.mark.parametrize(
        ("change", "taken"),
        [
            (lambda x: x[:, :, None], True),
            (lambda x: x.flatten(1), True),
            (lambda x: x.flatten(1)[:, None, :, None], True),
            (lambda x: x.reshape(len(x), -1, 2, 2), True),
            (lambda x: x.reshape(len(x), -1, 2, 2) if x.shape[1] < 8 else x.reshape(len(x), -1, 4, 1), False),
            (lambda x: x if x.shape[1] < 8 else x.flatten(1), False),
            (lambda x: x if x.shape[1] < 8 else x.reshape(len(x), 4, -1), False),
        ],
    )
    def test_may_go_by_lengths_that_differ_from_batch_to_batch(self, change, taken):
        arguments = Arguments(Two().forward, tried_call(torch.rand(3, 4, 4), {}))
        for length in (4, 6, 1, 4):
            part = torch.rand(3, length, 4)
            arguments.trace(Call((change(part),), {}), part)
        part = torch.rand(3, 8, 4)
        if taken:
            arguments.trace(Call((change(part),), {}), part)
        else:
            with pytest.raises(dp.NotPrivate, match="argument 'a' of the model has shape"):
                arguments.trace(Call((change(part),), {}), part)


class TestTheFirstCall:
    """No earlier batch says which part of a batch an argument is: the call that was tried does."""

    def test_gives_each_parameter_its_own_part(self):
        both = {"a": A, "b": B}
        assert traced(both, A, B) == {(0, 0): ("a",), (0, 1): ("b",)}
        assert traced(both, A, b=B) == {(0, 0): ("a",), (1, "b"): ("b",)}
        assert traced((A, B), b=B, a=A) == {(1, "b"): (1,), (1, "a"): (0,)}
        assert traced(A, A) == {(0, 0): ()}
        assert traced((A, (B, A)), A, [B, A]) == {(0, 0): (0,), (0, 1, 0): (1, 0), (0, 1, 1): (1, 1)}
        assert traced((A, B, B), A, B, B) == {(0, 0): (0,), (0, 1): (1,), (0, 2): (2,)}
        assert traced({"a": A, "c": B}, A, c=B) == {(0, 0): ("a",), (1, "c"): ("c",)}
        assert traced((A, None), A) == traced((A, None), A, b=None) == {(0, 0): (0,)}

    def test_may_not_exchange_or_leave_out_a_part(self):
        both = {"a": A, "b": B}
        for args in ((B, A), (A, A), (B, B)):
            with pytest.raises(dp.NotPrivate, match=r"as argument '\w', which is the inputs\['\w'\] of a batch"):
                traced(both, *args)
        with pytest.raises(dp.NotPrivate, match=r"called with \['b'\], and make_private tried it with \['a', 'b'\]"):
            traced(both, b=B)
        with pytest.raises(dp.NotPrivate, match=r"argument 'b' of the model is None, and was the inputs\['b'\]"):
            traced(both, A)
        with pytest.raises(dp.NotPrivate, match=r"argument 'b' of the model is None, and was the inputs\['b'\]"):
            traced(both, A, None)
        with pytest.raises(dp.NotPrivate, match=r"'b' of the model is a tensor of shape .* and was None"):
            traced(A, A, A)
        with pytest.raises(dp.NotPrivate, match="'b' of the model has other parts"):
            traced((A, (B, A)), A, (B,))
        with pytest.raises(dp.NotPrivate, match="'b' of the model is a list, and was None"):
            traced(A, A, [])

    def test_may_not_give_a_list_that_would_be_cut(self):
        assert traced(A, A) == {(0, 0): ()}
        with pytest.raises(dp.NotPrivate, match="'size' of the model"):
            traced(A, A, size=Two.forward.__kwdefaults__["size"])

    def test_of_a_forward_without_a_signature_is_by_place(self):
        arguments = Arguments(max, tried_call((A, B), {}))
        assert arguments.trace(Call((A, B), {}), (A, B)) == {(0, 0): (0,), (0, 1): (1,)}

    def test_holds_a_flag_that_only_one_round_has_seen(self):
        """A process a round: each is the first."""

        class Rescaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 1)

            def forward(self, inputs, rescale=False):
                return self.layer(-inputs if rescale else inputs)

        data = TensorDataset(torch.cat([torch.ones(39, 4), torch.full((1, 4), 50.0)]), torch.zeros(40))
        script = Script(Rescaled(), data, lambda outputs, _: -outputs.mean(), rate=1.0, steps=1)
        for inputs, targets in script.loader:
            script.loss(script.model(inputs, rescale=bool(inputs.max() > 10)), targets).backward()
            with pytest.raises(dp.NotPrivate, match="'rescale' of the model is True, and was False"):
                script.optimizer.step()
        assert script.permit.used == 0

    def test_with_declared_constants_goes_through_an_own_collate_function_and_batches_without_examples(self):
        made = Script(
            Scaled(),
            TensorDataset(*examples(40)),
            functional.cross_entropy,
            rate=0.05,
            steps=8,
            collate_fn=lambda some: default_collate(some),
            constants={"flip": True},
        )
        for inputs, targets in made.loader:
            made.sizes.append(len(targets))
            made.loss(made.model(inputs, flip=True), targets).backward()
            made.optimizer.step()
        assert made.permit.used == 8
        assert 0 in made.sizes
