"""Images as sequences of tokens: pixels, patches of black and white pixels, or the codes of a trained codec.

    pixels    one token per pixel and channel, row by row: a grey level 0 .. 255, or 0 for black and 1 for white
    patches   one token per patch of p x q black and white pixels, row by row: the p q bits as a number, the first bit
              the lowest; 2 x 4 pixels have 256 symbols, and an MNIST digit has 98 such patches
    codes     one token per place of the codec's grid, row by row: the index of its code

A sequence has as many tokens as an image has places. `end` begins it, and is an id of its own that is never predicted,
so the probabilities of all images sum to 1. Letters in shapes: b rows, n tokens, h w c image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Bool, Int, Int32, UInt8

from zoo.core.artifacts import Image
from zoo.core.codec import Coder
from zoo.core.errors import UserError
from zoo.data.images.files import read_image_as_it_is, read_mask
from zoo.data.images.image_set import kind_of
from zoo.data.specs import Given, GivenPart, ImageSpec, TokenSpec

Tokens = Literal["pixels", "patches", "codes"]

LARGEST_VOCABULARY = 2**16


@dataclass(frozen=True)
class ImageTokenSpec(TokenSpec):
    """Images as tokens; see the module's docstring."""

    image: ImageSpec
    tokens: Tokens
    patch: tuple[int, int]
    """Height and width in pixels of a token's place."""
    symbols: int
    """Number of different tokens; of pixels 256 or 2."""
    codec: str = ""
    """Check sum of the codec of `codes`."""

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    @property
    def outputs(self) -> int:
        return self.symbols

    @property
    def end(self) -> int:
        return self.symbols

    @property
    def longest(self) -> int:
        places = self.image.height // self.patch[0] * (self.image.width // self.patch[1])
        return places * (self.image.channels if self.tokens == "pixels" else 1)

    @property
    def binary(self) -> bool:
        """Whether tokens are of black and white pixels."""
        return self.tokens == "patches" or self.symbols == 2

    def encode(self, image: UInt8[np.ndarray, "b h w c"]) -> Int32[np.ndarray, "b n"]:
        """Returns the tokens of images, whose pixels are 0 or 255 if the tokens are of black and white pixels."""
        if self.tokens == "pixels":
            return rearrange(image >= 128 if self.binary else image, "b h w c -> b (h w c)").astype(np.int32)
        p, q = self.patch
        bits = rearrange(image >= 128, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=q)
        return (bits << np.arange(bits.shape[-1])[None, None, :]).sum(-1, dtype=np.int32)

    def to_pixels(self, tokens: Int[np.ndarray, "b n"]) -> UInt8[np.ndarray, "b h w c"]:
        """Returns the images that pixels or patches represent."""
        p, q = self.patch
        h, c = self.image.height // p, self.image.channels
        if self.tokens == "pixels":
            levels = 255 * tokens if self.binary else tokens
            return rearrange(levels.astype(np.uint8), "b (h w c) -> b h w c", h=h, c=c)
        bits = tokens[..., None] >> np.arange(p * q * c)[None, None, :] & 1
        return rearrange((255 * bits).astype(np.uint8), "b (h w) (p q c) -> b (h p) (w q) c", h=h, p=p, q=q)

    def decode(self, samples: Sequence[Int[np.ndarray, " t"]], codec: Coder | None) -> list[Image]:
        tokens = np.stack(samples)
        if self.tokens != "codes":
            return [Image(pixels) for pixels in self.to_pixels(tokens)]
        assert codec is not None, "codes are decoded by their codec"
        codes = rearrange(tokens, "b (h w) -> b h w", h=self.image.height // self.patch[0])
        return [Image(pixels) for pixels in np.asarray(codec.decode(codes))]

    def given(self, part: GivenPart, codec: Coder | None) -> Given | None:
        """Returns the tokens of the part of an image that is kept, -1 elsewhere; see `TokenSpec.given`.

        A token is kept if all pixels of its place are. Codes are those of the whole image, so they may depend on pixels
        near their place that are not kept.
        """
        if not part.has_image:
            return super().given(part, codec)
        if part.prompts:
            raise UserError(f"prompt is {part.prompts[0]!r}; it must be empty with image for a model without captions")
        return Given(self.kept(part, codec))

    def kept(self, part: GivenPart, codec: Coder | None) -> Int32[np.ndarray, "m n"]:
        """Returns the tokens of the part of each image that is kept, and -1 elsewhere; see `given`."""
        if not part.completes:
            raise UserError(f"image is {part.image!r}; it must be given with keep_rows or mask")
        kept, tokens = self._kept_pixels(part), self.whole(part, codec)
        p, q = self.patch
        whole = reduce(kept, "(h p) (w q) -> h w", "min", p=p, q=q)
        channels = self.image.channels if self.tokens == "pixels" else 1
        return np.where(whole.reshape(-1).repeat(channels)[None], tokens, -1).astype(np.int32)

    def whole(self, part: GivenPart, codec: Coder | None) -> Int32[np.ndarray, "m n"]:
        """Returns all tokens of the images that are given."""
        pictures = part.pictures
        if pictures is None:
            pictures = read_image_as_it_is(part.image, self.image)[None]
        return self.tokenize(pictures, np.arange(len(pictures)), codec)

    def tokenize(
        self, image: UInt8[np.ndarray, "b h w c"], row: Int[np.ndarray, " b"], codec: Coder | None
    ) -> Int32[np.ndarray, "b n"]:
        """Returns the tokens of images by their codec, if they have one; see `encode` and `flat_codes`."""
        return self.encode(image) if codec is None else flat_codes(codec, image, row)

    def _kept_pixels(self, part: GivenPart) -> Bool[np.ndarray, "h w"]:
        height, width = self.image.height, self.image.width
        if part.mask:
            return ~read_mask(part.mask, self.image)[..., 0]
        if not 0 < part.keep_rows < height or part.keep_rows % self.patch[0]:
            multiple = f", a multiple of {self.patch[0]}" if self.patch[0] > 1 else ""
            raise UserError(f"keep_rows is {part.keep_rows}; it must be from 1 to {height - 1}{multiple}")
        return np.repeat(np.arange(height)[:, None] < part.keep_rows, width, axis=1)


def spec_of_pixels(image: ImageSpec, patch: tuple[int, int] | None, binary: bool) -> ImageTokenSpec:
    """Returns the spec of tokens that are pixels (no patch) or patches.

    Raises:
        UserError: patches do not divide the image, or have too many symbols.
    """
    if patch is None:
        return ImageTokenSpec(image, "pixels", (1, 1), 2 if binary else 256)
    p, q = patch
    if p < 1 or q < 1 or image.height % p or image.width % q:
        raise UserError(
            f"data.patch is {p} {q}, and the images are {image.height} pixels high and {image.width} wide; it must be "
            "divisors of these"
        )
    bits = p * q * image.channels
    if 2**bits > LARGEST_VOCABULARY:
        raise UserError(
            f"data.patch is {p} {q}, {bits} bits with {image.channels} channels; it must have at most "
            f"{round(math.log2(LARGEST_VOCABULARY))}"
        )
    return ImageTokenSpec(image, "patches", (p, q), 2**bits)


def spec_of_codes(image: ImageSpec, codec: Coder, name: str) -> ImageTokenSpec:
    """Returns the spec of tokens that are codes of a codec.

    Args:
        image: spec of the images.
        codec: a codec of such images with discrete codes.
        name: the codec's run, for errors.

    Raises:
        UserError: the codec encodes other data, or its codes are not discrete.
    """
    check_codec(image, codec, name)
    if not codec.family.symbols:
        kind = type(codec.family).__name__
        raise UserError(f"data.codec is {name}, a run of {kind}, whose codes are not tokens; give a run of a VQ-VAE")
    height, width = codec.code_shape
    return ImageTokenSpec(
        image, "codes", (image.height // height, image.width // width), codec.family.symbols, codec.checksum
    )


def check_codec(image: ImageSpec, codec: Coder, name: str) -> None:
    """Checks that a codec encodes images of this size and these channels.

    Raises:
        UserError: it encodes others.
    """
    theirs = codec.spec
    if not isinstance(theirs, ImageSpec):
        raise UserError(f"data.codec is {name}, which does not encode images; give a run that does")
    ours, others = ((spec.height, spec.width, spec.channels) for spec in (image, theirs))
    if ours != others:
        raise UserError(
            f"data.codec is {name}, which encodes images of {kind_of(theirs)}, and these are of {kind_of(image)}"
        )


def flat_codes(
    codec: Coder, image: UInt8[np.ndarray, "b h w c"], row: Int[np.ndarray, " b"]
) -> Int32[np.ndarray, "b n"]:
    """Returns the codes of images, row by row of the grid; `row` selects the noise of a codec that draws some."""
    codes = codec.encode({"image": image, "row": row.astype(np.int32)})
    return rearrange(np.asarray(codes), "b h w -> b (h w)").astype(np.int32)
