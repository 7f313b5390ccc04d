"""Clients that train locally: example-level with the noise inside every step, client-level clean."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dpcomp.core.address import Address
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson
from dpcomp.privacy.ledger import Ledger
from dpcomp.training.pytorch.devices import lent_generator
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model
from dpcomp.training.pytorch.parameters import layout_of, read, write
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer
from dpcomp.training.schedule import Schedule, rate_of
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update

EVALUATED = 128  # examples at once: what a layer gives for more does not stay in a cache
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[nn.Module, int], torch.optim.Optimizer]


@runtime_checkable
class LocalTrainer(Protocol):
    """Trains from a starting vector on one client's data, and says what became of it."""

    layout: Layout

    def train(
        self, start: Float32[np.ndarray, "d"], inputs: Tensor, targets: Tensor, memory: ClientMemory, ledger: Ledger
    ) -> Update:
        """E local steps from `start` on inputs (n, …) and targets (n,), on their device; charged before noise is drawn.

        Raises:
            BudgetExhausted: the memory's address was charged before.
        """
        ...


def local_trainer(
    module: nn.Module,
    loss: Loss,
    example: Tensor,
    pipeline: Pipeline,
    *,
    secret: SecretSeed,
    local_steps: int,
    learning_rate: float | Schedule,
    momentum: float,
    expected_batch_size: float,
    local_sampling: Poisson,
    physical_batch_size: int,
) -> LocalTrainer:
    """The trainer that the pipeline's unit and trust call for; one serves any number of simulated clients.

    Example-level alone: `example`, one input without a batch axis; `expected_batch_size`, the public divisor of a
    step's sum; `physical_batch_size`, the most examples of one forward pass. Client-level alone: `local_sampling`.
    """

    def optimizer(module: nn.Module, round_number: int) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=rate_of(learning_rate, round_number), momentum=momentum)

    if pipeline.unit == "example":
        return ExampleLevel(
            module, loss, example, pipeline, optimizer, secret, local_steps, expected_batch_size, physical_batch_size
        )
    return ClientLevel(module, loss, pipeline, optimizer, secret, local_steps, local_sampling)


class ExampleLevel:
    """DP-SGD with Opacus' per-sample gradients (Abadi et al. 2016): every local step is a release of the pipeline."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        example: Tensor,
        pipeline: Pipeline,
        make_optimizer: MakeOptimizer,
        secret: SecretSeed,
        local_steps: int,
        expected_batch_size: float,
        physical_batch_size: int,
    ):
        self._model, self._loss, self._pipeline = private_model(module, example), loss, pipeline
        self._make_optimizer, self._secret, self._local_steps = make_optimizer, secret, local_steps
        self._expected_batch_size, self._physical_batch_size = expected_batch_size, physical_batch_size
        self.layout = layout_of(self._model)

    def train(
        self, start: Float32[np.ndarray, "d"], inputs: Tensor, targets: Tensor, memory: ClientMemory, ledger: Ledger
    ) -> Update:
        """E charged steps; the update is made of their releases alone."""
        permit = ledger.charge(self._pipeline.cost, memory.address, steps=self._local_steps)
        write(self._model.to(inputs.device), start)
        optimizer = PrivateOptimizer(
            self._make_optimizer(self._model, memory.address.round),
            self._model,
            self._pipeline,
            secret=self._secret,
            expected_batch_size=self._expected_batch_size,
        )
        optimizer.begin(memory, permit)
        self._model.train()
        sampling = self._pipeline.sampling or Poisson(1.0)
        with hooks_on_inputs(), _own_dropout(self._secret, memory.address, inputs.device):
            for step in range(self._local_steps):
                chosen = _draw(sampling, inputs, self._secret, memory.address, step)
                chunks = chosen.split(self._physical_batch_size)
                for number, chunk in enumerate(chunks, start=1):
                    if len(chunk):
                        self._loss(self._model(inputs[chunk]), targets[chunk]).backward()
                    optimizer.signal_skip_step(do_skip=number < len(chunks))
                    optimizer.step()
        return optimizer.update()


class ClientLevel:
    """Plain local SGD on Poisson batches; the whole update is one unit.

    Where nobody is trusted it is clipped and noised here, and charged to the client's ledger; where the
    server is, it leaves clean, and the server charges, clips and noises.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        pipeline: Pipeline,
        make_optimizer: MakeOptimizer,
        secret: SecretSeed,
        local_steps: int,
        local_sampling: Poisson,
    ):
        self._module, self._loss, self._pipeline = module, loss, pipeline
        self._make_optimizer, self._secret = make_optimizer, secret
        self._local_steps, self._local_sampling = local_steps, local_sampling
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self.layout = layout_of(module)

    def train(
        self, start: Float32[np.ndarray, "d"], inputs: Tensor, targets: Tensor, memory: ClientMemory, ledger: Ledger
    ) -> Update:
        """E clean steps, and, where nobody is trusted, one release."""
        write(self._module.to(inputs.device), start)
        for name, buffer in self._module.named_buffers():  # one module serves all: none inherits another's statistics
            buffer.copy_(self._buffers[name])
        self._module.train()
        optimizer = self._make_optimizer(self._module, memory.address.round)
        with _own_dropout(self._secret, memory.address, inputs.device):
            for step in range(self._local_steps):
                chosen = _draw(self._local_sampling, inputs, self._secret, memory.address, step)
                if len(chosen):
                    optimizer.zero_grad()
                    self._loss(self._module(inputs[chosen]), targets[chosen]).backward()
                    optimizer.step()
        change = read(self._module) - start
        if self._pipeline.trust == "server":
            if not np.isfinite(change).all():  # it contributes zero, as under Clip; not to send it would be seen
                change = np.zeros_like(change)
            return Update(values=change, layout=self.layout, address=memory.address)
        permit = ledger.charge(self._pipeline.cost, memory.address)
        return self._pipeline.release([change[None, :]], memory, self._secret, permit)


def evaluate(
    module: nn.Module, loss: Loss, vector: Float32[np.ndarray, "d"], inputs: Tensor, targets: Tensor
) -> tuple[float, float]:
    """Accuracy (share) and mean loss of the parameters `vector` on public test data, on its device."""
    write(module.to(inputs.device), vector)
    module.eval()
    right, total = 0, 0.0
    with torch.no_grad():
        for chunk, truth in zip(inputs.split(EVALUATED), targets.split(EVALUATED), strict=True):
            outputs = module(chunk)
            right += int((outputs.argmax(dim=1) == truth).sum())
            total += float(loss(outputs, truth)) * len(truth)
    return right / len(targets), total / len(targets)


def _own_dropout(secret: SecretSeed, place: Address, device: torch.device) -> AbstractContextManager[None]:
    """torch draws dropout from its global generator alone: lend it a state of this client's and round's own."""
    stream = secret.stream("dropout", place.run, place.client, place.round)
    return lent_generator(device, int(stream.integers(2**63)))


def _draw(sampling: Poisson, inputs: Tensor, secret: SecretSeed, place: Address, step: int) -> Tensor:
    stream = secret.stream("sample", place.run, place.client, place.round, step)
    return torch.from_numpy(sampling.draw(len(inputs), stream)).to(inputs.device)
