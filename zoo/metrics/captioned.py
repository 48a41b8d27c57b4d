"""Likelihoods of models of captions and images in one row: of images given captions, and of captions given images."""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from zoo.core.estimates import row_mean
from zoo.core.family import Family, Metrics, Model
from zoo.data.captions.token_set import CaptionedTokenSet
from zoo.data.captions.tokens import Task

NAMES: dict[Task, str] = {"draw": "image_given_caption_bits", "tell": "caption_given_image_bits"}


def conditional_bits(model: Model, data: CaptionedTokenSet, key: Key[Array, ""]) -> Metrics:
    """Returns the bits of what each task asks for, as means over held-out rows with their standard errors.

    The task `tell` is left out if the model was not trained on it. Of masked diffusion these are bounds.
    """
    tasks: list[Task] = ["draw", *["tell" for _ in range(data.tell > 0)]]  # type: ignore[list-item]
    figures: Metrics = {}
    for task in tasks:
        nats = np.concatenate([_nats(model, data.asked_at(i, task), key) for i in range(data.held_out_batches)])
        figures |= row_mean(NAMES[task], nats / math.log(2))
    return figures


def _nats(model: Model, batch: dict[str, Any], key: Key[Array, ""]) -> Float[np.ndarray, " b"]:
    """-log of the probability of the scored tokens of each valid row."""
    nats, _ = _evaluate(model.family, model.state, batch, key)["loss"]
    return np.asarray(nats)[batch["valid"]]


@partial(jax.jit, static_argnames="family")
def _evaluate(family: Family, state: Any, batch: dict[str, Any], key: Key[Array, ""]) -> Any:
    return family.evaluate(state, batch, key)
