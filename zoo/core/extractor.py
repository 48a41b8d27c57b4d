"""Feature extractors: maps from images to the feature vectors that image metrics (FID, KID, ...) compare.

An extractor is a name, a hash and a function; a notebook can define one by

    Extractor("mine", "v1", lambda images: (features, logits))        uint8 [b h w c] -> [b d], [b classes]

A trained family that implements `Extracts` can be used as one. `zoo.harness.extractors` loads extractors from files and
runs; families receive the loader as `Model.extractor`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from zoo.core.data import Spec
from zoo.core.errors import UserError


class Extracted(NamedTuple):
    """Features and class logits of n images; an extractor that knows no classes has logits [n 0]."""

    features: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n classes"]


@dataclass(frozen=True, eq=False)
class Extractor:
    """Maps images to feature vectors and class logits.

    Attributes:
        name: its name in reports.
        hash: identifies the weights; for files, the first 12 digits of their SHA-256.
        apply: maps images uint8 [b h w c] to features [b d] and logits [b classes], of which there may be none.
        classes: names of the classes, if the share of each class among samples is to be reported.
        batch_size: maximum number of images in a call of `apply`.
        takes: spec of the images that it accepts; None: all images.
        model: the `zoo.core.family.Model` of a run, for scores that need more of it than features; None for files.
    """

    name: str
    hash: str
    apply: Callable[[Any], tuple[Any, Any]]
    classes: tuple[str, ...] = ()
    batch_size: int = 256
    takes: Spec | None = None
    model: Any = None

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Extracted:
        """Features and logits of images, in batches; the last batch is padded, so that one size is compiled."""
        size = min(self.batch_size, 1 << max(len(images) - 1, 0).bit_length())
        parts = []
        for begin in range(0, len(images), size):
            some = images[begin : begin + size]
            filled = np.concatenate([some, some[-1:].repeat(size - len(some), axis=0)])
            with jax.default_matmul_precision("highest"):  # no TF32: scores must not depend on the device
                parts.append([np.asarray(array)[: len(some)] for array in self.apply(filled)])
        features, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Extracted(features, logits)


@runtime_checkable
class Extracts(Protocol):
    """A family whose trained networks are feature extractors. Its state holds one `Learner`."""

    def extract(
        self, state: Any, image: UInt8[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b classes"]]:
        """Features and class logits of images by the evaluation network; no classes: logits [b 0]. Traced."""


class NoExtractorError(UserError):
    """No extractor was named, and no embedded one fits the images."""


LoadExtractor = Callable[[str, Any], Extractor]
"""`load(name, spec)` returns the extractor that a setting names, for images of a spec.

It raises `NoExtractorError` if no name is given and no embedded one fits, and `UserError` if there is no extractor of
that name or it accepts other images."""


def no_extractor(name: str, spec: Any) -> Extractor:
    """The `LoadExtractor` of a `Model` that `zoo.load_run` or `zoo.fit` did not create.

    Raises:
        NoExtractorError: always.
    """
    raise NoExtractorError(
        f"extractor is {name!r}, and a model that zoo.load_run or zoo.fit did not return loads none: give "
        "Model(..., extractor=lambda name, spec: Extractor(...))"
    )
