"""Opacus' machinery with the pipeline's mechanism inside: per-sample gradients in, one release a step out."""

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
from dpcomp.training.pytorch.inspection import hooks_on_inputs as hooks_on_inputs
from dpcomp.training.pytorch.inspection import private_model as private_model
from dpcomp.training.pytorch.noise_through_sgd import noise_after
from dpcomp.training.pytorch.parameters import layout_of, parts, read, trainable
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update

FROZEN = {"noise_multiplier", "max_grad_norm", "expected_batch_size", "loss_reduction"}


class PrivateOptimizer(DPOptimizer):
    """Opacus' optimiser, whose clipping and noise are the pipeline's, and whose charges come first.

    `begin(memory, permit)` opens a round; every logical step uses one step of the permit; `update()` is what came of
    it. `secret` draws noise and batches; `expected_batch_size` is the divisor of every sum, a public constant.
    Micro-batches may be skipped into one logical step (`BatchMemoryManager`); none leaves anything un-noised behind.
    An example that goes through two backward passes of one step counts as two: pass each one once.

    Raises:
        NotPrivate: the pipeline releases no local steps, or the model was not inspected.
        ValueError: the divisor is not above 0, or the optimiser's parameters are not the model's trainable ones.
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
        if (pipeline.unit, pipeline.trust) != ("example", "nobody"):
            raise NotPrivate(
                "PrivateOptimizer releases each local step on the client: it wants unit='example' and "
                f"trust='nobody', not {pipeline.unit!r} and {pipeline.trust!r}"
            )
        if not isinstance(model, PrivateModel):
            raise NotPrivate(f"a {type(model).__name__} was not inspected: wrap it with private_model(module, example)")
        if not expected_batch_size > 0:
            raise ValueError(f"expected_batch_size={expected_batch_size}: the divisor is a public constant above 0")
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
            raise AttributeError(f"{name} is fixed by the pipeline that was charged for: build another pipeline")
        super().__setattr__(name, value)

    @property
    def layout(self) -> Layout:
        """The layout of what is trained, for `pipeline.init`."""
        return layout_of(self._model)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that clips and releases."""
        return self._pipeline

    @property
    def secret(self) -> SecretSeed:
        """Where noise and sampling draws come from."""
        return self._secret

    @property
    def address(self) -> Address:
        """Of the round that is open."""
        return self._round()[1].address

    def begin(self, memory: ClientMemory, permit: Permit) -> None:
        """Open a round, from which on `update()` counts: with fresh optimiser state, and nothing half done.

        Raises:
            ValueError: the memory is of another layout than the model.
        """
        if memory.layout != self.layout:
            raise ValueError(f"memory for {memory.layout}, model of {self.layout}: init it with optimizer.layout")
        self.discard()
        self.original_optimizer.state.clear()
        self._open, self._released, self._steps = (memory, permit), None, 0
        self._start = read(self._model)

    def update(self) -> Update:
        """What the round did to the parameters, made of what it released, on the support that its releases share.

        Raises:
            BudgetExhausted: nothing was released.
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
        """Forget a logical step that was broken off: its clipped sum, its gradients, its skips, its activations."""
        self._total, self._is_last_step_skipped = None, False
        self._step_skip_queue.clear()
        self._forget_passes()

    def clip_and_accumulate(self) -> None:
        """The pipeline's clip, on what one or several backward passes left; the gradients are wiped at once.

        Raises:
            NotPrivate: a forward pass had no full backward pass.
        """
        if any("_current_grad_sample" in vars(parameter) for parameter in self._parameters):
            raise NotPrivate("a forward pass had no full backward pass: its gradients would mix with the next one's")
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
        """One release of the pipeline, from which alone the gradients are made.

        Raises:
            BudgetExhausted: no round is open, or its permit has no step left for this pipeline.
        """
        memory, permit = self._round()
        total, self._total = self._total or self._pipeline.empty_total(memory), None
        self._released = self._pipeline.noise(total, memory, self._secret, permit)
        self._steps += 1
        gradients = parts(self._model, self._released.dense())
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.to(device=parameter.device, dtype=parameter.dtype)

    def scale_grad(self) -> None:
        """Divide by the public constant, however many examples came."""
        for parameter in self._parameters:
            parameter.grad /= self.expected_batch_size  # pyright: ignore[reportOperatorIssue]

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Clip; then, unless the logical step goes on, release. A batch without examples releases pure noise."""
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
        """One micro-batch, or the logical step that it ends; one that fails is discarded."""
        try:
            return super().step(closure)
        except BaseException:
            self.discard()
            raise
        finally:
            self._forget_passes()

    def signal_skip_step(self, do_skip: bool = True) -> None:
        """Say whether the logical step goes on after the next micro-batch; one signal, one `step()`."""
        if self._step_skip_queue:
            raise NotPrivate(
                "a micro-batch came and was not stepped, so the next ones would be counted into the wrong steps: "
                "step every one, empty ones too, or call optimizer.discard(). BatchMemoryManager: with num_workers=0"
            )
        super().signal_skip_step(do_skip)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop all gradients; a logical step that is under way keeps its clipped sum."""
        self._wipe()

    def _round(self) -> tuple[ClientMemory, Permit]:
        if self._open is None:
            raise BudgetExhausted(
                "no round is open: begin(memory, ledger.charge(pipeline.cost, memory.address, steps))"
            )
        return self._open

    def _forget_passes(self) -> None:
        """Wipe, and drop what Opacus keeps of a forward pass until its backward pass."""
        for layer in self._model.modules():
            vars(layer).pop("activations", None)
            vars(layer).pop("max_batch_len", None)
        for parameter in self._model.parameters():
            vars(parameter).update(_forward_counter=0)
            vars(parameter).pop("_current_grad_sample", None)
        self._wipe()

    def _wipe(self) -> None:
        """Leave no raw, per-sample or un-noised gradient on any parameter, the model's or only the optimiser's."""
        for parameter in (*self._model.parameters(), *(p for group in self.param_groups for p in group["params"])):
            parameter.grad = None
            vars(parameter).update(grad_sample=None, summed_grad=None)
