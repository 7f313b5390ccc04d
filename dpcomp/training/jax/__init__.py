"""Training with JAX: the trainer for `simulate`, and the layers that are fast under per-example gradients."""

from dpcomp.core.extras import require

require("jax", "jax")

# ruff: noqa: E402  # what follows imports it
from dpcomp.training.jax.layers import conv2d as conv2d
from dpcomp.training.jax.layers import max_pool as max_pool
from dpcomp.training.jax.task import JaxTask as JaxTask
from dpcomp.training.jax.trainer import JAX as JAX
