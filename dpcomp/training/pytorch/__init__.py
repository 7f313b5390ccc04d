"""Training with PyTorch and Opacus: the trainer for `simulate`, and the parts that make an Opacus script a client."""

from dpcomp.core.extras import require

require("torch", "torch", "opacus")

# ruff: noqa: E402  # what follows imports both
from dpcomp.training.comm_hook import comm_hook as comm_hook
from dpcomp.training.federated_client import FederatedClient as FederatedClient
from dpcomp.training.pytorch.make_private import make_private as make_private
from dpcomp.training.pytorch.private_model import PrivateModel as PrivateModel
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer as PrivateOptimizer
from dpcomp.training.pytorch.rows.book_keeping.engine import BookKeeping as BookKeeping
from dpcomp.training.pytorch.rows.isolated import Isolated as Isolated
from dpcomp.training.pytorch.rows.opacus_hooks import Opacus as Opacus
from dpcomp.training.pytorch.tasks.supervised import SupervisedTask as SupervisedTask
from dpcomp.training.pytorch.trainer import PyTorch as PyTorch
