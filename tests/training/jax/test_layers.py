"""The layers give what XLA's own give, and the same gradients whether they are compiled or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dpcomp.training.jax import conv2d, max_pool

rng = np.random.default_rng(0)
SHAPES = [  # image, kernel, stride, padding
    ((28, 28, 1), (8, 8, 1, 16), 2, 2),
    ((10, 11, 3), (4, 5, 3, 2), 3, 2),
]
MORE_SHAPES = [
    ((9, 8, 2), (3, 2, 2, 3), 1, 1),
    ((9, 7, 2), (3, 3, 2, 4), 1, 0),
    ((5, 5, 1), (5, 5, 1, 1), 4, 0),
    ((6, 6, 2), (1, 1, 2, 3), 2, 0),
]


def arrays(*shapes):
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def xla(image, kernel, stride, padding):
    sides = [(padding, padding)] * 2
    return lax.conv_general_dilated(
        image[None], kernel, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


@pytest.mark.parametrize(
    ("image", "kernel", "stride", "padding"),
    [*SHAPES, *(pytest.param(*shape, marks=pytest.mark.slow) for shape in MORE_SHAPES)],
    ids=str,
)
def test_a_convolution_is_that_of_xla_with_its_gradients(image, kernel, stride, padding):
    image, kernel = arrays(image, kernel)

    def both(convolve):
        def value(image, kernel):
            made = convolve(image, kernel)
            return jnp.sum(jnp.sin(made)), made

        (_, made), gradients = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(image, kernel)
        return made, *gradients

    ours = both(lambda image, kernel: conv2d(image, kernel, stride=stride, padding=padding))
    theirs = both(lambda image, kernel: xla(image, kernel, stride, padding))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert np.linalg.norm(mine - other) <= 1e-12 * np.linalg.norm(other)


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (2, 2), (3, 2)])
def test_a_pool_is_that_of_xla(size, stride):
    (image,) = arrays((9, 8, 3))
    expected = lax.reduce_window(image, -jnp.inf, lax.max, (size, size, 1), (stride, stride, 1), "VALID")
    np.testing.assert_array_equal(max_pool(image, size=size, stride=stride), expected)


def test_the_gradient_of_a_pool_goes_to_the_largest_value_alone():
    image = jnp.asarray([[1.0, 3.0], [2.0, 0.0]])[..., None]
    gradient = jax.grad(lambda image: max_pool(image).sum())(image)
    np.testing.assert_array_equal(gradient[..., 0], [[0.0, 1.0], [0.0, 0.0]])


def test_equal_values_share_no_gradient():
    gradient = jax.grad(lambda image: max_pool(image).sum())(jnp.ones((2, 2, 1)))
    assert sorted(np.asarray(gradient).ravel()) == [0.0, 0.0, 0.0, 1.0]


def test_a_pool_after_tanh_has_its_gradient_in_float32_too():
    """The maximum of values that XLA computes a second time, with another rounding, had none."""
    images, weights = arrays((16, 12, 12, 8), (12, 12, 8))

    def loss(weights, image):
        hidden = max_pool(jnp.tanh(3 * image * weights))
        return jnp.sum(max_pool(jnp.tanh(hidden * 1.7), stride=2) ** 2)

    rows = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
    single = rows(weights.astype(jnp.float32), images.astype(jnp.float32))
    assert single.dtype == np.float32
    expected = rows(weights, images)
    assert np.linalg.norm(single - expected) <= 1e-4 * np.linalg.norm(expected)
