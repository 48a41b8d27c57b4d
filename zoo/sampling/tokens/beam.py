"""Beam search over any network that can read on from a cache; see `zoo.sampling.tokens.decode`.

Of every prompt the k likeliest unfinished continuations are kept; each step looks at the 2k likeliest ways to go on.
One of those that ends (with end-of-text, or at the greatest length) is a hypothesis if it is among the first k, and the
k best hypotheses by

    score = log P(continuation | prompt) / length^length_penalty

are kept, end-of-text counted in the length. The rules are those of `generate` in version 5 of Hugging Face's
transformers, so that results are equal.

Letters in shapes: b prompts, k beams, c = 2k candidates, t tokens, v vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.sampling.tokens.decode import bucket, read_prompts

RULED_OUT = -1e9
"""Added to the score of what must not be chosen; finite, as in transformers, so that it can still fill a place."""

EARLY_STOPPING = {False: 0, True: 1, "never": 2}
"""When a prompt is done, as a number."""


class Rules(NamedTuple):
    """What a search goes by, as traced values: others compile nothing."""

    max_new_tokens: Any
    end_of_text: Any
    length_penalty: Any
    early_stopping: Any
    """Its number in `EARLY_STOPPING`."""


class Beams(NamedTuple):
    """A search between two steps."""

    length: jax.Array
    """How many tokens each running beam has."""
    tokens: jax.Array
    """Running beams, int32 [b k t]."""
    log_probs: jax.Array
    """Of the running beams, [b k]."""
    parents: jax.Array
    """Which running beam of the step before each one continues, int32 [b k]."""
    found: jax.Array
    """Hypotheses, int32 [b k t]."""
    lengths: jax.Array
    """Of the hypotheses, int32 [b k]."""
    scores: jax.Array
    """Of the hypotheses, [b k], best first."""
    filled: jax.Array
    """Which places for hypotheses hold one, bool [b k]."""
    improvable: jax.Array
    """Prompts for which a running beam may still lead to a better hypothesis, bool [b]."""
    going: jax.Array
    """Whether the search goes on, bool []."""


def start_beams(batch: int, num_beams: int, size: int) -> Beams:
    """Before the first step; all beams are the same, so all but one are ruled out."""
    tokens = jnp.zeros((batch, num_beams, size), jnp.int32)
    places = jnp.zeros((batch, num_beams), jnp.int32)
    return Beams(
        length=jnp.int32(0),
        tokens=tokens,
        log_probs=jnp.where(jnp.arange(num_beams) == 0, 0.0, RULED_OUT)[None] + jnp.zeros((batch, num_beams)),
        parents=places,
        found=tokens,
        lengths=places,
        scores=jnp.full((batch, num_beams), RULED_OUT),
        filled=jnp.zeros((batch, num_beams), bool),
        improvable=jnp.ones(batch, bool),
        going=jnp.array(True),
    )


def advance(beams: Beams, logits: Float[Array, "b k v"], rules: Rules) -> Beams:
    """One step of the search, given the logits of the token after each running beam."""
    num_beams, size = beams.tokens.shape[1:]
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1) + beams.log_probs[:, :, None]
    candidates, parents, token = _likeliest(log_probs, 2 * num_beams)
    length = beams.length + 1
    ends = (token == rules.end_of_text) | (length >= rules.max_new_tokens)
    here = jnp.arange(size)[None, None, :] == beams.length
    tokens = jnp.where(here, token[:, :, None], _take(beams.tokens, parents))

    running, order = jax.lax.top_k(candidates + ends * RULED_OUT, num_beams)

    # A full set of hypotheses is closed under early stopping; so is one that no running beam can improve.
    closed = (beams.filled.all(axis=1) & (rules.early_stopping == 1)) | ~beams.improvable
    hypothesis = ends & (jnp.arange(2 * num_beams) < num_beams)[None, :]
    score = candidates / length.astype(jnp.float32) ** rules.length_penalty
    score = score + (closed[:, None] + 1.0 * ~hypothesis) * RULED_OUT
    scores, best = jax.lax.top_k(jnp.concatenate([beams.scores, score], axis=1), num_beams)
    filled = _take(jnp.concatenate([beams.filled, hypothesis], axis=1), best)
    lengths = jnp.concatenate([beams.lengths, jnp.broadcast_to(length, token.shape)], axis=1)

    far = (rules.early_stopping == 2) & (rules.length_penalty > 0)
    reach = jnp.where(far, rules.max_new_tokens, length).astype(jnp.float32)
    possible = running[:, :1] / reach**rules.length_penalty
    worst = jnp.where(filled, scores.min(axis=1, keepdims=True), RULED_OUT)
    improvable = beams.improvable & (possible > worst).any(axis=1)
    stopped = (filled.all() & (rules.early_stopping == 1)) | ends.all()
    return Beams(
        length=length,
        tokens=_take(tokens, order),
        log_probs=running,
        parents=_take(parents, order),
        found=_take(jnp.concatenate([beams.found, tokens], axis=1), best),
        lengths=_take(lengths, best),
        scores=scores,
        filled=filled,
        improvable=improvable,
        going=improvable.any() & ~stopped,
    )


def _likeliest(
    log_probs: Float[Array, "b k v"], count: int
) -> tuple[Float[Array, "b c"], Int[Array, "b c"], Int[Array, "b c"]]:
    """The `count` likeliest ways to go on: their log-probability, beam and token."""
    # First within each beam: a beam can provide no more than `count` of them, and short lists sort faster.
    each, token = jax.lax.top_k(log_probs, min(count, log_probs.shape[-1]))
    best, place = jax.lax.top_k(rearrange(each, "b k c -> b (k c)"), count)
    token = jnp.take_along_axis(rearrange(token, "b k c -> b (k c)"), place, axis=1)
    return best, place // each.shape[-1], token


def _take(x: Any, index: Int[Array, "b n"]) -> Any:
    """Chooses along the second axis, for every prompt by itself."""
    return jax.vmap(lambda row, chosen: row[chosen])(x, index)


def settle_rows(parents: Int[Array, "b k"]) -> tuple[Int[Array, "b k"], Int[Array, "b k"]]:
    """Which beam goes into which row of the cache, so that few rows need to move.

    The first beam that continues row j stays there; further ones go into rows that no beam continues.

    Returns:
        For each row the beam that it now holds, and the row to copy its past from (itself, mostly).
    """
    num_beams = parents.shape[1]
    continues = parents[:, :, None] == jnp.arange(num_beams)[None, None, :]
    kept = continues.any(axis=1)
    is_first = jnp.take_along_axis(continues.argmax(axis=1), parents, axis=1) == jnp.arange(num_beams)[None, :]
    further = jnp.argsort(is_first, axis=1, stable=True)
    beam = jnp.where(kept, continues.argmax(axis=1), jnp.take_along_axis(further, jnp.cumsum(~kept, 1) - 1, axis=1))
    return beam, jnp.take_along_axis(parents, beam, axis=1)


def move_rows(cache: Any, source: Int[Array, " n"]) -> Any:
    """cache[source] in place, where rows that are copied from stay as they are."""
    rows = jnp.arange(source.shape[0])
    moves = jnp.argsort(source == rows, stable=True)

    def move(i: Any, cache: Any) -> Any:
        row = moves[i]
        return jax.tree.map(
            lambda x: jax.lax.dynamic_update_index_in_dim(
                x, jax.lax.dynamic_index_in_dim(x, source[row], keepdims=False), row, axis=0
            ),
            cache,
        )

    return jax.lax.fori_loop(0, (source != rows).sum(), move, cache)


def search(
    extend: Callable[[Int[Array, "n t"], Any, Any], tuple[Array, Any]],
    cache: Any,
    logits: Float[Array, "b v"],
    rules: Rules,
    num_beams: int,
    size: int,
) -> Beams:
    """Searches from prompts that were read. Traced.

    Args:
        extend: `extend(tokens [b*k 1], cache, length) -> (logits [b*k v], cache)` reads token number `length` of
            every running beam.
        cache: of the prompts, every array leading with b.
        logits: of the token after each prompt.
        rules: see there.
        num_beams: k.
        size: room for tokens, at least `rules.max_new_tokens`.
    """
    batch = logits.shape[0]
    cache = jax.tree.map(lambda x: repeat(x, "b ... -> (b k) ...", k=num_beams), cache)
    beams = advance(start_beams(batch, num_beams, size), repeat(logits, "b v -> b k v", k=num_beams), rules)

    def step(carry: tuple[Beams, Any]) -> tuple[Beams, Any]:
        beams, cache = carry
        order, source = settle_rows(beams.parents)
        beams = beams._replace(tokens=_take(beams.tokens, order), log_probs=_take(beams.log_probs, order))
        cache = move_rows(cache, rearrange(source + num_beams * jnp.arange(batch)[:, None], "b k -> (b k)"))
        last = jax.lax.dynamic_index_in_dim(beams.tokens, beams.length - 1, axis=2)
        logits, cache = extend(rearrange(last, "b k t -> (b k) t"), cache, beams.length - 1)
        return advance(beams, rearrange(logits, "(b k) v -> b k v", b=batch), rules), cache

    return jax.lax.while_loop(lambda carry: carry[0].going, step, (beams, cache))[0]


@partial(jax.jit, static_argnames=("graphdef", "num_beams", "size"))
def _search(
    graphdef: Any,
    state: Any,
    cache: Any,
    logits: Any,
    position: Any,
    start: Any,
    rules: Rules,
    num_beams: int,
    size: int,
) -> Beams:
    net = nnx.merge(graphdef, state)
    starts = repeat(start, "b -> (b k)", k=num_beams)
    return search(
        lambda tokens, cache, length: net.extend(tokens, cache, position + length, starts),
        cache,
        logits,
        rules,
        num_beams,
        size,
    )


def beam_search(
    net: nnx.Module,
    prompts: Sequence[np.ndarray],
    *,
    num_beams: int,
    max_new_tokens: int,
    end_of_text: int,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    context: int | None = None,
) -> list[list[tuple[np.ndarray, float]]]:
    """Finds the `num_beams` best continuations of every prompt.

    Args:
        net: see `zoo.sampling.tokens.decode`.
        prompts: token ids, at least one each; with `max_new_tokens` - 1 more they must fit into the context.
        num_beams: k.
        max_new_tokens: greatest length of a continuation.
        end_of_text: the token that ends one.
        length_penalty: see the module.
        early_stopping: when a prompt is done; see `TokenRequest`.
        context: the most tokens that the network sees at once; None: any number.

    Returns:
        For each prompt, best first: the tokens of a continuation, end-of-text included where it has one, and its score.
    """
    graphdef, state = nnx.split(net)
    reading = read_prompts(graphdef, state, prompts, max_new_tokens - 1, context, tight=True)
    rules = Rules(max_new_tokens, end_of_text, length_penalty, EARLY_STOPPING[early_stopping])
    beams = _search(
        graphdef,
        state,
        reading.cache,
        reading.logits,
        reading.position,
        reading.start,
        rules,
        num_beams,
        bucket(max_new_tokens),
    )
    found, lengths, scores = (np.asarray(x) for x in (beams.found, beams.lengths, beams.scores))
    return [
        [(found[b, i, : lengths[b, i]], float(scores[b, i])) for i in range(num_beams)] for b in range(len(prompts))
    ]
