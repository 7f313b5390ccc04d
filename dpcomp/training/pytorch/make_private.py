"""make_private: the model, the optimiser and the loader of a client, tried together before anything is charged."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from dpcomp.core.checks import whole_number
from dpcomp.core.errors import DpcompError, NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.training.pytorch.arguments import Constant
from dpcomp.training.pytorch.batches import poisson_loader
from dpcomp.training.pytorch.checks.repeated_examples import refuse_repeated_examples
from dpcomp.training.pytorch.checks.trial_batches import MOST_EXAMPLES
from dpcomp.training.pytorch.collation import Collate, refuse_collation_that_ties
from dpcomp.training.pytorch.inspection import private_model
from dpcomp.training.pytorch.private_model import PrivateModel
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer
from dpcomp.training.pytorch.rows.engine import Engine, Loss
from dpcomp.training.pytorch.rows.generators import unseeded_by_data
from dpcomp.training.pytorch.rows.structures import inputs_and_targets, to


def make_private(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    pipeline: Pipeline,
    *,
    loss: Loss,
    secret: SecretSeed | None = None,
    expected_batch_size: float,
    steps: int | None = None,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
    views: int = 1,
    constants: Mapping[str, Constant] = MappingProxyType({}),
    engine: Engine | Literal["auto"] = "auto",
) -> tuple[PrivateModel, PrivateOptimizer, DataLoader]:
    """Make a training script private: return its model, optimiser and loader, which belong together.

    The script's loop stays: forward pass, loss, `backward()`, `step()`. A batch is what `collate_fn` makes: the last
    part of a tuple, or `"labels"` of a mapping, are the targets, and the rest is what the model is called with (a tuple
    by position, a mapping by name).

    **Privacy:** the model and its loss are tried on batches of several sizes, orders, lengths and layouts, and an
    own `collate_fn` on examples of diverse lengths, before anything is charged. In training a step takes the batch that
    the sampler drew for it and no other, one row for each drawn example, and calls the model as the trial did; only its
    release moves the parameters. What layers draw in a pass from torch's global generators, and the data set from those
    of torch, NumPy and Python, comes from the secret.

    Args:
        module: The model. What is frozen stays so.
        optimizer: A torch optimiser of its trainable parameters.
        dataset: A map-style data set of one client's examples, each of which is one item, made from this example alone.
        pipeline: Clips and releases, with `unit="example"` and `trust="nobody"`; its sampling draws the batches.
        loss: The mean over a batch of each example's loss, of the model's outputs and the targets (None without any);
            the script must compute the same.
        secret: Where noise, batches, spot checks and what layers and data sets draw from the global generators come
            from; None for a new secret of the operating system.
        expected_batch_size: The public constant that divides each step's sum.
        steps: The number of batches in a pass over the loader; as many steps must be charged. None for 1/rate, in which
            an example is drawn once on average.
        collate_fn: Makes a batch of one example or more, in which the row of an example is what it gives alone: it may
            pad what the model masks, but not mix, normalise over the batch or draw random numbers. None for torch's
            default.
        num_workers: The processes that load examples; 0 loads in this one.
        pin_memory: Whether batches lie in pinned memory.
        multiprocessing_context: How workers start, such as "spawn".
        views: How many passes each batch makes, such as augmented views, whose rows are averaged before the clip.
        constants: Arguments with which the script calls the model in training beside the inputs of the batch, by name,
            such as `{"causal": True}`: None, booleans, numbers, strings, dtypes and devices, the same in each call.
            They stand in `optimizer.assumptions`.
        engine: How per-example gradients are taken. "auto": by `BookKeeping()`, from layer inputs and output
            gradients, if it serves the model, else by `Isolated()`, which takes each example alone. `Opacus()` uses
            Opacus' formulas, and checks them.

    Returns:
        The model to call, the optimiser to step, and the loader to iterate over once a round.

    Raises:
        NotPrivate: The model, the loss or `collate_fn` ties examples, keeps data, or fails on a batch; an example is
            behind several items of a `Subset`, `ConcatDataset`, `StackDataset` or `TensorDataset`; the data set seeds a
            global generator as it gives examples; or the pipeline does not release local steps.
        TypeError: `steps`, `views` or `expected_batch_size` is not such a number, or a constant is no plain value.
        ValueError: A parameter is neither float32 nor float64, a constant has the name of an input, a number lies
            outside its range, the data set is empty, the pipeline samples nothing and `steps` is not given, or the
            optimiser has other parameters than the model, or needs a closure or sparse gradients.

    Examples:
        >>> import torch, dpcomp as dp
        >>> from dpcomp.training.pytorch import make_private
        >>> features = torch.randn(60, 4)
        >>> data = torch.utils.data.TensorDataset(features, (features[:, 0] > 0).long())
        >>> network, loss = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
        >>> model, optimizer, loader = make_private(
        ...     network, torch.optim.SGD(network.parameters(), lr=0.1), data, pipeline,
        ...     loss=loss, secret=dp.SecretSeed(), expected_batch_size=6, steps=2,
        ... )
        >>> memory, ledger = pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(0), client=0), dp.Ledger()
        >>> optimizer.begin(memory, ledger.charge(pipeline.cost, memory.address, steps=2))
        >>> for inputs, targets in loader:
        ...     loss(model(inputs), targets).backward()
        ...     optimizer.step()
        >>> optimizer.update().values.shape
        (10,)
    """
    n = len(dataset)  # pyright: ignore[reportArgumentType]
    if n == 0:
        raise ValueError("the data set has no examples, so nothing can be tried: give those of the client")
    if steps is None:
        if pipeline.sampling is None:
            raise ValueError(
                "the pipeline has no sampling, so the length of a pass does not follow from it: give steps="
            )
        steps = round(1 / pipeline.sampling.rate)
    steps = whole_number(steps, "make_private(steps)", least=1)
    refuse_repeated_examples(dataset)
    inputs, targets = _some_examples(dataset, n, collate_fn or default_collate)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    inputs, targets = to((inputs, targets), device=device)
    model = private_model(module, loss, inputs, targets, engine=engine, constants=constants)
    refuse_collation_that_ties(dataset, collate_fn or default_collate, model, device)
    private = PrivateOptimizer(
        optimizer,
        model,
        pipeline,
        secret=SecretSeed() if secret is None else secret,
        expected_batch_size=expected_batch_size,
        views=views,
    )
    loader = poisson_loader(
        dataset,
        private,
        steps=steps,
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=pin_memory,
        multiprocessing_context=multiprocessing_context,
    )
    return model, private, loader


def _some_examples(dataset: Dataset, n: int, collate: Collate) -> tuple[Any, Any]:
    """Return examples from all over the data set, which may be sorted by class."""
    most = min(n, MOST_EXAMPLES)
    positions = [round(i * (n - 1) / max(most - 1, 1)) for i in range(most)]
    with unseeded_by_data():
        examples = [dataset[position] for position in positions]
    try:
        return inputs_and_targets(collate(examples))
    except DpcompError:
        raise
    except Exception as error:
        remedy = (
            "examples of different lengths, or that are not tensors, need one: give collate_fn=, such as a function "
            "that pads"
            if collate is default_collate
            else "collate_fn is called with a list of examples of any length"
        )
        first = next(iter(str(error).splitlines()), "")
        raise NotPrivate(
            f"{'the default collate_fn' if collate is default_collate else 'collate_fn'} fails on {most} examples "
            f"of the data set with {type(error).__name__}: {first}; {remedy}"
        ) from error
