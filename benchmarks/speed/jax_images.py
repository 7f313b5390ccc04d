"""The images of the federated rounds as a `JaxTask`: the CNN as a function of its parameters and one example."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.peers.federation import Images
from dpcomp.training.jax import conv2d, max_pool
from experiments.data.models import fashion_cnn

Weights = Mapping[str, Array]


class JaxImages:
    """Ten classes of made-up images, channels last.

    Args:
        images: To train and evaluate on.
    """

    name = "images"

    def __init__(self, images: Images):
        self.population = len(images.labels)
        self._train = np.moveaxis(images.inputs, 1, -1), images.labels
        self._test = np.moveaxis(images.test_inputs, 1, -1), images.test_labels

    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the images and labels of all clients."""
        return self._train

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the images and labels to evaluate on."""
        return self._test

    def parameters(self, seed: int) -> dict[str, Array]:
        """Return the weights of the torch model, kernels as (h, w, inputs, outputs)."""
        made = {}
        for name, part in fashion_cnn(seed=seed).state_dict().items():
            axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[part.ndim]
            made[name] = jnp.asarray(part.numpy().transpose(axes))
        return made

    def apply(self, parameters: Weights, example: Array) -> Array:
        """Return the (10,) outputs of one (28, 28, 1) image."""
        hidden = conv2d(example, parameters["convolution_1.weight"], stride=2, padding=2)
        hidden = max_pool(jnp.tanh(hidden + parameters["convolution_1.bias"]))
        hidden = conv2d(hidden, parameters["convolution_2.weight"], stride=2)
        hidden = max_pool(jnp.tanh(hidden + parameters["convolution_2.bias"]))
        flat = hidden.transpose(2, 0, 1).reshape(-1)
        hidden = jnp.tanh(flat @ parameters["hidden.weight"] + parameters["hidden.bias"])
        return hidden @ parameters["output.weight"] + parameters["output.bias"]

    def loss(self, outputs: Array, target: Array) -> Array:
        """Return the cross-entropy of one example."""
        return jax.nn.logsumexp(outputs) - outputs[target]
