"""PrivateModel: a module in training whose passes are recorded, so that a step can clip a row an example."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.core.address import Address
from dpcomp.core.errors import NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.training.pytorch.arguments import Arguments, Constant
from dpcomp.training.pytorch.checks.anatomy import Layers
from dpcomp.training.pytorch.checks.unmoved import Unmoved
from dpcomp.training.pytorch.rows.engine import Rows
from dpcomp.training.pytorch.rows.generators import (
    drawn_between,
    lent_torch_generators,
    random_states,
    seeded_between,
)
from dpcomp.training.pytorch.rows.parameters import trainable
from dpcomp.training.pytorch.rows.passes import Pass
from dpcomp.training.pytorch.rows.row_check import RowCheck
from dpcomp.training.pytorch.rows.structures import Call, along_examples, count, mapped, rows, tensors

DEVICES = ("cpu", "cuda")  # whose generators are set from the secret


@dataclass
class _Draws:
    """Where the random numbers of a round's passes come from, and how often a state was drawn."""

    secret: SecretSeed
    address: Address
    number: int = 0


class PrivateModel(nn.Module):
    """A module that passed inspection, with the engine that makes its rows; `private_model` makes it.

    In training it is called like the module. A batch without examples gives outputs of length 0, whatever the layers
    do with one.

    **Privacy:** in an open round, what layers draw in a pass, such as the masks of dropout, comes from torch's global
    generators in a state that is drawn from the secret for this pass. Under a state that an attacker knows, which has a
    number for each place in the batch, one example more would give all examples behind it other known masks.

    Args:
        module: The module.
        engine: What makes rows of its passes.
        check: What holds rows to the gradients of examples alone.
        unmoved: What holds module and loss to what they held at the inspection.

    Attributes:
        tried: The call with which the module was tried, as `tried_call` returns it.
        constants: Those of its arguments that were declared to be constant.
    """

    def __init__(self, module: nn.Module, engine: Rows, check: RowCheck, unmoved: Unmoved):
        super().__init__()
        self._module = module
        self.engine, self.check, self.unmoved = engine, check, unmoved
        self.tried, self.constants = Call((), {}), dict[str, Constant]()
        self.passes: list[Pass] = []
        self._reached, self._public = 0, False
        self.outputs_of_nothing: Any = None  # of a model that reads columns, which cannot be made up
        self._trained = trainable(module)
        self._made_of = Layers(module)
        self._draws: _Draws | None = None  # before the first round

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_module"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output; in training, record the pass.

        Raises:
            NotPrivate: Layers or trainable parameters are not those that were inspected, or layers are in another mode
                than in the trial, or the pass in another precision than the first; the pass before this one is not
                finished, and the engine needs it to be; or a layer seeds torch's generator, or draws on a device whose
                generator is not set from the secret.
        """
        if not (self.training and torch.is_grad_enabled()):
            return self._module(*args, **kwargs)
        self.refuse_other_parameters()
        self.unmoved.modes.refuse_other()
        given = tensors((args, kwargs))
        if other := [part.device.type for part in given if part.device.type not in DEVICES]:
            raise NotPrivate(
                f"an input lies on a device of type {other[0]!r}, whose random numbers dpcomp cannot draw from its "
                "secret: train on the CPU or on a CUDA device"
            )
        with self.lent_generators():
            if any(part.ndim for part in given) and count(given) == 0:
                return self._outputs_of_nothing(args, kwargs)
            return self._recorded(args, kwargs, given[0].device if given else torch.device("cpu"))

    def train(self, mode: bool = True) -> "PrivateModel":
        """Set the module to training or evaluation by its own `train()` or `eval()`, whatever arguments these take."""
        if mode:
            self._module.train()
        else:
            self._module.eval()
        self.training = mode
        return self

    def draw_from(self, secret: SecretSeed, address: Address) -> None:
        """Draw what layers draw in the passes of a round from a secret.

        Args:
            secret: That of the optimiser.
            address: Of the round.
        """
        self._draws = _Draws(secret, address)

    def lent_generators(self) -> AbstractContextManager[None]:
        """Set torch's global generators from the secret for a while; before the first round, leave them as they are."""
        if (draws := self._draws) is None:
            return nullcontext()
        draws.number += 1
        at = draws.address
        return lent_torch_generators(draws.secret, "pass", at.run, at.client, at.round, draws.number)

    def _recorded(self, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Any:
        """Return the module's output, and record the pass."""
        mixed = torch.is_autocast_enabled(device.type)
        autocast = torch.get_autocast_dtype(device.type) if mixed else None
        if self._draws is not None and not self._public:
            self.unmoved.modes.refuse_other_autocast(autocast)
            self.unmoved.modes.refuse_other_switches("pass")
        one = Pass(
            args=mapped(Tensor.contiguous, args),
            kwargs=mapped(Tensor.contiguous, kwargs),
            public=self._public,
            random_states=random_states(),
            autocast=autocast,
        )
        one.doubled = one.n == 1 and self.engine.copies == 2 and not one.public
        outputs = self.engine.forward(one)
        if one.doubled:
            outputs = rows(outputs, 0, 1)
        now = random_states()
        if seeded_between(one.random_states, now):
            raise NotPrivate(
                "the model seeds torch's global generator in a pass, so that its random numbers are known and go by "
                "the place in the batch: one example more would change those of all that follow. Leave the generator "
                "as it is: dpcomp sets it from the secret for each pass"
            )
        one.random = drawn_between(one.random_states, now)
        one.watch(outputs, self._next_order)
        self.passes.append(one)
        # What a script hooks on an output goes to a view of it, and so comes before what is noted of the gradient.
        return mapped(lambda part: part.view_as(part) if part.requires_grad else part, outputs)

    def arguments(self) -> Arguments:
        """Return what holds the calls of a script to the call with which the module was tried."""
        return Arguments(self._module.forward, self.tried)

    def finished(self, *, public: bool) -> list[Pass]:
        """Return the passes that a backward pass has reached, of declared public inputs or of others."""
        return [one for one in self.passes if one.order is not None and one.public == public]

    @contextmanager
    def public_rows(self) -> Iterator[None]:
        """Declare that the inputs of the passes inside hold no private data, such as a generator's images.

        Each such pass has as many rows as the micro-batch that is stepped next; row i is added to the row of example i
        before the clip.

        **Privacy:** this counts an example once if public rows are fresh independent draws, as a generator's images
        are: then those that join the other examples are distributed alike with and without it. Rows of a fixed public
        set do not qualify, since without one example all later ones join other rows; nor does a pass whose loss reads
        a private value, as feature matching does. The ledger records that as assumed; a row that comes again,
        in its pass or in a later step, is refused.
        """
        self._public = True
        try:
            yield
        finally:
            self._public = False

    def refuse_other_parameters(self) -> None:
        """Refuse a module whose layers or trainable parameters are not those that were inspected.

        Raises:
            NotPrivate: Naming those that were exchanged, unfrozen or frozen.
        """
        if self._made_of.same():
            return
        self.unmoved.refuse_other_layers()
        now = trainable(self._module)
        changed = sorted(name for name in {**self._trained, **now} if now.get(name) is not self._trained.get(name))
        if changed:
            raise NotPrivate(
                f"the trainable parameters changed after the inspection, at {changed}: freeze and "
                "unfreeze before make_private, or call it again"
            )

    def all_parameters(self) -> list[nn.Parameter]:
        """Return the module's parameters, those that are not trained too."""
        return self._made_of.parameters if self._made_of.same() else list(self._module.parameters())

    def forget(self, *, unfinished: bool) -> None:
        """Drop finished passes and their gradients, and with `unfinished` the other passes too."""
        self.passes[:] = [] if unfinished else [one for one in self.passes if one.order is None]
        self._set_reached(0)
        self.engine.forget(unfinished=unfinished)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of finished passes."""
        super().zero_grad(set_to_none)
        self.forget(unfinished=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what `torch.save` and copies take: no secret, and no unfinished passes, which hold examples."""
        self.forget(unfinished=True)
        return {**self.__dict__, "passes": [], "_draws": None}

    def _next_order(self) -> int:
        self._set_reached(self._reached + 1)
        return self._reached - 1

    def _set_reached(self, number: int) -> None:
        object.__setattr__(self, "_reached", number)  # a module's own way looks for parameters first, at each step

    def _outputs_of_nothing(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the outputs of made-up examples, cut to length 0: many layers fail on a batch without examples."""
        if self.outputs_of_nothing is not None:
            return _watched(self.outputs_of_nothing)
        n = self.engine.copies
        made_up = mapped(lambda part: part.new_zeros((n, *part.shape[1:])) if part.ndim else part, (args, kwargs))
        with torch.no_grad():
            outputs = self._module(*made_up[0], **made_up[1])
        return _watched(without_examples(outputs))


def without_examples(outputs: Any) -> Any:
    """Return outputs of the same form without examples: tensors of length 0, and zero where a tensor has no axis."""
    none_left = along_examples(lambda part: part.detach()[:0].clone(), lambda _: [], outputs)
    return mapped(lambda part: part if part.ndim else torch.zeros_like(part), none_left)


def _watched(outputs: Any) -> Any:
    return mapped(lambda part: part.clone().requires_grad_() if part.is_floating_point() else part.clone(), outputs)
