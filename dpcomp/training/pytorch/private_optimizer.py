"""PrivateOptimizer: Opacus' optimiser with the pipeline's clip and noise in place of its own."""

from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers import DPOptimizer

from dpcomp.core.address import Address
from dpcomp.core.errors import BudgetExhausted, NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Clip, Gaussian
from dpcomp.privacy.ledger import Permit
from dpcomp.privacy.unit_gradients import Total
from dpcomp.training.pytorch.inspection import PrivateModel, as_list
from dpcomp.training.pytorch.noise_through_sgd import noise_after
from dpcomp.training.pytorch.parameters import layout_of, parts, read, trainable
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update

FROZEN = {"noise_multiplier", "max_grad_norm", "expected_batch_size", "loss_reduction"}


class PrivateOptimizer(DPOptimizer):
    """An optimiser that clips and noises per-example gradients by a pipeline, and steps on the released sum alone.

    `begin(memory, permit)` opens a round, each logical step uses one step of the permit, and `update()` returns the
    change of the model since then. Micro-batches can be added up to one logical step, as Opacus' `BatchMemoryManager`
    does it.

    **Privacy:** per-example gradients come from a model that passed inspection; each step's sum goes through
    `pipeline.clip` and `pipeline.noise` before it becomes a gradient; the divisor is a public constant; and raw
    gradients are wiped after each micro-batch. An example that goes through two backward passes of one step counts
    twice in the sum: pass each example once.

    Args:
        optimizer: A torch optimiser of all trainable parameters of the model.
        model: What `private_model` returned.
        pipeline: Clips and releases, with `unit="example"` and `trust="nobody"`.
        secret: Where noise and batches are drawn from.
        expected_batch_size: The public constant that divides each step's sum, such as the sampling rate × the public
            number of examples.

    Raises:
        NotPrivate: The pipeline does not release local steps, or the model was not inspected.
        ValueError: The divisor is not above 0, or the optimiser's parameters are not the model's trainable ones.

    Examples:
        >>> import torch, dpcomp as dp
        >>> from dpcomp.training.pytorch import PrivateOptimizer, private_model
        >>> model = private_model(torch.nn.Linear(4, 2), torch.zeros(4))
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = PrivateOptimizer(sgd, model, pipeline, secret=dp.SecretSeed(), expected_batch_size=60)
        >>> optimizer.layout.size
        10
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: PrivateModel,
        pipeline: Pipeline,
        *,
        secret: SecretSeed,
        expected_batch_size: float,
    ):
        trust = pipeline.trust_model
        if not trust.releases_local_steps or trust.server_sees_clean:
            raise NotPrivate(
                f"PrivateOptimizer releases each local step on the client, which unit={pipeline.unit!r} with "
                f"trust={pipeline.trust!r} does not: use unit='example' and trust='nobody', or a plain torch optimiser"
            )
        if not isinstance(model, PrivateModel):
            raise NotPrivate(
                f"the model is a {type(model).__name__} that was not inspected: give private_model(module, example)"
            )
        if not expected_batch_size > 0:
            raise ValueError(f"expected_batch_size is {expected_batch_size}: it divides sums, so give a number above 0")
        norms = [stage.norm for stage in pipeline.stages if isinstance(stage, Clip)]
        noises = [stage.noise_multiplier for stage in pipeline.stages if isinstance(stage, Gaussian)]
        super().__init__(
            optimizer,
            noise_multiplier=noises[0] if noises else 0.0,
            max_grad_norm=norms[0] if norms else float("inf"),
            expected_batch_size=expected_batch_size,  # pyright: ignore[reportArgumentType]
        )
        self._model, self._pipeline, self._secret = model, pipeline, secret
        self._parameters = list(trainable(model).values())
        if {id(parameter) for parameter in self.params} != {id(parameter) for parameter in self._parameters}:
            raise ValueError(
                f"the optimiser's {len(self.params)} parameters are not the model's {len(self._parameters)} trainable "
                "ones: give it model.parameters(), and freeze with requires_grad_(False) what is not to be trained"
            )
        self._open: tuple[ClientMemory, Permit] | None = None
        self._total: Total | None = None
        self._start = self._released = None
        self._steps = 0
        self._sealed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FROZEN and getattr(self, "_sealed", False):
            raise AttributeError(f"{name} is fixed by the pipeline that is charged for: make another pipeline instead")
        super().__setattr__(name, value)

    @property
    def layout(self) -> Layout:
        """The layout of the trainable parameters, for the memory of a client."""
        return layout_of(self._model)

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

    def begin(self, memory: ClientMemory, permit: Permit) -> None:
        """Open a round: `update()` counts from here, the optimiser's state is fresh, unfinished steps are discarded.

        Args:
            memory: The client's memory, which fits `layout`.
            permit: What `ledger.charge(pipeline.cost, memory.address, steps)` returned; a logical step uses one step.

        Raises:
            ValueError: The memory has another layout than the model.
        """
        if memory.layout != self.layout:
            raise ValueError(
                f"the memory has {memory.layout} and the model {self.layout}: make the memory with optimizer.layout"
            )
        self.discard()
        self.original_optimizer.state.clear()
        self._open, self._released, self._steps = (memory, permit), None, 0
        self._start = read(self._model)

    def update(self) -> Update:
        """Return the change of the parameters in this round, on the support that its releases share.

        **Privacy:** the change is a function of the released sums, public constants and the starting model.

        Raises:
            BudgetExhausted: Nothing was released in this round.
        """
        if self._released is None or self._start is None:
            raise BudgetExhausted("nothing was released since begin(memory, permit): take a step first")
        return self._released.derive(read(self._model) - self._start, noise_stddev=self._noise_in_update())

    def _noise_in_update(self) -> float | None:
        noise = self._released.noise_stddev if self._released else None
        if noise is None:
            return None
        return noise_after(self.original_optimizer, noise / float(self.expected_batch_size or 1), self._steps)

    def discard(self) -> None:
        """Drop an unfinished logical step: its clipped sum, gradients, skip signals and activations."""
        self._total, self._is_last_step_skipped = None, False
        self._step_skip_queue.clear()
        self._forget_passes()

    def clip_and_accumulate(self) -> None:
        """Clip the per-example gradients of the last backward passes, add them to the step's sum, and wipe them.

        Raises:
            NotPrivate: A forward pass had no full backward pass.
        """
        if any("_current_grad_sample" in vars(parameter) for parameter in self._parameters):
            raise NotPrivate(
                "a forward pass had no full backward pass, so its gradients would mix with the next one's: call "
                "optimizer.discard(), and look at outputs under torch.no_grad()"
            )
        samples = [as_list(vars(parameter).get("grad_sample")) for parameter in self._parameters]
        for i in range(max(map(len, samples), default=0)):
            n = next(len(parts[i]) for parts in samples if len(parts) > i)
            block = tuple(
                parts[i] if len(parts) > i else parameter.new_zeros((n, *parameter.shape))
                for parameter, parts in zip(self._parameters, samples, strict=True)
            )
            with torch.autocast(self._parameters[0].device.type, enabled=False):  # half precision breaks the clip
                part = self._pipeline.clip(block, self._round()[0])
            self._total = part if self._total is None else self._total + part
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
        gradients = parts(self._model, self._released.dense())
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.to(device=parameter.device, dtype=parameter.dtype)

    def scale_grad(self) -> None:
        """Divide the gradients by the public constant, whatever the size of the batch."""
        for parameter in self._parameters:
            parameter.grad /= self.expected_batch_size  # pyright: ignore[reportOperatorIssue]

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Clip and add up; at the end of a logical step, release. A step without examples releases pure noise."""
        self.clip_and_accumulate()
        self._is_last_step_skipped = bool(self._check_skip_next_step())
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
        whole logical step is discarded.

        Args:
            closure: Called before all else, to make the forward and backward pass; None where they were made.

        Returns:
            None.

        Raises:
            NotPrivate: A forward pass had no full backward pass.
            BudgetExhausted: No round is open, or its permit has no step left.
        """
        try:
            return super().step(closure)
        except BaseException:
            self.discard()
            raise
        finally:
            self._forget_passes()

    def signal_skip_step(self, do_skip: bool = True) -> None:
        """Say whether the logical step goes on after the next micro-batch. Each signal is for one `step()`."""
        if self._step_skip_queue:
            raise NotPrivate(
                "a micro-batch was not stepped, so the next ones would be counted into the wrong steps: step each one, "
                "empty ones too, or call optimizer.discard(). Use BatchMemoryManager with num_workers=0"
            )
        super().signal_skip_step(do_skip)

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

    def _forget_passes(self) -> None:
        """Wipe the gradients, and drop what Opacus keeps between a forward pass and its backward pass."""
        for layer in self._model.modules():
            vars(layer).pop("activations", None)
            vars(layer).pop("max_batch_len", None)
        for parameter in self._model.parameters():
            vars(parameter).update(_forward_counter=0)
            vars(parameter).pop("_current_grad_sample", None)
        self._wipe()

    def _wipe(self) -> None:
        """Remove all raw, per-example and un-noised gradients from the parameters of model and optimiser."""
        for parameter in (*self._model.parameters(), *(p for group in self.param_groups for p in group["params"])):
            parameter.grad = None
            vars(parameter).update(grad_sample=None, summed_grad=None)
