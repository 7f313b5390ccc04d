"""A client with a private optimiser and an open round, and where to look for what it leaves behind."""

import contextlib
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn

import dpcomp as dp
from dpcomp.training.pytorch import Isolated, Opacus, PrivateOptimizer
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model
from dpcomp.training.pytorch.rows.parameters import read, trainable
from dpcomp.training.pytorch.rows.structures import call_of, count
from experiments.data.models import logistic_regression

torch.set_num_threads(1)
DIVISOR = 8.0
ENGINES = pytest.mark.parametrize(
    "engine", [Isolated(), pytest.param(Opacus(), marks=pytest.mark.slow)], ids=["Isolated", "Opacus"]
)


def clean(norm: float) -> dp.Pipeline:
    """The clip and no noise: what is released is the clipped sum itself."""
    return dp.Pipeline(mechanism=dp.unsafe("tests look at the sum", dp.Clip(norm)), sampling=dp.Poisson(0.5))


def noisy(norm: float = 0.5, *, rate: float = 0.5, first: tuple = ()) -> dp.Pipeline:
    return dp.Pipeline(mechanism=(*first, dp.Clip(norm), dp.Gaussian(1.0)), sampling=dp.Poisson(rate))


class Client:
    """A model, its private optimiser, and an open round."""

    def __init__(
        self,
        pipeline,
        module,
        some,
        *,
        loss=nn.functional.cross_entropy,
        engine=Opacus(),
        steps=8,
        divisor=DIVISOR,
        secret=None,
        number=0,
        views=1,
        constants=MappingProxyType({}),
        **sgd,
    ):
        """Take a shape of inputs, or a batch of inputs and targets, for the trial at the door."""
        inputs, targets = examples(4, seed=9, shape=some) if isinstance(some[0], int) else some
        self.loss = loss
        self.model = private_model(module, loss, inputs, targets, engine=engine, constants=constants)
        inner = torch.optim.SGD(self.model.parameters(), **({"lr": 1.0} | sgd))
        secret = dp.SecretSeed(7) if secret is None else secret
        self.optimizer = PrivateOptimizer(
            inner, self.model, pipeline, secret=secret, expected_batch_size=divisor, views=views
        )
        self.memory = pipeline.init_client(self.optimizer.layout, seed=dp.PublicSeed(1), client=number)
        self.ledger = dp.Ledger()
        self.permit = self.ledger.charge(pipeline.cost, self.memory.address, steps=steps)
        self.optimizer.begin(self.memory, self.permit)
        self.gradients: list[torch.Tensor] = []
        self.optimizer.attach_step_hook(lambda _: self.gradients.append(self.gradient()))

    def gradient(self) -> torch.Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in trainable(self.model).values()])

    def draw(self, *parts) -> None:
        """Act as the sampler and the loader: draw a batch, in one micro-batch or several."""
        draws = self.optimizer.draws
        tickets = draws.draw(range(sum(count(part) for part in parts)), 1_000)
        for part in parts:
            draws.arrive(tickets[: count(part)], part)
            tickets = tickets[count(part) :]

    def backward(self, inputs, targets) -> None:
        args, kwargs = call_of(inputs)
        with hooks_on_inputs():
            self.loss(self.model(*args, **kwargs), targets).backward()

    def step(self, inputs, targets) -> None:
        """Draw a batch, pass it through the model, and step."""
        self.draw((inputs, targets))
        self.backward(inputs, targets)
        self.optimizer.step()

    def micro_step(self, inputs, targets, *, last: bool) -> None:
        """Pass a part of what was drawn through the model, and step."""
        self.backward(inputs, targets)
        self.optimizer.signal_skip_step(do_skip=not last)
        self.optimizer.step()

    def noise_step(self) -> None:
        """Step on a draw without examples."""
        self.draw()
        self.optimizer.step()

    def sums(self) -> list[torch.Tensor]:
        return [gradient * DIVISOR for gradient in self.gradients]

    def parameters(self) -> np.ndarray:
        return read(self.model)


def linear(pipeline=None, **kwargs) -> Client:
    module = logistic_regression(inputs=6, classes=3, seed=0)
    return Client(noisy() if pipeline is None else pipeline, module, (6,), **kwargs)


def examples(n: int, *, seed: int = 0, shape: tuple = (6,), classes: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn((n, *shape), generator=generator),
        torch.randint(0, classes, (n,), generator=generator),
    )


def leftovers(model: nn.Module) -> list[str]:
    """Where anything of the data still hangs on a model."""
    names = ("grad", "grad_sample", "summed_grad", "_current_grad_sample")
    found = [
        f"{at}.{name}" for at, p in model.named_parameters() for name in names if getattr(p, name, None) is not None
    ]
    found += [f"pass {number}" for number, _ in enumerate(getattr(model, "passes", []))]
    return found + [f"{at}.activations" for at, layer in model.named_modules() if vars(layer).get("activations")]


def relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(mine.double() - theirs.double()) / torch.linalg.vector_norm(theirs.double()))


@contextlib.contextmanager
def refused(client: Client, match: str):
    """Nothing is released, nothing stays behind and nothing moves."""
    before, used = client.parameters(), client.permit.used
    with pytest.raises(dp.NotPrivate, match=match):
        yield
    assert client.permit.used == used
    assert leftovers(client.model) == []
    np.testing.assert_array_equal(client.parameters(), before)
