"""The convolutions that have their own implementation on the CPU, with custom gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.nn.cpu.strided import strided, strided_gradients, strided_transpose, strided_transpose_gradients
from zoo.nn.cpu.winograd import winograd, winograd_gradients

Convolve = Callable[[jax.Array, jax.Array], jax.Array]
"""A function of an image and a kernel that returns an image."""

WINOGRAD_CHANNELS = 64
"""Minimum input and output channels for Winograd's form; with fewer, its transforms cost more than they save."""


def _with_gradients(convolve: Convolve, gradients: Callable[..., tuple[jax.Array, jax.Array]]) -> Convolve:
    """Returns the convolution with `gradients` (image, kernel, output gradient) as its custom gradient."""
    whole = jax.custom_vjp(convolve)
    whole.defvjp(lambda *inputs: (convolve(*inputs), inputs), lambda inputs, gradient: gradients(*inputs, gradient))
    return whole


conv3x3 = _with_gradients(winograd, winograd_gradients)
"""Stride 1 and padding 1, for images of even height and width."""
conv4x4 = _with_gradients(strided, strided_gradients)
"""Stride 2 and padding 1, for images of even height and width."""
conv_transpose4x4 = _with_gradients(strided_transpose, strided_transpose_gradients)
"""PyTorch's `ConvTranspose2d` with stride 2 and padding 1."""


def fitting_form(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], stride: int, padding: int
) -> Convolve | None:
    """Returns the form that computes this convolution faster than XLA's, or None."""
    size, channels = kernel.shape[:2], kernel.shape[2:]
    if padding != 1 or x.shape[1] % 2 or x.shape[2] % 2:
        return None
    if size == (3, 3) and stride == 1 and min(channels) >= WINOGRAD_CHANNELS and x.dtype == jnp.float32:
        return conv3x3
    return conv4x4 if size == (4, 4) and stride == 2 else None
