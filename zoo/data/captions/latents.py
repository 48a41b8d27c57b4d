"""Latents of captioned images by a trained codec, for latent text-to-image models (Rombach et al. 2022)."""

from dataclasses import dataclass

import jax
import numpy as np

from zoo.core.artifacts import Artifacts
from zoo.core.codec import Coder
from zoo.core.data import Batch
from zoo.data.captions.caption_set import CaptionedSet
from zoo.data.captions.scene_set import SceneSet
from zoo.data.images.latents import LatentSet, standardised
from zoo.data.images.tokens import check_codec
from zoo.data.specs import LatentSpec

MEASURED = 2048
"""Training images whose latents give the mean and the deviation of each channel, at least."""


@dataclass(frozen=True, eq=False)
class CaptionedLatents(LatentSet):
    """Captioned images with `image` float32 [b h w c], their latents; the other arrays are those of the images."""

    images: SceneSet | CaptionedSet

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`; latents are encoded anew for each, since scenes have no end."""
        return self.encoded(self.images.batch_at(step, rows))

    def preview(self, key: jax.Array) -> Artifacts:
        """Returns the first images of the first batch with their captions under them."""
        return self.images.preview(key)

    def coverage(self) -> dict[str, float]:
        """Returns the shares of held-out captions that are cut and of unknown tokens."""
        return self.reference.coverage()


def captioned_latents(
    images: SceneSet | CaptionedSet, codec: Coder, name: str, spec: LatentSpec | None
) -> CaptionedLatents:
    """Returns captioned images as latents, standardised by those of the first training images or as in an earlier run.

    Args:
        images: the images.
        codec: encodes such images.
        name: the codec's run, for errors.
        spec: spec of an earlier run; None: made from the data.

    Raises:
        UserError: the codec encodes other images.
    """
    check_codec(images.spec, codec, name)
    if spec is None:
        batches = (images.batch_at(step) for step in range(-(-MEASURED // images.batch_size)))
        latents = [np.asarray(codec.latents({"image": b["image"], "row": b["row"]})) for b in batches]
        spec = standardised(np.concatenate(latents), images.spec, codec)
    return CaptionedLatents(spec, images, codec, images.split)
