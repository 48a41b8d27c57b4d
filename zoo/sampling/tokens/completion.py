"""What requests for tokens share: prompts, an image to complete or to describe, and guidance."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Lt

from zoo.core.errors import UserError, require
from zoo.core.family import Model
from zoo.data.specs import Given, GivenPart, TextSpec
from zoo.sampling.prompts import PromptRequest
from zoo.sampling.starting_images import given_pictures


@dataclass(frozen=True)
class CompletionRequest(PromptRequest):
    """A request for samples of tokens, of which a prompt or a part of an image may be given."""

    guidance: Annotated[float, Ge(0), Lt(math.inf)] = 1.0
    """Of a model of captioned images: scale g of guidance; logits are u + g (c - u), with the caption (c) and without
    (u). 1: as trained; 0: without the caption."""
    image: str | tuple[str, ...] = ""
    """An image to complete, for a model of images, a file or the number of a held-out one: `keep_rows` or `mask` says
    which part of it is kept. With neither, a model that writes captions describes it. Of several, in turn."""
    keep_rows: Annotated[int, Ge(0)] = 0
    """Rows of pixels to keep of the image, from the top."""
    mask: str = ""
    """A black and white image of the model's size: its white part of the image is sampled, the rest is kept."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("keep_rows", "0 without an image to complete", self.keep_rows == 0 or bool(self.image)),
            ("mask", "empty without an image to complete", not self.mask or bool(self.image)),
            ("mask", f"empty with keep_rows, {self.keep_rows}", not self.mask or self.keep_rows == 0),
        )

    @property
    def text(self) -> str:
        """The prompt as a text to continue.

        Raises:
            UserError: there are several.
        """
        if len(self.captions) <= 1:
            return "".join(self.captions)
        raise UserError(f"prompt names {len(self.captions)} texts, and the model continues one at a time; give one")

    def given(self, model: Model) -> Given | None:
        """Returns the tokens of samples that the request determines; see `TokenSpec.given`.

        Raises:
            UserError: the model cannot meet the request.
        """
        names = (self.image,) if isinstance(self.image, str) else self.image
        path, pictures = names[0] if names else "", None
        if (len(names) > 1 or path.isdecimal()) and hasattr(model.spec, "image"):
            pictures = given_pictures(names, model)
        part = GivenPart(path, self.keep_rows, self.mask, pictures=pictures)
        if not isinstance(model.spec, TextSpec):
            part = replace(part, prompts=self.captions, negative_prompt=self.negative_prompt)
        given = model.spec.given(part, model.codec)
        if given is None or given.without is None:
            for name, default in (("guidance", 1.0), ("negative_prompt", ""), ("rank_by", "")):
                if (value := getattr(self, name)) != default:
                    raise UserError(f"{name} is {value!r}, which is for images with captions: leave it out")
        return given
