"""4x4 convolutions of stride 2 and padding 1, and their transposes, as matrix products, for the CPU.

XLA's CPU backend takes seconds for their gradients. A patch is the 4x4 input pixels of an output pixel; with all
patches as rows of a matrix P, a kernel K and an output y with gradient g,

    y = P K        dK = P^T g        dP = g K^T

and a pixel's gradient is the sum over the patches that contain it. The transposed convolution is the map from g to that
gradient. With 2x2 pixels merged into channels, a patch is 2x2 positions, and so four contiguous slices of memory.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from zoo.nn.cpu.barriers import late, settle
from zoo.nn.cpu.image_chunks import in_chunks

CHUNK = 2**24
"""Bytes of patches per part of the batch."""


def patches(x: Float[Array, "b h w c"]) -> Float[Array, "n k"]:
    """Returns the patch of each of the b * h/2 * w/2 output pixels, k = 16 c numbers each."""
    places = rearrange(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), "b (h p) (w q) c -> b h w (p q c)", p=2, q=2)
    places = settle(places)
    h, w = x.shape[1] // 2, x.shape[2] // 2
    shifted = [places[:, u : u + h, v : v + w] for u in range(2) for v in range(2)]
    return settle(rearrange(jnp.concatenate(shifted, axis=-1), "b h w k -> (b h w) k"))


def add_patches(rows: Float[Array, "n k"], height: int, width: int) -> Float[Array, "b h w c"]:
    """Returns the sum over patches for each pixel, the transpose of `patches`; height and width are the result's."""
    parts = rearrange(rows, "(b h w) (u v k) -> u v b h w k", h=height // 2, w=width // 2, u=2, v=2)
    places = sum(jnp.pad(parts[u, v], ((0, 0), (u, 1 - u), (v, 1 - v), (0, 0))) for u in range(2) for v in range(2))
    x = rearrange(settle(places), "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
    return settle(x[:, 1:-1, 1:-1])


def as_matrix(kernel: Float[Array, "4 4 i o"]) -> Float[Array, "k o"]:
    """Returns the kernel as a matrix whose rows have the order of a patch's numbers."""
    return settle(rearrange(kernel, "(u p) (v q) i o -> (u v p q i) o", p=2, q=2))


def as_kernel(matrix: Float[Array, "k o"]) -> Float[Array, "4 4 i o"]:
    """The inverse of `as_matrix`."""
    return rearrange(matrix, "(u v p q i) o -> (u p) (v q) i o", u=2, v=2, p=2, q=2)


def _correlation(left: Float[Array, "n i"], right: Float[Array, "n o"]) -> Float[Array, "i o"]:
    """left^T right; if right is wide it is transposed first, since XLA is faster at plain products."""
    if right.shape[1] < 128:
        return settle(jax.lax.dot_general(left, right, (((0,), (0,)), ((), ()))))
    return settle(settle(right.T) @ left).T


def _rows(x: Float[Array, "b h w c"]) -> Float[Array, "n c"]:
    return rearrange(x, "b h w c -> (b h w) c")


def _gather(x: Float[Array, "b h w i"], matrix: Float[Array, "k o"]) -> Float[Array, "b h2 w2 o"]:
    """Multiplies the patches of x with a kernel."""
    h, w = x.shape[1] // 2, x.shape[2] // 2

    def gather(x: jax.Array) -> jax.Array:
        return rearrange(settle(patches(x) @ matrix), "(b h w) o -> b h w o", h=h, w=w)

    return in_chunks(gather, CHUNK // (16 * x[0].size), False, x)


def _scatter(x: Float[Array, "b h w o"], matrix: Float[Array, "k o"]) -> Float[Array, "b h2 w2 i"]:
    """The transpose of `_gather`."""
    h, w = x.shape[1:3]

    def scatter(x: jax.Array) -> jax.Array:
        return add_patches(settle(jax.lax.dot_general(_rows(x), matrix, (((1,), (1,)), ((), ())))), 2 * h, 2 * w)

    return in_chunks(scatter, CHUNK // (4 * h * w * len(matrix)), False, x)


def _correlate(large: Float[Array, "b h w i"], small: Float[Array, "b h2 w2 o"]) -> Float[Array, "4 4 i o"]:
    """Returns the gradient of the kernel, from large images and small ones."""

    def correlate(large: jax.Array, small: jax.Array) -> jax.Array:
        return _correlation(patches(large), _rows(small))

    return as_kernel(in_chunks(correlate, CHUNK // (16 * large[0].size), True, large, small))


def strided(x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"]) -> Float[Array, "b h2 w2 o"]:
    """The convolution; height and width are even."""
    return _gather(x, as_matrix(kernel))


def strided_gradients(
    x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"], gradient: Float[Array, "b h2 w2 o"]
) -> tuple[Float[Array, "b h w i"], Float[Array, "4 4 i o"]]:
    """Returns the gradients of the image and of the kernel."""
    x, gradient = settle((late(x, gradient), gradient))
    return _scatter(gradient, as_matrix(kernel)), _correlate(x, gradient)


def strided_transpose(x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"]) -> Float[Array, "b h2 w2 o"]:
    """The transpose of the convolution from o to i channels with this kernel."""
    return _scatter(x, as_matrix(kernel.swapaxes(2, 3)))


def strided_transpose_gradients(
    x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"], gradient: Float[Array, "b h2 w2 o"]
) -> tuple[Float[Array, "b h w i"], Float[Array, "4 4 i o"]]:
    """Returns the gradients of `strided_transpose` with respect to image and kernel."""
    x, gradient = settle((x, gradient))
    return _gather(gradient, as_matrix(kernel.swapaxes(2, 3))), _correlate(gradient, x).swapaxes(2, 3)
