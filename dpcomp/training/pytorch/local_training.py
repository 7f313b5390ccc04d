"""Local training of one client: example-level with noise in every step, or client-level without."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dpcomp.core.address import Address
from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Poisson
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.training.pytorch.channels_last import set_channels_last, takes_channels_last, with_channels_last
from dpcomp.training.pytorch.checks.unmoved import Unmoved
from dpcomp.training.pytorch.inspection import (
    check_precision,
    check_statistics,
    hooks_on_inputs,
    private_model,
    refuse_statistics,
)
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer
from dpcomp.training.pytorch.rows.engine import Engine, Loss
from dpcomp.training.pytorch.rows.generators import lent_generators, lent_torch_generators, unseeded_by_data
from dpcomp.training.pytorch.rows.parameters import read, trainable, write
from dpcomp.training.pytorch.rows.structures import call_of, inputs_and_targets, to
from dpcomp.training.pytorch.steps.local_optimizer import MakeOptimizer, pull_to, start_of
from dpcomp.training.pytorch.tasks.examples import Examples
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update


class ExampleLevel:
    """DP-SGD on per-example gradients (Abadi et al. 2016, algorithm 1): every local step is a release.

    One object serves all simulated clients, one after the other.

    Args:
        module: The model; it is inspected with the loss.
        loss: Mean loss over a batch.
        pipeline: Clips and releases; its `sampling` draws the batches.
        examples: A few inputs and targets, on which model and loss are tried.
        engine: How per-example gradients are taken.
        make_optimizer: Makes the local optimiser of a round.
        secret: Where batches, noise and what layers and data sets draw come from.
        local_steps: Steps in a round, each charged.
        expected_batch_size: The public constant that divides a step's sum.
        physical_batch_size: The most examples in one forward pass.
        proximal: μ of FedProx; 0 for none.

    Raises:
        NotPrivate: The model or the loss ties examples, or the model remembers them.
        ValueError: A parameter is neither float32 nor float64.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        pipeline: Pipeline,
        *,
        examples: tuple[Any, Any],
        engine: Engine | Literal["auto"],
        make_optimizer: MakeOptimizer,
        secret: SecretSeed,
        local_steps: int,
        expected_batch_size: float,
        physical_batch_size: int,
        proximal: float = 0.0,
    ):
        self._proximal = proximal
        self._model, self._loss, self._pipeline = private_model(module, loss, *examples, engine=engine), loss, pipeline
        self._make_optimizer, self._secret, self._local_steps = make_optimizer, secret, local_steps
        self._expected_batch_size, self._physical_batch_size = expected_batch_size, physical_batch_size

    def refuse_ties(self, examples: Examples) -> None:
        """Refuse examples of which one is behind several items, or in whose batches a row depends on other examples.

        Args:
            examples: All training examples.

        Raises:
            NotPrivate: A data set has one example twice, or their collate function pads what the model reads, mixes or
                normalises.
        """
        examples.refuse_ties(self._model)

    def train(
        self, start: Float32[np.ndarray, "d"], examples: Examples, memory: ClientMemory, ledger: Ledger
    ) -> Update:
        """Charge the round, take its steps, and return the change of the model.

        Args:
            start: The parameters to start from.
            examples: Those of the client.
            memory: Its memory, whose address is charged.
            ledger: Its ledger.

        Raises:
            BudgetExhausted: The address was charged before, or the budget does not allow the charge.
            NotPrivate, ValueError: As `PrivateOptimizer.refuse_unready` does; nothing was charged.
        """
        write(self._model.to(examples.device), start)
        optimizer = PrivateOptimizer(
            self._make_optimizer(self._model, memory.address.round),
            self._model,
            self._pipeline,
            secret=self._secret,
            expected_batch_size=self._expected_batch_size,
        )
        optimizer.refuse_unready(memory)
        permit = ledger.charge(self._pipeline.cost, memory.address, steps=self._local_steps)
        optimizer.begin(memory, permit)
        if self._proximal:
            parameters = list(trainable(self._model).values())
            origin = start_of(parameters)
            optimizer.attach_step_hook(lambda _: pull_to(origin, parameters, self._proximal))
        self._model.train()
        sampling = self._pipeline.sampling or Poisson(1.0)
        with hooks_on_inputs(), _lent_generators(self._secret, memory.address, examples):
            for step in range(self._local_steps):
                chosen = _drawn_batch(sampling, examples, self._secret, memory.address, step)
                chunks = chosen.split(self._physical_batch_size)
                tickets = optimizer.draws.draw(chosen.tolist(), len(examples))
                for number, chunk in enumerate(chunks, start=1):
                    with unseeded_by_data() if examples.loads_by_own_code else nullcontext():
                        batch, alone = examples.drawn(chunk)
                    optimizer.draws.arrive(tickets[: len(chunk)], batch, alone)
                    tickets = tickets[len(chunk) :]
                    if len(chunk):
                        some, truth = to(inputs_and_targets(batch), device=examples.device)
                        args, kwargs = call_of(some)
                        self._loss(self._model(*args, **kwargs), truth).backward()
                    optimizer.signal_skip_step(do_skip=number < len(chunks))
                    optimizer.step()
        update = optimizer.update()
        # The term takes a part of the noise of earlier steps back, so how much there is is not followed.
        return update.derive(update.dense()) if self._proximal else update


class ClientLevel:
    """Plain local SGD on Poisson batches, whose whole change of the model is one unit.

    Where nobody is trusted, the change is charged to the client's ledger, clipped and noised here. Where the server is
    trusted, it leaves clean, and the server charges, clips and adds the noise. One object serves all simulated clients,
    one after the other.

    Args:
        module: The model.
        loss: Mean loss over a batch.
        pipeline: Clips and releases, where nobody is trusted.
        examples: A few inputs and targets, on which model and loss are tried.
        make_optimizer: Makes the local optimiser of a round.
        secret: Where batches, noise and what layers and data sets draw come from.
        local_steps: Steps in a round.
        local_sampling: How the batch of a step is drawn; no privacy depends on it.
        proximal: μ of FedProx; 0 for none.

    Raises:
        NotPrivate: A pass writes buffers or attributes, such as running statistics, which are never sent.
        ValueError: A parameter is neither float32 nor float64.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        pipeline: Pipeline,
        *,
        examples: tuple[Any, Any],
        make_optimizer: MakeOptimizer,
        secret: SecretSeed,
        local_steps: int,
        local_sampling: Poisson,
        proximal: float = 0.0,
    ):
        self._proximal = proximal
        check_precision(module)
        check_statistics(module, loss, *examples)
        self._channels_last = takes_channels_last(module, examples[0])
        if self._channels_last:
            set_channels_last(module)
        self._module, self._loss, self._pipeline = module, loss, pipeline
        self._make_optimizer, self._secret = make_optimizer, secret
        self._local_steps, self._local_sampling = local_steps, local_sampling
        self._unmoved = Unmoved(module, loss)

    def train(
        self, start: Float32[np.ndarray, "d"], examples: Examples, memory: ClientMemory, ledger: Ledger
    ) -> Update:
        """Take the steps of a round, and return the change of the model: released, or clean for a trusted server.

        Args:
            start: The parameters to start from.
            examples: Those of the client.
            memory: Its memory, whose address is charged where nobody is trusted.
            ledger: Its ledger.

        Raises:
            BudgetExhausted: The address was charged before, or the budget does not allow the charge.
        """
        write(self._module.to(examples.device), start)
        self._module.train()
        optimizer = self._make_optimizer(self._module, memory.address.round)
        parameters = list(trainable(self._module).values())
        origin = start_of(parameters) if self._proximal else []
        with _lent_generators(self._secret, memory.address, examples):
            for step in range(self._local_steps):
                chosen = _drawn_batch(self._local_sampling, examples, self._secret, memory.address, step)
                if len(chosen):
                    optimizer.zero_grad()
                    some, truth = to(inputs_and_targets(examples.drawn(chosen)[0]), device=examples.device)
                    args, kwargs = call_of(with_channels_last(some) if self._channels_last else some)
                    self._loss(self._module(*args, **kwargs), truth).backward()
                    if self._proximal:
                        pull_to(origin, parameters, self._proximal)
                    optimizer.step()
        self._unmoved.remember_trained()
        refuse_statistics(self._unmoved.moved())
        change = read(self._module) - start
        if self._pipeline.trust_model.server_sees_clean:
            # What is not finite counts as zero, as under Clip; a client that sent nothing would be seen.
            if not np.isfinite(change).all():
                change = np.zeros_like(change)
            return Update(values=change, layout=memory.layout, address=memory.address)
        permit = ledger.charge(self._pipeline.cost, memory.address)
        return self._pipeline.release([change[None, :]], memory, self._secret, permit)


def _lent_generators(secret: SecretSeed, place: Address, examples: Examples) -> AbstractContextManager[None]:
    """Set the global generators that layers and data sets draw from, for one client and round; then restore them."""
    lent = lent_generators if examples.loads_by_own_code else lent_torch_generators
    return lent(secret, "local training", place.run, place.client, place.round)


def _drawn_batch(sampling: Poisson, examples: Examples, secret: SecretSeed, place: Address, step: int) -> Tensor:
    """Return the positions of the examples that take part in a step."""
    stream = secret.stream("sample", place.run, place.client, place.round, step)
    return torch.from_numpy(sampling.draw(len(examples), stream)).to(examples.device)
