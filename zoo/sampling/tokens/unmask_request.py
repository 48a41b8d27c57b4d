"""Requests to masked diffusion: new texts and the continuation of a prompt, masks filled in, and samples of any tokens.

The network is an `nnx.Module` with the method

    predict(tokens [b t], unknown [b t]) -> logits [b t v]

for rows of 1 + context tokens, of which the first is always given: it begins the sequence, or comes before the window.
`fill` is the core, for any tokens and any given positions.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.artifacts import Artifacts, Text
from zoo.core.bounds import Why
from zoo.core.errors import UserError, require
from zoo.core.family import Model
from zoo.core.random import row_keys
from zoo.data.captions.prompts import labelled
from zoo.data.specs import BlockSpec, Given, TextSpec, TokenSpec
from zoo.nn.attend import additive_mask
from zoo.sampling.batches import in_batches
from zoo.sampling.prompts import best_of_many
from zoo.sampling.tokens.completion import CompletionRequest
from zoo.sampling.tokens.continuation import encode_prompt
from zoo.sampling.tokens.decode import Guidance
from zoo.sampling.tokens.infill import MASK, around_masks
from zoo.sampling.tokens.logits import Knobs
from zoo.sampling.tokens.unmask import Sampler, Unmasking, unmask

AT_ONCE = 64
"""Texts, or rows of other tokens, that one call fills in, at most."""
SAMPLER_SETTINGS = {"remask": "ancestral", "choice_temperature": "confidence"}
"""Settings that only one of the samplers has."""


@dataclass(frozen=True)
class UnmaskRequest(CompletionRequest):
    """A request for `n` samples of a masked diffusion model."""

    fill: str | None = None
    """A text with [MASK] for each missing token, such as "to be or [MASK][MASK][MASK] to be"; returns the whole text
    with all masks filled together. A text that begins with [MASK] begins a document."""
    max_new_tokens: Annotated[int, Ge(1)] = 300
    """Maximum number of new tokens after the prompt; a text ends earlier at end-of-text."""
    sampler: Sampler = "ancestral"
    """ancestral: unknown tokens become known at random (MDLM); confidence: the most probable ones first (MaskGIT)."""
    steps: Annotated[int, Ge(1)] = 64
    """Calls of the network for each window of the context; more are slower and better."""
    remask: Annotated[float, Ge(0), Le(1), Why("0: MDLM, 1: as many as possible")] = 0.0
    """For ancestral: how many known tokens become unknown again in each step, to correct earlier choices (ReMDM)."""
    choice_temperature: Annotated[float, Ge(0), Lt(math.inf)] = 4.5
    """For confidence: noise in the order of the positions, which decreases to 0; more gives more varied samples."""
    temperature: Annotated[float, Ge(0), Lt(math.inf), Why("0: the likeliest token")] = 1.0
    """Divisor of the logits; below 1, likely tokens become likelier; 0: always the likeliest token."""
    top_k: Annotated[int, Ge(0), Why("0: all tokens")] = 0
    """Sample from the k likeliest tokens; 0: from all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the likeliest tokens with this total probability (nucleus sampling, Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            "",
            ("fill", "left out with image", not self.image or self.fill is None),
            ("fill", f"a text with {MASK} where a token is missing", self.fill is None or MASK in self.fill),
        )
        if self.fill and self.prompt:
            raise UserError(f"prompt is {self.prompt!r} and fill is {self.fill!r}: put both in one text, in fill")
        for name, sampler in SAMPLER_SETTINGS.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default and self.sampler != sampler:
                raise UserError(
                    f"{name} is {value}, which is a setting of the sampler {sampler} and not of {self.sampler}"
                )


# ---------------------------------------------------------------------------------------------- any tokens


def fill(
    net: nnx.Module,
    spec: TokenSpec,
    tokens: Int[np.ndarray, "n t"],
    given: Bool[np.ndarray, "n t"],
    request: UnmaskRequest,
    key: Key[Array, ""],
    allowed: Bool[np.ndarray, "#t v"] | None = None,
    without: Int[np.ndarray, "n t"] | None = None,
) -> Int[np.ndarray, "n t"]:
    """Returns rows of tokens in which all that are not given are sampled.

    The function is compiled once for a shape of rows and a sampler; other steps, settings, keys, tokens and given
    positions compile nothing.

    Args:
        net: see the module's docstring.
        spec: spec of the tokens; `spec.never` is not sampled.
        tokens: tokens that are not given are not read.
        given: which tokens are given and stay; the first of each row must be.
        request: the sampler and its settings.
        key: source of randomness; row i uses fold_in(key, i), independently of the other rows.
        allowed: the symbols that each position may take; None: all.
        without: the tokens that take the place of given ones in the rows that guidance leads away from; None: there is
            no guidance.
    """
    graphdef, state = nnx.split(net)
    possible = np.ones((1, spec.outputs), bool) if allowed is None else allowed.copy()
    if spec.never is not None:
        possible[:, spec.never] = False
    possible = np.broadcast_to(possible, (tokens.shape[1], spec.outputs))
    settings = Unmasking(request.steps, request.remask, request.choice_temperature)
    draw = request.temperature, request.top_k, request.top_p

    def make(rows: Int[Array, " b"]) -> Int[Array, "b t"]:
        some = np.minimum(rows, len(tokens) - 1)
        keys = row_keys(key, rows)
        rows_of = tokens[some], given[some]
        guidance = None if without is None else Guidance(jnp.float32(request.guidance), jnp.asarray(without[some]))
        return _fill(graphdef, state, *rows_of, possible, settings, draw, keys, request.sampler, guidance)

    return in_batches(make, len(tokens), AT_ONCE)


@partial(jax.jit, static_argnames=("graphdef", "sampler"))
def _fill(
    graphdef: Any,
    state: Any,
    tokens: Any,
    given: Any,
    possible: Any,
    settings: Any,
    draw: Any,
    keys: Any,
    sampler: Any,
    guidance: Guidance | None,
) -> Int[Array, "b t"]:
    net, hidden = nnx.merge(graphdef, state), additive_mask(possible)

    def read(tokens: Int[Array, "b t"], unknown: Bool[Array, "b t"]) -> Float[Array, "b t v"]:
        return net.predict(tokens, unknown).astype(jnp.float32)

    def predict(tokens: Int[Array, "b t"], unknown: Bool[Array, "b t"]) -> Float[Array, "b t v"]:
        if guidance is None:
            return read(tokens, unknown) + hidden[None]
        g, other = guidance.scale, jnp.where(given, guidance.without, tokens)

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            weight, row = jnp.where(i == 0, g, 1 - g), jnp.where(i == 0, tokens, other)
            return total + weight * read(row, unknown)

        # A loop, so that the network is compiled once, and called once where g is 1 or 0.
        shape = jax.eval_shape(read, tokens, unknown)
        begin, end = jnp.where(g == 0, 1, 0), jnp.where(g == 1, 1, 2)
        return jax.lax.fori_loop(begin, end, add, jnp.zeros(shape.shape)) + hidden[None]

    temperature, top_k, top_p = draw
    floats, whole = (partial(jnp.full, len(tokens), dtype=dtype) for dtype in (jnp.float32, jnp.int32))
    knobs = Knobs(floats(temperature), whole(top_k), floats(top_p), floats(0.0), floats(1.0))
    return unmask(predict, tokens, given, sampler=sampler, settings=settings, knobs=knobs, keys=keys)


def sample_tokens(
    net: nnx.Module, model: Model, request: UnmaskRequest, key: Key[Array, ""], context: int
) -> Artifacts:
    """Samples sequences of tokens and decodes them with the model's spec.

    Raises:
        UserError: the prompt or the text to fill does not fit, or is given and the tokens are not text; or an image is
            given and the tokens are not of images (see `TokenSpec.given`).
    """
    spec = model.spec
    found = request.given(model)
    if isinstance(spec, TextSpec):
        return (write_texts if request.fill is None else fill_texts)(net, spec, request, key, context)
    if request.fill:
        raise UserError(f"fill is {request.fill!r}, which is for texts, and the model's tokens are of none")
    return best_of_many(request, model, lambda asked: _decoded(net, model, asked, key, context, found))


def _decoded(
    net: nnx.Module, model: Model, request: UnmaskRequest, key: Key[Array, ""], context: int, found: Given | None
) -> Artifacts:
    """Samples of tokens that are of no text, decoded."""
    spec = model.spec
    width = 1 + min(context, spec.longest or context)
    tokens, known = _rows(np.full((request.n, 1), spec.end), width, spec.end)
    allowed = without = None
    if found is not None:
        found = found.row(np.arange(request.n))
        tokens[:, 1:], known[:, 1:] = found.tokens, found.tokens >= 0
        if found.allowed is not None:
            low, high = np.insert(found.allowed, 0, (0, spec.outputs), axis=0).T
            symbol = np.arange(spec.outputs)[None]
            allowed = (low[:, None] <= symbol) & (symbol < high[:, None])
        if found.without is not None:
            without = np.insert(found.without, 0, spec.end, axis=1)
    filled = fill(net, spec, tokens, known, request, key, allowed, without)
    made = spec.decode([_before_end(ids[1:], spec.end) for ids in filled], model.codec)
    return labelled(made, request.captions)


# --------------------------------------------------------------------------------------------------- text


def write_texts(
    net: nnx.Module, spec: TextSpec, request: UnmaskRequest, key: Key[Array, ""], context: int
) -> list[Text]:
    """Returns n texts, each the prompt and its continuation.

    A text of blocks that is longer than the context is written window by window: the last half of a window is given in
    the next (Sahoo et al. 2024, section 4, semi-autoregressive decoding); window w uses the key fold_in(key, w).

    Raises:
        UserError: the prompt does not fit.
    """
    in_blocks = isinstance(spec, BlockSpec)
    prompt = encode_prompt(spec.tokenizer, request.text, context if in_blocks else context - 1)
    if request.text and not in_blocks:
        prompt = np.append(np.int32(spec.end), prompt)
    most = request.max_new_tokens if in_blocks else min(request.max_new_tokens, 1 + context - len(prompt))
    new, window, number = np.zeros((request.n, 0), np.int32), np.tile(prompt, (request.n, 1)), 0
    while new.shape[1] < most and not (new == spec.end).any(1).all():
        begin = window.shape[1]
        tokens, given = _rows(window, 1 + context, spec.end)
        tokens = fill(net, spec, tokens, given, request, jax.random.fold_in(key, number))
        new = np.concatenate([new, tokens[:, begin:]], axis=1)
        window, number = tokens[:, -max(1, (1 + context) // 2) :], number + 1
    texts = (spec.tokenizer.decode(_before_end(ids[:most], spec.end)) for ids in new)
    return [Text(request.text + text, prompt=request.text) for text in texts]


def fill_texts(
    net: nnx.Module, spec: TextSpec, request: UnmaskRequest, key: Key[Array, ""], context: int
) -> list[Text]:
    """Returns n texts, each with all masks filled; masks are never filled with end-of-text.

    What follows the text is end-of-text if rows are whole texts. In blocks it is unknown: it is sampled too, and cut
    off, so that the fills do not depend on a particular continuation.

    Raises:
        UserError: the text does not fit.
    """
    assert request.fill is not None
    in_blocks = isinstance(spec, BlockSpec)
    first, *others = around_masks(spec.tokenizer, request.fill)
    row, known = [*first], [True] * len(first)
    for part in others:
        row, known = [*row, spec.end, *part], [*known, False, *[True] * len(part)]
    begin = int(not in_blocks or not known[0])
    width = 1 + context
    room = width - begin if in_blocks else width - begin - 1
    if len(row) > room:
        raise UserError(
            f"the text is {len(row)} tokens long, but the model sees {room} at once; give at most that many"
        )
    end = begin + len(row)
    tokens, given = _rows(np.tile([spec.end] * begin + row, (request.n, 1)), width, spec.end)
    given[:, begin:end] = known
    given[:, end:] = not in_blocks
    allowed = np.ones((width, spec.vocab_size), bool)
    allowed[begin:end, spec.end] = False
    filled = fill(net, spec, tokens, given, request, key, allowed)
    return [Text(spec.tokenizer.decode(ids[begin:end])) for ids in filled]


def _rows(
    begin: Int[np.ndarray, "n s"], width: int, end: int
) -> tuple[Int[np.ndarray, "n t"], Bool[np.ndarray, "n t"]]:
    """Returns rows that begin with the given tokens and continue with `end`, and which tokens are given."""
    tokens = np.pad(begin, ((0, 0), (0, width - begin.shape[1])), constant_values=end).astype(np.int32)
    return tokens, np.tile(np.arange(width) < begin.shape[1], (len(begin), 1))


def _before_end(ids: Int[np.ndarray, " t"], end: int) -> Int[np.ndarray, " s"]:
    """Returns the tokens before the first end token."""
    return ids[: np.append(np.flatnonzero(ids == end), len(ids))[0]]
