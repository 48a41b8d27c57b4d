"""Images for models of images, augmented on the device."""

from dataclasses import dataclass, field
from typing import Any

from zoo.core.codec import Coder
from zoo.core.data import Split
from zoo.core.errors import require
from zoo.data.images.augment import NO_AUGMENTATION, Augment
from zoo.data.images.image_set import ImageSet
from zoo.data.images.latents import LatentSet, latent_set
from zoo.data.images.source import ImageSource
from zoo.data.specs import ImageSpec, LatentSpec


@dataclass(frozen=True)
class Images(ImageSource):
    """Images: MNIST by default, or the emoji, a folder, an array file or a TFDS set."""

    augment: Augment = field(default_factory=Augment)
    """Random augmentation of training images."""

    codec: str = ""
    """The run directory of a codec, an image VAE's or a VQ-VAE's; the data are its latents, for diffusion models and
    flows. Empty: images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self, "data.", ("augment", "left out with data.codec", not self.codec or self.augment == NO_AUGMENTATION)
        )

    def fitting(self, spec: Any) -> "Images":
        """Returns these settings with the channels and, if square, the size of the images of an earlier run."""
        return super().fitting(spec.image)

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: ImageSpec | LatentSpec | None = None,
        split: Split = "dev",
        codec: Coder | None = None,
    ) -> ImageSet | LatentSet:
        """Reads the images and splits them; see `Data.open`."""
        kind = None if spec is None else spec.image
        images = self.image_set(batch_size=batch_size, seed=seed, spec=kind, split=split, augment=self.augment)
        if codec is None:
            return images
        return latent_set(images, codec, self.codec, spec if isinstance(spec, LatentSpec) else None)
