"""Images: embedded sets, folders, arrays and TFDS, with augmentation on the device."""

from zoo.data.images.dataset import Images

__all__ = ["Images"]
