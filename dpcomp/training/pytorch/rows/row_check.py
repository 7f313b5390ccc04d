"""Row check: holds a row of per-example gradients to the gradient of its example alone."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.rows.engine import Loss, Rows
from dpcomp.training.pytorch.rows.isolated import gradients_of
from dpcomp.training.pytorch.rows.layer_outputs import Record, first_other, recorded
from dpcomp.training.pytorch.rows.parameters import Places, trainable
from dpcomp.training.pytorch.rows.passes import Pass, floating, random_states
from dpcomp.training.pytorch.rows.structures import mapped, repeated, rows, tensors

TOLERANCE = 1e-4  # of the norm of a row
OUTPUT_TOLERANCE = 1e-3  # of the largest output of a pass
LARGE = 1e6  # above it, float32 may overflow in one order of the same operations and not in another
SMALL = 1e-10  # below it, the squares of what is tolerated of a norm may be zero in float32
LEAST = torch.finfo(torch.float32).tiny  # below it, float32 has fewer digits the smaller a number is


class RowCheck:
    """Recomputes a row from its example alone: outputs, the loss at these outputs, and the gradient behind them.

    The loss is compared at the outputs of the pass itself, and the gradient for the cotangent that the script's loss
    sent back, so that rounding in the one is not multiplied by the other. Where float32 still differs (an activation
    whose input is zero but for the last bit), copies of the example in a batch of the same size, whose kernels round
    alike, are taken instead; then the two references must agree in float64. A pass that drew random numbers is repeated
    with copies of the example and the same numbers.

    Args:
        module: The model.
        loss: The declared mean loss of a batch.
        engine: What made the rows.
        tolerance: The largest difference, as a share of the norm of the row.
    """

    def __init__(self, module: nn.Module, loss: Loss, engine: Rows, tolerance: float = TOLERANCE):
        self._module, self._loss, self._engine, self._tolerance = module, loss, engine, tolerance
        self._parameters = trainable(module)
        self._places = Places(module)
        self.copies = 1  # in the batch of an example alone

    def example_of(self, one: Pass, targets: Any, i: int, row: tuple[Tensor, ...]) -> None:
        """Check the loss, the outputs and the row of an example, as `loss_of` and `row_of` do.

        As a rule a pass of the example alone through model and loss shows that all is well.

        Args:
            one: A pass that a backward pass has reached.
            targets: The targets of its examples.
            i: The number of the example.
            row: Its row, an (…) tensor a trainable parameter.

        Raises:
            NotPrivate: As `loss_of` and `row_of` do.
        """
        if not self._same_alone(one, targets, i, row):
            self.loss_of(one, targets, i)
            self.row_of(one, i, row)

    def loss_of(self, one: Pass, targets: Any, i: int) -> None:
        """Check that the script's loss is the declared one, and the mean of the losses of its examples.

        Args:
            one: A pass that a backward pass has reached.
            targets: The targets of its examples.
            i: The row that is looked at.

        Raises:
            NotPrivate: The gradients that the script's loss sent back to the outputs are others.
        """
        outputs = floating(one.outputs)
        for number in one.cotangents:
            if outputs[number].ndim == 0 or outputs[number].shape[0] != one.n:
                raise NotPrivate(
                    f"the loss uses an output of shape {tuple(outputs[number].shape)}, whose first axis does not run "
                    f"over the {one.n} examples: it ties them. Let the model give an output an example, and the "
                    "loss be the mean of the examples' losses"
                )
        sent = [(one.cotangents[number][i : i + 1] * one.n).double() for number in one.cotangents]
        alone = self._cotangents(one, targets, i, copies=self.copies)
        if not _far(sent, alone, self._tolerance) or _overflowed(
            rows((one.call, one.outputs, targets), i, i + 1), sent, alone
        ):
            return
        if self._loss_explained_by_rounding(one, targets, i, sent):
            return
        raise NotPrivate(
            f"the loss of a batch of {one.n} is not the mean of the losses of its examples, or the script computes "
            "another loss than loss=: the gradient of an example's outputs differs, "
            f"{_distance(sent, alone)}. Use a plain mean: no class weights, ignore_index, contrast "
            "between examples, penalty on the batch or GradScaler; or declare the loss that the script computes"
        )

    def outputs_of(self, one: Pass, i: int) -> None:
        """Check that the outputs of an example are those of the example alone.

        Args:
            one: A pass that a backward pass has reached.
            i: The number of the example.

        Raises:
            NotPrivate: They are others.
        """
        self._compare_outputs(one, i, self._behind(one, i, copies=one.n if one.random else self.copies)[0])

    def row_of(self, one: Pass, i: int, row: tuple[Tensor, ...]) -> None:
        """Check outputs, and that a row is the gradient of its example alone, for the cotangent that the loss sent.

        Args:
            one: A pass that a backward pass has reached, and whose loss was checked.
            i: The number of the row.
            row: An (…) tensor a trainable parameter.

        Raises:
            NotPrivate: Naming the parameters whose gradients differ, or the output.
        """
        outputs, alone = self._behind(one, i, copies=one.n if one.random else self.copies)
        self._compare_outputs(one, i, outputs)
        if _near(row, alone, self._tolerance):
            return
        names = list(self._parameters)
        given, alone = ([part.double() for part in parts] for parts in (row, alone))
        if not _far(given, alone, self._tolerance) or self._row_overflowed(one, i, given, alone):
            return
        if not one.random and one.n > 1 and self._explained_by_rounding(one, i, given):
            return
        scale = max(_norm(alone), 1e-300)
        differences = {name: float((a - b).norm()) / scale for name, a, b in zip(names, given, alone, strict=True)}
        worst = [name for name, value in differences.items() if not value <= self._tolerance] or names
        raise NotPrivate(
            f"the gradient of an example is another than that of the example alone, {_distance(given, alone)}, "
            f"at {worst}: a layer mixes examples, or its per-example gradients are wrong. Give "
            "engine=Isolated(), or normalise and attend within an example only"
        )

    def apart(self, row: Any, alone: Any, *, quiet: bool | None) -> float:
        """Return how far the gradients of two forms of one example are apart, as a share of the larger norm.

        Where float32 differs, float64 decides, so that the kernels for another length may round in another way.

        Args:
            row: Positional arguments and those by name, in a batch of one; and the targets.
            alone: The same for the other form.
            quiet: Whether the model is compared in evaluation mode, since random numbers such as dropout's depend on
                the form; None to find out whether it draws any.

        Returns:
            0 if they are the same, but for rounding.
        """
        if quiet is None:
            quiet = self._draws_numbers(row)
        mine, theirs = (self._gradient(call, targets, quiet=quiet) for call, targets in (row, alone))
        share = _share(mine, theirs)
        if share <= self._tolerance:
            return 0.0
        try:
            mine, theirs = (self._gradient(call, targets, quiet=quiet, wide=True) for call, targets in (row, alone))
        except (RuntimeError, TypeError, ValueError):  # model or loss compute in float32 only
            return share
        share = _share(mine, theirs, floor=1e-13)
        return share if share > self._tolerance else 0.0

    def _draws_numbers(self, row: Any) -> bool:
        device = _device(row)
        before = random_states(device)
        args, kwargs = repeated(row[0], self.copies)
        with torch.random.fork_rng(devices=_cuda(device)), self._engine.paused(), torch.no_grad():
            self._module(*args, **kwargs)
            return not all(map(torch.equal, before, random_states(device)))

    def _gradient(self, call: Any, targets: Any, *, quiet: bool, wide: bool = False) -> list[Tensor]:
        """Return the gradient of a batch of one, with the same random numbers each time."""
        (args, kwargs), wanted = repeated((call, targets), self.copies)
        named, device = self._parameters, _device(call)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=_cuda(device)))
            stack.enter_context(self._engine.paused())
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(torch.enable_grad())
            if quiet:
                stack.enter_context(_evaluating(self._module))
            torch.default_generator.manual_seed(0)
            for each in _cuda(device):
                torch.cuda.default_generators[each.index or 0].manual_seed(0)
            if wide:
                widened = {name: value.double() for name, value in self._module.named_parameters()}
                widened |= {name: _widened(value) for name, value in self._module.named_buffers()}
                outputs = self._places.call(widened, *mapped(_widened, (args, kwargs)))
                loss = self._loss(outputs, mapped(_widened, wanted))
            else:
                loss = self._loss(self._module(*args, **kwargs), wanted)
            return [part.double() for part in gradients_of([loss], list(named.values()), [None])]

    def _same_alone(self, one: Pass, targets: Any, i: int, row: tuple[Tensor, ...]) -> bool:
        """Return whether the example alone has these outputs, cotangents and row; False where that is unsure."""
        if one.random or self.copies > 1:
            return False
        (args, kwargs), wanted = rows((one.call, targets), i, i + 1)
        with self._engine.paused(), one.in_its_precision(), torch.enable_grad():
            outputs = self._module(*args, **kwargs)
            alone, given = floating(outputs), floating(one.outputs)
            if len(alone) != len(given) or not all(alone[number].requires_grad for number in one.cotangents):
                return False
            used = [alone[number] for number in one.cotangents]
            gradients = gradients_of([self._loss(outputs, wanted)], [*used, *self._parameters.values()], [None])
        sent = [part[i : i + 1] * one.n for part in one.cotangents.values()]
        return (
            all(
                _within(given[number][i : i + 1], mine.detach(), OUTPUT_TOLERANCE)
                for number, mine in zip(one.cotangents, used, strict=True)
            )
            and _near(sent, gradients[: len(used)], self._tolerance)
            and _near(row, gradients[len(used) :], self._tolerance)
        )

    def _loss_explained_by_rounding(self, one: Pass, targets: Any, i: int, sent: list[Tensor]) -> bool:
        if _far(sent, self._cotangents(one, targets, i, copies=one.n), self._tolerance):
            return False
        try:
            exact = self._cotangents(one, targets, i, copies=self.copies, wide=True)
            exact_among = self._cotangents(one, targets, i, copies=one.n, wide=True)
        except (RuntimeError, TypeError, ValueError):  # the loss computes in float32 only
            return False
        return not _far(exact_among, exact, self._tolerance)

    def _explained_by_rounding(self, one: Pass, i: int, given: list[Tensor]) -> bool:
        among = [part.double() for part in self._behind(one, i, copies=one.n)[1]]
        if _far(given, among, self._tolerance):
            return False
        try:
            exact, exact_among = (
                [part.double() for part in self._behind(one, i, copies=copies, wide=True)[1]]
                for copies in (self.copies, one.n)
            )
        except (RuntimeError, TypeError, ValueError):  # the model computes in float32 only
            return False
        return not _far(exact_among, exact, self._tolerance)

    def _cotangents(self, one: Pass, targets: Any, i: int, *, copies: int, wide: bool = False) -> list[Tensor]:
        """Return the gradients of an example's own loss with respect to its outputs."""
        held: list[Tensor] = []

        def leaf(part: Tensor) -> Tensor:
            if part.is_floating_point():
                part = (part.double() if wide else part).requires_grad_()
                held.append(part)
            return part

        outputs = mapped(leaf, repeated(rows(one.outputs, i, i + 1), copies))
        with torch.enable_grad(), one.in_its_precision():
            wanted = repeated(rows(targets, i, i + 1), copies)
            loss = self._loss(outputs, mapped(_widened, wanted) if wide else wanted)
            found = gradients_of([loss], held, [None])
        # Each of the copies has a share of 1 / copies in the mean.
        return [found[number].double().sum(dim=0, keepdim=True) for number in one.cotangents]

    def _behind(self, one: Pass, i: int, *, copies: int, wide: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs of an example among copies of itself, and the gradient for its own cotangent."""
        args, kwargs = repeated(rows(one.call, i, i + 1), copies)
        named = self._parameters
        replayed = one.replayed() if one.random else nullcontext()
        with self._engine.paused(), replayed, one.in_its_precision(), torch.enable_grad():
            if wide:
                widened = {name: value.double() for name, value in self._module.named_parameters()}
                widened |= {name: _widened(value) for name, value in self._module.named_buffers()}
                outputs = self._places.call(widened, *mapped(_widened, (args, kwargs)))
            else:
                outputs = self._module(*args, **kwargs)
            found = floating(outputs)
            place = i if one.random else 0
            used = [found[number] for number in one.cotangents]
            sent = [part[i : i + 1] * one.n for part in one.cotangents.values()]
            cotangents = [_at(place, own, output) for own, output in zip(sent, used, strict=True)]
            gradients = gradients_of(used, list(named.values()), cotangents)
        return [part[place : place + 1].detach() for part in used], gradients

    def _compare_outputs(self, one: Pass, i: int, alone: list[Tensor]) -> None:
        outputs = floating(one.outputs)
        for number, mine in zip(one.cotangents, alone, strict=True):
            if _within(outputs[number][i : i + 1], mine, OUTPUT_TOLERANCE):
                continue
            given, largest = outputs[number][i : i + 1], largest_finite(outputs[number])
            apart = float((given.double() - mine.double()).abs().max()) if given.numel() else 0.0
            if given.shape == mine.shape and not math.isfinite(apart):
                both = [[given.double()], [mine.double()]]
                if not any(map(_finite, both)) or _overflowed(rows(one.call, i, i + 1), *both):
                    continue
            if given.shape != mine.shape or not apart <= OUTPUT_TOLERANCE * largest:
                raise NotPrivate(
                    f"the outputs of an example in a batch of {one.n} are not those of the example alone (by "
                    f"{apart:.3g}, where the largest is {largest:.3g}): a layer mixes examples"
                    f"{self._first_that_mixes(one, i)}. Normalise and attend within an example only"
                )

    def _row_overflowed(self, one: Pass, i: int, given: list[Tensor], alone: list[Tensor]) -> bool:
        cotangents = [part[i : i + 1] * one.n for part in one.cotangents.values()]
        return _overflowed([rows(one.call, i, i + 1), cotangents], given, alone)

    def _first_that_mixes(self, one: Pass, i: int) -> str:
        """Name the first layer whose output for an example is another than in a batch of that example alone."""
        copies = one.n if one.random else self.copies

        def outputs(call: Any) -> Record:
            replayed = one.replayed() if one.random else nullcontext()
            with self._engine.paused(), replayed, one.in_its_precision():
                return recorded(self._module, lambda: self._module(*call[0], **call[1]))

        def same(among: Tensor, alone: Tensor) -> bool:
            parts, place = len(among) // one.n if among.ndim else 0, i if one.random else 0
            if not parts or len(among) != parts * one.n or len(alone) != parts * copies:
                return True
            mine = among[i * parts : (i + 1) * parts]
            theirs = alone[place * parts : (place + 1) * parts]
            far = mine.shape != theirs.shape or float((mine.double() - theirs.double()).abs().max()) > (
                OUTPUT_TOLERANCE * largest_finite(among)
            )
            return not (mine.numel() and far)

        try:
            first = first_other(outputs(one.given), outputs(repeated(rows(one.call, i, i + 1), copies)), same)
        except Exception:  # the text is still right without the name
            first = None
        return f", first {first}" if first else ""


def largest_finite(values: Tensor) -> float:
    """Return the largest magnitude among the finite values: an example that is not finite must hide nothing."""
    return float(values.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if values.numel() else 0.0


def _at(place: int, own: Tensor, like: Tensor) -> Tensor:
    """Return zeros in the form of a tensor, but for one entry of its first axis."""
    if own.shape == like.shape and own.dtype == like.dtype:
        return own  # the only entry
    found = torch.zeros_like(like)
    found[place : place + 1] = own
    return found


def _widened(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while; cuDNN's recurrent layers have no gradient there."""
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def _device(value: Any) -> torch.device:
    return next((part.device for part in tensors(value)), torch.device("cpu"))


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _near(mine: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> bool:
    """Return whether two gradients are alike in the precision in which they are given; False where that is unsure."""
    if any(a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
        return False
    own = list(theirs)
    apart = torch._foreach_sub(list(mine), own)  # pyright: ignore[reportPrivateImportUsage]
    norms = map(torch._foreach_norm, (apart, own))  # pyright: ignore[reportPrivateImportUsage]
    distance, norm = (float(torch.linalg.vector_norm(torch.stack(parts))) for parts in norms)
    # A half, since norms of float32 read low. Where each square is zero, so are both numbers.
    return SMALL <= norm < math.inf and distance <= 0.5 * tolerance * norm


def _within(mine: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Return whether all values are close beside the largest of the second; False where that is unsure."""
    if mine.shape != theirs.shape or not mine.numel():
        return False
    apart = float(torch.linalg.vector_norm(mine - theirs, math.inf))
    return apart <= 0.5 * tolerance * float(torch.linalg.vector_norm(theirs, math.inf)) < math.inf


def _share(mine: list[Tensor], theirs: list[Tensor], floor: float = 0.0) -> float:
    """Return the norm of the difference as a share of the larger norm; the clip blanks what is not finite."""
    norms = _norm(mine), _norm(theirs)
    if not all(map(math.isfinite, norms)):
        return 0.0 if math.isfinite(norms[0]) == math.isfinite(norms[1]) else math.inf
    apart = _norm([a - b for a, b in zip(mine, theirs, strict=True)])
    return 0.0 if apart <= floor else apart / max(norms)


def _norm(parts: list[Tensor]) -> float:
    flat = [part.reshape(-1) for part in parts]
    squares = list(map(torch.dot, flat, flat))
    return math.sqrt(float(sum(squares[1:], squares[0]))) if squares else 0.0


def _distance(mine: list[Tensor], theirs: list[Tensor]) -> str:
    """Say how far the first is from the second."""
    apart, norm = _norm([a - b for a, b in zip(mine, theirs, strict=True)]), _norm(theirs)
    if norm == 0:
        return f"of norm {apart:.3g} where that of the example alone is zero"
    if not math.isfinite(apart):
        return "finite in one of them only"
    return f"by {apart / norm:.3g} of its norm"


def _finite(parts: list[Tensor]) -> bool:
    return math.isfinite(_norm(parts))


def _overflowed(own: Any, mine: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether only one of two is finite, for an example whose own values are so large that both are right.

    An error would tell that the example is there (PRIVACY_RULES hazard 6). One that is not finite though its example is
    an ordinary one was mixed with others.
    """
    large = any(not torch.isfinite(part).all() or largest_finite(part) > LARGE for part in floating(own))
    return large and not (_finite(mine) and _finite(theirs))


def _far(mine: list[Tensor], theirs: list[Tensor], tolerance: float) -> bool:
    """Return whether two gradients differ; where both have values that are not finite, the clip blanks both.

    A difference below LEAST is none: it may be one digit of numbers that have no more, in a model that has diverged.
    """
    norms = _norm(mine), _norm(theirs)
    if not all(map(math.isfinite, norms)):
        return math.isfinite(norms[0]) != math.isfinite(norms[1])
    return not _norm([a - b for a, b in zip(mine, theirs, strict=True)]) <= max(tolerance * norms[1], LEAST)
