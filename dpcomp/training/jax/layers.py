"""Layers that are fast under `vmap(grad)` on a processor, and whose gradients do not depend on how XLA compiles them.

Both take one image, channels last, as all of a `JaxTask` takes one example.
"""

from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float


def conv2d(
    image: Float[Array, "h w c"], kernel: Float[Array, "kh kw c o"], *, stride: int = 1, padding: int = 0
) -> Float[Array, "oh ow o"]:
    """Convolve one image with a kernel, as strided slices and one matrix product.

    The result is that of `jax.lax.conv_general_dilated` with layouts HWC and HWIO, up to rounding. XLA's own
    convolution has a kernel of its own for each example under `vmap(grad)`, which takes several times as long on a
    processor.

    Args:
        image: (h, w, c).
        kernel: (kh, kw, c, o), from c channels to o.
        stride: The step of the window, in both directions.
        padding: The number of zeros that are added on each side of the image.

    Returns:
        (oh, ow, o), where oh = (h + 2·padding − kh) // stride + 1, and ow likewise.

    Examples:
        >>> import jax.numpy as jnp
        >>> from dpcomp.training.jax import conv2d
        >>> conv2d(jnp.ones((28, 28, 1)), jnp.ones((8, 8, 1, 16)), stride=2, padding=2).shape
        (13, 13, 16)
    """
    (h, w, _), (kh, kw, c, o) = image.shape, kernel.shape
    oh, ow = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    # A stride of s is a stride of 1 over cells of s × s pixels: s² times fewer slices.
    ch, cw = -(-kh // stride), -(-kw // stride)
    below, right = (oh - 1 + ch) * stride - h - padding, (ow - 1 + cw) * stride - w - padding
    zero = jnp.zeros((), image.dtype)
    cells = _cells(lax.pad(image, zero, ((padding, below, 0), (padding, right, 0), (0, 0, 0))), stride)
    patches = [cells[i : i + oh, j : j + ow] for i in range(ch) for j in range(cw)]
    patches = jnp.concatenate(patches, axis=-1).reshape(oh * ow, ch * cw * stride**2 * c)
    kernel = jnp.pad(kernel, ((0, ch * stride - kh), (0, cw * stride - kw), (0, 0), (0, 0)))
    weights = kernel.reshape(ch, stride, cw, stride, c, o).transpose(5, 0, 2, 1, 3, 4).reshape(o, -1)
    return jnp.einsum("tk,ok->to", patches, weights).reshape(oh, ow, o)


def _cells(image: Float[Array, "h w c"], size: int) -> Float[Array, "h_cells w_cells cell"]:
    """Return an image with each cell of size × size pixels as one pixel with size² times the channels."""
    h, w, c = image.shape
    cells = image.reshape(h // size, size, w // size, size, c).transpose(0, 2, 1, 3, 4)
    return cells.reshape(h // size, w // size, size * size * c)


def max_pool(image: Float[Array, "h w c"], *, size: int = 2, stride: int = 1) -> Float[Array, "oh ow c"]:
    """Take the largest value of each window.

    Put it before an activation that keeps the order, such as tanh or relu: the values are the same, and XLA, which
    computes a pool again wherever its output is read, then reads the output of the activation. A CNN of 26,000
    parameters takes a third less time so.

    Where values are equal, the later one in the window has the gradient. The maximum is taken by comparison and choice,
    since XLA may compute the input of `jnp.maximum` or `lax.reduce_window` a second time for the gradient, with another
    rounding, and then finds no value that is equal to the maximum: gradients were 18.7 % off.

    Args:
        image: (h, w, c).
        size: The side of the window.
        stride: The step of the window, in both directions.

    Returns:
        (oh, ow, c), where oh = (h − size) // stride + 1, and ow likewise.

    Examples:
        >>> import jax.numpy as jnp
        >>> from dpcomp.training.jax import max_pool
        >>> max_pool(jnp.arange(9.0).reshape(3, 3, 1))[..., 0].tolist()
        [[4.0, 5.0], [7.0, 8.0]]
    """
    for axis in (0, 1):
        count = (image.shape[axis] - size) // stride + 1
        windows = [
            lax.slice_in_dim(image, i, i + stride * (count - 1) + 1, stride=stride, axis=axis) for i in range(size)
        ]
        image = windows[0]
        for other in windows[1:]:
            image = jnp.where(other >= image, other, image)
    return image
