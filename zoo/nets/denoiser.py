"""The network of a diffusion model: a U-Net (`zoo.nets.unet`) or a diffusion Transformer (`zoo.nets.dit`)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from flax import nnx
from jax.typing import DTypeLike

from zoo.core.bounds import Why
from zoo.core.errors import UserError
from zoo.nets.captions import CaptionSettings
from zoo.nets.dit import DiT, DiTSettings
from zoo.nets.unet import UNet, UNetOptions

TEXT_HEADS = 4
"""Attention heads of the text encoder."""


@dataclass(frozen=True)
class DenoiserOptions(UNetOptions):
    """The options of the network; a family of diffusion models inherits these fields.

    Both networks have `layers`, `dropout`, `cos_first`, `frequency_shift` and `remat`. A DiT also has `patch`, `width`
    and `heads`, and no use for the other fields.
    """

    network: Literal["unet", "dit"] = "unet"
    """unet: a U-Net; dit: a diffusion Transformer of `layers` blocks (Peebles and Xie 2023)."""
    patch: Annotated[int, Ge(1)] = 2
    """dit: height and width of a patch in pixels."""
    width: Annotated[int, Ge(4)] = 128
    """dit: features of a patch."""
    heads: Annotated[int, Ge(1)] = 4
    """dit: attention heads."""
    text_width: Annotated[int, Ge(4), Why("of each of 4 heads")] = 64
    """Features of a token of a caption, for images with captions."""
    text_layers: Annotated[int, Ge(1)] = 2
    """Transformer blocks of the text encoder."""

    def relations(self) -> tuple[tuple[str, str, bool], ...]:
        """Returns the conditions for `require` beyond single fields' bounds; see `UNetOptions.relations`."""
        places = ("width", "a multiple of 4, for the positions of patches", self.width % 4 == 0)
        heads = ("width", f"a multiple of heads, {self.heads}", self.heads < 1 or self.width % self.heads == 0)
        text = ("text_width", f"a multiple of {TEXT_HEADS}", self.text_width % TEXT_HEADS == 0)
        return (*super().relations(), places, heads, text)

    def make_network(
        self,
        size: tuple[int, int, int],
        symbols: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        spans: bool = False,
        captions: tuple[int, int] | None = None,
    ) -> UNet | DiT:
        """Returns the network.

        Args:
            size: height, width and channels of the images.
            symbols: number of embedded classes, including "no class"; 0: unconditional.
            rngs: source of the initial values.
            dtype: computation dtype of the layers.
            spans: whether the network also receives the length of an interval of time.
            captions: tokens that captions can have, and positions of the longest; None: it reads none.

        Raises:
            UserError: the network cannot have images of this size.
        """
        text = None if captions is None else self.text(*captions)
        if self.network == "unet":
            return UNet(self.for_images(*size, symbols, spans, text), rngs, dtype)
        return DiT(self.dit_settings(*size, symbols, spans, text), rngs, dtype)

    def text(self, symbols: int, positions: int) -> CaptionSettings:
        """Returns the settings of the text encoder, for captions of so many different tokens and positions."""
        width, layers = self.text_width, self.text_layers
        return CaptionSettings(symbols=symbols, positions=positions, width=width, layers=layers, heads=TEXT_HEADS)

    def dit_settings(
        self,
        height: int,
        width: int,
        features_in: int,
        symbols: int,
        spans: bool = False,
        caption: CaptionSettings | None = None,
    ) -> DiTSettings:
        """Returns the settings of a DiT with these options for images of some size.

        Raises:
            UserError: the size is not a multiple of the patch's.
        """
        p = self.patch
        if height % p or width % p:
            raise UserError(
                f"family.patch is {p}, so images must be multiples of {p} pixels high and wide, and they are "
                f"{height} x {width}; give a patch that divides both, or --data.size"
            )
        return DiTSettings(
            rows=height // p, columns=width // p, features_in=features_in, symbols=symbols, spans=spans, patch=p,
            width=self.width, heads=self.heads, layers=self.layers, dropout=self.dropout, cos_first=self.cos_first,
            frequency_shift=self.frequency_shift, remat=self.remat, caption=caption,
        )  # fmt: skip
