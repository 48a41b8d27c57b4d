"""The part of a request that is for models of images as tokens: an image to complete."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from zoo.core.errors import require
from zoo.core.family import Request
from zoo.data.specs import GivenPart


@dataclass(frozen=True)
class CompletionRequest(Request):
    """A request for samples of tokens, of which a part of an image may be given."""

    image: str = ""
    """An image to complete, for a model of images: `keep_rows` or `mask` says which part of it is kept."""
    keep_rows: Annotated[int, Ge(0)] = 0
    """Rows of pixels to keep of the image, from the top."""
    mask: str = ""
    """A black and white image of the model's size: its white part of the image is sampled, the rest is kept."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("keep_rows", "0 without an image to complete", self.keep_rows == 0 or self.image != ""),
            ("mask", "empty without an image to complete", not self.mask or self.image != ""),
            ("mask", f"empty with keep_rows, {self.keep_rows}", not self.mask or self.keep_rows == 0),
            ("image", "given with keep_rows or mask", not self.image or self.keep_rows > 0 or self.mask != ""),
        )

    @property
    def part(self) -> GivenPart | None:
        """The part of an image that every sample keeps; None: nothing is given."""
        return GivenPart(self.image, self.keep_rows, self.mask) if self.image else None
