"""The network of a diffusion model: a U-Net (`zoo.nets.unet`) or a diffusion Transformer (`zoo.nets.dit`)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from flax import nnx
from jax.typing import DTypeLike

from zoo.core.errors import UserError
from zoo.nets.dit import DiT, DiTSettings
from zoo.nets.unet import UNet, UNetOptions


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

    def relations(self) -> tuple[tuple[str, str, bool], ...]:
        """Returns the conditions for `require` beyond single fields' bounds; see `UNetOptions.relations`."""
        places = ("width", "a multiple of 4, for the positions of patches", self.width % 4 == 0)
        heads = ("width", f"a multiple of heads, {self.heads}", self.heads < 1 or self.width % self.heads == 0)
        return (*super().relations(), places, heads)

    def make_network(
        self,
        size: tuple[int, int, int],
        symbols: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        spans: bool = False,
    ) -> UNet | DiT:
        """Returns the network.

        Args:
            size: height, width and channels of the images.
            symbols: number of embedded classes, including "no class"; 0: unconditional.
            rngs: source of the initial values.
            dtype: computation dtype of the layers.
            spans: whether the network also receives the length of an interval of time.

        Raises:
            UserError: the network cannot have images of this size.
        """
        if self.network == "unet":
            return UNet(self.for_images(*size, symbols, spans), rngs, dtype)
        return DiT(self.dit_settings(*size, symbols, spans), rngs, dtype)

    def dit_settings(self, height: int, width: int, features_in: int, symbols: int, spans: bool = False) -> DiTSettings:
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
            frequency_shift=self.frequency_shift, remat=self.remat,
        )  # fmt: skip
