"""Settings for scoring a diffusion model, and the scores of its samples."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from zoo.core.artifacts import Image
from zoo.core.data import DataSet
from zoo.core.extractor import LoadExtractor
from zoo.core.family import Metrics, Model
from zoo.data.specs import LatentSpec
from zoo.metrics.images import drawn_classes, score_samples
from zoo.metrics.prompted import PromptedScoring, score_prompted, turned_captions
from zoo.sampling.diffusion.guidance import captions_of, check_guidance, known_classes
from zoo.sampling.diffusion.request import Diffusion, DiffusionRequest, SamplerName, make_levels, sample_images


@dataclass(frozen=True)
class DiffusionScoring(PromptedScoring):
    """Settings for scoring the samples of a family of `Diffusion`; a family adds those of its likelihood."""

    sampler: SamplerName = "ddim"
    """The sampler for the scored samples."""
    steps: int = 50
    """Number of sampler steps."""
    eta: float = 0.0
    """ddim: share of the ancestral noise in each step; 0: deterministic."""
    shift: float = 1.0
    """Above 1, more of the steps are at high noise levels."""
    guidance: float = 1.0
    """Scale g of classifier-free guidance; 1: plain conditional sampling. Classes are as frequent as in the
    reference."""
    sampling: ClassVar[tuple[str, ...]] = ("sampler", "steps", "eta", "shift", "guidance")  # stored with the scores

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request(n=1)  # fails before training or scoring if the sampler rejects the settings

    def request(self, n: int) -> DiffusionRequest:
        """Returns the request for n samples."""
        return DiffusionRequest(n=n, **self.recorded)

    @property
    def recorded(self) -> dict[str, Any]:
        """The sampler settings by name."""
        return {name: getattr(self, name) for name in self.sampling}

    def check(self, family: Any, spec: Any, extractor: LoadExtractor) -> dict[str, str]:
        check_guidance(family, spec, self.guidance)
        self.check_judges(captions_of(family, spec), spec.image, extractor)
        if self.samples:
            make_levels(family, self.sampler, self.steps, self.shift)
        return super().check(family, spec, extractor)


def unlike_images(scoring: DiffusionScoring, name: str, spec: Any) -> dict[str, str]:
    """The reason why a likelihood of images is not computed of latents, in the form of `Scoring.check`."""
    value = getattr(scoring, name)
    if not value or not isinstance(spec, LatentSpec):
        return {}
    return {
        name: f"{name} is {value}; of latents it would be a density of the codec's codes, not of images; it must be 0"
    }


def density(family: Diffusion, model: Model, data: DataSet) -> str:
    """Returns which density a likelihood is of: p(x | y) if held-out images have a class that the network knows."""
    if captions_of(family, model.spec) is not None:
        return "p(x | caption)"
    batches = map(data.held_out_at, range(data.held_out_batches))
    known = known_classes(family, model.spec) and any((batch["label"] >= 0).any() for batch in batches)
    return "p(x | y)" if known else "p(x)"


def score_images(
    family: Diffusion, model: Model, data: DataSet, scoring: DiffusionScoring, key: Key[Array, ""]
) -> Metrics:
    """Computes FID, KID, precision, recall and more of samples, and records the sampler settings; see `score_samples`.

    Args:
        family: the model family.
        model: the trained model.
        data: its held-out images are the reference.
        scoring: settings of the sampler and of the comparison.
        key: source of all noise and of the order of the classes.
    """

    def draw(classes: Int[np.ndarray, " n"], prompts: tuple[str, ...] | None = None) -> UInt8[np.ndarray, "n h w c"]:
        request = replace(scoring.request(len(classes)), prompt=prompts)
        made = sample_images(family, model, request, key, classes)
        return np.stack([image.pixels for image in made if isinstance(image, Image)])

    def draw_captions(prompts: tuple[str, ...]) -> UInt8[np.ndarray, "n h w c"]:
        return draw(np.zeros(len(prompts), np.int32), prompts)  # a network that reads captions knows no classes

    about = scoring.recorded | drawn_classes(known_classes(family, model.spec))
    caption = captions_of(family, model.spec)
    if caption is None:
        return score_samples(draw, data, scoring, about, key, model.extractor)
    return score_prompted(draw_captions, model, data, turned_captions(data), scoring, caption, about, key)
