"""Captions as prompts of scored samples: sample i has the caption of held-out image i."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.extractor import Extractor
from zoo.core.family import Metrics, Model
from zoo.data.captions.grammar import parse
from zoo.data.captions.rows import shown
from zoo.data.captions.scenes import array_of
from zoo.data.specs import CaptionSpec, SceneSpec
from zoo.metrics.reading import own_accuracy, read_accuracy


@runtime_checkable
class Reads(Protocol):
    """A family that tells what is in scenes of coloured digits."""

    def read(self, model: Model, images: UInt8[np.ndarray, "n h w c"]) -> np.ndarray:
        """Digit, colour and place of the objects in images, in the form of a batch's `scene`, int32 [n 2 3]."""


def held_out_prompts(data: DataSet, caption: CaptionSpec, n: int) -> tuple[str, ...]:
    """Returns the captions of the first n held-out images, from the start again if there are fewer."""
    captions: list[str] = []
    for index in range(data.held_out_batches):
        batch = data.held_out_at(index)
        captions += shown(caption, batch, int(batch["valid"].sum()))
        if len(captions) >= n:
            break
    return tuple(captions[i % len(captions)] for i in range(n))


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
    unseen = np.concatenate([data.held_out_at(index)["held_out"] for index in range(data.held_out_batches)])
    figures = read_accuracy(model.family.read(model, images), asked, np.resize(unseen, len(images)) == 1)
    return figures | {f"reader_{name}": value for name, value in own.items() if name.startswith("read_")}
