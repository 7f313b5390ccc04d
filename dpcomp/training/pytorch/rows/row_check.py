"""Row check: holds a row of per-example gradients to the gradient of its example alone."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.checks.precision import short_products
from dpcomp.training.pytorch.rows.digits import LEAST, least_difference, short_digits, widened
from dpcomp.training.pytorch.rows.distances import (
    SMALL,
    alike,
    all_close,
    all_finite,
    differs,
    distance_of,
    distance_text,
    largest_finite,
    norm_of,
    one_overflowed,
    share_apart,
)
from dpcomp.training.pytorch.rows.engine import Rows
from dpcomp.training.pytorch.rows.generators import drawn_between, kept_generators, random_states, seed_generators
from dpcomp.training.pytorch.rows.isolated import gradients_of
from dpcomp.training.pytorch.rows.layer_outputs import Record, first_other, recorded
from dpcomp.training.pytorch.rows.own_losses import own_losses
from dpcomp.training.pytorch.rows.parameters import Places, trainable
from dpcomp.training.pytorch.rows.passes import Pass, floating, without_autocast
from dpcomp.training.pytorch.rows.placed_loss import PlacedLoss
from dpcomp.training.pytorch.rows.structures import Call, along_examples, mapped, repeated, rows, tensors

Model = Callable[[tuple[Any, ...], dict[str, Any]], Any]

TOLERANCE = 1e-4  # of the norm of a row
OUTPUT_TOLERANCE = 1e-3  # of the largest output of a pass
MIXED_ROUNDINGS = 8  # of the digits of mixed precision, in the gradient of an output
NUDGE = 2.0**-16  # of a parameter: moves the outputs of a model by as much as rounding in float32 may
EXACT_NUDGE = 2.0**-40  # the same for float64


class RowCheck:
    """Recomputes a row from its example alone: outputs, the loss at these outputs, and the gradient behind them.

    A row is right if it is the gradient of its example alone, through model and loss. Where float32 differs, the three
    parts are compared one by one: the outputs; the loss at the outputs of the pass itself; and the gradient for the
    cotangent that the script's loss sent back. Each may hide a tie that a later part enlarges, since a small output or
    cotangent beside a large one may be all that parameters see. So what the parts let by must be rounding: in float64,
    the row of the example in the whole batch is that of the example alone.

    Where float32 still differs in a part (an activation whose input is zero but for the last bit), copies of the
    example in a batch of the same size, whose kernels round alike, are taken instead; then the two references must
    agree in float64. A pass that drew random numbers is repeated with copies of the example and the same numbers.

    Args:
        module: The model.
        loss: The declared mean loss of a batch.
        engine: What made the rows.
        tolerance: The largest difference, as a share of the norm of the row.
    """

    def __init__(self, module: nn.Module, loss: PlacedLoss, engine: Rows, tolerance: float = TOLERANCE):
        self._module, self.loss, self._engine, self._tolerance = module, loss, engine, tolerance
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
            self.row_of(one, targets, i, row)

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
        if not differs(sent, alone, self._tolerance, least_difference(one)) or one_overflowed(
            rows((one.call, one.outputs, targets), i, i + 1), sent, alone
        ):
            return
        if self._loss_explained_by_rounding(one, targets, i, sent) or self._same_in_mixed_precision(
            one, targets, i, sent, alone
        ):
            return
        raise NotPrivate(self._other_loss(one, sent, alone, "the gradient of an example's outputs"))

    def losses_of(self, one: Pass, targets: Any) -> None:
        """Check the loss of every example of a pass, as `loss_of` does.

        As a rule one map over the examples shows that all is well.

        Args:
            one: A pass that a backward pass has reached.
            targets: The targets of its examples.

        Raises:
            NotPrivate: As `loss_of` does.
        """
        try:
            own = own_losses(self.loss, one, targets, self.copies)
            sent = [part * one.n for part in one.cotangents.values()]
            apart, norms = (
                torch.stack([part.reshape(one.n, -1).norm(dim=1) for part in parts]).norm(dim=0)
                for parts in (list(map(torch.sub, sent, own)), own)
            )
            sure = (apart <= 0.5 * self._tolerance * norms) & (norms >= SMALL) & norms.isfinite()
            sure |= (apart == 0) & (norms == 0)  # as of a hinge: nothing of such an example reaches a row
            unsure = (~sure).nonzero().flatten().tolist()
        except Exception:  # of a loss that cannot be mapped over examples
            unsure = range(one.n)
        for i in unsure:
            self.loss_of(one, targets, i)

    def outputs_of(self, one: Pass, i: int) -> None:
        """Check that the outputs of an example are those of the example alone.

        Args:
            one: A pass that a backward pass has reached.
            i: The number of the example.

        Raises:
            NotPrivate: They are others.
        """
        self._compare_outputs(one, i, self._behind(one, i, copies=self._beside(one))[0])

    def row_of(self, one: Pass, targets: Any, i: int, row: tuple[Tensor, ...]) -> None:
        """Check outputs, and that a row is the gradient of its example alone, through model and loss.

        Args:
            one: A pass that a backward pass has reached, and whose loss was checked.
            targets: The targets of its examples.
            i: The number of the row.
            row: An (…) tensor a trainable parameter.

        Raises:
            NotPrivate: Naming the parameters whose gradients differ, or the output.
        """
        outputs, behind = self._behind(one, i, copies=self._beside(one))
        self._compare_outputs(one, i, outputs)
        self._compare_behind(one, i, row, behind)
        self._compare_whole(one, targets, i, row, behind)

    def _compare_behind(self, one: Pass, i: int, row: tuple[Tensor, ...], behind: list[Tensor]) -> None:
        """Hold a row to the gradient of its example alone for the cotangent that the loss sent."""
        if alike(row, behind, self._tolerance):
            return
        given, alone = ([part.double() for part in parts] for parts in (row, behind))
        if not differs(given, alone, self._tolerance, LEAST) or self._row_overflowed(one, i, given, alone):
            return
        if not one.random and one.n > 1 and self._explained_by_rounding(one, i, given):
            return
        raise NotPrivate(self._other_row(given, alone))

    def _compare_whole(self, one: Pass, targets: Any, i: int, row: tuple[Tensor, ...], behind: list[Tensor]) -> None:
        """Hold a row to the gradient of its example alone through its own loss at its own outputs."""
        whole = self._alone(one, targets, i)[2]
        if alike(row, whole, self._tolerance):
            return
        given, alone = ([part.double() for part in parts] for parts in (row, whole))
        if not differs(given, alone, self._tolerance, LEAST):
            return
        if self._whole_explained(one, targets, i, given, alone):
            return
        mine = self._cotangents(one, targets, i, copies=self.copies)
        at_own = self._behind(one, i, copies=self._beside(one), sent=mine)[1]
        sent, at_own = ([part.double() for part in parts] for parts in (behind, at_own))
        if differs(sent, at_own, self._tolerance, LEAST):
            raise NotPrivate(self._other_loss(one, sent, at_own, "the row of an example"))
        raise NotPrivate(self._other_row(given, alone))

    def _other_loss(self, one: Pass, sent: list[Tensor], alone: list[Tensor], what: str) -> str:
        return (
            f"the loss of a batch of {one.n} is not the mean of the losses of its examples, or the script computes "
            f"another loss than loss=: {what} differs, "
            f"{distance_text(sent, alone)}. Use a plain mean: no class weights, ignore_index, contrast "
            "between examples, penalty on the batch or GradScaler; or declare the loss that the script computes"
        )

    def _other_row(self, given: list[Tensor], alone: list[Tensor]) -> str:
        names = list(self._parameters)
        scale = max(norm_of(alone), 1e-300)
        differences = {name: float((a - b).norm()) / scale for name, a, b in zip(names, given, alone, strict=True)}
        worst = [name for name, value in differences.items() if not value <= self._tolerance] or names
        return (
            f"the gradient of an example is another than that of the example alone, {distance_text(given, alone)}, "
            f"at {worst}: a layer mixes examples, or its per-example gradients are wrong. Give "
            f"engine=Isolated(), or normalise and attend within an example only{short_products(alone[0].device)}"
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
        share = share_apart(mine, theirs)
        if share <= self._tolerance:
            return 0.0
        try:
            mine, theirs, nudged = (
                self._gradient(call, targets, quiet=quiet, wide=True, nudge=by)
                for (call, targets), by in ((row, 0.0), (alone, 0.0), (alone, EXACT_NUDGE))
            )
        except (RuntimeError, TypeError, ValueError):  # model or loss compute in float32 only
            return share
        share = share_apart(mine, theirs)
        # A gradient that is zero but for rounding, as where the outputs are the targets, has no share of its own.
        return (
            share if share > self._tolerance and not distance_of(mine, theirs) <= distance_of(nudged, theirs) else 0.0
        )

    def _draws_numbers(self, row: Any) -> bool:
        before = random_states()
        args, kwargs = repeated(row[0], self.copies)
        with kept_generators(), self._engine.paused(), torch.no_grad():
            self._module(*args, **kwargs)
            return drawn_between(before, random_states())

    def _gradient(
        self, call: Any, targets: Any, *, quiet: bool, wide: bool = False, nudge: float = 0.0
    ) -> list[Tensor]:
        """Return the gradient of a batch of one, with the same random numbers each time."""
        inputs, wanted = repeated((call, targets), self.copies)
        device = _device(call)
        with ExitStack() as stack:
            stack.enter_context(kept_generators())
            stack.enter_context(self._engine.paused())
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(torch.enable_grad())
            if quiet:
                stack.enter_context(_evaluating(self._module))
            seed_generators(0)
            model, parameters = self._model(wide=wide, nudge=nudge)
            loss = self.loss(model(*inputs), widened(wanted) if wide else wanted)
            return [part.double() for part in gradients_of([loss], parameters, [None])]

    def _same_alone(self, one: Pass, targets: Any, i: int, row: tuple[Tensor, ...]) -> bool:
        """Return whether the example alone has these outputs, cotangents and row; False where that is unsure."""
        given = [floating(one.outputs)[number] for number in one.cotangents]
        if any(part.ndim == 0 or len(part) != one.n for part in given):
            return False
        outputs, cotangents, alone = self._alone(one, targets, i)
        sent = [part[i : i + 1] * one.n for part in one.cotangents.values()]
        return (
            len(outputs) == len(cotangents) == len(sent)
            and all(
                all_close(part[i : i + 1], mine, OUTPUT_TOLERANCE) for part, mine in zip(given, outputs, strict=True)
            )
            and alike(sent, cotangents, self._tolerance)
            and alike(row, alone, self._tolerance)
        )

    def _alone(
        self, one: Pass, targets: Any, i: int, *, wide: bool = False, nudge: float = 0.0
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return outputs, cotangents and row of an example alone, through its own loss at its own outputs."""
        call, wanted = rows((one.call, targets), i, i + 1)
        wanted = repeated(wanted, self.copies)
        with self._ready(one, wide=wide, nudge=nudge) as (model, parameters):
            outputs = model(*repeated(call, self._beside(one)))
            own = rows(outputs, i, i + 1) if one.random else outputs  # the other copies drew other numbers
            used = list(_with_parameters(one, own).values())
            loss = self.loss(repeated(own, self.copies) if one.random else own, widened(wanted) if wide else wanted)
            gradients = gradients_of([loss], [*used, *parameters], [None])
        # Each of the copies has a share of 1 / copies in the mean.
        cotangents = [part.sum(dim=0, keepdim=True) if len(part) > 1 else part for part in gradients[: len(used)]]
        return [part[:1].detach() for part in used], cotangents, gradients[len(used) :]

    def _among(self, one: Pass, batch: Any, i: int, *, wide: bool = False) -> list[Tensor]:
        """Return the gradient of the outputs of an example in a batch, for what the declared loss of it sends them.

        Args:
            one: A pass.
            batch: Positional arguments and those by name, of as many examples; and the targets.
            i: The number of the example.
            wide: Whether all is computed in float64.
        """
        call, targets = batch
        args, kwargs = repeated(call, 2) if one.doubled else call
        with self._ready(one, wide=wide) as (model, parameters):
            outputs = model(args, kwargs)
            outputs = rows(outputs, 0, 1) if one.doubled else outputs
            used = list(_with_parameters(one, outputs).values())
            loss = self.loss(outputs, widened(targets) if wide else targets)
            held = torch.autograd.grad(loss, used, retain_graph=True, allow_unused=True)
            cotangents = [
                torch.zeros_like(output) if part is None else _at(i, part[i : i + 1] * one.n, output)
                for output, part in zip(used, held, strict=True)
            ]
            return gradients_of(used, parameters, cotangents)

    def _beside(self, one: Pass) -> int:
        """Return how many copies of an example stand for it alone: those of a random pass draw what the batch drew."""
        return max(one.n, self.copies) if one.random else self.copies

    @contextmanager
    def _ready(self, one: Pass, *, wide: bool = False, nudge: float = 0.0) -> Iterator[tuple[Model, list[Tensor]]]:
        """Give what `_model` returns, in the precision of a pass and with the random numbers that it drew."""
        replayed = one.replayed() if one.random else nullcontext()
        with self._engine.paused(), replayed, one.in_its_precision(), torch.enable_grad():
            yield self._model(wide=wide, nudge=nudge)

    def _model(self, *, wide: bool, nudge: float) -> tuple[Model, list[Tensor]]:
        """Return the model as a function, and the trainable parameters that it uses.

        Args:
            wide: Whether parameters, buffers and inputs are of float64.
            nudge: The share of itself by which each parameter is moved, up or down.
        """
        if not wide and not nudge:
            return self._called, list(self._parameters.values())
        signs = torch.Generator().manual_seed(0)
        values: dict[str, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            value = parameter.detach().double() if wide else parameter.detach().clone()
            if nudge:
                up = torch.randint(2, value.shape, generator=signs).to(value)
                value = value * (1 + nudge * (2 * up - 1))
            values[name] = value.requires_grad_(parameter.requires_grad)
        used = [value for value in values.values() if value.requires_grad]
        if wide:
            values |= {name: widened(value) for name, value in self._module.named_buffers()}

        def model(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given: Call = widened(Call(args, kwargs)) if wide else self._engine.arranged(Call(args, kwargs))
            return self._places.call(values, *given)

        return model, used

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = self._engine.arranged(Call(args, kwargs))  # another layout of memory would round in another way
        return self._module(*args, **kwargs)

    def _is_declared_loss(self, one: Pass, targets: Any, i: int, alone: list[Tensor]) -> bool:
        """Return whether a row is the same with the declared loss of the batch in place of the script's."""
        held: list[Tensor] = []

        def leaf(part: Tensor) -> Tensor:
            if part.is_floating_point():
                part = part.clone().requires_grad_()
                held.append(part)
            return part

        outputs = mapped(leaf, one.outputs)
        with torch.enable_grad(), one.in_its_precision():
            declared = gradients_of([self.loss(outputs, targets)], held, [None])
        apart: list[Tensor] = []
        for number, sent in one.cotangents.items():
            mine, theirs = sent[i : i + 1] * one.n, declared[number][i : i + 1].to(sent) * one.n
            alike = (mine == theirs) | (mine.isnan() & theirs.isnan())
            apart.append(torch.where(alike, torch.zeros_like(mine), mine - theirs))
        if not any(map(torch.count_nonzero, apart)):
            return True
        moved = [part.double() for part in self._behind(one, i, copies=self._beside(one), sent=apart)[1]]
        return norm_of(moved) <= max(self._tolerance * norm_of(alone), LEAST)

    def _whole_explained(self, one: Pass, targets: Any, i: int, given: list[Tensor], alone: list[Tensor]) -> bool:
        """Return whether a row differs from that of the example alone by rounding, or by an overflow of its own.

        Copies of the example in a batch of the same size round alike, so what they do not give is of other examples;
        and what depends on the size of the batch shows in float64, as does all else that is no rounding.
        """
        copies = along_examples(
            lambda part: _all_like(part, i), lambda column: column[i : i + 1] * len(column), (one.call, targets)
        )
        if differs(given, [part.double() for part in self._among(one, copies, i)], self._tolerance, LEAST):
            return False
        if all_finite(given) != all_finite(alone):
            return self._row_overflowed(one, i, given, alone)
        if not self._is_declared_loss(one, targets, i, alone):
            return False
        try:
            exact, nudged = (self._alone(one, targets, i, wide=True, nudge=by)[2] for by in (0.0, EXACT_NUDGE))
            among = self._among(one, (one.call, targets), i, wide=True)
        except (RuntimeError, TypeError, ValueError):  # model or loss compute in float32 only
            nudged = [part.double() for part in self._alone(one, targets, i, nudge=NUDGE)[2]]
            return distance_of(given, alone) <= distance_of(nudged, alone) < math.inf
        # Where the gradient is zero but for rounding, rounding has no share of it: float32's is larger, and so is what
        # a small move of the parameters makes.
        scale, noise = max(norm_of(exact), norm_of(alone)), distance_of(nudged, exact)
        return distance_of(among, exact) <= max(self._tolerance * scale, noise, LEAST) < math.inf

    def _loss_explained_by_rounding(self, one: Pass, targets: Any, i: int, sent: list[Tensor]) -> bool:
        floor = least_difference(one)
        if differs(sent, self._cotangents(one, targets, i, copies=one.n), self._tolerance, floor):
            return False
        try:
            exact = self._cotangents(one, targets, i, copies=self.copies, wide=True)
            exact_among = self._cotangents(one, targets, i, copies=one.n, wide=True)
        except (RuntimeError, TypeError, ValueError):  # the loss computes in float32 only
            return False
        return not differs(exact_among, exact, self._tolerance, floor)

    def _same_in_mixed_precision(
        self, one: Pass, targets: Any, i: int, sent: list[Tensor], alone: list[Tensor]
    ) -> bool:
        """Return whether cotangents agree to the digits of 16 bits, with the loss inside autocast or outside.

        Rows of such a pass are made of examples alone, and no cotangent that the script sent is in them.
        """
        rounding, least = short_digits(one)
        if not rounding or not one.alone:
            return False
        places = [alone]
        if one.autocast is not None and one.autocast not in self.loss.behind:
            with suppress(RuntimeError, TypeError, ValueError):  # a loss that takes them in autocast alone
                places.append(self._cotangents(one, targets, i, copies=self.copies, mixed=False))
        return any(not differs(sent, own, MIXED_ROUNDINGS * rounding, least * one.n) for own in places)

    def _explained_by_rounding(self, one: Pass, i: int, given: list[Tensor]) -> bool:
        among = [part.double() for part in self._behind(one, i, copies=one.n)[1]]
        if differs(given, among, self._tolerance, LEAST):
            return False
        try:
            exact, exact_among = (self._behind(one, i, copies=copies, wide=True)[1] for copies in (self.copies, one.n))
        except (RuntimeError, TypeError, ValueError):  # the model computes in float32 only
            return False
        return not differs(exact_among, exact, self._tolerance, LEAST)

    def _cotangents(
        self, one: Pass, targets: Any, i: int, *, copies: int, wide: bool = False, mixed: bool = True
    ) -> list[Tensor]:
        """Return the gradients of an example's own loss with respect to its outputs.

        In the precision of the pass, or without `mixed` in that of the outputs.
        """
        held: list[Tensor] = []

        def leaf(part: Tensor) -> Tensor:
            if part.is_floating_point():
                part = (part.double() if wide else part).requires_grad_()
                held.append(part)
            return part

        outputs = mapped(leaf, repeated(rows(one.outputs, i, i + 1), copies))
        with torch.enable_grad(), one.in_its_precision() if mixed else without_autocast(one.device):
            wanted = repeated(rows(targets, i, i + 1), copies)
            loss = self.loss(outputs, widened(wanted) if wide else wanted)
            found = gradients_of([loss], held, [None])
        # Each of the copies has a share of 1 / copies in the mean.
        return [found[number].double().sum(dim=0, keepdim=True) for number in one.cotangents]

    def _behind(
        self, one: Pass, i: int, *, copies: int, wide: bool = False, sent: list[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs of an example among copies of itself, and the gradient for a cotangent, or for its own."""
        if sent is None:
            sent = [part[i : i + 1] * one.n for part in one.cotangents.values()]
        sent_to = dict(zip(one.cotangents, sent, strict=True))
        call = repeated(rows(one.call, i, i + 1), copies)
        with self._ready(one, wide=wide) as (model, parameters):
            outputs = model(*call)
            place = i if one.random else 0
            used = _with_parameters(one, outputs)
            cotangents = [_at(place, sent_to[number].to(output), output) for number, output in used.items()]
            gradients = gradients_of(list(used.values()), parameters, cotangents)
        found = floating(outputs)
        return [found[number][place : place + 1].detach() for number in one.cotangents], gradients

    def _compare_outputs(self, one: Pass, i: int, alone: list[Tensor]) -> None:
        outputs = floating(one.outputs)
        for number, mine in zip(one.cotangents, alone, strict=True):
            if all_close(outputs[number][i : i + 1], mine, OUTPUT_TOLERANCE):
                continue
            given, largest = outputs[number][i : i + 1], largest_finite(outputs[number])
            apart = float((given.double() - mine.double()).abs().max()) if given.numel() else 0.0
            if given.shape == mine.shape and not math.isfinite(apart):
                both = [[given.double()], [mine.double()]]
                if not any(map(all_finite, both)) or one_overflowed(rows(one.call, i, i + 1), *both):
                    continue
            if given.shape != mine.shape or not apart <= OUTPUT_TOLERANCE * largest:
                raise NotPrivate(
                    f"the outputs of an example in a batch of {one.n} are not those of the example alone (by "
                    f"{apart:.3g}, where the largest is {largest:.3g}): a layer mixes examples"
                    f"{self._first_that_mixes(one, i)}. Normalise and attend within an example only"
                    f"{short_products(one.device)}"
                )

    def _row_overflowed(self, one: Pass, i: int, given: list[Tensor], alone: list[Tensor]) -> bool:
        cotangents = [part[i : i + 1] * one.n for part in one.cotangents.values()]
        return one_overflowed([rows(one.call, i, i + 1), cotangents], given, alone)

    def _first_that_mixes(self, one: Pass, i: int) -> str:
        """Name the first layer whose output for an example is another than in a batch of that example alone."""
        copies = self._beside(one)

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


def _with_parameters(one: Pass, outputs: Any) -> dict[int, Tensor]:
    """Return, by their numbers, the outputs that the script's loss used and that depend on parameters."""
    found = floating(outputs)
    return {number: found[number] for number in one.cotangents if found[number].requires_grad}


def _at(place: int, own: Tensor, like: Tensor) -> Tensor:
    """Return zeros in the form of a tensor, but for one entry of its first axis."""
    if own.shape == like.shape and own.dtype == like.dtype:
        return own  # the only entry
    found = torch.zeros_like(like)
    found[place : place + 1] = own
    return found


def _all_like(values: Tensor, i: int) -> Tensor:
    """Return a batch of copies of one example that lies in memory as the batch does."""
    return torch.empty_like(values).copy_(values.detach()[i : i + 1].expand_as(values))


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
