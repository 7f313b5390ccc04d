"""Training with PyTorch and Opacus: the trainer for `simulate`, and the parts that make an Opacus script a client."""

from dpcomp.core.extras import require

require("torch", "torch", "opacus")

# ruff: noqa: E402  # what follows imports both
from dpcomp.training.pytorch.batches import poisson_loader as poisson_loader
from dpcomp.training.pytorch.inspection import private_model as private_model
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer as PrivateOptimizer
from dpcomp.training.pytorch.task import SupervisedTask as SupervisedTask
from dpcomp.training.pytorch.trainer import PyTorch as PyTorch
