"""Codes of a data set's images by a trained codec, computed once and cached on disk."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from zoo.core.cache import cache_folder
from zoo.core.codec import Coder

Encode = Callable[[dict[str, Any]], Any]
"""A codec's `encode` or `latents`."""

DRAWINGS = 8
"""Drawings of the training images for a codec that draws its input at random (black and white pixels)."""
AT_ONCE = 256
"""Images that one call encodes."""


def encode_all(
    codec: Coder, images: UInt8[np.ndarray, "m h w c"], latents: bool = False
) -> Shaped[np.ndarray, "drawings m ..."]:
    """Returns the codes of all images: `DRAWINGS` times if the codec draws its input at random, else once.

    They are cached by a hash of the images and the codec's checkpoint. Drawing d of image i takes its noise from row
    d m + i. With `latents` they are real-valued.
    """
    file = _cache() / f"{_digest(codec, images)}{'-latents' * latents}.npy"
    if file.exists():
        return np.load(file)
    encode = codec.latents if latents else codec.encode
    count = DRAWINGS if _draws(encode, images) else 1
    codes = np.stack([_drawing(encode, images, drawing) for drawing in range(count)])
    _write(file, codes)
    return codes


def _drawing(encode: Encode, images: UInt8[np.ndarray, "m h w c"], drawing: int) -> Shaped[np.ndarray, "m ..."]:
    """Returns the codes of images, encoded in batches of one size, with a progress bar."""
    from rich.console import Console
    from rich.progress import track

    parts = []
    begins = range(0, len(images), AT_ONCE)
    for begin in track(begins, f"encoding, drawing {drawing}", console=Console(stderr=True), transient=True):
        index = np.arange(begin, begin + AT_ONCE)
        parts.append(_encode(encode, images, index, drawing)[: len(images) - begin])
    return np.concatenate(parts)


def _encode(
    encode: Encode, images: UInt8[np.ndarray, "m h w c"], index: Int[np.ndarray, " b"], drawing: int
) -> Shaped[np.ndarray, "b ..."]:
    row = (drawing * len(images) + index).astype(np.int32)
    codes = np.asarray(encode({"image": images[np.minimum(index, len(images) - 1)], "row": row}))
    return codes if codes.dtype.kind == "f" else codes.astype(np.uint16)


def _draws(encode: Encode, images: UInt8[np.ndarray, "m h w c"]) -> bool:
    """Whether codes depend on the row's noise."""
    index = np.arange(AT_ONCE)
    return not np.array_equal(_encode(encode, images, index, 0), _encode(encode, images, index, 1))


def _cache() -> Path:
    return cache_folder() / "codes"


def _digest(codec: Coder, images: UInt8[np.ndarray, "m h w c"]) -> str:
    return hashlib.sha256(f"{codec.checksum} {images.shape}".encode() + images.tobytes()).hexdigest()[:32]


def _write(file: Path, codes: Shaped[np.ndarray, "..."]) -> None:
    """Writes a whole file or none, since another process may read it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        np.save(part, codes)
    os.replace(part.name, file)
