"""3x3 convolutions in Winograd's minimal form, for the CPU.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1, F(2x2, 3x3). A tile of 2x2 output
pixels y depends on 4x4 input pixels d and the kernel k. With the matrices below,

    y = A^T [(G k G^T) * (B^T d B)] A

where * is elementwise multiplication, summed over input channels: 16 matrix products of all tiles with the kernel's
transforms, so 4 multiplications for each output pixel and pair of channels instead of 9. The form is exact, and in
float32 as accurate as the plain sum, since the transforms only add and halve. The gradient of the kernel is the
transposed form, summed over tiles,

    dk = G^T [(B^T d B) * (A dy A^T)] G

and the gradient of the input is the convolution of dy with the flipped kernel.
"""

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from zoo.nn.cpu.barriers import late, settle
from zoo.nn.cpu.image_chunks import in_chunks

A_T = ((1, 1, 1, 0), (0, 1, -1, -1))
B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))

CHUNK, GRADIENT_CHUNK = 1024, 512
"""Tiles transformed at a time: few enough to stay in the cache until they are used, enough to keep two cores busy."""

Matrix = Sequence[Sequence[int | float]]


def combine(matrix: Matrix, parts: Sequence[jax.Array], axis: int = 0) -> jax.Array:
    """Returns the matrix times a column of arrays, stacked along a new axis; terms with coefficient 0 are skipped."""
    rows = [reduce(jnp.add, [c * x for c, x in zip(row, parts, strict=True) if c]) for row in matrix]
    return settle(jnp.stack(rows, axis))


def _columns(matrix: Matrix) -> Matrix:
    """Returns the transposed matrix."""
    return list(zip(*matrix, strict=True))


def _tiles(x: Float[Array, "b h w c"]) -> Float[Array, "16 n c"]:
    """Returns B^T d B of every tile."""
    h, w = x.shape[1:3]
    x = settle(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    x = combine(B_T, [x[:, :, j : j + w : 2] for j in range(4)])
    x = combine(B_T, [x[:, :, i : i + h : 2] for i in range(4)])
    return rearrange(x, "i j b h w c -> (i j) (b h w) c")


def _kernels(kernel: Float[Array, "3 3 i o"]) -> Float[Array, "16 i o"]:
    """Returns G k G^T."""
    u = combine(G, [kernel[:, j] for j in range(3)])
    return rearrange(combine(G, [u[:, i] for i in range(3)]), "a b i o -> (a b) i o")


def _outputs(products: Float[Array, "16 n o"], height: int, width: int) -> Float[Array, "b h w o"]:
    """Returns A^T m A of every tile, assembled to images."""
    m = rearrange(products, "(i j) (b h w) o -> i j b h w o", i=4, h=height // 2, w=width // 2)
    m = combine(A_T, [m[i] for i in range(4)], axis=3)
    return rearrange(combine(A_T, [m[j] for j in range(4)], axis=4), "b h i w j o -> b (h i) (w j) o")


def _output_gradients(y: Float[Array, "b h w o"]) -> Float[Array, "16 n o"]:
    """Returns A dy A^T of every tile."""
    y = rearrange(y, "b (h i) (w j) o -> b h i w j o", i=2, j=2)
    y = combine(_columns(A_T), [y[:, :, :, :, j] for j in range(2)])
    y = combine(_columns(A_T), [y[:, :, :, i] for i in range(2)])
    return rearrange(y, "i j b h w o -> (i j) (b h w) o")


def _convolve(x: Float[Array, "b h w i"], kernels: Float[Array, "16 _ _"], contract: int) -> Float[Array, "b h w o"]:
    """Convolves images with a transformed kernel, whose axis `contract` is the images' channels."""

    def convolve(x: jax.Array) -> jax.Array:
        products = jax.lax.dot_general(_tiles(x), kernels, (((2,), (contract,)), ((0,), (0,))))
        return _outputs(settle(products), *x.shape[1:3])

    tiles = max(CHUNK, 128 * CHUNK // x.shape[-1])
    return in_chunks(convolve, 4 * tiles // (x.shape[1] * x.shape[2]), False, x)


def winograd(x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b h w o"]:
    """The convolution with stride 1 and padding 1; height and width are even."""
    return _convolve(x, _kernels(kernel), 1)


def winograd_gradients(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"], gradient: Float[Array, "b h w o"]
) -> tuple[Float[Array, "b h w i"], Float[Array, "3 3 i o"]]:
    """Returns the gradients of the image, a convolution with the flipped kernel, and of the kernel."""
    x, gradient = settle((late(x, gradient), gradient))
    return _convolve(gradient, _kernels(kernel[::-1, ::-1]), 2), _kernel_gradient(x, gradient)


def _kernel_gradient(x: Float[Array, "b h w i"], gradient: Float[Array, "b h w o"]) -> Float[Array, "3 3 i o"]:
    def correlate(x: jax.Array, gradient: jax.Array) -> jax.Array:
        # XLA has a fast path for plain products only, so the tiles are transposed first.
        return settle(settle(_tiles(x).swapaxes(1, 2)) @ _output_gradients(gradient))

    u = in_chunks(correlate, 4 * GRADIENT_CHUNK // (x.shape[1] * x.shape[2]), True, x, gradient)
    u = rearrange(u, "(a b) i o -> a b i o", a=4)
    u = combine(_columns(G), [u[:, b] for b in range(4)])
    return combine(_columns(G), [u[:, a] for a in range(4)])
