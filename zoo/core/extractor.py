"""Feature extractors: what turns images into the vectors that generative models are compared by.

An extractor is a name, a hash and a function; a notebook makes its own by

    Extractor("mine", "v1", lambda images: (features, logits))        uint8 [b h w c] -> [b d], [b classes]

A family that implements `Extracts` can be trained into one. `zoo.harness.extractors` loads extractors from files and
runs; families get the loader as `Model.extractor`.
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
    """Features and class logits of n images."""

    features: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n classes"]


@dataclass(frozen=True, eq=False)
class Extractor:
    """Turns images into feature vectors and class logits.

    Attributes:
        name: what it is.
        hash: tells weights of one name apart; of files, the first 12 digits of their SHA-256.
        apply: maps images uint8 [b h w c] to features [b d] and logits [b classes].
        classes: their names, if the share of each class among samples is to be reported.
        batch_size: images given to `apply` at once, at most.
        takes: spec of the images that it takes; None: all images.
    """

    name: str
    hash: str
    apply: Callable[[Any], tuple[Any, Any]]
    classes: tuple[str, ...] = ()
    batch_size: int = 256
    takes: Spec | None = None

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Extracted:
        """Features and logits of images, in batches; the last batch is filled up, so that one size is compiled."""
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
        """Features and class logits of images by the evaluation network. Traced."""


class NoExtractorError(UserError):
    """No extractor was named, and none that is at hand fits the images."""


LoadExtractor = Callable[[str, Any], Extractor]
"""`load(name, spec)`: the extractor that a setting names, for images of a spec.

It raises `NoExtractorError` if no name is given and nothing fits, and `UserError` if there is no extractor of that name
or it takes other images."""


def no_extractor(name: str, spec: Any) -> Extractor:
    """The `LoadExtractor` of a model that was made by hand.

    Raises:
        NoExtractorError: always.
    """
    raise NoExtractorError(
        f"extractor is {name!r}, and a model that zoo.load_run or zoo.fit did not return loads none: give "
        "Model(..., extractor=lambda name, spec: Extractor(...))"
    )
