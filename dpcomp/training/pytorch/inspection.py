"""Inspection of a module with its loss: what ties examples, or writes data to what it holds, is refused."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.engine import Engine, Loss
from dpcomp.training.pytorch.isolated import Isolated, IsolatedRows
from dpcomp.training.pytorch.opacus_hooks import remove_hooks
from dpcomp.training.pytorch.parameters import trainable
from dpcomp.training.pytorch.passes import Pass, floating
from dpcomp.training.pytorch.private_model import PrivateModel
from dpcomp.training.pytorch.row_check import RowCheck, largest_finite
from dpcomp.training.pytorch.structures import call_of, count, mapped, repeated, rows, tensors
from dpcomp.training.pytorch.trial_batches import GROWING, TrialBatch, grown, trial_batches
from dpcomp.training.pytorch.unmoved import Unmoved

# What a model may raise on a batch that it does not accept.
ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    AssertionError,
    NotImplementedError,
    AttributeError,
    KeyError,
)


def private_model(
    module: nn.Module, loss: Loss, inputs: Any, targets: Any, *, engine: Engine = Isolated()
) -> PrivateModel:
    """Inspect a module with its loss, and give it an engine for per-example gradients; `make_private` calls this.

    **Privacy:** a clip bounds what one example adds to a sum only if row i of the gradients depends on example i alone.
    Layers are checked by type, and module and loss together by a trial on batches that differ in size, values, order,
    length and memory layout.

    Args:
        module: The model.
        loss: The mean over a batch of each example's loss, of the model's outputs and the targets.
        inputs: A batch of examples as the model gets them: a tensor, or several in a tuple, list or mapping.
        targets: Their targets; None if the loss needs none.
        engine: How per-example gradients are taken.

    Returns:
        The wrapped module, for `PrivateOptimizer`.

    Raises:
        NotPrivate: The module or the loss ties examples, keeps them, or is not what the engine can differentiate.
        ValueError: A parameter is not of float32 or float64, or none is trainable.

    Examples:
        >>> import torch
        >>> from dpcomp.training.pytorch.inspection import private_model
        >>> loss, inputs, targets = torch.nn.CrossEntropyLoss(), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
        >>> private_model(torch.nn.BatchNorm1d(4), loss, inputs, targets)
        Traceback (most recent call last):
        ...
        dpcomp.core.errors.NotPrivate: layer '' (BatchNorm1d) normalises over the batch: ...
    """
    check_precision(module)
    check_layers(module)
    remove_hooks(module)
    trial = _Trial(*_copies_of(module, loss), engine, inputs)
    trial.run(inputs, targets)
    model = _wrapped(module, loss, engine)
    model.check.copies = model.engine.copies = trial.model.engine.copies
    if isinstance(model.engine, IsolatedRows) and isinstance(trial.model.engine, IsolatedRows):
        model.engine.in_a_loop = trial.model.engine.in_a_loop
    return model


def check_precision(module: nn.Module) -> None:
    """Refuse parameters that the flat vector of an update cannot hold.

    Raises:
        ValueError: Naming the parameter.
    """
    parameters = trainable(module)
    if not parameters:
        raise ValueError("the model has no trainable parameter: set requires_grad_(True) on those to train")
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise ValueError(
                f"parameter {name!r} is {parameter.dtype}: an update holds real numbers. Keep the real and imaginary "
                "parts as a real parameter, and use torch.view_as_complex in the forward pass"
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"parameter {name!r} is {parameter.dtype}: train parameters of float32 (model.float()); for speed, "
                "run the forward pass in torch.autocast with engine=Isolated()"
            )


def check_layers(module: nn.Module) -> None:
    """Refuse all kinds of batch normalisation, tracked instance statistics, and embeddings that rescale themselves.

    Raises:
        NotPrivate: Naming the layer.
    """
    for name, layer in module.named_modules():
        place = f"layer {name!r} ({type(layer).__name__})"
        if isinstance(layer, _BatchNorm):
            raise NotPrivate(
                f"{place} normalises over the batch: an example moves the gradients "
                "of all others, also with affine=False or frozen weights. Use GroupNorm or LayerNorm"
            )
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            raise NotPrivate(
                f"{place} writes statistics of the data to a buffer, without noise. Set track_running_stats=False"
            )
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None:
            raise NotPrivate(
                f"{place} rescales the rows that an example uses in its forward pass, without noise. Set max_norm=None"
            )


def check_statistics(module: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> None:
    """Refuse a module or a loss whose pass writes buffers, parameters or attributes: they are never sent.

    This is for client-level training, where layers may mix the examples of the client.

    Args:
        module: The model; a copy is tried.
        loss: The mean loss of a batch.
        inputs: A few examples.
        targets: Their targets.

    Raises:
        NotPrivate: Naming what a pass in training writes.
    """
    subject, loss = _copies_of(module, loss)
    guard = Unmoved(subject, loss)
    with _fork_of_generators(inputs):
        for factor in (1.0, *GROWING):  # a maximum moves only for larger values
            loss(subject(mapped(lambda part, by=factor: grown(part, by), inputs)), targets).backward()
            refuse_statistics(guard.moved())


def refuse_statistics(changed: list[str]) -> None:
    """Refuse what a forward pass wrote, if it wrote anything.

    Args:
        changed: The names of what changed.

    Raises:
        NotPrivate: There are some.
    """
    if changed:
        raise NotPrivate(
            f"{changed} change in a pass of training, and are never sent: the server would evaluate with their first "
            "values. Use GroupNorm or LayerNorm, set track_running_stats=False, and write no attribute in a pass"
        )


@contextmanager
def hooks_on_inputs() -> Iterator[None]:
    """Silence torch's warning, in backward passes of a private model, that the inputs need no gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


class _Trial:
    """A copy of a module that trains on trial batches, none of which leaves a trace in the module itself."""

    def __init__(self, subject: nn.Module, loss: Loss, engine: Engine, inputs: Any):
        self._subject, self._loss = subject, loss
        self.model = _wrapped(subject, loss, engine)
        self._engine_name, self._devices = type(engine).__name__, _cuda_devices(inputs)
        self._moves = self._random = False  # whether any gradient was above zero, any pass drew random numbers

    def run(self, inputs: Any, targets: Any) -> None:
        parameters = sum(parameter.numel() for parameter in trainable(self._subject).values())
        with _fork_of_generators(inputs), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what layers say of odd batches is no news to whoever trains on others
            self._seed(0)
            self.model.check.copies = self.model.engine.copies = self._copies(inputs)
            for batch in trial_batches(inputs, targets, parameters):
                self._try(batch)
            if self._random:
                # Copies that draw the same numbers make a batch as long as the first, so what depends on the length
                # alone shows only without them.
                for layer in self._subject.modules():
                    layer.training = bool(list(layer.parameters()))
                for batch in trial_batches(inputs, targets, parameters):
                    self._try(batch)
        if not self._moves:
            raise NotPrivate(
                "no example gives a gradient that is finite and above 0: a trial shows nothing at these weights. Use "
                "other first weights"
            )

    def _seed(self, number: int) -> None:
        """Seed the generators that the trial may draw from, which are restored after it."""
        torch.default_generator.manual_seed(number)
        for device in self._devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(number)

    def _copies(self, inputs: Any) -> int:
        """Return how many copies of an example make a batch from which the model gives outputs an example."""
        with torch.no_grad():
            shapes: list[list[torch.Size]] = []
            for copies in (1, 2):
                args, kwargs = call_of(repeated(rows(inputs, 0, 1), copies))
                try:
                    outputs = self._subject(*args, **kwargs)
                except ERRORS:
                    shapes.append([])
                    continue
                shapes.append([part[:1].shape if part.ndim else part.shape for part in floating(outputs)])
        self._refuse_writes()
        return 2 if shapes[0] != shapes[1] and shapes[1] else 1

    def _try(self, batch: TrialBatch) -> None:
        try:
            first = self._pass(batch)
            self._refuse_writes()
            self._random |= first.random
            if batch.only_writes:
                return
            one = self._pass_again(batch)
            self._refuse_another(first, one)
            if not batch.made_up or one.order is not None:
                self._check(one, batch)
        except ERRORS as error:
            if not batch.made_up:
                raise NotPrivate(self._failure(batch, error)) from error
        finally:
            self.model.zero_grad()
            self.model.forget(unfinished=True)

    def _pass_again(self, batch: TrialBatch) -> Pass:
        self.model.zero_grad()
        self.model.forget(unfinished=True)
        return self._pass(batch)

    def _refuse_another(self, one: Pass, again: Pass) -> None:
        for before, now in zip(floating(one.outputs), floating(again.outputs), strict=True):
            scale = largest_finite(before)
            if not torch.allclose(before, now, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
                raise NotPrivate(
                    "the same batch has other outputs the second time: a layer keeps earlier batches, or its "
                    "random numbers are not torch's. Remove that state, and draw with torch's global generator"
                )

    def _pass(self, batch: TrialBatch) -> Pass:
        self._seed(1)
        args, kwargs = call_of(batch.inputs)
        self._loss(self.model(*args, **kwargs), batch.targets).backward()
        return self.model.passes[-1]

    def _check(self, one: Pass, batch: TrialBatch) -> None:
        if one.order is None:
            raise NotPrivate("the loss does not depend on the model's outputs: let it be a function of them")
        n = count(batch.inputs)
        for i in sorted({0, n - 1} if batch.made_up else {0, n // 2, n - 1}):
            self.model.check.loss_of(one, batch.targets, i)
            row = tuple(part[0] for part in self.model.engine.rows(one, batch.targets, i, i + 1))
            size = sum(float(part.double().square().sum()) for part in row)
            if isinstance(self.model.engine, IsolatedRows):
                if not self._moves:  # once is enough
                    self.model.engine.leave_wrong_map(one, batch.targets)
                self.model.check.outputs_of(one, i)
            else:
                self.model.check.row_of(one, i, row)
            self._moves |= 0 < size < float("inf")
        self.model.engine.refuse_other_passes(len(self.model.finished(public=False)))

    def _refuse_writes(self) -> None:
        if changed := self.model.unmoved.moved():
            raise NotPrivate(
                f"{changed} change in a training step: a pass of the model or the loss writes there what it sees, "
                "without noise, and later gradients may depend on it. Write nothing in a pass: return what you want to "
                "look at as an output, and make tables that do not depend on data in __init__"
            )

    def _failure(self, batch: TrialBatch, error: Exception) -> str:
        in_place = [name for name, layer in self._subject.named_modules() if getattr(layer, "inplace", False) is True]
        hint = f"; layers {in_place} work in place: set inplace=False" if in_place else ""
        other = "" if self._engine_name == "Isolated" else ", or give engine=Isolated()"
        layers = [
            f"{name!r} ({type(layer).__name__})"
            for name, layer in self._subject.named_modules()
            if any(True for _ in layer.parameters(recurse=False))
        ]
        return (
            f"a training step on {batch.what} fails with {type(error).__name__}: {error}. The model is called with the "
            f"inputs of a batch, and the loss with its outputs and the batch's targets{hint}. Mend the layer among "
            f"{layers}, or the loss{other}"
        )


def _copies_of(module: nn.Module, loss: Loss) -> tuple[nn.Module, Loss]:
    """Return copies that a trial may change; a loss that refers to the model refers to the copy then."""
    memo: dict[int, Any] = {}
    subject = copy.deepcopy(module, memo).train()
    try:
        return subject, copy.deepcopy(loss, memo)
    except Exception:  # what cannot be copied is tried itself
        return subject, loss


def _wrapped(module: nn.Module, loss: Loss, engine: Engine) -> PrivateModel:
    attached = engine.attach(module, loss)
    unmoved = Unmoved(module, loss, ignored=attached.keeps)
    return PrivateModel(module, attached, RowCheck(module, loss, attached), unmoved).train(module.training)


@contextmanager
def _fork_of_generators(inputs: Any) -> Iterator[None]:
    with torch.random.fork_rng(devices=_cuda_devices(inputs)):
        yield


def _cuda_devices(inputs: Any) -> list[torch.device]:
    return list({part.device for part in tensors(inputs) if part.device.type == "cuda"})
