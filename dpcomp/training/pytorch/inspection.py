"""Inspection of a module with its loss: what ties examples, or writes data to what it holds, is refused."""

import copy
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from dpcomp.core.errors import DpcompError, NotPrivate, named_error
from dpcomp.training.pytorch.arguments import Constant, tried_call
from dpcomp.training.pytorch.checks.batch_form import check_batch
from dpcomp.training.pytorch.checks.trial_batches import GROWING, TrialBatch, grown, trial_batches
from dpcomp.training.pytorch.checks.unmoved import Unmoved
from dpcomp.training.pytorch.private_model import PrivateModel, without_examples
from dpcomp.training.pytorch.rows.book_keeping.engine import BookKeeping
from dpcomp.training.pytorch.rows.distances import largest_finite
from dpcomp.training.pytorch.rows.engine import Engine, Loss
from dpcomp.training.pytorch.rows.generators import (
    drawn_between,
    kept_generators,
    random_states,
    seed_generators,
    seed_unforeseeably,
)
from dpcomp.training.pytorch.rows.isolated import Isolated, IsolatedRows
from dpcomp.training.pytorch.rows.layer_outputs import Record, first_other, recorded
from dpcomp.training.pytorch.rows.opacus_hooks import remove_hooks
from dpcomp.training.pytorch.rows.own_random import LookForSeeds
from dpcomp.training.pytorch.rows.parameters import trainable
from dpcomp.training.pytorch.rows.passes import Pass, floating
from dpcomp.training.pytorch.rows.placed_loss import PlacedLoss
from dpcomp.training.pytorch.rows.row_check import RowCheck
from dpcomp.training.pytorch.rows.structures import Call, call_of, columns, count, mapped, repeated, rows, tensors


def private_model(
    module: nn.Module,
    loss: Loss,
    inputs: Any,
    targets: Any,
    *,
    engine: Engine | Literal["auto"] = "auto",
    constants: Mapping[str, Constant] = MappingProxyType({}),
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
        engine: How per-example gradients are taken. "auto": by `BookKeeping()` if it serves the model, else by
            `Isolated()`, which a line in the log of `dpcomp` says.
        constants: Further arguments of the model by name, the same in each call.

    Returns:
        The wrapped module, for `PrivateOptimizer`.

    Raises:
        NotPrivate: The module or the loss ties examples, keeps them, or is not what the engine can differentiate.
        TypeError: A constant is no plain value.
        ValueError: A parameter is not of float32 or float64, none is trainable, or a constant has the name of an input.

    Examples:
        >>> import torch
        >>> from dpcomp.training.pytorch.inspection import private_model
        >>> loss, inputs, targets = torch.nn.CrossEntropyLoss(), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
        >>> private_model(torch.nn.BatchNorm1d(4), loss, inputs, targets)
        Traceback (most recent call last):
        ...
        dpcomp.core.errors.NotPrivate: layer '' (BatchNorm1d) normalises over the batch: ...
    """
    check_layers(module)
    check_precision(module)
    check_batch(inputs, targets)
    tried = tried_call(inputs, constants)
    remove_hooks(module)
    model = _with_engine(module, loss, call_of(inputs, constants), targets, engine)
    model.tried, model.constants = tried, dict(constants)
    return model


def _with_engine(
    module: nn.Module, loss: Loss, call: Call, targets: Any, engine: Engine | Literal["auto"]
) -> PrivateModel:
    if not isinstance(engine, str):
        return _tried(module, loss, engine, call, targets)
    if engine != "auto":
        raise ValueError(f"engine={engine!r}: give 'auto', BookKeeping(), Isolated() or Opacus()")
    try:
        return _tried(module, loss, BookKeeping(), call, targets)
    except NotPrivate as refusal:
        remove_hooks(module)
        model = _tried(module, loss, Isolated(), call, targets)
        logging.getLogger("dpcomp").warning(
            "engine='auto' takes each example's gradient alone (Isolated()), which is slower than BookKeeping(): %s",
            str(refusal).partition(". ")[0],
        )
        return model


def _tried(module: nn.Module, loss: Loss, engine: Engine, inputs: Any, targets: Any) -> PrivateModel:
    """Try a module with its loss and an engine, and wrap it.

    Raises:
        NotPrivate: As `private_model` does.
    """
    try:
        trial = _Trial(module, loss, engine, inputs)
        trial.run(inputs, targets)
        model = _wrapped(module, loss, engine, inputs)
    except DpcompError:
        raise
    except Exception as error:
        raise NotPrivate(
            f"a trial of model and loss on {count(inputs)} examples fails with {named_error(error)}. Mend the model, "
            "or the loss"
        ) from error
    model.check.copies = model.engine.copies = trial.model.engine.copies
    model.check.loss.behind = trial.model.check.loss.behind
    model.outputs_of_nothing = trial.model.outputs_of_nothing
    model.unmoved.modes.hold_to(trial.modes)
    if (isolated := _isolated_of(model.engine)) and (tried := _isolated_of(trial.model.engine)):
        isolated.in_a_loop = tried.in_a_loop
    return model


def _isolated_of(engine: Any) -> IsolatedRows | None:
    """Return what takes rows of examples alone: an engine itself, or that to which book-keeping leaves a pass."""
    return engine if isinstance(engine, IsolatedRows) else getattr(engine, "isolated", None)


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
    """Refuse layers that are known to mix examples or to write data, and those that cannot be tried, by name.

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
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.sparse:
            raise NotPrivate(f"{place} gives sparse gradients, which are not clipped. Set sparse=False")
        if isinstance(layer, torch.jit.ScriptModule):
            raise NotPrivate(f"{place} was compiled by torch.jit, so it cannot be looked into. Give the module itself")
        if any(map(is_lazy, (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))):
            raise NotPrivate(f"{place} has no weights yet. Run one batch through the model before make_private")
        for key, value in vars(layer).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise NotPrivate(
                    f"{place} keeps a tensor that was computed from parameters in attribute {key!r}, so it cannot be "
                    "copied or trained. Use torch.nn.utils.parametrizations.weight_norm in place of "
                    "torch.nn.utils.weight_norm, make pruning permanent with torch.nn.utils.prune.remove, and compute "
                    "such tensors in the forward pass"
                )


def check_statistics(module: nn.Module, loss: Loss, inputs: Any, targets: Any) -> None:
    """Refuse a module or a loss whose pass writes buffers, parameters or attributes: they are never sent.

    This is for client-level training, where layers may mix the examples of the client.

    Args:
        module: The model; a copy is tried.
        loss: The mean loss of a batch.
        inputs: A few examples, as the model gets them.
        targets: Their targets.

    Raises:
        NotPrivate: Naming what a pass in training writes.
    """
    subject, loss = _copies_of(module, loss)
    guard = Unmoved(subject, loss)
    with kept_generators():
        for factor in (1.0, *GROWING):  # a maximum moves only for larger values
            args, kwargs = call_of(mapped(lambda part, by=factor: grown(part, by), inputs))
            loss(subject(*args, **kwargs), targets).backward()
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

    def __init__(self, module: nn.Module, loss: Loss, engine: Engine, inputs: Any):
        self._module = module
        self._subject, self._loss = _copies_of(module, loss)
        self.model = _wrapped(self._subject, self._loss, engine, inputs)
        self.modes = self.model.unmoved.modes.now()
        self._engine_name = type(engine).__name__
        self._moves = self._random = False  # whether any gradient was above zero, any pass drew random numbers
        self._compared = False  # whether the map was held to the loop

    def run(self, inputs: Any, targets: Any) -> None:
        parameters = sum(parameter.numel() for parameter in trainable(self._subject).values())
        with kept_generators(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what layers say of odd batches is no news to whoever trains on others
            seed_generators(0)
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
                "other first weights; and the loss of an example must not need other examples, as a triplet loss does"
            )

    def _copies(self, inputs: Any) -> int:
        """Return how many copies of an example make a batch from which the model gives outputs an example."""
        with torch.no_grad():
            shapes: list[list[torch.Size]] = []
            for copies in (1, 2):
                args, kwargs = call_of(mapped(Tensor.clone, repeated(rows(inputs, 0, 1), copies)))
                try:
                    outputs = self._subject(*args, **kwargs)
                except Exception:
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
            if not batch.made_up:
                self._refuse_own_random(one)
                self.model.check.loss.try_mixed_precision(one.outputs, batch.targets)
            if not batch.made_up or one.order is not None:
                self._check(one, batch)
        except DpcompError:
            raise
        except Exception as error:
            if not batch.made_up:
                raise NotPrivate(self._failure(batch, error)) from error
        finally:
            self.model.zero_grad()
            self.model.forget(unfinished=True)

    def _pass_again(self, batch: TrialBatch) -> Pass:
        self.model.zero_grad()
        self.model.forget(unfinished=True)
        return self._pass(batch)

    def _refuse_own_random(self, one: Pass) -> None:
        """Refuse known random numbers that are others in a batch of another size."""
        found: list[list[Any]] = []
        for call in (one.given, repeated(rows(one.call, 0, 1), self.model.engine.copies)):
            with kept_generators(), self.model.engine.paused(), torch.no_grad():
                seed_unforeseeably()
                with LookForSeeds() as looking:
                    self._subject(*call.args, **call.kwargs)
            found.append(looking.found)
        if found[0] != found[1]:
            raise NotPrivate(
                f"the model draws random numbers by {(found[0] or found[1])[0][0]}, so they are known, and go by the "
                "place in the batch: one example more would change those of all that follow. Draw from torch's "
                "global generator, which dpcomp sets from the secret for each pass, and leave its seed as it is, also "
                "in torch.random.fork_rng(); make what is random and constant in __init__"
            )

    def _refuse_another(self, one: Pass, again: Pass) -> None:
        for before, now in zip(floating(one.outputs), floating(again.outputs), strict=True):
            scale = largest_finite(before)
            if not torch.allclose(before, now, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
                raise NotPrivate(
                    "the same batch has other outputs the second time: a layer keeps earlier batches, or its "
                    f"random numbers are not torch's{self._first_other(again)}. Remove that state, and draw with "
                    "torch's global generator"
                )

    def _first_other(self, one: Pass) -> str:
        """Name the first layer whose output is another the second time."""

        def outputs(n: int) -> Record:
            seed_generators(1)
            args, kwargs = rows(one.given, 0, n)
            with self.model.engine.paused():
                return recorded(self._subject, lambda: self._subject(*args, **kwargs))

        def same(before: Tensor, now: Tensor) -> bool:
            scale = 1e-3 * largest_finite(before)
            return before.shape == now.shape and torch.allclose(before, now, rtol=1e-3, atol=scale, equal_nan=True)

        try:
            before = outputs(one.n)
            outputs(self.model.engine.copies)  # another batch, for what keeps the one before
            first = first_other(before, outputs(one.n), same)
        except Exception:  # the text is still right without the name
            first = None
        return f" (the first is {first})" if first else ""

    def _pass(self, batch: TrialBatch) -> Pass:
        seed_generators(1)
        args, kwargs = call_of(batch.inputs)
        written = _versions(batch.inputs), _versions(batch.targets)
        outputs = self.model(*args, **kwargs)
        if _versions(batch.inputs) != written[0]:
            raise NotPrivate(
                f"the model changes its inputs in place, which are the drawn examples{self._in_place()}. Change no "
                "input in place: write x = x + 1 for x += 1"
            )
        one = self.model.passes[-1]
        if not any(part.is_floating_point() or part.is_complex() for part in tensors(outputs)):
            raise NotPrivate(
                f"no tensor of numbers that have gradients is found in the outputs of the model, of type "
                f"{type(outputs).__name__}: return tensors, alone or in tuples, named tuples, lists and dictionaries"
            )
        if columns(batch.inputs):
            self.model.outputs_of_nothing = without_examples(one.outputs)
        if not batch.made_up:
            self._refuse_other_dependence(one, batch)
        loss = self._loss(outputs, batch.targets)
        if _versions(batch.targets) != written[1]:
            raise NotPrivate("the loss changes its targets in place: let it work on a copy")
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
            raise NotPrivate(f"the loss returns a value of {what}: return the mean over the batch, one real number")
        loss.backward()
        return one

    def _refuse_other_dependence(self, one: Pass, batch: TrialBatch) -> None:
        """Refuse outputs that cannot be watched, and a loss that depends on more than outputs and targets."""
        if any(part.is_complex() for part in tensors(one.outputs)):
            raise NotPrivate(
                "the model has complex outputs, whose gradients are not watched: return real numbers "
                "(torch.view_as_real), and make them complex in the loss"
            )
        before = random_states()
        with torch.enable_grad():
            loss = self._loss(mapped(Tensor.clone, one.outputs), batch.targets)
        if drawn_between(before, random_states()):
            raise NotPrivate(
                "the loss draws random numbers, so the loss of an example alone is another each time and nothing can "
                "be checked: draw them in the model, which returns them among its outputs, or in the data set"
            )
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return
        named = {**trainable(self._module), **trainable(self._subject)}
        for module in (self._module, self._subject):
            found = torch.autograd.grad(
                loss, list(trainable(module).values()), torch.ones_like(loss), retain_graph=True, allow_unused=True
            )
            if names := [name for name, part in zip(named, found, strict=True) if part is not None]:
                raise NotPrivate(
                    f"the loss depends on the parameters {names} besides through the model's outputs, as a weight "
                    "penalty does, and that part of the gradient is in no row: use weight_decay= of the optimiser, or "
                    "let the model return what the loss needs, an output an example"
                )

    def _in_place(self) -> str:
        names = [
            f"{name!r} ({type(layer).__name__})"
            for name, layer in self._subject.named_modules()
            if getattr(layer, "inplace", False) is True
        ]
        return f"; layers {', '.join(names)} work in place: set inplace=False" if names else ""

    def _check(self, one: Pass, batch: TrialBatch) -> None:
        if one.order is None:
            raise NotPrivate("the loss does not depend on the model's outputs: let it be a function of them")
        n = count(batch.inputs)
        for i in sorted({0, n - 1} if batch.made_up else {0, n // 2, n - 1}):
            try:
                self.model.check.loss_of(one, batch.targets, i)
            except NotPrivate as error:
                self._refuse_dependent_outputs(one, error)
                raise
            row = tuple(part[0] for part in self.model.engine.rows(one, batch.targets, i, i + 1))
            size = sum(float(part.double().square().sum()) for part in row)
            if (isolated := _isolated_of(self.model.engine)) and not (self._compared or one.random):
                isolated.leave_wrong_map(one, batch.targets)
                self._compared = 0 < size < float("inf")  # then once is enough
            if isinstance(self.model.engine, IsolatedRows):
                self.model.check.outputs_of(one, i)
            else:
                self.model.check.row_of(one, batch.targets, i, row)
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
        other = "" if self._engine_name == "Isolated" else ", or give engine=Isolated()"
        layers = [
            f"{name!r} ({type(layer).__name__})"
            for name, layer in self._subject.named_modules()
            if any(True for _ in layer.parameters(recurse=False))
        ]
        return (
            f"a training step on {batch.what} ({count(batch.inputs)} in the batch) fails with {named_error(error)}. "
            "The model is called with the inputs of a batch, and the loss with its outputs and the batch's targets"
            f"{self._in_place()}. Mend the layer among {layers}, or the loss{other}"
        )

    def _refuse_dependent_outputs(self, one: Pass, error: NotPrivate) -> None:
        """Say so where a loss seems wrong to hooks because one output of the model feeds another."""
        if isinstance(self.model.engine, IsolatedRows) or len(one.cotangents) < 2:
            return
        args, kwargs = one.given
        with self.model.engine.paused(), torch.enable_grad():
            outputs = floating(self._subject(*args, **kwargs))
            used = [outputs[number] for number in one.cotangents if outputs[number].requires_grad]
            for a, b in itertools.permutations(used, 2):
                if a is b or torch.autograd.grad(a.sum(), b, retain_graph=True, allow_unused=True)[0] is not None:
                    raise NotPrivate(
                        "outputs of the model depend on each other (one is computed from another, as a pooled output "
                        "or a softmax of logits is), and with engine=Opacus() the gradients that a loss sends to such "
                        "outputs cannot be told apart. Give engine=Isolated(), or return only outputs that do not "
                        "feed another"
                    ) from error


def _copies_of(module: nn.Module, loss: Loss) -> tuple[nn.Module, Loss]:
    """Return copies that a trial may change; a loss that refers to the model refers to the copy then."""
    memo: dict[int, Any] = {}
    try:
        subject = copy.deepcopy(module, memo)
    except Exception as error:
        raise NotPrivate(
            f"a trial runs on a copy of the model, which cannot be copied{_kept_alone(module)} ({named_error(error)}). "
            "Keep on the model what copy.deepcopy takes, and such things as modules, locks and open files elsewhere"
        ) from error
    if not subject.training:  # else layers that were set to evaluation stay so
        subject.train()  # which returns what an own method does
    try:
        return subject, copy.deepcopy(loss, memo)
    except Exception:  # what cannot be copied is tried itself
        return subject, loss


def _kept_alone(module: nn.Module) -> str:
    """Name the first attribute of a layer that cannot be copied."""
    for name, layer in module.named_modules():
        for key, value in vars(layer).items():
            if key in vars(nn.Module()):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return f": attribute {key!r} of {f'layer {name!r}' if name else 'the model'}, a {type(value).__name__}"
    return ""


def _wrapped(module: nn.Module, loss: Loss, engine: Engine, inputs: Any) -> PrivateModel:
    placed = PlacedLoss(loss)
    attached = engine.attach(module, placed, inputs)
    unmoved = Unmoved(module, loss, ignored=attached.keeps)
    model = PrivateModel(module, attached, RowCheck(module, placed, attached), unmoved)
    model.training = module.training  # and each layer keeps its own
    return model


def _versions(value: Any) -> list[int]:
    return [part._version for part in tensors(value)]
