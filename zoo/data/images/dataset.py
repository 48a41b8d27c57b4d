"""Images for models of images, augmented on the device."""

from dataclasses import dataclass, field

from zoo.core.data import Split
from zoo.data.images.augment import Augment
from zoo.data.images.image_set import ImageSet
from zoo.data.images.source import ImageSource
from zoo.data.specs import ImageSpec


@dataclass(frozen=True)
class Images(ImageSource):
    """Images: MNIST by default, or the emoji, a folder, an array file or a TFDS set."""

    augment: Augment = field(default_factory=Augment)
    """Random augmentation of training images."""

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: ImageSpec | None = None,
        split: Split = "dev",
    ) -> ImageSet:
        """Reads the images and splits them; see `Data.open`."""
        return self.image_set(batch_size=batch_size, seed=seed, spec=spec, split=split, augment=self.augment)
