"""Encoders from images to vectors and decoders back: dense, or residual convolutions over patches.

The cost of a convolution grows with the number of positions, its weights do not. The first level therefore consists of
4x4 patches, as in vision transformers (Dosovitskiy et al. 2021): a sixteenth of the positions, with more channels.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn import silu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zoo.core.errors import UserError
from zoo.nn.arithmetic import identity
from zoo.nn.conv import Conv
from zoo.nn.dense import Dense

OUTPUT_GAIN = 0.1
"""Initial scale of a decoder's outputs: near zero, so that no pixel's initial distribution is confident."""
BLOCK_GAIN = 0.3
"""Initial scale of a residual block's branch."""
PATCH = 4
"""Height and width of a patch in pixels; a patch is one position of the first level."""
LARGEST = 16
"""Maximum height and width of the last level, which a dense layer reads or produces."""


class MLP(nnx.Module):
    """Dense layers with SiLU between them; hidden layers after the first are residual.

    Args:
        sizes: features of the input, of each hidden layer (all equal) and of the output.
        gain: factor of the last layer's initial scale.
        rngs: source of the initial values.
    """

    def __init__(self, sizes: Sequence[int], *, gain: float = 1.0, rngs: nnx.Rngs):
        gains = [*[1.0] * (len(sizes) - 2), gain]
        self.layers = nnx.List(
            Dense(i, o, bias=True, scale=g / math.sqrt(i), rngs=rngs, activation=silu if n else identity)
            for n, ((i, o), g) in enumerate(zip(pairwise(sizes), gains, strict=True))
        )

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        """Maps vectors to vectors."""
        first, *inner, last = self.layers
        h = first(x[:, None])
        for layer in inner:
            h = h + layer(h)
        return last(h)[:, 0]


class ResidualBlock(nnx.Module):
    """x + conv(silu(conv(silu(x)))) with 3x3 convolutions (He et al. 2016, "Identity mappings").

    Args:
        channels: channels of input and output.
        rngs: source of the initial values.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.first = Conv(channels, channels, rngs=rngs)
        self.second = Conv(channels, channels, scale=BLOCK_GAIN / math.sqrt(9 * channels), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps an image to an image."""
        return x + self.second(silu(self.first(silu(x))))


def merge(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 d"]:
    """Merges each square of `size` x `size` pixels into one pixel with size^2 times the channels."""
    return rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=size, q=size)


def spread(x: Float[Array, "b h w d"], size: int) -> Float[Array, "b h2 w2 c"]:
    """The inverse of `merge`: sub-pixel upsampling (Shi et al. 2016)."""
    return rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=size, q=size)


def pyramid(height: int, width: int, channels: int) -> tuple[list[int], tuple[int, int]]:
    """Returns the channels of each level, and height and width of the last level.

    The first level is the 4x4 patches, with `channels` channels. Height and width are halved from level to level while
    both are even and the larger is above 8; channels double from level to level, up to four times `channels`.

    Raises:
        UserError: the image cannot be cut into such patches, or the last level is too large for a dense layer.
    """
    h, w, widths = height // PATCH, width // PATCH, [channels]
    while h % 2 == w % 2 == 0 and max(h, w) > 8:
        h, w = h // 2, w // 2
        widths.append(channels * min(2 ** len(widths), 4))
    if height % PATCH or width % PATCH or max(h, w) > LARGEST:
        raise UserError(
            f"images are {height} x {width}, and the conv network needs multiples of {PATCH} pixels that can be halved "
            f"until they are at most {PATCH * LARGEST}: give --data.size, such as 32 or 64"
        )
    return widths, (h, w)


class Downsampling(nnx.Module):
    """Patches of 4x4 pixels and residual blocks on each level; 2x2 positions are merged from level to level.

    Args:
        features_in: channels of the images.
        widths: channels of each level.
        blocks: residual blocks per level.
        rngs: source of the initial values.
    """

    def __init__(self, features_in: int, widths: Sequence[int], blocks: int, *, rngs: nnx.Rngs):
        self.patches = Conv(PATCH**2 * features_in, widths[0], 1, rngs=rngs)
        self.down = nnx.List(Conv(4 * i, o, 1, rngs=rngs) for i, o in pairwise(widths))
        self.blocks = nnx.List(nnx.List(ResidualBlock(c, rngs) for _ in range(blocks)) for c in widths)

    def last_level(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Maps images to the features of the last level."""
        x = self.patches(merge(x, PATCH))
        for level, blocks in enumerate(self.blocks):
            x = self.down[level - 1](merge(x, 2)) if level else x
            for block in blocks:
                x = block(x)
        return silu(x)


class Upsampling(nnx.Module):
    """The mirror of `Downsampling`: residual blocks on each level, then upsampling; the first level becomes pixels.

    Args:
        features_out: channels of the images.
        widths: channels of each level, the first with the highest resolution.
        blocks: residual blocks per level.
        rngs: source of the initial values.
    """

    def __init__(self, features_out: int, widths: Sequence[int], blocks: int, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(nnx.List(ResidualBlock(c, rngs) for _ in range(blocks)) for c in widths[::-1])
        self.up = nnx.List(Conv(i, 4 * o, 1, rngs=rngs) for i, o in pairwise(widths[::-1]))
        scale = OUTPUT_GAIN / math.sqrt(widths[0])
        self.pixels = Conv(widths[0], PATCH**2 * features_out, 1, scale=scale, rngs=rngs)

    def image(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
        """Maps features of the last level to images."""
        for level, blocks in enumerate(self.blocks):
            x = spread(self.up[level - 1](silu(x)), 2) if level else x
            for block in blocks:
                x = block(x)
        return spread(self.pixels(silu(x)), PATCH)


class ConvEncoder(Downsampling):
    """Residual blocks on each level of the image, then dense layers on the last level.

    Args:
        shape: height, width and channels of the images.
        channels: channels of the first level; see `pyramid`.
        blocks: residual blocks per level.
        hidden: features of the hidden layer.
        features_out: size of the vectors.
        rngs: source of the initial values.

    Raises:
        UserError: see `pyramid`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int,
        blocks: int,
        hidden: int,
        features_out: int,
        *,
        rngs: nnx.Rngs,
    ):
        widths, (height, width) = pyramid(*shape[:2], channels)
        super().__init__(shape[2], widths, blocks, rngs=rngs)
        self.head = MLP([height * width * widths[-1], hidden, features_out], rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b o"]:
        """Maps images to vectors."""
        return self.head(rearrange(self.last_level(x), "b h w c -> b (h w c)"))


class ConvDecoder(Upsampling):
    """The mirror of the encoder: dense layers produce the last level; each level has residual blocks, then upsampling.

    Args:
        features_in: size of the vectors.
        hidden: features of the hidden layer.
        channels: channels of the first level, which has the highest resolution; see `pyramid`.
        blocks: residual blocks per level.
        shape: height, width and channels of the images.
        rngs: source of the initial values.

    Raises:
        UserError: see `pyramid`.
    """

    def __init__(
        self, features_in: int, hidden: int, channels: int, blocks: int, shape: tuple[int, int, int], *, rngs: nnx.Rngs
    ):
        widths, self.size = pyramid(*shape[:2], channels)
        self.stem = MLP([features_in, hidden, math.prod(self.size) * widths[-1]], rngs=rngs)
        super().__init__(shape[2], widths, blocks, rngs=rngs)

    def __call__(self, z: Float[Array, "b i"]) -> Float[Array, "b h w c"]:
        """Maps vectors to images."""
        height, width = self.size
        return self.image(rearrange(self.stem(z), "b (h w c) -> b h w c", h=height, w=width))


class Autoencoder(nnx.Module):
    """An encoder q(z|x) and a decoder p(x|z), with float32 inputs and outputs.

    Args:
        network: "mlp" for dense layers on the flattened image, "conv" for convolutions on patches.
        shape: height, width and channels of the images.
        latent: units of a code.
        outputs: parameters of p(x|z) for each channel of each pixel.
        width: mlp: features of a hidden layer; conv: channels of the first level.
        layers: mlp: hidden layers; conv: residual blocks per level.
        hidden: conv: features of the hidden dense layer.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.

    Raises:
        UserError: see `pyramid`.
    """

    def __init__(
        self,
        network: Literal["mlp", "conv"],
        shape: tuple[int, int, int],
        *,
        latent: int,
        outputs: int,
        width: int,
        layers: int,
        hidden: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.shape, self.flat, self.dtype = shape, network == "mlp", jnp.dtype(dtype)
        if self.flat:
            pixels, inner = math.prod(shape), [width] * layers
            self.encoder: Any = MLP([pixels, *inner, 2 * latent], rngs=rngs)
            self.decoder: Any = MLP([latent, *inner, pixels * outputs], gain=OUTPUT_GAIN, rngs=rngs)
        else:
            made = (*shape[:2], shape[2] * outputs)
            self.encoder = ConvEncoder(shape, width, layers, hidden, 2 * latent, rngs=rngs)
            self.decoder = ConvDecoder(latent, hidden, width, layers, made, rngs=rngs)

    def encode(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b latent"], Float[Array, "b latent"]]:
        """Returns mean and log sigma^2 of q(z|x)."""
        x = rearrange(x, "b h w c -> b (h w c)") if self.flat else x
        mean, log_variance = jnp.split(self.encoder(x.astype(self.dtype)).astype(jnp.float32), 2, axis=-1)
        return mean, log_variance

    def decode(self, z: Float[Array, "b latent"]) -> Float[Array, "b h w c k"]:
        """Returns the k parameters of p(x|z) for every channel of every pixel."""
        h, w, c = self.shape
        return self.decoder(z.astype(self.dtype)).astype(jnp.float32).reshape(z.shape[0], h, w, c, -1)
