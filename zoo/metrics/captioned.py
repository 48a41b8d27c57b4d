"""Models of captions and images in one row: likelihoods each way, and captions that are written from images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from zoo.core.artifacts import Text
from zoo.core.estimates import row_mean
from zoo.core.family import Batch, Metrics, Model
from zoo.data.captions.grammar import parse
from zoo.data.captions.scenes import scene_of
from zoo.data.captions.token_set import CaptionedTokenSet
from zoo.data.captions.tokens import Task
from zoo.metrics.prompted import row_losses
from zoo.metrics.retrieval import first_rows, share

NAMES: dict[Task, str] = {"draw": "image_given_caption_bits", "tell": "caption_given_image_bits"}


def conditional_bits(model: Model, data: CaptionedTokenSet, key: Key[Array, ""]) -> Metrics:
    """Returns the bits of what each task asks for, as means over held-out rows with their standard errors.

    The task `tell` is left out if the model was not trained on it. Of masked diffusion these are bounds.
    """
    tasks: tuple[Task, ...] = ("draw", "tell") if data.tell > 0 else ("draw",)
    figures: Metrics = {}
    for task in tasks:
        nats = np.concatenate([_nats(model, data.asked_at(i, task), key) for i in range(data.held_out_batches)])
        figures |= row_mean(NAMES[task], nats / math.log(2))
    return figures


def turned_rows(data: CaptionedTokenSet) -> Iterator[tuple[Batch, Batch]]:
    """Yields held-out rows of images after their captions, and the same with the captions turned by one row."""
    image = data.spec.begin("draw") + 1
    for index in range(data.held_out_batches):
        own = data.asked_at(index, "draw")
        captions, images = np.split(own["tokens"], [image], 1)
        yield own, own | {"tokens": np.concatenate([np.roll(captions, 1, 0), images], 1)}


def descriptions(model: Model, data: CaptionedTokenSet, count: int, key: Key[Array, ""]) -> Metrics:
    """Returns how often the likeliest caption of a held-out scene, token by token, says what is in it.

    Its meaning counts, not its words; a caption that the grammar does not have is wrong.

    Returns:
        `caption_right` over the first `count` scenes at most, and of combinations seen in training and unseen, with
        95 % intervals.
    """
    wanted = first_rows(data.reference, ("scene", "held_out"), count)
    request: Any = model.family.Request
    numbers = tuple(map(str, range(len(wanted["scene"]))))
    asked = replace(model, data=lambda: data)  # the model's own is of dev
    told = model.family.sample(asked, request(n=len(numbers), image=numbers, temperature=0.0), key)
    meanings = [parse(text.text) for text in told if isinstance(text, Text)]
    right = np.array(
        [
            meaning is not None and scene_of(scene).fulfils(meaning)
            for meaning, scene in zip(meanings, wanted["scene"], strict=True)
        ]
    )
    unseen = wanted["held_out"] == 1
    figures = share("caption_right", right)
    for name, rows in (("seen", ~unseen), ("unseen", unseen)):
        figures |= share(f"{name}_caption_right", right[rows]) if rows.any() else {}
    return figures


def _nats(model: Model, batch: Batch, key: Key[Array, ""]) -> Float[np.ndarray, " b"]:
    """-log of the probability of the scored tokens of each valid row."""
    return row_losses(model, batch, key)[0][batch["valid"]]


def caption_log_probabilities(
    model: Model, images: UInt8[np.ndarray, "n h w c"], captions: Sequence[str], key: Key[Array, ""]
) -> Float[np.ndarray, "n m"]:
    """Returns log P(caption | image) in nats, by which candidate captions classify images.

    Args:
        model: of captions and images in one row, trained to describe.
        images: of the model's size.
        captions: the candidates.
        key: source of the noise of a bound, the same for all pairs; an exact likelihood ignores it.
    """
    spec = model.spec
    words, _ = spec.caption.rows(captions)
    tokens = spec.picture.tokenize(images, np.arange(len(images)), model.codec)
    one, table = np.ones(len(images), np.int32), []
    for caption in words:
        rows = spec.rows("tell", np.tile(caption, (len(images), 1)), tokens)
        batch = {
            "tokens": rows, "length": one * rows.shape[1], "first": one * spec.begin("tell"),
            "row": np.arange(len(images), dtype=np.int32), "valid": one > 0,
        }  # fmt: skip
        table.append(-row_losses(model, batch, key)[0])
    return np.stack(table, 1)
