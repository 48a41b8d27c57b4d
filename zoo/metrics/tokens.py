"""Scores of models of tokens: perplexity, the variety of sampled texts, and the quality of sampled images."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from jaxtyping import Array, Int, Key, UInt8

from zoo.core.artifacts import Image, Text
from zoo.core.data import DataSet, Spec
from zoo.core.errors import require
from zoo.core.extractor import LoadExtractor
from zoo.core.family import Family, Metrics, Model
from zoo.data.captions.token_set import CaptionedTokenSet
from zoo.data.captions.tokens import CaptionedTokenSpec
from zoo.data.images.coded import CodedImages
from zoo.data.images.tokens import ImageTokenSpec
from zoo.data.specs import SceneSpec, TextSpec
from zoo.metrics.captioned import conditional_bits, descriptions, turned_rows
from zoo.metrics.images import NEIGHBOURS, score_samples
from zoo.metrics.prompted import PromptedScoring, score_prompted
from zoo.metrics.text import perplexity, variety
from zoo.sampling.tokens.unmask import Sampler

OF_IMAGES = (ImageTokenSpec, CaptionedTokenSpec)
"""Specs of tokens that are decoded to images."""


@dataclass(frozen=True)
class TokenScoring(PromptedScoring):
    """Settings for scoring a model of tokens beyond likelihood."""

    samples: int = 0
    """Number of samples: texts for distinct-1, distinct-2 and self-BLEU, or images for FID, KID, precision and recall;
    0: none."""
    sample_tokens: Annotated[int, Ge(1)] = 300
    """Maximum number of tokens in each sampled text."""
    guidance: Annotated[float, Ge(0)] = 1.0
    """Of samples from captions: scale of guidance; see `CompletionRequest`."""
    stride: int = 0
    """Also score held-out text in overlapping windows, each only its last `stride` targets, so that every token has at
    least context - stride tokens before it; 0: no."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("samples", "0, or at least 2 to compare with each other", self.samples == 0 or self.samples >= 2),
            ("references", f"0 or at least {NEIGHBOURS + 1}", self.references == 0 or self.references > NEIGHBOURS),
            *self.needing_samples(),
            ("stride", "from 1 to the model's context, or 0", self.stride >= 0),
        )

    @property
    def request_fields(self) -> dict[str, Any]:
        """The fields of the request for scored samples, stored with the figures."""
        return {"temperature": 1.0} | ({"guidance": self.guidance} if self.guidance != 1 else {})

    def check(self, family: Family, spec: Spec, extractor: LoadExtractor) -> dict[str, str]:
        self.check_judges(getattr(spec, "caption", None), getattr(spec, "image", None), extractor)
        if isinstance(spec, TextSpec):
            return {}
        unfit = {}
        if self.stride:
            unfit["stride"] = f"stride is {self.stride}, which scores texts, and the tokens are of none"
        if isinstance(spec, OF_IMAGES) and (self.samples == 0 or self.samples > NEIGHBOURS):
            return unfit | super().check(family, spec.image, extractor)
        if self.samples:
            right = f"at least {NEIGHBOURS + 1} images" if isinstance(spec, OF_IMAGES) else "0 for such tokens"
            unfit["samples"] = f"samples is {self.samples}; it must be {right}"
        return unfit


@dataclass(frozen=True)
class UnmaskScoring(TokenScoring):
    """Settings for scoring a masked diffusion model beyond its bound."""

    sampler: Sampler = "ancestral"
    """The sampler for the scored samples."""
    steps: Annotated[int, Ge(1)] = 64
    """Calls of the network for each window of a scored sample."""

    @property
    def request_fields(self) -> dict[str, Any]:
        return super().request_fields | {"sampler": self.sampler, "steps": self.steps}


def score_language_model(
    model: Model, rows: Metrics, data: DataSet, scoring: TokenScoring, key: Key[Array, ""]
) -> Metrics:
    """Computes perplexity on the held-out split, and scores of samples.

    Args:
        model: samples with temperature 1, no truncation.
        rows: means over the split, including `loss` in nats per token.
        data: its held-out images are the reference of sampled images.
        scoring: number of samples.
        key: key for sampling.
    """
    figures: Metrics = {"perplexity": perplexity(rows["loss"])}
    if isinstance(data, CaptionedTokenSet):
        figures |= conditional_bits(model, data, key)
    if not scoring.samples:
        return figures
    if isinstance(data, CaptionedTokenSet):
        return figures | score_captioned(model, data, scoring, key)
    if isinstance(data, CodedImages):

        def draw(classes: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
            return _draw(model, scoring, key, len(classes))

        return figures | score_samples(draw, data, scoring, scoring.request_fields, key, model.extractor)
    make: Any = model.family.Request
    request = make(n=scoring.samples, max_new_tokens=scoring.sample_tokens, **scoring.request_fields)
    texts = [sample.text for sample in model.family.sample(model, request, key) if isinstance(sample, Text)]
    about = {"samples": scoring.samples, "sample_tokens": scoring.sample_tokens}
    return figures | variety(texts) | about | scoring.request_fields


def score_captioned(model: Model, data: CaptionedTokenSet, scoring: TokenScoring, key: Key[Array, ""]) -> Metrics:
    """Scores samples of held-out captions, how much they depend on these, and captions written from images."""

    def draw(prompts: tuple[str, ...]) -> UInt8[np.ndarray, "n h w c"]:
        return _draw(model, scoring, key, len(prompts), prompt=prompts)

    pairs, about = turned_rows(data), {"guidance": scoring.guidance} | scoring.request_fields
    figures = score_prompted(draw, model, data, pairs, scoring, model.spec.caption, about, key)
    if data.tell > 0 and isinstance(data.reference.spec, SceneSpec):
        figures |= descriptions(model, data, scoring.samples, key)
    return figures


def _draw(
    model: Model, scoring: TokenScoring, key: Key[Array, ""], n: int, **asked: Any
) -> UInt8[np.ndarray, "n h w c"]:
    """Draws n images, with further fields of the request."""
    request: Any = model.family.Request
    samples = model.family.sample(model, request(n=n, **asked, **scoring.request_fields), key)
    return np.stack([sample.pixels for sample in samples if isinstance(sample, Image)])
