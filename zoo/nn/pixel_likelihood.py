"""p(x|z) of the pixels of an image: the settings that decoders of images share, and the distribution they select.

The pixels x that p(x|z) models, by `likelihood` (auto: bernoulli for grey images, logistic for colour):

    bernoulli   pixels 0 or 1, drawn as x ~ Bernoulli(k / 255) if `binarise`
    gaussian    levels 0 .. 255 plus uniform noise, so that the density bounds the levels' probability (Theis et al.
                2016, "A note on the evaluation of generative models")
    logistic    levels 0 .. 255; the probability of a level is a logistic distribution's mass in the bin around it

Images are [b h w c] from -1 (black) to 1 (white); a decoder returns `outputs` parameters for each channel of a pixel.
"""

import logging
import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import jax.numpy as jnp
from annotated_types import Ge
from jax.nn import sigmoid
from jaxtyping import Array, Float
from tyro.conf import DisallowNone

from zoo.core.errors import UserError
from zoo.nn.likelihoods import bernoulli, discretised_logistic, gaussian

log = logging.getLogger("zoo")

Likelihood = Literal["bernoulli", "gaussian", "logistic"]
Pixels = Literal["binary", "noisy", "levels"]
"""What is modelled of an image; see `zoo.data.images.pixels.observe`."""


@dataclass(frozen=True, kw_only=True)
class PixelLikelihood:
    """Settings of p(x|z); families inherit them, so their flags are `--family.*`."""

    likelihood: Literal["auto", Likelihood] = "auto"
    """Distribution p(x|z) of a pixel: bernoulli (black or white), gaussian or logistic (256 levels). auto: bernoulli
    for grey images, logistic for colour."""
    binarise: DisallowNone[bool | None] = None
    """Draw each pixel from Bernoulli(k / 255): anew in every training step, once for held-out images. None: if the
    likelihood is bernoulli."""
    scale: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of the gaussian likelihood, with pixels in [-1, 1]; 0: learned for each pixel."""

    def __post_init__(self) -> None:
        if self.binarise and self.likelihood not in ("auto", "bernoulli"):
            raise UserError(
                f"family.likelihood is {self.likelihood}, which is of 256 levels, and family.binarise leaves two: "
                "give --family.no-binarise"
            )
        if self.scale and self.likelihood != "gaussian":
            raise UserError(
                f"family.scale is {self.scale}, which only the gaussian likelihood has: leave it at 0, or give "
                "--family.likelihood gaussian"
            )

    def likelihood_of(self, channels: int) -> Likelihood:
        """Returns the likelihood for images with `channels` channels."""
        if self.likelihood != "auto":
            return self.likelihood
        return "bernoulli" if channels == 1 else "logistic"

    def binarises(self, channels: int) -> bool:
        """Whether images with `channels` channels are binarised."""
        return self.likelihood_of(channels) == "bernoulli" if self.binarise is None else self.binarise

    def pixels(self, channels: int) -> Pixels:
        """Returns what is modelled of images with `channels` channels."""
        if self.binarises(channels):
            return "binary"
        return "noisy" if self.likelihood_of(channels) == "gaussian" else "levels"

    def outputs(self, channels: int) -> int:
        """Parameters of p(x|z) for each channel of each pixel."""
        return 1 if self.likelihood_of(channels) == "bernoulli" or self.scale else 2

    def check_channels(self, channels: int) -> None:
        """Checks that the settings fit images with `channels` channels, and logs once what auto resolves to.

        Raises:
            UserError: images in colour would be modelled as black and white.
        """
        likelihood, binarises = self.likelihood_of(channels), self.binarises(channels)
        if binarises and likelihood != "bernoulli":
            raise UserError(
                "family.binarise is True, which leaves two levels, and the images are in colour: give "
                "--family.no-binarise, or --data.channels 1"
            )
        if self.likelihood == "auto" or self.binarise is None:
            _log_choice(likelihood, binarises, "grey" if channels == 1 else "in colour")
        if likelihood == "bernoulli" and channels > 1:
            raise UserError(
                f"family.likelihood is bernoulli, for pixels that are black or white, and images have {channels} "
                "channels: give --family.likelihood logistic --family.no-binarise"
            )

    def log_likelihood(self, x: Float[Array, "b h w c"], parameters: Float[Array, "b h w c k"]) -> Float[Array, " b"]:
        """Returns log p(x|z) per image in nats; a gaussian density is in units of the 256 levels."""
        first, likelihood = parameters[..., 0], self.likelihood_of(x.shape[-1])
        log_scale = jnp.log(self.scale) if self.scale else jnp.maximum(parameters[..., -1], -7.0)
        if likelihood == "bernoulli":
            elements = bernoulli(0.5 * (x + 1.0), first)
        elif likelihood == "gaussian":
            elements = gaussian(x, first, log_scale) - math.log(128.0)
        else:
            elements = discretised_logistic(x, first, log_scale)
        return elements.sum((1, 2, 3))

    def mean(self, parameters: Float[Array, "b h w c k"]) -> Float[Array, "b h w c"]:
        """Returns the mean of p(x|z); that of a bernoulli likelihood is P(white) as a grey value."""
        first = parameters[..., 0]
        return 2.0 * sigmoid(first) - 1.0 if self.likelihood_of(first.shape[-1]) == "bernoulli" else first


@cache
def _log_choice(likelihood: Likelihood, binarises: bool, kind: str) -> None:
    """Logs once what `auto` resolves to; `init` is traced several times."""
    drawn = "drawn in black and white" if binarises else "not binarised"
    log.info("family.likelihood is %s, and pixels are %s, as the images are %s", likelihood, drawn, kind)
