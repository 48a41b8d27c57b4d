"""Images: embedded sets, folders, arrays and TFDS, with augmentation on the device."""

from zoo.data.images.dataset import Images
from zoo.data.images.token_set import ImageTokens

__all__ = ["ImageTokens", "Images"]
