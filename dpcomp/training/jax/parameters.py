"""Conversion between a pytree of parameters and one flat vector."""

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Float32

from dpcomp.core.layout import Layout


class Parameters:
    """The structure of a pytree of parameters: its leaves, in order, are the layers of the flat vector.

    Args:
        tree: The parameters.

    Raises:
        TypeError: A leaf is not a float32 array.
        ValueError: There is none.
    """

    def __init__(self, tree: Any):
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        names = [jax.tree_util.keystr(path, simple=True, separator=".") or "parameters" for path, _ in leaves]
        for name, (_, leaf) in zip(names, leaves, strict=True):
            if getattr(leaf, "dtype", None) != np.float32:
                raise TypeError(
                    f"the parameter {name} is {getattr(leaf, 'dtype', type(leaf).__name__)}: parameters are float32 "
                    "arrays. Keep what is not trained, such as numbers and functions, out of the pytree: close over it"
                )
        if not leaves:
            raise ValueError("parameters(seed) has no array: give a pytree of float32 arrays")
        self.layout = Layout.of({name: leaf.shape for name, (_, leaf) in zip(names, leaves, strict=True)})
        self.first = np.concatenate([np.asarray(leaf, np.float32).reshape(-1) for _, leaf in leaves])

    def tree(self, vector: Float[Array, "d"]) -> Any:
        """Return the pytree of a (d,) vector; works in a trace."""
        edges = self.layout.edges
        shapes = [shape for _, shape in self.layout.shapes]
        leaves = [vector[edges[i] : edges[i + 1]].reshape(shape) for i, shape in enumerate(shapes)]
        return jax.tree_util.tree_unflatten(self._structure, leaves)

    def vector(self, tree: Any) -> Float32[Array, "d"]:
        """Return the (d,) vector of a pytree; works in a trace."""
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree_util.tree_leaves(tree)])
