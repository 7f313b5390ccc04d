"""What is refused, by name, before a release: passes and batches that a clip cannot bound."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import dpcomp as dp
from dpcomp.training.pytorch import Isolated, make_private
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model
from experiments.data.models import fashion_cnn
from tests.training.private_client import ENGINES, Client, clean, examples, linear, noisy, refused


class TestRows:
    @ENGINES
    def test_of_two_passes_of_a_batch_are_refused(self, engine):
        client = linear(clean(0.3), engine=engine)
        batch = examples(5)
        client.draw(batch)
        client.backward(*batch)
        client.backward(*batch)
        with refused(client, "10 rows of 2 backward passes where 5 examples were drawn"):
            client.optimizer.step()

    @ENGINES
    def test_of_declared_views_are_averaged_before_the_clip(self, engine):
        inputs, targets = examples(5)
        sums = []
        for keep in ([0, 1, 2, 3, 4], [0, 1, 3, 4]):
            client = linear(clean(0.3), engine=engine, views=2)
            client.draw((inputs[keep], targets[keep]))
            for view in (inputs[keep], inputs[keep] + 0.1):
                client.backward(view, targets[keep])
            client.optimizer.step()
            sums.append(client.sums()[0].double())
        assert 0 < float((sums[0] - sums[1]).norm()) <= 0.3 * (1 + 1e-5)
        assert "each of the 2 views of an example was made from that example alone" in client.optimizer.assumptions

    @ENGINES
    def test_of_one_view_of_two_are_refused(self, engine):
        client = linear(clean(0.3), engine=engine, views=2)
        client.draw(examples(5))
        client.backward(*examples(5))
        with refused(client, "in 2 views"):
            client.optimizer.step()

    @ENGINES
    def test_of_an_adversarial_pass_that_trains_are_refused(self, engine):
        client = linear(clean(0.3), engine=engine)
        inputs, targets = examples(5)
        client.draw((inputs, targets))
        client.backward(inputs, targets)
        perturbed = inputs.clone().requires_grad_()
        with hooks_on_inputs():
            functional.cross_entropy(client.model(perturbed), targets).backward()
        client.backward(perturbed.detach() + 0.1 * perturbed.grad.sign(), targets)
        with refused(client, "15 rows of 3 backward passes"):
            client.optimizer.step()

    @ENGINES
    def test_of_a_batch_that_was_not_passed_are_missed(self, engine):
        client = linear(clean(0.3), engine=engine)
        client.draw(examples(5))
        with refused(client, "0 rows of 0 backward passes where 5 examples were drawn"):
            client.optimizer.step()

    @ENGINES
    def test_in_evaluation_mode_are_none(self, engine):
        client = linear(clean(0.3), engine=engine)
        client.draw(examples(5))
        client.model.eval()
        client.backward(*examples(5))
        with refused(client, r"model\.train\(\)"):
            client.optimizer.step()

    @ENGINES
    def test_of_public_inputs_join_those_of_an_example(self, engine):
        """A discriminator's step with two backward passes, as in Opacus' dcgan."""

        def loss(outputs, _):
            return functional.binary_cross_entropy_with_logits(outputs, torch.ones_like(outputs))

        network = nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1), nn.Flatten(0))
        real, fake = examples(5)[0], examples(5, seed=1)[0]
        sums = []
        for keep in ([0, 1, 2, 3, 4], [0, 1, 3, 4]):
            client = Client(clean(0.3), copy.deepcopy(network), (real, None), loss=loss, engine=engine)
            client.draw((real[keep],))
            client.backward(real[keep], None)
            with client.model.public_rows(), hooks_on_inputs():
                outputs = client.model(fake[keep])
                functional.binary_cross_entropy_with_logits(outputs, torch.zeros_like(outputs)).backward()
            client.optimizer.clip_and_accumulate()
            sums.append(torch.from_numpy(client.optimizer._total.vector()))
        rows = []
        for i in range(5):
            value = loss(network(real[i : i + 1]), None) + functional.softplus(network(fake[i : i + 1])).mean()
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(value, list(network.parameters()))])
            rows.append(gradient * min(1.0, 0.3 / float(gradient.norm() + 1e-6)))
        torch.testing.assert_close(sums[0], torch.stack(rows).sum(dim=0).double(), rtol=0, atol=1e-6)
        assert float((sums[0] - sums[1]).norm()) <= 0.3 * (1 + 1e-5)

    @ENGINES
    def test_of_public_inputs_are_assumed_to_be_fresh_from_their_first_pass_on(self, engine):
        client, clause = linear(noisy(), engine=engine), "public rows are fresh independent draws"
        for public in (False, True, False):
            used = client.permit.used
            client.draw(examples(5))
            client.backward(*examples(5))
            if public:
                with client.model.public_rows():
                    client.backward(*examples(5, seed=1))
            client.optimizer.step()
            assert (clause in str(client.ledger.guarantee(delta=1e-5))) == (used > 0)
            assert any(clause in each for each in client.optimizer.assumptions) == (used > 0)
        client.optimizer.begin(client.memory, client.permit)
        assert not any(clause in each for each in client.optimizer.assumptions)

    @ENGINES
    @pytest.mark.parametrize("start", [0, 2])
    def test_of_a_public_set_that_come_again_are_refused(self, start, engine):
        client, public = linear(noisy(), engine=engine), examples(9, seed=1)
        for number in range(2):
            client.draw(examples(5, seed=number))
            client.backward(*examples(5, seed=number))
            with client.model.public_rows():
                client.backward(*(part[number * start :][:5] for part in public))
            if number:
                with refused(client, r"row 0 of a pass in public_rows\(\), a tensor of shape \(5, 6\)"):
                    client.optimizer.step()
            else:
                client.optimizer.step()

    def test_of_a_public_set_that_come_twice_in_a_pass_are_refused(self):
        client = linear(noisy(), engine=Isolated())
        client.draw(examples(5))
        client.backward(*examples(5))
        with client.model.public_rows():
            client.backward(examples(5, seed=1)[0][[0, 1, 2, 0, 3]], examples(5)[1])
        with refused(client, r"row 3 of a pass in public_rows\(\)"):
            client.optimizer.step()

    def test_of_public_inputs_that_are_all_alike_may_come_again(self):
        client = linear(noisy(), engine=Isolated())
        for n in (5, 4):
            client.draw(examples(n))
            client.backward(*examples(n))
            with client.model.public_rows():
                client.backward(torch.zeros(n, 6), examples(n)[1])
            client.optimizer.step()
        assert client.permit.used == 2

    @ENGINES
    def test_of_public_inputs_are_as_many_as_examples(self, engine):
        client = linear(clean(0.3), engine=engine)
        client.draw(examples(5))
        client.backward(*examples(5))
        with client.model.public_rows():
            client.backward(*examples(6, seed=1))
        with refused(client, "6"):
            client.optimizer.step()

    def test_of_layers_that_were_called_past_the_model_are_refused(self):
        client = linear(clean(0.3))
        inputs, targets = examples(5)
        client.draw((inputs, targets))
        client.backward(inputs, targets)
        with hooks_on_inputs():
            functional.cross_entropy(client.model.output(inputs), targets).backward()
        with refused(client, "rows of 2 backward passes, but 1 went through"):
            client.optimizer.step()


class TestBatches:
    @ENGINES
    @pytest.mark.parametrize("change", ["other", "order", "mixed", "in place", "fewer", "twice"])
    def test_other_than_the_drawn_ones_are_refused(self, engine, change):
        client = linear(noisy(), engine=engine)
        inputs, targets = examples(5)
        client.draw((inputs, targets))
        given = {
            "other": lambda: examples(5, seed=1)[0],
            "order": lambda: inputs.flip(0),
            "mixed": lambda: inputs - inputs.mean(dim=0),
            "in place": lambda: inputs.sub_(inputs.mean(dim=0)),
            "fewer": lambda: inputs[:4],
            "twice": lambda: torch.cat([inputs, inputs]),
        }[change]()
        client.backward(given, torch.cat([targets, targets])[: len(given)])
        with refused(client, "were drawn|was drawn|in place"):
            client.optimizer.step()

    @ENGINES
    @pytest.mark.parametrize("part", ["inputs", "targets"])
    @pytest.mark.parametrize("way", ["in place", "a view in NumPy", "data", "out="])
    def test_that_were_written_after_they_came_are_refused(self, part, way, engine):
        client = linear(noisy(), engine=engine)
        batch = dict(zip(("inputs", "targets"), examples(5), strict=True))
        client.draw((batch["inputs"], batch["targets"]))
        written = batch[part]
        match way:
            case "in place":
                written.mul_(0)
            case "a view in NumPy":
                written.numpy()[1:] = 0
            case "data":
                written.data[1:] = 0
            case "out=":
                torch.mul(written, 0, out=written)
        client.backward(batch["inputs"], batch["targets"])
        with refused(client, "was changed in place after it was loaded"):
            client.optimizer.step()

    @ENGINES
    def test_with_values_that_are_not_numbers_are_as_they_came(self, engine):
        client = linear(noisy(), engine=engine)
        inputs, targets = examples(5)
        inputs[1, 2] = float("nan")
        client.step(inputs, targets)
        assert client.permit.used == 1

    @ENGINES
    def test_moved_reshaped_or_cast_are_the_drawn_ones(self, engine):
        client = Client(clean(0.3), nn.Linear(6, 3), examples(5), engine=engine)
        inputs, targets = examples(5)
        client.draw((inputs.double().reshape(5, 2, 3), targets))
        client.backward(inputs.clone(), targets)
        client.optimizer.step()
        assert client.permit.used == 1

    @ENGINES
    def test_of_a_loader_of_my_own_are_refused_where_sampling_is_charged(self, engine):
        dataset = TensorDataset(*examples(50))
        client = linear(noisy(rate=0.1), engine=engine)
        with refused(client, "no batch was drawn for this step: .* the loader of make_private"):
            for inputs, targets in DataLoader(dataset, batch_size=50):
                client.backward(inputs, targets)
                client.optimizer.step()
        with pytest.raises(dp.NotPrivate, match=r"Poisson\(rate=0.1\) is charged"):
            next(client.optimizer.batches(DataLoader(dataset)))

    @ENGINES
    def test_of_a_loader_of_my_own_are_assumed_where_none_is(self, engine):
        client = linear(dp.Pipeline(mechanism=(dp.Clip(0.3), dp.Gaussian(1.0))), engine=engine)
        dataset = TensorDataset(*examples(50))
        for inputs, targets in client.optimizer.batches(DataLoader(dataset, batch_size=25)):
            client.backward(inputs, targets)
            client.optimizer.step()
        assert client.permit.used == 2
        assert any("no batch has an example twice" in clause for clause in client.optimizer.assumptions)

    @ENGINES
    def test_of_one_draw_make_one_step(self, engine):
        client = linear(noisy(), engine=engine)
        client.step(*examples(5))
        client.backward(*examples(5))
        with refused(client, "no batch was drawn"):
            client.optimizer.step()

    @ENGINES
    def test_are_stepped_whole(self, engine):
        client = linear(noisy(), engine=engine)
        client.draw(examples(5), examples(4, seed=1))
        client.backward(*examples(5))
        with refused(client, "ends before all examples"):
            client.optimizer.step()

    @ENGINES
    def test_are_stepped_alone(self, engine):
        client = linear(noisy(), engine=engine)
        client.draw(examples(5))
        client.backward(*examples(5))
        client.optimizer.signal_skip_step(do_skip=True)
        with refused(client, "goes on with the next draw"):
            client.optimizer.step()

    @ENGINES
    def test_that_were_refused_close_the_round(self, engine):
        """Else a refusal that depends on the data would choose which batches are stepped."""
        client = linear(noisy(), engine=engine)
        client.step(*examples(5))
        client.draw(examples(5))
        with refused(client, "0 rows"):
            client.optimizer.step()
        with refused(client, "a batch of this round was delivered and not stepped"):
            client.step(*examples(5))
        assert client.optimizer.update().dense().any()


def test_a_layout_that_a_formula_takes_for_another_mixes_nothing():
    """A batch whose fastest axis runs over the examples moved the sum by 11 C (strided memory, hazard 29)."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
    data, targets = torch.randn(8, 8, 1, 16), torch.arange(16) % 3
    other = data.clone()
    other[..., 1] = 1e4
    sums = []
    for values in (data, other):
        inputs = values.permute(3, 2, 0, 1)
        client = Client(clean(1.0), copy.deepcopy(network), (1, 8, 8), divisor=1.0)
        client.draw((inputs, targets))
        client.backward(inputs, targets)
        client.optimizer.clip_and_accumulate()
        sums.append(client.optimizer._total.vector())
    assert np.linalg.norm(sums[0] - sums[1]) <= 2 * (1 + 1e-5)


def test_a_channels_last_network_is_right_or_refused():
    network = fashion_cnn(seed=0).to(memory_format=torch.channels_last)
    inputs, targets = examples(4, shape=(1, 28, 28), classes=10)
    alone = private_model(network, functional.cross_entropy, inputs, targets, engine=Isolated())
    assert alone.engine.assumption == "each example's gradient was taken alone"
    with contextlib.suppress(dp.NotPrivate):
        client = Client(clean(0.1), network, (inputs, targets))
        client.step(inputs, targets)


@pytest.mark.parametrize(
    ("inner", "match"),
    [
        (torch.optim.LBFGS, "LBFGS calls a closure"),
        (lambda parameters: torch.optim.SparseAdam(list(parameters)), "SparseAdam takes sparse gradients"),
    ],
)
def test_optimisers_that_need_a_closure_or_sparse_gradients_are_refused_by_name(inner, match):
    module = nn.Linear(6, 3)
    with pytest.raises(ValueError, match=match):
        make_private(
            module,
            inner(module.parameters()),
            TensorDataset(*examples(9)),
            noisy(),
            loss=functional.cross_entropy,
            secret=dp.SecretSeed(0),
            expected_batch_size=4,
            steps=1,
        )


def test_a_closure_makes_the_passes_of_a_step():
    client = linear(engine=Isolated())
    client.draw(examples(5))
    client.optimizer.step(lambda: client.backward(*examples(5)))
    assert client.permit.used == 1
