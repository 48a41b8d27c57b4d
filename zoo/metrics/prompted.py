"""Captions as prompts of scored samples: sample i has the caption of held-out image i."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import numpy as np
from annotated_types import Ge
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.estimates import row_mean
from zoo.core.extractor import Extractor, LoadExtractor
from zoo.core.family import Batch, Metrics, Model
from zoo.data.captions.grammar import parse
from zoo.data.captions.rows import shown
from zoo.data.captions.scenes import array_of
from zoo.data.images.coded import images_of
from zoo.data.specs import CaptionSpec, SceneSpec
from zoo.metrics.images import ImageScoring, score_samples
from zoo.metrics.reading import own_accuracy, read_accuracy
from zoo.metrics.retrieval import first_rows, read_pairs, share
from zoo.sampling.prompts import Agrees, agreement

RIVALS = 9
"""Other captions that R-precision compares with."""
VARIED = 10
"""Captions whose samples are compared with each other."""

Draw = Callable[[tuple[str, ...]], UInt8[np.ndarray, "n h w c"]]
"""Draws an image for each of some captions."""


@runtime_checkable
class Reads(Protocol):
    """A family that tells what is in scenes of coloured digits."""

    def read(self, model: Model, images: UInt8[np.ndarray, "n h w c"]) -> np.ndarray:
        """Digit, colour and place of the objects in images, in the form of a batch's `scene`, int32 [n 2 3]."""


@dataclass(frozen=True)
class JudgedScoring(ImageScoring):
    """Settings for scoring images by whether they show what captions say."""

    reader: str = ""
    """The run directory of a reader of captioned digits, such as runs/captioned_digits_reader: samples are also scored
    by what it reads in them; with extractor auto, its features are compared. Empty: nothing is read."""
    clip: str = ""
    """The run directory of a CLIP, such as runs/clip: samples of captions are also scored by how well they agree with
    these (CLIP score, and R-precision among ten captions). Empty: no such scores."""

    def needing_samples(self) -> tuple[tuple[str, str, bool], ...]:
        judges = {"reader": self.reader, "clip": self.clip}
        needing = ((name, "given with a number of samples", self.samples > 0 or not v) for name, v in judges.items())
        return (*super().needing_samples(), *needing)

    @property
    def features(self) -> str:
        return self.reader if self.extractor == "auto" and self.reader else self.extractor

    def check_judges(self, captions: CaptionSpec | None, spec: Any, extractor: LoadExtractor) -> None:
        """Checks the reader and the CLIP, for images of a spec.

        Args:
            captions: the spec of the captions that the samples should show; None: there are none.
            spec: the images.
            extractor: loads the runs.

        Raises:
            UserError: there is no such run, it cannot judge, or there is nothing to judge by.
        """
        for name, check in (("reader", check_reader), ("clip", check_clip)):
            if value := getattr(self, name):
                if captions is None:
                    raise UserError(f"{name} is {value}, which judges by captions, and the model reads none")
                check(value, extractor(value, spec), spec)

    def judge(self, images: UInt8[np.ndarray, "n h w c"], data: DataSet, load: LoadExtractor) -> Metrics:
        """Returns the scores by the reader and the CLIP; see `zoo.metrics.images.Judge`."""
        figures: Metrics = {}
        if self.reader:
            figures |= read_samples(images, data, load(self.reader, data.spec)) | {"reader": self.reader}
        if self.clip:
            figures |= agree_samples(images, data, load(self.clip, data.spec)) | {"clip": self.clip}
        return figures

    def of_image(self) -> dict[str, Any]:
        return super().of_image() | {"reader": "", "clip": ""}


@dataclass(frozen=True)
class PromptedScoring(JudgedScoring):
    """Settings for scoring samples of captions, for families that read some."""

    variety: Annotated[int, Ge(0)] = 0
    """Number of samples for each of the first ten held-out captions, to tell how much samples of one caption differ; 0:
    none."""

    def needing_samples(self) -> tuple[tuple[str, str, bool], ...]:
        several = self.variety == 0 or (self.samples > 0 and self.variety > 1)
        return (*super().needing_samples(), ("variety", "0 without samples, or at least 2", several))

    def check_judges(self, captions: CaptionSpec | None, spec: Any, extractor: LoadExtractor) -> None:
        super().check_judges(captions, spec, extractor)
        if self.variety and captions is None:
            raise UserError(f"variety is {self.variety}, which is of samples of captions, and the model reads none")

    def of_image(self) -> dict[str, Any]:
        return super().of_image() | {"variety": 0}


def held_out_prompts(data: DataSet, caption: CaptionSpec, n: int) -> tuple[str, ...]:
    """Returns the captions of the first n held-out images, from the start again if there are fewer."""
    captions: list[str] = []
    for index in range(data.held_out_batches):
        batch = data.held_out_at(index)
        captions += shown(caption, batch, int(batch["valid"].sum()))
        if len(captions) >= n:
            break
    return tuple(captions[i % len(captions)] for i in range(n))


def score_prompted(
    draw: Draw,
    model: Model,
    data: DataSet,
    pairs: Iterable[tuple[Batch, Batch]],
    scoring: PromptedScoring,
    caption: CaptionSpec,
    about: Mapping[str, str | int | float],
    key: Key[Array, ""],
) -> Metrics:
    """Scores samples of held-out captions, and how much the model's loss depends on these.

    Args:
        draw: draws the samples.
        model: a model that reads captions.
        data: its held-out images are the reference.
        pairs: see `caption_gain`.
        scoring: its number of samples is not 0.
        caption: the spec of the captions.
        about: how samples are made; stored with the figures.
        key: source of the noise.

    Returns:
        The figures of `score_samples`, of the judges, of `variety` if asked for, and of `caption_gain`.
    """
    images, load = images_of(data), model.extractor

    def make(classes: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
        return draw(held_out_prompts(images, caption, len(classes)))

    figures = score_samples(make, data, scoring, about, key, load, judge=scoring.judge)
    if scoring.variety:
        captions = held_out_prompts(images, caption, VARIED)
        figures |= variety(draw, captions, scoring.variety, load(scoring.features, images.spec))
    return figures | caption_gain(model, pairs, key)


def variety(make: Draw, captions: tuple[str, ...], each: int, extractor: Extractor) -> Metrics:
    """Returns how much samples of one caption differ.

    Args:
        make: draws the samples.
        captions: some captions.
        each: samples of each caption, at least two.
        extractor: whose features are compared.

    Returns:
        `variety`, the mean distance between two samples of one caption over that between two of different captions: 0
        if a caption always gives the same image, 1 if captions are ignored.
    """
    caption = np.tile(np.arange(len(captions)), each)
    features = extractor(make(captions * each)).features
    distance = np.sqrt(np.square(features[:, None] - features[None]).sum(-1))
    same = caption[:, None] == caption[None]
    within = distance[same & ~np.eye(len(caption), dtype=bool)].mean()
    return {"variety": float(within / distance[~same].mean())}


def check_reader(name: str, reader: Extractor, spec: object) -> None:
    """Checks that a run reads scenes, and that the images are scenes.

    Raises:
        UserError: it does not, or they are not.
    """
    if reader.model is None or not isinstance(reader.model.family, Reads):
        raise UserError(f"reader is {name}, which reads no scenes; give a run of configs/captioned_digits_reader.py")
    if not isinstance(spec, SceneSpec):
        raise UserError(
            f"reader is {name}, which reads captioned digits, and the images are of other data: leave it out"
        )


def read_samples(images: UInt8[np.ndarray, "n h w c"], data: DataSet, reader: Extractor) -> Metrics:
    """Returns how often a reader finds in samples what their captions ask for, and its own accuracy.

    Args:
        images: sample i has the caption of held-out scene i, as `held_out_prompts` returns them.
        data: the scenes.
        reader: an extractor that is a reader's run.

    Returns:
        The figures of `read_accuracy`, and those of the reader on as many of the held-out scenes themselves as
        `reader_...`.
    """
    model, spec = reader.model, data.spec
    assert isinstance(spec, SceneSpec)
    assert spec.caption is not None
    own = own_accuracy(lambda pictures: model.family.read(model, pictures), data, len(images))
    meanings = [parse(caption) for caption in held_out_prompts(data, spec.caption, len(images))]
    asked = np.stack([array_of(scene) for scene in meanings if scene is not None])
    assert len(asked) == len(images), "held-out captions are of the grammar"
    unseen = first_rows(data, ("held_out",), len(images))["held_out"]
    figures = read_accuracy(model.family.read(model, images), asked, np.resize(unseen, len(images)) == 1)
    return figures | {f"reader_{name}": value for name, value in own.items() if name.startswith("read_")}


def caption_gain(model: Model, pairs: Iterable[tuple[Batch, Batch]], key: Key[Array, ""]) -> Metrics:
    """Returns how much held-out losses rise with the captions of other images, row by row.

    Noise is the same with either caption, so the differences are paired.

    Args:
        model: a model that reads captions.
        pairs: held-out batches, and the same with each row's caption taken from the row before.
        key: source of the noise.

    Returns:
        `caption_gain`, the mean difference with its standard error, and `caption_gain_share`, the share of the images
        whose own caption is better, with its interval. Both are over images whose neighbour has another caption.
    """
    differences = []
    for own, turned in pairs:
        right, wrong = (np.divide(*row_losses(model, batch, key)) for batch in (own, turned))
        other = np.any([(own[name] != turned[name]).any(1) for name in ("caption", "tokens") if name in own], 0)
        differences.append((wrong - right)[own["valid"] & np.roll(own["valid"], 1) & other])
    gain = np.concatenate(differences)
    return row_mean("caption_gain", gain) | share("caption_gain_share", gain > 0)


def turned_captions(data: DataSet) -> Iterator[tuple[Batch, Batch]]:
    """Yields held-out batches of captioned images, and the same with the captions turned by one row."""
    for index in range(data.held_out_batches):
        batch = data.held_out_at(index)
        yield batch, batch | {name: np.roll(batch[name], 1, 0) for name in ("caption", "caption_length")}


def row_losses(
    model: Model, batch: Batch, key: Key[Array, ""]
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """Returns the loss of each row of a held-out batch as sum and weight; see `RowStatistics`."""
    total, weight = _evaluate(model.family, model.state, batch, key)["loss"]
    return np.asarray(total), np.asarray(weight)


@partial(jax.jit, static_argnames="family")
def _evaluate(family: Any, state: Any, batch: Batch, key: Key[Array, ""]) -> Any:
    return family.evaluate(state, batch, key)


def check_clip(name: str, clip: Extractor, spec: Any) -> None:
    """Checks that a run compares images with captions, and that the images have captions.

    Raises:
        UserError: it does not, or they have none.
    """
    if clip.model is None or not isinstance(clip.model.family, Agrees):
        raise UserError(f"clip is {name}, which compares no images with captions; give a run of configs/clip.py")
    if spec.caption is None:
        raise UserError(f"clip is {name}, which compares images with captions, and these have none: leave it out")


def agree_samples(images: UInt8[np.ndarray, "n h w c"], data: DataSet, clip: Extractor) -> Metrics:
    """Returns how well samples agree with their captions by a CLIP, and the same of the held-out images themselves.

    Args:
        images: sample i has the caption of held-out image i, as `held_out_prompts` returns them.
        data: captioned images.
        clip: an extractor that is a CLIP's run.

    Returns:
        `clip_score`, 100 times the mean of max(product, 0) (Hessel et al. 2021, "CLIPScore", with w = 1), and
        `r_precision`, the share of samples that agree more with their caption than with any of nine others (Xu et al.
        2018, "AttnGAN"), with its interval; `real_...` of the held-out images.
    """
    caption: CaptionSpec = data.spec.caption  # type: ignore[attr-defined]
    prompts = held_out_prompts(data, caption, len(images))
    known = tuple(dict.fromkeys(prompts))
    mine = np.array([known.index(prompt) for prompt in prompts])
    real = read_pairs(data, len(images))["image"]
    figures: Metrics = {}
    for prefix, pictures in (("", images), ("real_", real)):
        products = agreement(clip.model, pictures, known)
        own = products[np.arange(len(pictures)), mine[: len(pictures)]]
        figures[f"{prefix}clip_score"] = float(100 * np.maximum(own, 0).mean())
        figures |= share(f"{prefix}r_precision", own > _best_rival(products, mine[: len(pictures)]))
    return figures


def _best_rival(products: Float[np.ndarray, "n m"], mine: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The largest product of each row among those of `RIVALS` other captions, which follow its own."""
    m = products.shape[1]
    others = (mine[:, None] + 1 + np.arange(min(RIVALS, m - 1))) % m
    return np.take_along_axis(products, others, 1).max(1) if m > 1 else np.full(len(mine), -np.inf)
