"""Requests to language models: the sampling flags that all of them share."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from zoo.core.bounds import Why
from zoo.core.errors import UserError, require
from zoo.sampling.tokens.completion import CompletionRequest

SAMPLING_ONLY = ("top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TokenRequest(CompletionRequest):
    """A request for texts: `n` continuations of each prompt, sampled token by token or found by beam search.

    A model of images as tokens makes `n` images, or completes a part of one in `n` ways.
    """

    prompts: str = ""
    """A file with one prompt per line, instead of `prompt`; each has `n` texts, in the order of the lines."""
    score: str | None = None
    """Instead of sampling, return the log-probability of each token of this text, a whole document."""
    max_new_tokens: Annotated[int, Ge(1)] = 300
    """Maximum number of new tokens; a text ends earlier at end-of-text."""
    temperature: Annotated[float, Ge(0), Lt(math.inf), Why("0: the likeliest token")] = 1.0
    """Divisor of the logits; below 1, likely tokens become likelier; 0: always the likeliest token."""
    top_k: Annotated[int, Ge(0), Why("0: all tokens")] = 0
    """Sample from the k likeliest tokens; 0: from all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the likeliest tokens with this total probability (nucleus sampling, Holtzman et al. 2020)."""
    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    """Sample only tokens at least this fraction as likely as the likeliest one (Nguyen et al. 2024)."""
    repetition_penalty: Annotated[float, Gt(0), Lt(math.inf)] = 1.0
    """Above 1, tokens that are already in the prompt or the text become less likely (Keskar et al. 2019, CTRL)."""
    stop: tuple[str, ...] = ()
    """A text ends before the first occurrence of any of these strings."""
    num_beams: Annotated[int, Ge(1)] = 1
    """Above 1: beam search with this many beams instead of sampling."""
    length_penalty: float = 1.0
    """Beam search ranks by log-probability / length^penalty; above 0 favours long texts."""
    early_stopping: bool | Literal["never"] = False
    """When beam search ends. True: once num-beams texts are finished; False: once no unfinished text could beat them at
    its present length; never: once no unfinished text could beat them at any length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scoring = self.score is not None
        require(
            self,
            "",
            ("prompts", "empty where prompt is given", not self.prompts or not self.prompt),
            ("prompt", "empty with score, which is of a whole document", not self.prompt or not scoring),
            ("prompts", "empty with score, which writes nothing", not self.prompts or not scoring),
            ("n", "1 with score, which writes nothing", self.n == 1 or not scoring),
            ("stop", "strings that are not empty", all(self.stop)),
            ("prompts", "empty with image", not self.image or not self.prompts),
            ("length_penalty", "a finite number", math.isfinite(self.length_penalty)),
            (
                "n",
                f"at most num_beams, {self.num_beams}, for beam search",
                self.num_beams == 1 or self.n <= self.num_beams,
            ),
        )
        if self.num_beams > 1:
            for field in fields(self):
                value = getattr(self, field.name)
                if (field.name in SAMPLING_ONLY and value != field.default) or (
                    field.name == "temperature" and value not in (0, 1)
                ):
                    raise UserError(
                        f"{field.name} is {value}, but beam search (num_beams {self.num_beams}) draws nothing"
                    )
