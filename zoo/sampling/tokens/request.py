"""What a language model can be asked to write; the flags that all of them share."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from zoo.core.bounds import Why
from zoo.core.errors import UserError, require
from zoo.core.family import Request

SAMPLING_ONLY = ("top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TokenRequest(Request):
    """Texts to write: `n` continuations of one prompt, drawn token by token or found by beam search."""

    prompt: str = ""
    """What the texts begin with. Empty: a document from its beginning; otherwise running text, which may be the middle
    of one."""
    prompts: str = ""
    """A file with a prompt on each line, instead of `prompt`: each has `n` texts, in the order of the lines."""
    score: str | None = None
    """Write nothing, but give the log-probability of this text, a whole document, token by token."""
    max_new_tokens: Annotated[int, Ge(1)] = 300
    """How many tokens to write at most; a text ends earlier where the model ends the document."""
    temperature: Annotated[float, Ge(0), Lt(math.inf), Why("0: the likeliest token")] = 1.0
    """Divides the logits: below 1 the likely tokens become likelier; 0 always takes the likeliest."""
    top_k: Annotated[int, Ge(0), Why("0: all tokens")] = 0
    """Draw from the k likeliest tokens only; 0: from all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Draw from the likeliest tokens that together have this probability (nucleus sampling, Holtzman et al. 2020)."""
    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    """Draw only tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024)."""
    repetition_penalty: Annotated[float, Gt(0), Lt(math.inf)] = 1.0
    """Above 1, tokens that the prompt or the text already holds become less likely (Keskar et al. 2019, CTRL)."""
    stop: tuple[str, ...] = ()
    """End a text before the first of these strings that it would come to."""
    num_beams: Annotated[int, Ge(1)] = 1
    """Above 1: search for the likeliest texts with this many beams, and draw nothing."""
    length_penalty: float = 1.0
    """Beam search ranks by log-probability / length^penalty; above 0 favours long texts."""
    early_stopping: bool | Literal["never"] = False
    """When beam search ends. True: once num-beams texts are finished; False: once no text of the present length could
    be better than those; never: once no text of any length could be."""

    def __post_init__(self) -> None:
        scoring = self.score is not None
        require(
            self,
            "",
            ("prompts", "empty where prompt is given", not self.prompts or not self.prompt),
            ("prompt", "empty with score, which is of a whole document", not self.prompt or not scoring),
            ("prompts", "empty with score, which writes nothing", not self.prompts or not scoring),
            ("n", "1 with score, which writes nothing", self.n == 1 or not scoring),
            ("stop", "strings that are not empty", all(self.stop)),
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
