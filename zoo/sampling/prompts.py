"""Requests with prompts: what samples show, and the best of many by a model that tells how well they agree.

Ramesh et al. 2021, "Zero-shot text-to-image generation", section 2.6: candidates are drawn for each prompt, and those
whose CLIP vector agrees most with the prompt's are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from annotated_types import Ge
from jaxtyping import Float, Int, UInt8

from zoo.core.artifacts import Artifacts, Image
from zoo.core.errors import UserError
from zoo.core.family import Model, Request
from zoo.data.captions.prompts import read_prompt

Asked = TypeVar("Asked", bound="PromptRequest")


@runtime_checkable
class Agrees(Protocol):
    """A family that maps images and captions to vectors whose products tell how well they agree."""

    def image_vectors(self, model: Model, images: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b d"]:
        """Unit vectors of images."""

    def text_vectors(
        self, model: Model, caption: Int[np.ndarray, "b t"], length: Int[np.ndarray, " b"]
    ) -> Float[np.ndarray, "b d"]:
        """Unit vectors of captions, as `CaptionSpec.rows` returns them."""


@dataclass(frozen=True)
class PromptRequest(Request):
    """A request for samples that show what prompts say."""

    prompt: str | tuple[str, ...] | None = None
    """Text to continue, which may be the middle of a document; left out: texts start at the beginning of a document. Of
    a model of captioned images, what the images show: with several prompts, sample i has number i in turn."""
    negative_prompt: str = ""
    """Of a model of captioned images: what guidance leads away from; empty: images without a caption."""
    rank_by: str = ""
    """The run directory of a CLIP: of `candidates` images for each that is asked for, those are kept that agree most
    with their prompt by it, best first. Empty: all images are kept."""
    candidates: Annotated[int, Ge(1)] = 8
    """With rank_by: images that are drawn for each that is kept."""

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts as captions of images."""
        if self.prompt is None:
            return ()
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt


def agreeing(name: str, flag: str, model: Model) -> Any:
    """Returns the model of a run that tells how well images and captions agree.

    Args:
        name: the run's directory.
        flag: the setting that names it, for errors.
        model: loads it, for images of its own.

    Raises:
        UserError: there is no such run, it is of another family, or it takes other images.
    """
    found = model.extractor(name, model.spec.image).model
    if found is None or not isinstance(found.family, Agrees):
        raise UserError(f"{flag} is {name}, which compares no images with captions; give a run of configs/clip.py")
    return found


def agreement(
    judge: Model, images: UInt8[np.ndarray, "n h w c"], captions: tuple[str, ...]
) -> Float[np.ndarray, "n m"]:
    """Returns the products of the unit vectors of images and captions by a family of `Agrees`."""
    spec, family = judge.spec.caption, judge.family
    assert isinstance(family, Agrees)
    rows, lengths = (np.concatenate(x) for x in zip(*(read_prompt(spec, text) for text in captions), strict=True))
    return family.image_vectors(judge, images) @ family.text_vectors(judge, rows, lengths).T


def best_of_many(request: Asked, model: Model, draw: Callable[[Asked], Artifacts]) -> Artifacts:
    """Returns the samples of a request: all that `draw` makes, or the best of its candidates.

    Raises:
        UserError: candidates cannot be ranked.
    """
    if not request.rank_by:
        return draw(request)
    captions = request.captions
    if not captions:
        raise UserError(f"rank_by is {request.rank_by}, and there is no prompt to agree with; give one")
    judge = agreeing(request.rank_by, "rank_by", model)
    made = draw(replace(request, n=request.n * request.candidates, rank_by=""))
    pixels = np.stack([image.pixels for image in made if isinstance(image, Image)])
    m, number = len(captions), np.arange(len(pixels))
    scores = agreement(judge, pixels, captions)[number, number % m]
    best = [k + m * np.argsort(-scores[k::m], kind="stable") for k in range(m)]
    return [made[best[i % m][i // m]] for i in range(request.n)]
