"""Base of the data sets that a codec, or the choice of tokens, makes of images."""

import functools
from dataclasses import dataclass, replace
from typing import Any

from zoo.core.codec import Coder
from zoo.core.data import DataSet, Split


def images_of(data: DataSet) -> DataSet:
    """Returns the images that samples are compared with: those that a data set is another form of, or itself."""
    return data.reference if isinstance(data, CodedImages) else data


@dataclass(frozen=True, eq=False)
class CodedImages(DataSet):
    """Images in another form; see the subclasses."""

    spec: Any
    images: Any
    """An opened set of images."""
    codec: Coder | None
    split: Split = "dev"

    @functools.cached_property
    def held_out(self) -> Any:
        """The held-out images of the split, as images; one object, by which metrics recognise their reference."""
        return replace(self.images, split=self.split)

    @property
    def reference(self) -> Any:
        """The images that samples are compared with, one object too."""
        return self.held_out

    @property
    def held_out_batches(self) -> int:
        return self.held_out.held_out_batches
