"""PrivateOptimizer: Opacus' optimiser with the pipeline's clip and noise in place of its own."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizer

from dpcomp.core.address import Address
from dpcomp.core.checks import check_type, real_number, whole_number
from dpcomp.core.errors import BudgetExhausted, NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Clip, Gaussian
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.privacy.units.unit_gradients import Total
from dpcomp.terms import FederationTerms
from dpcomp.training.pytorch.checks.batch_form import check_batch
from dpcomp.training.pytorch.checks.public_rows import PublicRows
from dpcomp.training.pytorch.collation import refuse_tied_row
from dpcomp.training.pytorch.draws import Draws, MicroBatch
from dpcomp.training.pytorch.private_model import PrivateModel
from dpcomp.training.pytorch.rows.batch_sizes import BatchSizes
from dpcomp.training.pytorch.rows.generators import set_generator
from dpcomp.training.pytorch.rows.parameters import cut, layout_of, read, trainable
from dpcomp.training.pytorch.rows.passes import Pass, without_autocast
from dpcomp.training.pytorch.rows.structures import count, inputs_and_targets, rows, to
from dpcomp.training.pytorch.steps.noise_through_sgd import NoiseThroughSgd
from dpcomp.training.pytorch.steps.step_code import own_step, refuse_code_around
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update

PUBLIC_ROWS = "public rows are fresh independent draws, and their pass reads no private value"
FROZEN = {"noise_multiplier", "max_grad_norm", "expected_batch_size", "loss_reduction"}
OWN_DRAWS = "random numbers before the clip that dpcomp does not draw are fresh, and nobody knows them"
SETTINGS = "learning rates and other settings of the optimiser were not computed from clean values"
FEWER_STEPS = "the number of steps was not chosen by a look at clean values"
SCALED = {"grad_scale", "found_inf"}  # what a GradScaler sets on the optimiser that it is about to step


class PrivateOptimizer(DPOptimizer):
    """An optimiser that clips and noises per-example gradients by a pipeline, and steps on the released sum alone.

    `make_private` makes it. `begin(memory, permit)` opens a round, each logical step takes one drawn batch and one step
    of the permit, and `update()` returns the change of the model since then. Micro-batches can be added up to one
    logical step, as Opacus' `BatchMemoryManager` does it.

    **Privacy:** a step clips one row for each example that was drawn for it, and no other; rows are functions of their
    example alone, by the engine's construction or by its checks; each step's sum goes through `pipeline.clip` and
    `pipeline.noise` before it becomes a gradient; the divisor is a public constant; raw gradients are wiped after each
    micro-batch; and a model that anything else moved is refused. All of this is checked before the noise is drawn.

    Args:
        optimizer: A torch optimiser of all trainable parameters of the model.
        model: What `private_model` returned.
        pipeline: Clips and releases, with `unit="example"` and `trust="nobody"`.
        secret: Where noise, batches, spot checks and what layers draw come from.
        expected_batch_size: The public constant that divides each step's sum, such as the sampling rate × the public
            number of examples.
        views: How many passes a micro-batch makes through the model, such as augmented views of its examples; the rows
            of an example are averaged before the clip (De et al. 2022, "Unlocking High-Accuracy Differentially Private
            Image Classification through Scale", section 4).

    Raises:
        NotPrivate: The pipeline does not release local steps, the model was not inspected, or hooks or modes would see
            the optimiser's steps.
        TypeError: The divisor is not a number.
        ValueError: The divisor is not a finite number above 0, the optimiser's parameters are not the model's trainable
            ones, or it needs a closure or sparse gradients.
    """

    _step_supports_amp_scaling = True  # a GradScaler then calls step(), where it is refused, and never skips it

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: PrivateModel,
        pipeline: Pipeline,
        *,
        secret: SecretSeed,
        expected_batch_size: float,
        views: int = 1,
    ):
        trust = pipeline.trust_model
        if not trust.releases_local_steps or trust.server_sees_clean:
            raise NotPrivate(
                f"PrivateOptimizer releases each local step on the client, which unit={pipeline.unit!r} with "
                f"trust={pipeline.trust!r} does not: use unit='example' and trust='nobody', or a plain torch optimiser"
            )
        if not isinstance(model, PrivateModel):
            raise NotPrivate(
                f"the model is a {type(model).__name__} that was not inspected: give what make_private returns"
            )
        refuse_unfit(optimizer)
        refuse_code_around(optimizer)
        divisor = real_number(expected_batch_size, "expected_batch_size", "a finite number above 0, which divides sums")
        if not 0 < divisor < math.inf:
            raise ValueError(f"expected_batch_size is {divisor}: it divides sums, so give a finite number above 0")
        norms = [stage.norm for stage in pipeline.stages if isinstance(stage, Clip)]
        noises = [stage.noise_multiplier for stage in pipeline.stages if isinstance(stage, Gaussian)]
        super().__init__(
            optimizer,
            noise_multiplier=noises[0] if noises else 0.0,
            max_grad_norm=norms[0] if norms else float("inf"),
            expected_batch_size=divisor,  # pyright: ignore[reportArgumentType]
        )
        self._model, self._pipeline, self._secret = model, pipeline, secret
        self._views = whole_number(views, "views", least=1)
        self._parameters = list(trainable(model).values())
        if {id(parameter) for parameter in self.params} != {id(parameter) for parameter in self._parameters}:
            raise ValueError(
                f"the optimiser's {len(self.params)} parameters are not the model's {len(self._parameters)} trainable "
                "ones: give it model.parameters(), and freeze with requires_grad_(False) what is not to be trained"
            )
        self.draws, self._arguments = Draws(), model.arguments()
        self.worker_seeds = torch.Generator()  # the loader's, set at each round
        self._open: tuple[ClientMemory, Permit] | None = None
        self._closed: Permit | None = None  # of the round in which a batch was given up
        self._total: Total | None = None
        self._start = self._released = None
        self._noise, self._steps = NoiseThroughSgd(), 0
        self._which_row: np.random.Generator | None = None  # draws the rows that are checked in a round
        self._losses_held = BatchSizes()  # the largest passes whose losses were all held to those of examples alone
        self._public_rows, self._assumed_public = PublicRows(), False
        self._sealed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FROZEN and getattr(self, "_sealed", False):
            raise AttributeError(f"{name} is fixed by the pipeline that is charged for: make another pipeline instead")
        if name in SCALED:
            self.discard()
            raise NotPrivate(
                "a GradScaler scales losses, so the clip would see scaled gradients; and it skips steps that overflow, "
                "which all would see. Train without one: torch.autocast with bfloat16 needs none"
            )
        super().__setattr__(name, value)

    @property
    def layout(self) -> Layout:
        """The layout of the trainable parameters, for the memory of a client.

        Raises:
            NotPrivate: Other parameters are trainable than those that were inspected.
        """
        self._model.refuse_other_parameters()
        return layout_of(self._model)

    @property
    def model(self) -> PrivateModel:
        """The model whose parameters are stepped."""
        return self._model

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that clips and releases."""
        return self._pipeline

    @property
    def secret(self) -> SecretSeed:
        """Where noise and batches are drawn from."""
        return self._secret

    @property
    def address(self) -> Address:
        """The address of the open round."""
        return self._round()[1].address

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the guarantee assumes of this training, in clauses to print beside it."""
        divisor = f"the divisor {float(self.expected_batch_size or 0):g} is public"
        clauses = [divisor, SETTINGS, self._model.engine.assumption]
        if self._pipeline.sampling is None:
            clauses.append(
                "no batch has an example twice, none was chosen by a look at the data, and each row of a batch was "
                "made from its example alone"
            )
        else:
            clauses.append("each batch was checked to be a draw of dpcomp's loader")
        clauses += ["model and loss hold no private data", OWN_DRAWS]
        if (own := own_step(self.original_optimizer)) is not None:
            clauses.append(own)
        if constants := self._model.constants:
            named = ", ".join(f"{name}={value!r}" for name, value in constants.items())
            clauses.append(f"the arguments {named} of the model are public constants")
        if self._assumed_public:
            clauses.append(PUBLIC_ROWS)
        if self._views > 1:
            clauses.append(f"each of the {self._views} views of an example was made from that example alone")
        return tuple(clauses)

    def refuse_unready(self, memory: ClientMemory) -> None:
        """Refuse what `begin` refuses, which needs no permit for that: call it before the charge, which is for good.

        Args:
            memory: The client's memory, which fits `layout`.

        Raises:
            NotPrivate: Layers or trainable parameters are not those that were inspected; or a buffer, a frozen
                parameter or an attribute of model or loss has another value than at the inspection; or layers are in
                another mode than in the trial, before the first round; or the optimiser has step hooks.
            ValueError: The memory has another layout than the model.
        """
        if memory.layout != self.layout:
            raise ValueError(
                f"the memory has {memory.layout} and the model {self.layout}: make the memory with optimizer.layout"
            )
        self._model.refuse_other_parameters()
        self._model.unmoved.refuse_moved(but_trained=True)  # else what moved in an open round would be sent
        if self._open is None and self._model.training:  # else the script may yet set them for the pass
            self._model.unmoved.modes.refuse_other()
        refuse_code_around(self.original_optimizer)

    def begin(self, memory: ClientMemory, permit: Permit) -> None:
        """Open a round: `update()` counts from here, the optimiser's state is fresh, unfinished steps are discarded.

        Args:
            memory: The client's memory, which fits `layout`.
            permit: What `ledger.charge(pipeline.cost, memory.address, steps)` returned; a logical step uses one step.

        Raises:
            NotPrivate, ValueError: As `refuse_unready` does, which says so before the charge.
        """
        self.refuse_unready(memory)
        check_type(permit, Permit, f"begin(permit={permit!r}): give the Permit that ledger.charge returned")
        self._assumed_public = False
        permit.assume(self.assumptions)
        self.discard_all()
        self._model.unmoved.remember_trained()
        self.original_optimizer.state.clear()
        self._open, self._released = (memory, permit), None
        self._noise, self._steps = NoiseThroughSgd(), 0
        address = permit.address
        self._which_row = self._secret.stream("spot check", address.run, address.client, address.round)
        self._model.draw_from(self._secret, address)
        self.draws.open_round(address)
        set_generator(self.worker_seeds, self._secret, "worker seeds", address.run, address.client, address.round)
        self._start = read(self._model)

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of a loader of your own, one a step; only where no sampling is charged.

        **Privacy:** that no batch holds an example twice, and that rows were made from their examples alone, is assumed
        and stands in `assumptions`.

        Args:
            loader: Gives batches; the last part of each, or its `"labels"`, are the targets.

        Raises:
            NotPrivate: The pipeline charges for sampling, which no loader but that of `make_private` does.
        """
        if self._pipeline.sampling is not None:
            raise NotPrivate(
                f"{self._pipeline.sampling} is charged, but your own loader does not draw so. Iterate over the loader "
                "of make_private, or leave sampling out of the pipeline"
            )
        for batch in loader:
            n = count(batch)
            self.draws.arrive(self.draws.draw(range(n), n), batch)
            yield batch

    def update(self) -> Update:
        """Return the change of the parameters in this round, on the support that its releases share.

        **Privacy:** the change is a function of the released sums, public constants and the starting model. Where fewer
        steps were taken than were charged, the guarantee says that no look at clean values chose how many.

        Raises:
            BudgetExhausted: Nothing was released in this round.
            NotPrivate: Something else than the steps moved the model.
        """
        if self._released is None or self._start is None:
            raise BudgetExhausted("nothing was released since begin(memory, permit): take a step first")
        self._model.refuse_other_parameters()
        self._model.unmoved.refuse_moved()
        permit = self._round()[1]
        if permit.used < permit.steps:
            permit.assume([FEWER_STEPS])
        self._forget_passes()
        return self._released.derive(read(self._model) - self._start, noise_stddev=self._noise_in_update())

    def _noise_in_update(self) -> float | None:
        noise = self._released.noise_stddev if self._released else None
        return None if noise is None else self._noise.stddev(noise / float(self.expected_batch_size or 1))

    def discard(self) -> None:
        """Drop an unfinished logical step: its draw, clipped sum, gradients, skip signals and activations.

        **Privacy:** if the script had its batch, the round takes no more steps: which batches are stepped could be
        chosen by a look at them (PRIVACY_RULES hazards 11 and 33).
        """
        self._total, self._is_last_step_skipped = None, False
        self._close_if(self.draws.drop())
        self._step_skip_queue.clear()
        self._forget_passes()

    def discard_all(self) -> None:
        """Drop an unfinished logical step, and all draws that wait for theirs."""
        self.discard()
        self._close_if(self.draws.clear())

    def _close_if(self, given_up: bool) -> None:
        if given_up and self._open is not None:
            self._closed = self._open[1]

    def clip_and_accumulate(self) -> None:
        """Clip the rows of the micro-batch that was drawn, add them to the step's sum, and wipe them.

        Raises:
            NotPrivate: There are more or fewer rows than examples were drawn, a part of the batch cannot be cut into
                examples, the model was called in another way than in its trial or with other parts of the batch, or a
                row is not the gradient of its example alone, also before an own collate function.
        """
        micro_batch = self.draws.peek()
        micro_batch.refuse_written()
        passes, public = self._model.finished(public=False), self._model.finished(public=True)
        self._refuse_uncounted(micro_batch, passes, public)
        self._model.engine.refuse_other_passes(len(passes) + len(public))
        if public:
            if not self._assumed_public:
                self._round()[1].assume([PUBLIC_ROWS])
                self._assumed_public = True
            self._public_rows.refuse_repeated([one.call for one in public], first=self._total is None)
        if micro_batch.n:
            inputs, targets = inputs_and_targets(micro_batch.batch)
            check_batch(inputs, targets)
            start, whole = 0, len(passes) == self._views
            unwritten = micro_batch.unwritten if whole else {}
            for group in self._groups(passes):
                stop = start + group[0].n
                some, truth = (inputs, targets) if whole else rows((inputs, targets), start, stop)
                origins = [
                    self._arguments.trace(one.call, some, any_tensor=self._views > 1, same=unwritten) for one in group
                ]
                if micro_batch.alone is not None and start <= micro_batch.alone[0] < stop:
                    i, alone = micro_batch.alone
                    traced = origins[0] if self._views == 1 else None
                    refuse_tied_row(self._model, group[0], traced, some, truth, alone, i - start)
                self._clip_group(group, public, truth, start)
                start = stop
        self._drawn_is_stepped = self.draws.take(micro_batch)
        self._wipe()

    def add_noise(self) -> None:
        """Release the step's sum, and set the parameters' gradients to it.

        Raises:
            BudgetExhausted: No round is open, or its permit has no step left for this pipeline.
        """
        memory, permit = self._round()
        total, self._total = self._total or self._pipeline.empty_total(memory), None
        self._released = self._pipeline.noise(total, memory, self._secret, permit)
        self._steps += 1
        for parameter, gradient in zip(self._parameters, cut(self._parameters, self._released.dense()), strict=True):
            parameter.grad = gradient.to(device=parameter.device, dtype=parameter.dtype)

    def scale_grad(self) -> None:
        """Divide the gradients by the public constant, whatever the size of the batch."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        divisor = float(self.expected_batch_size or 1)
        torch._foreach_div_(gradients, divisor)  # pyright: ignore[reportPrivateImportUsage]

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Clip and add up; at the end of a logical step, release. A batch without examples releases pure noise.

        Raises:
            NotPrivate: As `clip_and_accumulate` does; or something else than a step moved the model, the step ends
                before its draw or goes on after it, or a batch of this round was given up.
        """
        self._refuse_closed(self._round()[1])
        self._refuse_moved()
        self._model.unmoved.modes.refuse_other()  # rows may be made anew from here on
        self._model.unmoved.modes.refuse_other_switches("step")
        self.clip_and_accumulate()
        self._model.unmoved.modes.refuse_other()
        self._is_last_step_skipped = bool(self._check_skip_next_step())
        if self._is_last_step_skipped == self._drawn_is_stepped:
            raise NotPrivate(
                "the step ends before all examples that were drawn for it were passed through the model, or it goes on "
                "with the next draw: step each batch of the loader once, and cut batches with Opacus' "
                "BatchMemoryManager only"
            )
        if self._is_last_step_skipped:
            return False
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Clip a micro-batch and add it up; after the last one of a logical step, add noise and update the model.

        A logical step has one micro-batch, unless `signal_skip_step` says that more follow. If anything raises, the
        whole logical step is discarded, which closes the round to further steps.

        Args:
            closure: Called before all else, to make the forward and backward pass; None where they were made.

        Returns:
            None.

        Raises:
            NotPrivate: A forward pass had no full backward pass.
            BudgetExhausted: No round is open, or its permit has no step left.
        """
        try:
            if closure is not None:
                with torch.enable_grad():
                    closure()
            if self.pre_step():
                self._refuse_moved()  # by the step hook
                if (own := own_step(self.original_optimizer)) is not None:  # if replaced since begin
                    self._round()[1].assume([own])
                self._noise.step(self.original_optimizer)
                self.original_optimizer.step()
                self._model.unmoved.remember()
            return None
        except BaseException:
            self.discard()
            raise
        finally:
            self._forget_passes()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop all gradients. The clipped sum of an unfinished logical step is kept."""
        self._wipe()

    def _round(self) -> tuple[ClientMemory, Permit]:
        if self._open is None:
            raise BudgetExhausted(
                "no round is open: call optimizer.begin(memory, permit) with a permit of "
                "ledger.charge(pipeline.cost, memory.address, steps)"
            )
        return self._open

    def _refuse_closed(self, permit: Permit) -> None:
        """Refuse further steps of a round in which a batch was given up."""
        if permit is self._closed:
            raise NotPrivate(
                "a batch of this round was delivered and not stepped: a script that chooses which batches it steps by "
                "a look at them does not sample as was charged. Step every batch that the loader gives, empty ones "
                "too, without optimizer.discard() or a new pass before its step, and look at data through a loader of "
                "your own. This round takes no more steps: send its update(), and begin a round at the next address"
            )

    def _refuse_moved(self) -> None:
        self._model.refuse_other_parameters()
        self._model.unmoved.refuse_moved()
        refuse_code_around(self.original_optimizer)

    def _refuse_uncounted(self, micro_batch: MicroBatch, passes: list[Pass], public: list[Pass]) -> None:
        """Refuse passes that do not have a row for each drawn example, in each view."""
        n, counts = micro_batch.n, [one.n for one in passes]
        expected = n * self._views
        each_whole = self._views == 1 or all(number == n for number in counts)
        if sum(counts) != expected or not each_whole:
            what = "example" if n == 1 else "examples"
            views = f" in {self._views} views" if self._views > 1 else ""
            raise NotPrivate(
                f"a step has {sum(counts)} rows of {len(counts)} backward passes where {n} {what} were drawn{views}: "
                "an example would count several times, or not at all. Step every batch of the loader, empty ones too, "
                "and pass it once through the model in model.train(); give make_private views=k for k views of each "
                "example; look at outputs under torch.no_grad(), and put passes over inputs without private data in "
                "`with model.public_rows():`"
            )
        if any(one.n != n for one in public):
            raise NotPrivate(
                f"passes in public_rows() have {[one.n for one in public]} rows where {n} examples were drawn: give "
                "as many public inputs as the micro-batch has examples, so that each joins the row of one"
            )

    def _groups(self, passes: list[Pass]) -> list[list[Pass]]:
        """Return passes whose rows are of the same examples: all views, or each of several passes alone."""
        return [passes] if self._views > 1 else [[one] for one in passes]

    def _clip_group(self, group: list[Pass], public: list[Pass], targets: Any, offset: int) -> None:
        """Check the loss or a secretly drawn row, and clip all rows of some examples."""
        memory, engine = self._round()[0], self._model.engine
        self._check_losses(group, targets)
        self._check_a_row(group, targets)
        if len(group) == 1 and not public and (units := engine.units(group[0], memory.layout)) is not None:
            part = self._pipeline.clip(units, memory)
            self._total = part if self._total is None else self._total + part
            return
        with self._model.lent_generators():  # rows that are made anew draw anew
            self._clip_rows(group, public, targets, offset)

    def _clip_rows(self, group: list[Pass], public: list[Pass], targets: Any, offset: int) -> None:
        """Make the rows of some examples, as many at a time as the engine holds, and clip them."""
        memory, engine, n = self._round()[0], self._model.engine, group[0].n
        step = engine.rows_at_once or n
        for start in range(0, n, step):
            stop = min(n, start + step)
            block = engine.rows(group[0], to(targets, device=group[0].device), start, stop)
            for one in group[1:]:
                more = engine.rows(one, to(targets, device=one.device), start, stop)
                block = tuple(a + b for a, b in zip(block, more, strict=True))
            if self._views > 1:
                block = tuple(part / self._views for part in block)
            for one in public:
                more = engine.rows(one, None, offset + start, offset + stop)
                block = tuple(a + b for a, b in zip(block, more, strict=True))
            with without_autocast(self._parameters[0].device):  # half precision breaks the clip
                part = self._pipeline.clip(block, memory)
            self._total = part if self._total is None else self._total + part

    def _check_losses(self, group: list[Pass], targets: Any) -> None:
        """Hold the loss of each example to that of the example alone, in passes that are larger than those before.

        A loss that leaves out what lies past some place shows in no other row, and in no smaller batch. Rows that are
        made of each example alone need no such look.

        Raises:
            NotPrivate: It differs.
        """
        for one in group:
            if one.alone or self._losses_held.cover((one.outputs, targets)):
                continue
            with without_autocast(one.device):
                self._model.check.losses_of(one, to(targets, device=one.device))
            self._losses_held.add((one.outputs, targets))

    def _check_a_row(self, group: list[Pass], targets: Any) -> None:
        """Hold one row to the gradient of its example alone: which one is drawn in secret, apart from all other draws.

        Raises:
            NotPrivate: It differs.
        """
        assert self._which_row is not None
        one = group[int(self._which_row.integers(len(group)))]
        i = int(self._which_row.integers(one.n))
        check, engine = self._model.check, self._model.engine
        with without_autocast(one.device):
            targets = to(targets, device=one.device)
            if one.alone:
                check.loss_of(one, targets, i)
            else:
                check.example_of(one, targets, i, tuple(part[0] for part in engine.rows(one, targets, i, i + 1)))

    def _forget_passes(self) -> None:
        """Wipe the gradients, and drop what is kept between a forward pass and its backward pass."""
        self._model.forget(unfinished=True)
        self._wipe()

    def _wipe(self) -> None:
        """Remove all raw, per-example and un-noised gradients from the parameters of model and optimiser."""
        self._model.forget(unfinished=False)
        for parameter in (*self._model.all_parameters(), *(p for group in self.param_groups for p in group["params"])):
            parameter.grad = None
            vars(parameter).update(grad_sample=None, summed_grad=None)


def refuse_unfit(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser that evaluates the loss itself, or that needs gradients without noise in most places.

    Raises:
        ValueError: It calls a closure, or takes sparse gradients.
    """
    kind = type(optimizer)
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{kind.__name__} calls a closure for the loss and gradient of a batch, several times a step and without "
            "noise: give an optimiser that steps on the gradients alone, such as torch.optim.SGD or Adam"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            f"{kind.__name__} takes sparse gradients, but a release has noise in every coordinate, since where a "
            "gradient is zero depends on the data: give torch.optim.Adam, and sparse=False to embeddings"
        )


def refuse_other_training(terms: FederationTerms, optimizer: PrivateOptimizer) -> None:
    """Refuse an optimiser whose pipeline or learning rate is not that of the terms.

    Args:
        terms: The terms of the federation.
        optimizer: What a client trains with.

    Raises:
        ValueError: It has another pipeline or learning rate.
    """
    if terms.pipeline.to_table() != optimizer.pipeline.to_table():
        raise ValueError(
            f"the optimiser has {optimizer.pipeline!r}, and the terms {terms.pipeline!r}: give make_private the "
            "pipeline of the terms"
        )
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    if terms.learning_rate is not None and rates != [terms.learning_rate]:
        raise ValueError(
            f"the optimiser has the learning rate {', '.join(map(str, rates))}, and the terms {terms.learning_rate:g}: "
            "give the inner optimiser that of the terms"
        )
