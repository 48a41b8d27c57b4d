"""Beam search with any network that decodes incrementally from a cache; see `zoo.sampling.tokens.decode`.

For every prompt, the k likeliest unfinished continuations are kept. Each step considers the 2k likeliest extensions.
An extension that ends (with end-of-text, or at the maximum length) becomes a hypothesis if it is among the first k. The
k best hypotheses are kept by

    score = log P(continuation | prompt) / length^length_penalty

where the length includes end-of-text. The rules are those of `generate` in version 5 of Hugging Face's transformers,
and the results are equal.

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
"""Added to the scores of excluded candidates; finite, as in transformers, so that they can still fill empty slots."""

EARLY_STOPPING = {False: 0, True: 1, "never": 2}
"""Numbers of the values of `TokenRequest.early_stopping`."""


class Rules(NamedTuple):
    """Settings of a search. They are traced, so new values do not recompile."""

    max_new_tokens: Any
    end_of_text: Any
    length_penalty: Any
    early_stopping: Any
    """A number of `EARLY_STOPPING`."""


class Beams(NamedTuple):
    """The state of a search between two steps."""

    length: jax.Array
    """Number of tokens in each running beam, int32 []."""
    tokens: jax.Array
    """Running beams, int32 [b k t]."""
    log_probs: jax.Array
    """Log-probabilities of the running beams, [b k]."""
    parents: jax.Array
    """For each running beam, the beam of the previous step that it extends, int32 [b k]."""
    found: jax.Array
    """Hypotheses, int32 [b k t]."""
    lengths: jax.Array
    """Lengths of the hypotheses, int32 [b k]."""
    scores: jax.Array
    """Scores of the hypotheses, [b k], best first."""
    filled: jax.Array
    """Which slots of `found` contain a hypothesis, bool [b k]."""
    improvable: jax.Array
    """Prompts for which a running beam could still become a better hypothesis, bool [b]."""
    going: jax.Array
    """Whether the search continues, bool []."""


def start_beams(batch: int, num_beams: int, size: int) -> Beams:
    """The state before the first step. All beams are equal, so all but the first are excluded."""
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
    """Makes one step of the search, given the logits of the token after each running beam."""
    num_beams, size = beams.tokens.shape[1:]
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1) + beams.log_probs[:, :, None]
    candidates, parents, token = _likeliest(log_probs, 2 * num_beams)
    length = beams.length + 1
    ends = (token == rules.end_of_text) | (length >= rules.max_new_tokens)
    here = jnp.arange(size)[None, None, :] == beams.length
    tokens = jnp.where(here, token[:, :, None], _take(beams.tokens, parents))

    running, order = jax.lax.top_k(candidates + ends * RULED_OUT, num_beams)

    # No hypothesis is added to a set that is full, with early stopping, or that no running beam can improve.
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
    """Returns the log-probability, beam and token of the `count` likeliest extensions."""
    # Top-k within each beam first: a beam has at most `count` of them, and short lists sort faster.
    each, token = jax.lax.top_k(log_probs, min(count, log_probs.shape[-1]))
    best, place = jax.lax.top_k(rearrange(each, "b k c -> b (k c)"), count)
    token = jnp.take_along_axis(rearrange(token, "b k c -> b (k c)"), place, axis=1)
    return best, place // each.shape[-1], token


def _take(x: Any, index: Int[Array, "b n"]) -> Any:
    """Indexes the second axis, separately for each prompt."""
    return jax.vmap(lambda row, chosen: row[chosen])(x, index)


def settle_rows(parents: Int[Array, "b k"]) -> tuple[Int[Array, "b k"], Int[Array, "b k"]]:
    """Assigns beams to rows of the cache so that few rows need to be copied.

    The first beam that extends row j stays there; the others take rows that no beam extends.

    Returns:
        For each row, the beam assigned to it, and the row to copy its cache from (usually itself).
    """
    num_beams = parents.shape[1]
    continues = parents[:, :, None] == jnp.arange(num_beams)[None, None, :]
    kept = continues.any(axis=1)
    is_first = jnp.take_along_axis(continues.argmax(axis=1), parents, axis=1) == jnp.arange(num_beams)[None, :]
    further = jnp.argsort(is_first, axis=1, stable=True)
    beam = jnp.where(kept, continues.argmax(axis=1), jnp.take_along_axis(further, jnp.cumsum(~kept, 1) - 1, axis=1))
    return beam, jnp.take_along_axis(parents, beam, axis=1)


def move_rows(cache: Any, source: Int[Array, " n"]) -> Any:
    """Returns cache[source], computed in place; rows that others are copied from must have source[row] == row."""
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
    """Searches from prompts that the network has read; for use inside jit.

    Args:
        extend: `extend(tokens [b*k 1], cache, length) -> (logits [b*k v], cache)` reads token number `length` of
            every running beam.
        cache: of the prompts; the first axis of every array is b.
        logits: of the token after each prompt.
        rules: settings of the search.
        num_beams: k.
        size: number of token slots per beam, at least `rules.max_new_tokens`.
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
    """Returns the `num_beams` best continuations of every prompt.

    Args:
        net: see `zoo.sampling.tokens.decode`.
        prompts: token ids, at least one each; each prompt and `max_new_tokens` - 1 more must fit into the context.
        num_beams: k.
        max_new_tokens: maximum length of a continuation.
        end_of_text: the token that ends one.
        length_penalty: see the module's docstring.
        early_stopping: when a prompt's search ends; see `TokenRequest`.
        context: maximum number of tokens that the network sees; None: no limit.

    Returns:
        For each prompt, best first, the tokens of each continuation, with end-of-text if it was reached, and its score.
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
