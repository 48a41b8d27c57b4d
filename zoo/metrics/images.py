"""Image metrics of a model's samples: FID, KID, precision, recall, classifier score and class shares."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
from annotated_types import Ge
from jaxtyping import Array, Int, Int32, Key, UInt8

from zoo.core.data import DataSet, Spec
from zoo.core.errors import UserError, require
from zoo.core.extractor import Extracted, Extractor, LoadExtractor, NoExtractorError
from zoo.core.family import Family, Metrics, Scoring
from zoo.data.images.coded import images_of
from zoo.data.images.token_set import BlackAndWhite
from zoo.data.specs import ImageSpec, LatentSpec
from zoo.metrics.features import class_shares, classifier_score, frechet_distance, kernel_distance, precision_recall
from zoo.metrics.memorisation import memorisation, show_nearest

log = logging.getLogger("zoo")

NEIGHBOURS = 3
"""k of precision and recall."""
CLASS_ORDER = 2**32 - 1
"""Folded into the key for the order of classes; no sample index has this value."""
BIASED_BELOW = 5000
"""With fewer samples than this, FID is biased upwards by more than the differences between models."""


Judge = Callable[[UInt8[np.ndarray, "n h w c"], DataSet, LoadExtractor], Metrics]
"""Scores samples beside their comparison with held-out images: (samples, held-out images, loader of extractors)."""


@dataclass(frozen=True)
class ImageScoring(Scoring):
    """Settings for scoring samples against a reference; a family may add its own."""

    samples: int = 0
    """Number of samples for FID, KID, precision and recall; 0: these are not computed."""
    extractor: str = "auto"
    """Feature extractor for comparing images: mnist (an embedded classifier of MNIST's digits), a file of Inception-v3
    weights (PyTorch's FID layout, .safetensors or .pth) or of an exported network, or the run directory of a family
    that extracts features, such as a classifier; auto: mnist for grey images of 28 or 32 pixels."""
    nearest: Annotated[int, Ge(0)] = 0
    """Number of training images among which the nearest to each sample is searched, by features, to tell whether
    samples are copies; a picture shows the first samples with these and with the nearest by pixels. 0: none."""
    references: int = 0
    """Number of held-out images to compare with; 0: all."""
    floor: bool = False
    """Whether to also score as many training images as if they were samples: the scores of a perfect model."""

    def __post_init__(self) -> None:
        least = NEIGHBOURS + 1
        require(
            self,
            "",
            ("samples", f"0 or at least {least}", self.samples == 0 or self.samples >= least),
            ("references", f"0 or at least {least}", self.references == 0 or self.references >= least),
            *self.needing_samples(),
        )

    def needing_samples(self) -> tuple[tuple[str, str, bool], ...]:
        """Returns the conditions for `require` of the settings that need samples."""
        near = self.nearest == 0 or (self.samples > 0 and self.nearest > 1)
        return (
            ("floor", "given with a number of samples", self.samples > 0 or not self.floor),
            ("nearest", "0 without samples, or at least 2", near),
        )

    @property
    def features(self) -> str:
        """The extractor whose features are compared."""
        return self.extractor

    def check(self, family: Family, spec: Spec, extractor: LoadExtractor) -> dict[str, str]:
        if not self.samples or not isinstance(spec, ImageSpec | LatentSpec):
            return {}
        try:
            extractor(self.features, spec.image)
        except NoExtractorError as error:
            asking = ["samples", *["floor"] * self.floor]
            return dict.fromkeys(asking, f"FID, KID, precision and recall cannot be computed: {error}")
        return {}

    def of_image(self) -> dict[str, Any]:
        return {"samples": 0, "floor": False, "nearest": 0}


def score_samples(
    make: Callable[[Int[np.ndarray, " n"]], UInt8[np.ndarray, "n h w c"]],
    data: DataSet,
    scoring: ImageScoring,
    about: Mapping[str, str | int | float],
    key: Key[Array, ""],
    load: LoadExtractor,
    prefix: str = "",
    judge: Judge | None = None,
) -> Metrics:
    """Compares a model's samples with held-out images.

    Args:
        make: makes samples 0 .. n - 1 of given classes, which a model without classes ignores.
        data: the images of its held-out split are the reference, in black and white if its tokens are.
        scoring: at least `NEIGHBOURS + 1` samples.
        about: how samples are made (sampler, steps, seed, ...); stored with the figures.
        key: key for the order of the classes; each class is as frequent as in the reference.
        load: loads the extractor that `scoring` names.
        prefix: of the figures' names, if `make` does not draw samples.
        judge: further scores of the samples.

    Returns:
        The figures of `compare`, those of training images as `floor_...` if requested, and their provenance.

    Raises:
        UserError: the extractor does not fit the images, or there are too few held-out images.
    """
    data = images_of(data)
    assert isinstance(data.spec, ImageSpec)
    extractor = load(scoring.features, data.spec)
    reference, labels = _held_out_features(extractor, data, scoring.references)
    drawn = " in black and white" if isinstance(data, BlackAndWhite) else ""
    n = scoring.samples
    classes = spread_classes(labels, len(data.spec.classes), n, key)
    images = make(classes)
    found = extractor(images)
    figures = compare(reference, found, extractor.classes)
    metrics: Metrics = {f"{prefix}{name}": value for name, value in figures.items()}
    if judge is not None:
        metrics |= {f"{prefix}{name}": value for name, value in judge(images, data, load).items()}
    if scoring.nearest:
        train_images = _training_images(data, scoring.nearest)
        train = extractor(train_images).features
        metrics |= memorisation(found.features, train, reference.features)
        metrics["nearest"] = show_nearest(images, found.features, train_images, train)
    if scoring.floor:
        floor = compare(reference, extractor(_training_images(data, n)), extractor.classes)
        metrics |= {f"floor_{name}": value for name, value in floor.items() if not name.startswith("class_share")}
    if n < BIASED_BELOW:
        _warn_of_bias(n)
        metrics["fid_is"] = f"biased upwards: fewer than {BIASED_BELOW} samples; go by kid"
    return metrics | {
        "samples": n,
        "reference": f"{len(reference.features)} held-out images{drawn}",
        "extractor": f"{extractor.name} {extractor.hash}",
        **about,
    }


def spread_classes(labels: Int[np.ndarray, " m"], count: int, n: int, key: Key[Array, ""]) -> Int32[np.ndarray, " n"]:
    """Returns classes of n samples in random order, with the frequencies of given labels, up to one sample.

    Quotas are rounded by largest remainders. Since class frequencies match those of the data, FID measures p(x | y)
    only.

    Args:
        labels: labels of the data; -1 (no label) is ignored.
        count: number of classes. Without classes, or without labels, samples are spread evenly.
        n: number of samples.
        key: key for their order.
    """
    count = max(count, 1)
    found = np.bincount(labels[labels >= 0], minlength=count)
    found = found if found.sum() else np.ones(count, np.int64)
    quota, remainder = np.divmod(n * found, found.sum())
    quota[np.argsort(-remainder, kind="stable")[: n - quota.sum()]] += 1
    classes = np.repeat(np.arange(count, dtype=np.int32), quota)
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, CLASS_ORDER), classes))


def drawn_classes(known: tuple[str, ...]) -> dict[str, str]:
    """Returns the record of `spread_classes` for a model with classes."""
    return {"classes": "as often as in the reference"} if known else {}


def compare(real: Extracted, fake: Extracted, classes: tuple[str, ...] = ()) -> Metrics:
    """Computes all figures of two sets of extracted features; see `zoo.metrics.features`.

    Args:
        real: features of the reference.
        fake: features of the samples.
        classes: names of the classes whose shares among the samples are computed.

    Returns:
        `fid`, `kid`, `kid_std`, `precision` and `recall`; `classifier_score` if the extractor has logits; and, if there
        are classes, `smallest_class_share` and a `class_share_NAME` for each.
    """
    kid, kid_std = kernel_distance(real.features, fake.features)
    precision, recall = precision_recall(real.features, fake.features, NEIGHBOURS)
    metrics: Metrics = {
        "fid": frechet_distance(real.features, fake.features),
        "kid": kid,
        "kid_std": kid_std,
        "precision": precision,
        "recall": recall,
    }
    if fake.logits.shape[1]:
        metrics["classifier_score"] = classifier_score(fake.logits)
    if classes:
        shares = class_shares(fake.logits).tolist()
        metrics["smallest_class_share"] = min(shares)
        metrics |= {f"class_share_{name}": share for name, share in zip(classes, shares, strict=True)}
    return metrics


Reference = tuple[Extracted, Int[np.ndarray, " n"]]
"""Features and labels of the images that samples are compared with."""

_references: dict[tuple[int, str, int], tuple[DataSet, Reference]] = {}
"""The last reference, which training requests repeatedly; it also keeps the data alive, so that its id is not
reused."""


def _held_out_features(extractor: Extractor, data: DataSet, count: int) -> Reference:
    """Returns features and labels of the first `count` held-out images; 0: all."""
    key = (id(data), extractor.hash, count)
    if key not in _references:
        parts, found = [], 0
        for index in range(data.held_out_batches):
            batch = data.held_out_at(index)
            parts.append([array[batch["valid"]] for array in (*extractor(batch["image"]), batch["label"])])
            found += len(parts[-1][0])
            if found >= count > 0:
                break
        if found < max(count, NEIGHBOURS + 1):
            least = f"{NEIGHBOURS + 1} are needed" if count == 0 else f"references is {count}"
            raise UserError(f"there are {found} held-out images to compare with, and {least}")
        features, logits, labels = (np.concatenate(arrays)[: count or None] for arrays in zip(*parts, strict=True))
        _references.clear()
        _references[key] = (data, (Extracted(features, logits), labels))
    return _references[key][1]


def _training_images(data: DataSet, count: int) -> UInt8[np.ndarray, "n h w c"]:
    """Returns the first `count` training images in training order, without augmentation."""
    images: list[np.ndarray] = []
    while sum(map(len, images)) < count:
        images.append(data.batch_at(len(images))["image"])
    return np.concatenate(images)[:count]


@functools.cache
def _warn_of_bias(samples: int) -> None:
    log.warning(
        "FID of %d samples is biased upwards, and comparable only with FID of as many; KID, beside it, is not biased",
        samples,
    )
