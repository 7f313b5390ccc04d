"""Opacus' machinery with the pipeline's mechanism inside: per-sample gradients in, one release a step out."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from dpcomp.errors import BudgetExhausted, NotPrivate
from dpcomp.ledger import Permit
from dpcomp.mechanism import Clip, Gaussian
from dpcomp.memory import ClientMemory
from dpcomp.pipeline import Pipeline
from dpcomp.randomness import SecretSeed
from dpcomp.training.inspection import check_by_name, check_by_trial
from dpcomp.training.parameters import layout_of, parts, read, trainable
from dpcomp.units import Total
from dpcomp.update import Address, Layout, Update

FROZEN = {"noise_multiplier", "max_grad_norm", "expected_batch_size", "loss_reduction"}


def private_model(module: nn.Module, example: torch.Tensor, *, clip_norm: float = 1.0) -> GradSampleModule:
    """The module with Opacus' hooks for per-sample gradients of a mean loss, once it has passed inspection.

    `example` is one input, without a batch axis; only its shape and type are used.

    Raises:
        NotPrivate: the module mixes examples, or remembers them in a buffer.
    """
    check_by_name(module)
    check_by_trial(module, example, clip_norm)
    return GradSampleModule(module, batch_first=True, loss_reduction="mean")


class PrivateOptimizer(DPOptimizer):
    """Opacus' optimiser, whose clipping and noise are the pipeline's, and whose charges come first.

    `begin(memory, permit)` opens a round; every logical step uses one step of the permit; `update()` closes
    it. Micro-batches may be skipped into one logical step (`BatchMemoryManager`). The divisor is
    `expected_batch_size`, a public constant. After a step nothing un-noised is left on the model.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: GradSampleModule,
        pipeline: Pipeline,
        *,
        secret: SecretSeed,
        expected_batch_size: float,
    ):
        if (pipeline.unit, pipeline.trust) != ("example", "nobody"):
            raise NotPrivate(
                f"PrivateOptimizer releases each local step on the client: it wants unit='example' and trust='nobody', "
                f"not {pipeline.unit!r} and {pipeline.trust!r}"
            )
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
        managed = {id(parameter) for parameter in self.params}
        self._parameters = [p for p in trainable(model).values() if id(p) in managed]
        if len(self._parameters) != len(trainable(model)) or len(managed) != len(self._parameters):
            raise ValueError(
                f"the optimiser holds {len(managed)} parameters, the model {len(trainable(model))} trainable ones: "
                "give it model.parameters(), and freeze with requires_grad_(False) what is not to be trained"
            )
        self._memory: ClientMemory | None = None
        self._permit: Permit | None = None
        self._total: Total | None = None
        self._start = self._released = None
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
        """Open a round: from here on `update()` counts; whatever a broken-off step left is discarded."""
        if memory.layout != self.layout:
            raise ValueError(
                f"the memory has layout {memory.layout}, the model {self.layout}: init it with optimizer.layout"
            )
        self.discard()
        self._memory, self._permit, self._released = memory, permit, None
        self._start = read(self._model)

    def update(self) -> Update:
        """What the round did to the parameters, made of what it released, on the support of the release."""
        if self._released is None or self._start is None:
            raise BudgetExhausted("nothing was released since begin(memory, permit): take a step first")
        return self._released.derive(read(self._model) - self._start)

    def discard(self) -> None:
        """Forget a logical step that was broken off: its clipped sum, its gradients, its skips, its activations."""
        self._total, self._is_last_step_skipped = None, False
        self._step_skip_queue.clear()
        for layer in self._model.modules():
            for leftover in ("activations", "max_batch_len"):
                vars(layer).pop(leftover, None)
        for parameter in self._model.parameters():
            parameter._forward_counter = 0
            vars(parameter).pop("_current_grad_sample", None)
        self._wipe()

    def clip_and_accumulate(self) -> None:
        """The pipeline's clip, on what one or several backward passes left; the gradients are wiped at once."""
        samples = [_as_list(parameter.grad_sample) for parameter in self._parameters]
        for i in range(max(map(len, samples), default=0)):
            n = next(len(parts[i]) for parts in samples if len(parts) > i)
            block = tuple(
                parts[i] if len(parts) > i else parameter.new_zeros((n, *parameter.shape))
                for parameter, parts in zip(self._parameters, samples, strict=True)
            )
            part = self._pipeline.clip(block, self._round()[0])
            self._total = part if self._total is None else self._total + part
        self._wipe()

    def add_noise(self) -> None:
        """One release of the pipeline, from which alone the gradients are made."""
        memory, permit = self._round()
        total = self._pipeline.nothing(memory) if self._total is None else self._total
        self._total = None
        self._released = self._pipeline.noise(total, memory, self._secret, permit)
        gradients = parts(self._model, self._released.dense())
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.to(device=parameter.device, dtype=parameter.dtype)

    def scale_grad(self) -> None:
        """Divide by the public constant, however many examples came."""
        for parameter in self._parameters:
            parameter.grad /= self.expected_batch_size

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
        """One micro-batch, or the logical step that it ends."""
        result = super().step(closure)
        self._wipe()
        return result

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop all gradients; a logical step that is under way keeps its clipped sum."""
        self._wipe()

    def _round(self) -> tuple[ClientMemory, Permit]:
        if self._memory is None or self._permit is None:
            raise BudgetExhausted(
                "no round is open: optimizer.begin(memory, ledger.charge(pipeline, memory.address, steps))"
            )
        return self._memory, self._permit

    def _wipe(self) -> None:
        """Leave no raw, per-sample or un-noised gradient on any parameter, the optimiser's or not."""
        for parameter in (*self._model.parameters(), *self._parameters):
            parameter.grad = parameter.grad_sample = parameter.summed_grad = None


@contextmanager
def hooks_on_inputs() -> Iterator[None]:
    """Backward passes of a private model, without torch's warning that inputs need no gradients: they need none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _as_list(grad_sample: torch.Tensor | list[torch.Tensor] | None) -> list[torch.Tensor]:
    if grad_sample is None:
        return []
    return grad_sample if isinstance(grad_sample, list) else [grad_sample]
