"""Prompts: texts that a user gives to a model of captioned images."""

import logging
from dataclasses import replace

import numpy as np
from jaxtyping import Int32

from zoo.core.artifacts import Artifacts, Image
from zoo.core.errors import UserError
from zoo.data.specs import CaptionSpec

log = logging.getLogger("zoo")


def labelled(artifacts: Artifacts, prompts: tuple[str, ...]) -> Artifacts:
    """Returns samples of several prompts in turn, each image with its own as its caption; others as they are."""
    if len(prompts) < 2:
        return artifacts
    return [
        replace(made, caption=prompts[i % len(prompts)]) if isinstance(made, Image) else made
        for i, made in enumerate(artifacts)
    ]


def read_prompt(spec: CaptionSpec, prompt: str) -> tuple[Int32[np.ndarray, "1 t"], Int32[np.ndarray, " 1"]]:
    """Returns a prompt as a caption and its length; unknown words are named in the log.

    Raises:
        UserError: it is empty, longer than captions can be, or has characters that the tokenizer lacks.
    """
    if not prompt.strip():
        raise UserError("prompt is empty; it must describe a picture, or be left out")
    count = len(spec.encode(prompt))
    if count > spec.longest:
        raise UserError(f"prompt has {count} tokens, but captions have at most {spec.longest}; give a shorter one")
    if unknown := spec.unknown_words(prompt):
        log.warning("no caption of the training data has %s; read as unknown", ", ".join(map(repr, unknown)))
    return spec.rows([prompt])
