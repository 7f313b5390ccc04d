"""Local optimisers: what makes the optimiser of a client's round, and the proximal term of FedProx."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dpcomp.core.errors import named_error
from dpcomp.training.pytorch.private_optimizer import refuse_unfit
from dpcomp.training.schedule import Schedule, rate_of

OptimizerFactory = Callable[..., torch.optim.Optimizer]  # of parameters, with lr= for the learning rate
MakeOptimizer = Callable[[nn.Module, int], torch.optim.Optimizer]  # of a module, for a round


def local_optimizer(
    factory: OptimizerFactory | None, learning_rate: float | Schedule, momentum: float
) -> MakeOptimizer:
    """Return what makes a client's optimiser for a round; its state begins anew in every round.

    Args:
        factory: Called as `factory(parameters, lr=learning_rate)`; None for SGD with `momentum`.
        learning_rate: The learning rate, or its schedule over the rounds.
        momentum: The momentum of SGD; 0 beside a factory.

    Returns:
        A function of a module and a round's number. It raises ValueError where the factory fails, and TypeError where
        it makes something else.
    """

    def make_optimizer(module: nn.Module, round_number: int) -> torch.optim.Optimizer:
        rate = rate_of(learning_rate, round_number)
        if factory is None:
            return torch.optim.SGD(module.parameters(), lr=rate, momentum=momentum)
        try:
            made = factory(module.parameters(), lr=rate)
        except Exception as error:
            raise ValueError(
                f"PyTorch(optimizer={factory!r}) cannot be called with parameters and lr={rate:g}: "
                f"{named_error(error)}. Give what makes a torch optimiser of these two, such as torch.optim.Adam, or "
                "functools.partial(torch.optim.AdamW, eps=1e-6)"
            ) from error
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(
                f"PyTorch(optimizer={factory!r}) made a {type(made).__name__}: give what makes a torch optimiser of "
                "parameters and lr=…, such as torch.optim.Adam, or functools.partial(torch.optim.AdamW, eps=1e-6)"
            )
        refuse_unfit(made)
        return made

    return make_optimizer


def start_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of the parameters that a round starts from."""
    return [parameter.detach().clone() for parameter in parameters]


def pull_to(start: Sequence[Tensor], parameters: Sequence[Tensor], proximal: float) -> None:
    """Add μ(w − w₀) to the gradients: that of FedProx' term μ/2·‖w − w₀‖², w₀ the model that the round starts from.

    **Privacy:** w and w₀ are functions of released values where each step is a release, so the term is
    post-processing; else the whole change of the model is one unit, and is clipped.

    Source: Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2.

    Args:
        start: w₀.
        parameters: w, with the gradients of the step.
        proximal: μ.
    """
    with torch.no_grad():
        for parameter, origin in zip(parameters, start, strict=True):
            pull = proximal * (parameter - origin)
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull
