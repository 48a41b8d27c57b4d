"""The generator and the discriminator of DCGAN, with the layers of PyTorch's DCGAN example.

Radford et al. 2016, "Unsupervised representation learning with deep convolutional generative adversarial networks". For
64 pixels, z is mapped to 4x4 pixels of 8 `width` channels, and four transposed 4x4 convolutions of stride 2 halve the
channels and double the size, with batch normalisation and ReLU between them and tanh at the end; the discriminator
mirrors it with 4x4 convolutions of stride 2 and LeakyReLU(0.2). For 32 pixels both have one stage less. Images are
[b h w c] in [-1, 1].
"""

from functools import partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import leaky_relu, relu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zoo.nn.batch_norm import BatchNorm
from zoo.nn.conv import Conv, ConvTranspose, ToImage, add_bias, conv2d
from zoo.nn.dense import matmul
from zoo.nn.spectral_norm import SpectralNorm

INIT_SCALE = 0.02

Normalisation = Literal["batch", "spectral", "none"]


def stage_widths(width: int, size: int) -> list[int]:
    """Returns the channels of the discriminator's stages, starting at the image; the generator's are the reverse."""
    return [width << stage for stage in range((size // 4).bit_length() - 1)]


def class_vectors(table: Float[Array, "classes d"], label: Int[Array, " b"]) -> Float[Array, "b d"]:
    """Returns the table's row for each label; zeros for label -1."""
    return matmul(jax.nn.one_hot(label, table.shape[0], dtype=table.dtype), table)


class Generator(nnx.Module):
    """G: noise to images.

    With classes, a class embedding of the size of z is concatenated to z (Mirza & Osindero 2014, "Conditional
    generative adversarial nets").

    Args:
        size: height and width of the images.
        channels: channels of the images.
        width: channels of the last stage.
        latent: size of z.
        classes: number of classes; 0: unconditional.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        *,
        width: int,
        latent: int,
        classes: int = 0,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.dtype = jnp.dtype(dtype)
        widths = stage_widths(width, size)[::-1]
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (classes, latent))) if classes else None
        inputs = 2 * latent if classes else latent
        self.project = ToImage(inputs, widths[0], 4, bias=False, scale=INIT_SCALE, rngs=rngs)
        self.norms = nnx.List(BatchNorm(width, gain_scale=INIT_SCALE, rngs=rngs) for width in widths)
        self.ups = nnx.List(
            ConvTranspose(i, o, bias=False, scale=INIT_SCALE, rngs=rngs) for i, o in pairwise([*widths, channels])
        )

    def __call__(self, z: Float[Array, "b latent"], label: Int[Array, " b"], *, train: bool) -> Float[Array, "b h w c"]:
        """Returns images in [-1, 1].

        Args:
            z: noise, standard normal.
            label: class numbers, -1 for none; ignored without classes.
            train: normalise by the batch's moments and update the running averages; otherwise normalise by these.
        """
        if self.embedding is not None:
            z = jnp.concatenate([z, class_vectors(self.embedding[...], label)], axis=1)
        h = self.project(z.astype(self.dtype))
        for norm, up in zip(self.norms, self.ups, strict=True):
            h = up(relu(norm(h, train=train)))
        return jnp.tanh(h.astype(jnp.float32))


class DiscriminatorConv(nnx.Module):
    """A 4x4 convolution with optional spectral normalisation of the kernel or batch normalisation of the output.

    As in the original, a network with batch normalisation has no biases.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        norm: Normalisation,
        *,
        stride: int,
        padding: int,
        normalised: bool = True,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            features_in, features_out, 4, stride=stride, padding=padding, bias=norm != "batch", scale=INIT_SCALE,
            rngs=rngs,
        )  # fmt: skip
        self.spectral = SpectralNorm(self.conv.kernel[...], rngs=rngs) if norm == "spectral" else None
        batch = norm == "batch" and normalised
        self.norm = BatchNorm(features_out, gain_scale=INIT_SCALE, rngs=rngs) if batch else None

    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b h2 w2 o"]:
        """Maps an image to an image."""
        kernel = self.conv.kernel[...]
        if self.spectral is not None:
            kernel = self.spectral(kernel, train=train)
        y = add_bias(conv2d(x, kernel, self.conv.stride, self.conv.padding), self.conv.bias)
        return y if self.norm is None else self.norm(y, train=train)


class Discriminator(nnx.Module):
    """D: images to the logit of the probability that they are real.

    With classes, the inner product of a class embedding and the last features, summed over pixels, is added to the
    logit (Miyato & Koyama 2018, "cGANs with projection discriminator").

    Args:
        size: height and width of the images.
        channels: channels of the images.
        width: channels of the first stage.
        norm: batch normalisation, as in the original, spectral normalisation of the kernels, or none.
        classes: number of classes; 0: unconditional.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        *,
        width: int,
        norm: Normalisation,
        classes: int = 0,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.dtype = jnp.dtype(dtype)
        widths = stage_widths(width, size)
        make = partial(DiscriminatorConv, norm=norm, rngs=rngs)
        self.downs = nnx.List(
            make(i, o, stride=2, padding=1, normalised=stage > 0)  # no batch normalisation after the first convolution
            for stage, (i, o) in enumerate(pairwise([channels, *widths]))
        )
        self.head = make(widths[-1], 1, stride=1, padding=0, normalised=False)
        table = INIT_SCALE * jax.random.normal(rngs.params(), (classes, widths[-1])) if classes else None
        self.embedding = None if table is None else nnx.Param(table)
        self.embedding_norm = None if table is None or norm != "spectral" else SpectralNorm(table, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], label: Int[Array, " b"], *, train: bool) -> Float[Array, " b"]:
        """Returns logit D(x | label).

        Args:
            x: images in [-1, 1], all real or all generated, since batch normalisation couples them.
            label: class numbers, -1 for none; ignored without classes.
            train: normalise by the batch's moments and update the running averages and the spectral norms' vectors.
        """
        h = x.astype(self.dtype)
        for down in self.downs:
            h = leaky_relu(down(h, train=train), 0.2)
        logit = self.head(h, train=train)[:, 0, 0, 0].astype(jnp.float32)
        if self.embedding is not None:
            table = self.embedding[...]
            if self.embedding_norm is not None:
                table = self.embedding_norm(table, train=train)
            logit = logit + (class_vectors(table, label) * h.astype(jnp.float32).sum((1, 2))).sum(1)
        return logit
