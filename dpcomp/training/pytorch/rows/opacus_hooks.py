"""Opacus: per-example gradients by Opacus' hooks, which are held to the isolated gradient while training runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opacus.grad_sample import GradSampleHooks, GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from dpcomp.core.errors import NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.training.pytorch.rows.engine import Loss
from dpcomp.training.pytorch.rows.parameters import trainable
from dpcomp.training.pytorch.rows.passes import Pass
from dpcomp.training.pytorch.rows.structures import Call

REMEDY = "give engine=Isolated(), which takes the gradient of each example alone"


@dataclass(frozen=True, kw_only=True)
class Opacus:
    """Take per-example gradients by Opacus' hooks: a formula a layer, in the script's own backward pass.

    **Privacy:** the formulas take rows to be examples. That is checked at wrapping and, for one secretly drawn row of
    each micro-batch, while training runs; it is not proven (PRIVACY_RULES hazards 29, 31 and 34). A fault in a share f
    of the rows is missed by c checks with probability (1 − f)^c.
    """

    def attach(self, module: nn.Module, loss: Loss, inputs: Any) -> "OpacusRows":
        """Attach hooks to a module, and return what makes its rows.

        Raises:
            NotPrivate: Opacus has no hooks for one of its layers.
        """
        problems = [*ModuleValidator.validate(module, strict=False), *GradSampleModule.validate(module, strict=False)]
        if problems:
            raise NotPrivate(f"Opacus cannot train this module: {'; '.join(map(str, problems))}. {_sentence(REMEDY)}")
        try:
            hooks = _Hooks(module, batch_first=True, loss_reduction="mean")
        except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise NotPrivate(f"Opacus has no hooks for a layer among {_layers(module)} ({error}): {REMEDY}") from error
        return OpacusRows(module, hooks)


class _Hooks(GradSampleHooks):
    def capture_backprops_hook(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Let a pass in evaluation mode, whose activations were not captured, go by."""
        if vars(module).get("activations"):
            super().capture_backprops_hook(module, *args, **kwargs)


class OpacusRows:
    """Rows that Opacus' hooks left on the parameters as `grad_sample`.

    Args:
        module: The model, in training, with hooks.
        hooks: Its hooks.
    """

    assumption = "rows of per-example gradients, and that the loss is their examples' mean, were checked, not proven"
    rows_at_once: int | None = None
    keeps = frozenset({"activations", "max_batch_len", "_forward_counter", "_current_grad_sample"})

    def __init__(self, module: nn.Module, hooks: GradSampleHooks):
        self._module, self._hooks = module, hooks
        self.copies = 1

    def forward(self, one: Pass) -> Any:
        """Return the outputs; inputs are made contiguous first, since formulas for convolutions read memory in order.

        Raises:
            NotPrivate: The pass before this one is not finished, so Opacus would add up rows of different examples; or
                it runs in mixed precision.
        """
        waiting = any(vars(layer).get("activations") for layer in self._module.modules())
        passes = {len(as_list(vars(parameter).get("grad_sample"))) for parameter in trainable(self._module).values()}
        if waiting or len(passes) > 1:
            raise NotPrivate(
                "an earlier forward pass had no backward pass, or one that missed some parameters, so gradients "
                "of different examples would be added up. Look at outputs under torch.no_grad(), or take "
                "optimizer.step() first"
            )
        if one.autocast is not None:
            raise NotPrivate(
                f"a forward pass in training runs in {one.autocast} (torch.autocast): rows of so few digits cannot be "
                f"held to those of examples alone. Leave out autocast, or {REMEDY}"
            )
        args, kwargs = one.given
        return self._module(*args, **kwargs)

    def rows(self, one: Pass, targets: Any, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return the rows of a pass, as `Rows.rows` says."""
        found: list[Tensor] = []
        assert one.order is not None
        for name, parameter in trainable(self._module).items():
            passes = as_list(vars(parameter).get("grad_sample"))
            if one.order >= len(passes):
                found.append(parameter.detach().new_zeros((stop - start, *parameter.shape)))
                continue
            samples = passes[one.order]
            if one.doubled:  # Opacus took the loss for a mean over two, of which the second is not in it
                samples = samples[:1] / 2
            if len(samples) != one.n:
                raise NotPrivate(
                    f"parameter {name!r} sees {len(samples)} rows where the batch has {one.n} examples, so an example "
                    "would count as several, or several as one. Keep examples apart on the first axis of every layer, "
                    f"or {REMEDY}"
                )
            found.append(samples[start:stop] if (start, stop) != (0, one.n) else samples)
        return tuple(found)

    def units(self, one: Pass, layout: Layout) -> None:
        """Return None: this engine makes rows."""

    def refuse_other_passes(self, reached: int) -> None:
        """Refuse rows of passes that did not go through the model's forward, or that are half done."""
        parameters = list(trainable(self._module).values())
        if any("_current_grad_sample" in vars(parameter) for parameter in parameters):
            raise NotPrivate(
                "a forward pass had no full backward pass, so its gradients would mix with the next one's: look at "
                "outputs under torch.no_grad()"
            )
        most = max((len(as_list(vars(parameter).get("grad_sample"))) for parameter in parameters), default=0)
        if most > reached:
            raise NotPrivate(
                f"parameters have the rows of {most} backward passes, but {reached} went through the model's forward: "
                "call the model itself in training, not its layers"
            )

    def arranged(self, call: Call) -> Call:
        """Return the arguments as they are."""
        return call

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the model be used without capturing anything."""
        self._hooks.disable_hooks()
        try:
            yield
        finally:
            self._hooks.enable_hooks()

    def forget(self, *, unfinished: bool) -> None:
        """Drop rows, and with `unfinished` what Opacus keeps between a forward pass and its backward pass."""
        for parameter in self._module.parameters():
            vars(parameter).update(grad_sample=None, summed_grad=None)
            if unfinished:
                vars(parameter).update(_forward_counter=0)
                vars(parameter).pop("_current_grad_sample", None)
        if unfinished:
            for layer in self._module.modules():
                vars(layer).pop("activations", None)
                vars(layer).pop("max_batch_len", None)


def remove_hooks(module: nn.Module) -> None:
    """Remove the hooks of an earlier engine, whose model can then no longer be trained."""
    for handle in vars(module).pop("autograd_grad_sample_hooks", []):
        handle.remove()


def as_list(grad_sample: Tensor | list[Tensor] | None) -> list[Tensor]:
    """Return the per-example gradients that Opacus left on a parameter, one tensor for each backward pass."""
    if grad_sample is None:
        return []
    return grad_sample if isinstance(grad_sample, list) else [grad_sample]


def _layers(module: nn.Module) -> list[str]:
    """Name the layers that have parameters of their own to train but no formula in Opacus."""
    return [
        f"{name!r} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        and type(layer) not in GradSampleHooks.GRAD_SAMPLERS
    ]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
