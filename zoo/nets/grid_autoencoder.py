"""Encoders from images to grids of vectors and decoders back: residual convolutions over patches of 4x4 pixels."""

from flax import nnx
from jaxtyping import Array, Float

from zoo.nets.autoencoder import PATCH, Downsampling, Upsampling
from zoo.nn.conv import Conv


def grid_widths(downsampling: int, channels: int) -> list[int]:
    """Returns the channels of each level of a grid with `downsampling` pixels to a position, a power of 2 from 4.

    They double from level to level, up to four times `channels`.
    """
    return [channels * min(2**level, 4) for level in range((downsampling // PATCH).bit_length())]


class GridEncoder(Downsampling):
    """Maps an image to a grid with one vector for each square of `downsampling` x `downsampling` pixels.

    Args:
        features_in: channels of the images.
        downsampling: pixels to a position, 4, 8, 16, ...; it divides height and width.
        channels: channels of the first level; see `grid_widths`.
        blocks: residual blocks per level.
        features_out: size of the vectors.
        rngs: source of the initial values.
    """

    def __init__(
        self, features_in: int, downsampling: int, channels: int, blocks: int, features_out: int, *, rngs: nnx.Rngs
    ):
        widths = grid_widths(downsampling, channels)
        super().__init__(features_in, widths, blocks, rngs=rngs)
        self.head = Conv(widths[-1], features_out, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Maps images to grids of vectors."""
        return self.head(self.last_level(x))


class GridDecoder(Upsampling):
    """The mirror of `GridEncoder`.

    Args:
        features_in: size of the vectors.
        downsampling: pixels to a position, as in the encoder.
        channels: channels of the first level, which has the highest resolution.
        blocks: residual blocks per level.
        features_out: channels of the images.
        rngs: source of the initial values.
    """

    def __init__(
        self, features_in: int, downsampling: int, channels: int, blocks: int, features_out: int, *, rngs: nnx.Rngs
    ):
        widths = grid_widths(downsampling, channels)
        self.stem = Conv(features_in, widths[-1], 1, rngs=rngs)
        super().__init__(features_out, widths, blocks, rngs=rngs)

    def __call__(self, z: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
        """Maps grids of vectors to images."""
        return self.image(self.stem(z))
