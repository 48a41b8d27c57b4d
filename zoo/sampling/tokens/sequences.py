"""Samples of sequences of tokens from a request: texts, or whatever else the spec decodes them to."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Key

from zoo.core.artifacts import Artifacts
from zoo.core.errors import UserError
from zoo.core.family import Model
from zoo.data.captions.prompts import labelled
from zoo.data.specs import Given, TextSpec, TokenSpec
from zoo.sampling.prompts import best_of_many
from zoo.sampling.tokens.continuation import AT_ONCE, make_knobs, sample_texts
from zoo.sampling.tokens.decode import Guidance, write_tokens
from zoo.sampling.tokens.request import TokenRequest


def sample_tokens(
    net: nnx.Module,
    model: Model,
    request: TokenRequest,
    key: Key[Array, ""],
    *,
    context: int | None,
    stream: Callable[[str], None] | None = None,
) -> Artifacts:
    """Samples sequences of tokens and decodes them with the model's spec; texts are made by `sample_texts`.

    Raises:
        UserError: the request has prompts, stop strings or beams and the tokens are not text, or an image and the
            tokens are not of images; or see `sample_texts` and `TokenSpec.given`.
    """
    spec = model.spec
    given = request.given(model)
    if isinstance(spec, TextSpec):
        return sample_texts(net, spec.tokenizer, request, key, context=context, stream=stream)
    default = TokenRequest()
    for name in ("prompts", "stop", "num_beams"):
        if (value := getattr(request, name)) != getattr(default, name):
            raise UserError(f"{name} is {value!r}, which is for texts, and the model's tokens are of none")
    return best_of_many(request, model, lambda asked: _decoded(net, model, asked, key, context, given))


def _decoded(
    net: nnx.Module, model: Model, request: TokenRequest, key: Key[Array, ""], context: int | None, given: Given | None
) -> Artifacts:
    """Samples of tokens that are of no text, decoded."""
    draw = partial(_drawn_tokens, net, model.spec, request, key, context, given)
    size = min(AT_ONCE, 1 << (request.n - 1).bit_length())
    begins = range(0, request.n, size)
    samples = [ids for begin in begins for ids in draw(np.arange(begin, begin + size))][: request.n]
    made = [artifact for begin in begins for artifact in model.spec.decode(samples[begin : begin + size], model.codec)]
    return labelled(made, request.captions)


def _drawn_tokens(
    net: nnx.Module,
    spec: TokenSpec,
    request: TokenRequest,
    key: Key[Array, ""],
    context: int | None,
    given: Given | None,
    rows: Int[np.ndarray, " b"],
) -> list[Int[np.ndarray, " t"]]:
    """Samples some rows; returns their tokens without the end token."""
    longest = request.max_new_tokens if spec.longest is None else spec.longest
    given = None if given is None else given.row(rows)
    written: list[list[int]] = [[] for _ in rows]
    done = np.zeros(len(rows), bool)

    def accept(new: Int[np.ndarray, "b t"]) -> Bool[np.ndarray, " b"]:
        for row, ids in enumerate(new.tolist()):
            for token in ids:
                done[row] |= token == spec.end or len(written[row]) == longest
                if not done[row]:
                    written[row].append(token)
            done[row] |= len(written[row]) == longest
        return done.copy()

    write_tokens(
        net, [np.array([spec.end], np.int32)] * len(rows), accept, knobs=make_knobs(request, len(rows)), key=key,
        rows=rows.tolist(), max_new_tokens=longest, end_of_text=spec.end, vocab_size=spec.outputs, never=spec.never,
        given=None if given is None else given.tokens, allowed=None if given is None else given.allowed,
        guidance=_guidance(request, given), context=context,
    )  # fmt: skip
    return [np.array(ids, np.int32) for ids in written]


def _guidance(request: TokenRequest, given: Given | None) -> Guidance | None:
    """The guidance of a request; scale 1 needs none."""
    if given is None or given.without is None or request.guidance == 1:
        return None
    return Guidance(jnp.float32(request.guidance), jnp.asarray(given.without))
