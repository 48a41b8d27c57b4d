"""Convolutions: the fast forms against the plain ones, values and gradients, and PyTorch's transposed convolution."""

from functools import partial

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradients import normal

from zoo.nn.arithmetic import identity
from zoo.nn.conv import ConvTranspose, ToImage, conv2d, conv_transpose2d
from zoo.nn.cpu import strided
from zoo.nn.group_norm import group_norm

# A convolution's sums are longer than those of other blocks.
assert_same_with_gradients = partial(gradients.assert_same_with_gradients, atol=2e-5)


def plain_conv(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("shape", [(2, 4, 6, 16), (4, 64, 64, 20)])
def test_a_3x3_convolution_equals_the_plain_one(shape):
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], 16) / shape[-1] ** 0.5
    fast = jax.jit(lambda x, kernel: conv2d(x, kernel, padding=1))
    assert_same_with_gradients(fast, lambda x, kernel: plain_conv(x, kernel, 1, 1), x, kernel)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 8, 2, 5)])
def test_a_halving_4x4_convolution_equals_the_plain_one(shape):
    x, kernel = normal(0, *shape), normal(1, 4, 4, shape[-1], 7)
    fast = jax.jit(lambda x, kernel: conv2d(x, kernel, 2, 1))
    assert_same_with_gradients(fast, lambda x, kernel: plain_conv(x, kernel, 2, 1), x, kernel)


def test_chunks_of_a_batch_give_what_the_whole_gives(monkeypatch):
    monkeypatch.setattr(strided, "CHUNK", 16 * 8 * 8 * 3)
    x, kernel = normal(0, 6, 8, 8, 3), normal(1, 4, 4, 3, 7)
    assert_same_with_gradients(
        jax.jit(lambda x, kernel: conv2d(x, kernel, 2, 1)), lambda x, kernel: plain_conv(x, kernel, 2, 1), x, kernel
    )


@pytest.mark.parametrize("size", [(1, 1), (4, 6)])
def test_kernels_of_one_pixel_and_of_the_whole_image_are_matrix_products(size):
    x, kernel = normal(0, 2, 4, 6, 3), normal(1, *size, 3, 5)
    assert_same_with_gradients(jax.jit(conv2d), lambda x, kernel: plain_conv(x, kernel, 1, 0), x, kernel)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 2)])
def test_gradients_can_be_taken_of_gradients(kernel, stride):
    x, w = normal(0, 1, 4, 4, 16), normal(1, kernel, kernel, 16, 16)

    def slope(conv):
        return jax.grad(lambda w: jnp.square(jax.grad(lambda x: jnp.square(conv(x, w, stride, 1)).sum())(x)).sum())

    got, want = (jax.jit(slope(conv))(w) for conv in (conv2d, plain_conv))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * float(jnp.abs(want).max()))


def scattered(x, kernel):
    """PyTorch's definition: input pixel h adds x[h] kernel[k] to output pixel 2h - 1 + k."""
    b, h, w, _ = x.shape
    y = np.zeros((b, 2 * h + 2, 2 * w + 2, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            y[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("bi,klio->bklo", x[:, i, j], kernel)
    return y[:, 1:-1, 1:-1]


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 3, 5, 2), (2, 1, 1, 4)])
def test_transposed_convolution_equals_pytorchs_definition(shape):
    x, kernel = normal(0, *shape), normal(1, 4, 4, shape[-1], 5)
    np.testing.assert_allclose(conv_transpose2d(x, kernel), scattered(np.asarray(x), np.asarray(kernel)), atol=1e-4)


def test_transposed_convolution_is_the_gradient_of_the_strided_one():
    x, kernel = normal(0, 2, 4, 6, 3), normal(1, 4, 4, 3, 5)

    def gradient(x, kernel):
        strided = jax.linear_transpose(
            lambda y: plain_conv(y, kernel.swapaxes(2, 3), 2, 1), jax.ShapeDtypeStruct((2, 8, 12, 5), x.dtype)
        )
        return strided(x)[0]

    assert_same_with_gradients(jax.jit(conv_transpose2d), gradient, x, kernel)


def test_to_image_is_a_transposed_convolution_of_one_pixel():
    layer = ToImage(6, 3, rngs=nnx.Rngs(0))
    x = normal(0, 2, 6)
    expected = np.einsum("bi,klio->bklo", x, layer.kernel[...])
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_kernels_start_at_their_scale():
    assert float(ConvTranspose(32, 64, rngs=nnx.Rngs(0)).kernel[...].std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(ToImage(64, 8, rngs=nnx.Rngs(0)).kernel[...].std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(ToImage(64, 8, scale=0.02, rngs=nnx.Rngs(0)).kernel[...].std()) == pytest.approx(0.02, rel=0.05)


def plain_group_norm(x, scale, bias, groups, activation):
    b, h, w, c = x.shape
    parts = x.reshape(b, h, w, groups, c // groups)
    mean = parts.mean((1, 2, 4), keepdims=True)
    variance = ((parts - mean) ** 2).mean((1, 2, 4), keepdims=True)
    normal = ((parts - mean) / jnp.sqrt(variance + 1e-3)).reshape(b, h, w, c)
    return activation(normal * scale[None, None, None, :] + bias[None, None, None, :])


@pytest.mark.parametrize("activation", [jax.nn.silu, identity])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_group_normalisation_equals_its_plain_form(groups, activation):
    x, scale, bias = 2 + 3 * normal(0, 2, 4, 5, 6), normal(1, 6), normal(2, 6)
    fast = jax.jit(lambda x, scale, bias: group_norm(x, scale, bias, groups, 1e-3, activation))
    plain = partial(plain_group_norm, groups=groups, activation=activation)
    assert_same_with_gradients(fast, plain, x, scale, bias)
