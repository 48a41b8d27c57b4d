"""Requests to masked language models: the likeliest tokens for masks in a text, and whole lines by mask-predict.

The network is an `nnx.Module` with the method

    predict(tokens [b t], segment [b t], length [b], unknown [b t], positions [b k]) -> logits [b k v]

for the tokens at `positions`. It must ignore the unknown tokens and the padding after `length`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt
from einops import repeat
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.artifacts import Text
from zoo.core.bounds import Why
from zoo.core.errors import UserError, require
from zoo.core.family import Request
from zoo.core.learner import Learner
from zoo.core.random import row_keys
from zoo.data.specs import SegmentSpec
from zoo.data.tokenizers import Tokenizer
from zoo.nn.attend import HIDDEN
from zoo.sampling.batches import in_batches
from zoo.sampling.tokens.logits import Knobs
from zoo.sampling.tokens.mask_predict import mask_predict

MASK = "[MASK]"
"""Marks a missing token in a text."""
LINE = 12
"""Default number of tokens in a line."""
AT_ONCE = 32
"""Lines that one call writes, at most."""


@dataclass(frozen=True)
class FillRequest(Request):
    """A request to fill masks in a text, or to write lines."""

    n: Annotated[int, Ge(1)] = 5
    """Number of fills for each [MASK], or of lines to write."""
    fill: str | None = None
    """A text with [MASK] where a token is missing, such as "The [MASK] of Denmark". Returns the text with each of the n
    likeliest tokens and its probability. Several masks are filled one at a time, while the others stay unknown. None:
    write lines by mask-predict."""
    prompt: str = ""
    """Text before each line."""
    tokens: Annotated[int, Ge(0)] = 0
    """Number of tokens in each line; 0: 12, or as many as fit."""
    iterations: Annotated[int, Ge(1)] = 10
    """Number of iterations of mask-predict; each predicts the least certain tokens again, fewer each time."""
    temperature: Annotated[float, Ge(0), Lt(math.inf), Why("0: the likeliest token")] = 1.0
    """For mask-predict: divisor of the logits; below 1, likely tokens become likelier; 0: the likeliest token."""
    top_k: Annotated[int, Ge(0), Why("0: all tokens")] = 0
    """For mask-predict: sample from the k likeliest tokens; 0: from all."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("fill", f"a text with {MASK} where a token is missing", self.fill is None or MASK in self.fill),
        )
        if self.fill and self.prompt:
            raise UserError(f"prompt is {self.prompt!r} and fill is {self.fill!r}: put both in one text, in fill")


def fill_texts(learner: Learner, spec: SegmentSpec, request: FillRequest, context: int) -> list[Text]:
    """Returns the text with each of the n likeliest fills of each mask, likeliest first, and the fill's probability.

    Raises:
        UserError: the text does not fit into the context, or the vocabulary has fewer than n tokens.
    """
    allowed = spec.vocab_size - len(spec.special)
    if request.n > allowed:
        raise UserError(f"n is {request.n}, and there are {allowed} tokens: give at most that many")
    assert request.fill is not None
    parts = around_masks(spec.tokenizer, request.fill)
    row, where = [spec.classify, *parts[0]], []
    for part in parts[1:]:
        where.append(len(row))
        row += [spec.mask, *part]
    tokens, segment, length = _frame(spec, [row], context)
    unknown = np.zeros(tokens.shape, bool)
    unknown[0, where] = True
    probability = np.asarray(_predict(learner, tokens, segment, length, unknown, np.array([where]), _banned(spec)))[0]
    return [
        Text(_with_fill(spec, parts, gap, int(token)), {"probability": float(probability[gap, token])})
        for gap in range(len(where))
        for token in np.argsort(-probability[gap], kind="stable")[: request.n]
    ]


def write_lines(
    learner: Learner, spec: SegmentSpec, request: FillRequest, key: Key[Array, ""], context: int
) -> list[Text]:
    """Returns lines of `request.tokens` tokens by mask-predict, each after the prompt; line i uses fold_in(key, i).

    Raises:
        UserError: the prompt and the line do not fit into the context.
    """
    before = [[spec.classify, *spec.tokenizer.encode(request.prompt).tolist()]] if request.prompt else []
    begin = [] if before else [spec.classify]
    room = context - sum(len(part) + 1 for part in (*before, begin))
    count = request.tokens or max(1, min(LINE, room))
    tokens, segment, length = _frame(spec, [*before, [*begin, *[spec.mask] * count]], context)
    banned = _banned(spec, b"\n")
    settings = (request.temperature, request.top_k, request.iterations)
    write = partial(_write, learner, tokens, segment, length, banned, settings, count=count)
    written = in_batches(lambda rows: write(row_keys(key, rows)), request.n, AT_ONCE)
    head = request.prompt and request.prompt.rstrip() + "\n"
    return [Text(head + spec.tokenizer.decode(ids).strip()) for ids in written]


def around_masks(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """Returns the token ids of a text before, between and after its masks.

    If tokens include the space before their word, a mask also replaces the space before it, as in RoBERTa.
    """
    *before, last = text.split(MASK)
    if _has_spaced_words(tokenizer):
        before = [part.removesuffix(" ") for part in before]
    return [tokenizer.encode(part).tolist() for part in (*before, last)]


def _has_spaced_words(tokenizer: Tokenizer) -> bool:
    """Whether some tokens include the space before their word."""
    return any(piece.startswith(b" ") and len(piece) > 1 for piece in tokenizer.pieces)


def _with_fill(spec: SegmentSpec, parts: list[list[int]], gap: int, token: int) -> str:
    """The text with one mask filled."""
    space = " " if _has_spaced_words(spec.tokenizer) else ""
    filled = [*parts[:gap], [*parts[gap], token, *parts[gap + 1]], *parts[gap + 2 :]]
    decode = spec.tokenizer.stream()
    return f"{space}{MASK}".join(decode(ids) for ids in filled).strip(" ")


def _frame(
    spec: SegmentSpec, segments: Sequence[Sequence[int]], context: int
) -> tuple[Int[np.ndarray, "1 t"], Int[np.ndarray, "1 t"], Int[np.ndarray, " 1"]]:
    """One row of one or two segments, each followed by [SEP], padded to the context: tokens, segments and length.

    Raises:
        UserError: they do not fit.
    """
    row = [token for segment in segments for token in (*segment, spec.separate)]
    if len(row) > context:
        raise UserError(
            f"the text is {len(row)} tokens long with [CLS] and [SEP], but the model sees {context} at once; "
            "give at most that many"
        )
    tokens = np.full((1, context), spec.padding, np.int32)
    tokens[0, : len(row)] = row
    number = np.zeros_like(tokens)
    number[0, len(segments[0]) + 1 : len(row)] = 1
    return tokens, number, np.array([len(row)], np.int32)


def _banned(spec: SegmentSpec, *marks: bytes) -> Float[Array, " v"]:
    """Additive mask for logits that excludes special tokens and tokens that contain any of `marks`."""
    banned = np.zeros(spec.vocab_size, bool)
    banned[list(spec.special)] = True
    for i, piece in enumerate(spec.tokenizer.pieces):
        banned[i] |= any(mark in piece for mark in marks)
    return jnp.where(banned, HIDDEN, 0.0)


@jax.jit
def _predict(
    learner: Learner, tokens: Any, segment: Any, length: Any, unknown: Any, positions: Any, banned: Any
) -> Float[Array, "1 k v"]:
    """Probabilities of the tokens at some positions of one row."""
    logits = learner.eval_net().predict(tokens, segment, length, unknown, positions)
    return jax.nn.softmax(logits.astype(jnp.float32) + banned[None, None, :])


@partial(jax.jit, static_argnames="count")
def _write(
    learner: Learner, tokens: Any, segment: Any, length: Any, banned: Any, settings: Any, keys: Any, count: int
) -> Int[Array, "b l"]:
    """Lines of `count` tokens, written at the end of the row, before its last [SEP]."""
    b, net = len(keys), learner.eval_net()
    tokens, segment, length = (repeat(x, "1 ... -> b ...", b=b) for x in (tokens, segment, length))
    positions = (length - 1 - count)[:, None] + jnp.arange(count)[None, :]
    row = jnp.arange(b)[:, None]

    def predict(line: Int[Array, "b l"], unknown: Bool[Array, "b l"]) -> Float[Array, "b l v"]:
        whole = tokens.at[row, positions].set(line)
        hidden = jnp.zeros(whole.shape, bool).at[row, positions].set(unknown)
        return net.predict(whole, segment, length, hidden, positions) + banned[None, None, :]

    temperature, top_k, iterations = settings
    full = partial(jnp.full, b)
    knobs = Knobs(full(temperature, jnp.float32), full(top_k, jnp.int32), full(1.0), full(0.0), full(1.0))
    return mask_predict(predict, count, iterations=iterations, knobs=knobs, keys=keys)[0]
