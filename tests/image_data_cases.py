"""Images of noise, files of them, and all images of a data set."""

import hashlib
from pathlib import Path

import numpy as np
import PIL.Image


def open_images(settings, batch_size=4, seed=0, spec=None, split="dev"):
    return settings.open(length=None, batch_size=batch_size, seed=seed, spec=spec, split=split)


def three_parts(data):
    """Images and labels of train, dev and test."""
    return (data.images, data.labels), *(
        (data.on(split).held_out_images, data.on(split).held_out_labels) for split in ("dev", "test")
    )


def all_images(data):
    return np.concatenate([images for images, _ in three_parts(data)])


def all_labels(data):
    return np.concatenate([labels for _, labels in three_parts(data)])


def by_hash(images):
    return np.array(sorted(images, key=lambda image: hashlib.sha256(image.tobytes()).digest()))


def arrays(n=11, size=6, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


def save(folder, pixels, name, **options):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(np.squeeze(pixels))
    image.save(path, **options)
    return path
