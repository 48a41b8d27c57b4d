"""Autoregressive decoding with any network that reads tokens incrementally into a cache.

The network is an `nnx.Module` with two methods:

    init_cache(batch, length) -> cache                                     a pytree whose first axis is the row
    extend(tokens [b t], cache, position, start [b]) -> logits [b v], cache

`extend` reads tokens into the slots from `position` on and returns the logits of the token after them. A cache contains
keys and values in `length` slots, or the states of recurrent layers, which need no slots. Slots before `start` are
padding and must not affect the result.

Prompts are padded on the left to a multiple of `PIECE` and read piece by piece. Then tokens are chosen and read in
turn, at most `CHUNK` per call from the host. Compilation depends only on the network, the number of rows and the
cache's length (256, 512, ... slots, up to the context if it is limited): other prompts, text lengths, sampling settings
and keys do not recompile.

Letters in shapes: b rows, t tokens, v vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import row_keys
from zoo.sampling.tokens.logits import Knobs, choose

PIECE = 32
"""Number of prompt tokens read at once."""
CHUNK = 32
"""Maximum number of tokens generated per call from the host."""
SHORTEST_CACHE = 256
"""Slots of the shortest cache; longer caches double in length, so that few lengths are compiled."""


class Decoding(NamedTuple):
    """The state of decoding between two steps."""

    cache: Any
    token: jax.Array
    """The last token of each row, not yet read by the network, int32 [b]."""
    seen: jax.Array
    """Which tokens occur in each row, bool [b v]."""
    done: jax.Array
    """Which rows have ended, bool [b]; they continue with end-of-text."""


class Reading(NamedTuple):
    """The state of a network after reading prompts."""

    cache: Any
    logits: jax.Array
    """Logits of the token after each prompt, [b v]."""
    position: int
    """The next free slot."""
    start: jax.Array
    """The slot of each row's first token, int32 [b]."""


class Guidance(NamedTuple):
    """Classifier-free guidance of tokens (Ho and Salimans 2022)."""

    scale: jax.Array
    """g; logits are u + g (c - u), where c are those of the row and u those of the row without its caption."""
    without: jax.Array
    """The given tokens of the rows without their captions, int32 [b n], -1 where they are sampled."""


class Draw(NamedTuple):
    """How tokens are sampled."""

    knobs: Knobs
    keys: jax.Array
    """One key per row; token number t uses fold_in(key, t)."""
    end_of_text: int
    never: int | None
    """A token that is never sampled; None: no such token."""
    given: jax.Array | None
    """Tokens that are known, int32 [b n], -1 where they are sampled; None: none is known."""
    allowed: jax.Array | None = None
    """The range of symbols of each token, int32 [n 2]: the first, and the one after the last; None: all."""
    scale: jax.Array | None = None
    """Of guidance, whose rows without are the second half of all rows; None: there is no guidance."""


@partial(jax.jit, static_argnames=("graphdef", "batch", "length"))
def _empty_cache(graphdef: Any, state: Any, batch: int, length: int) -> Any:
    return nnx.merge(graphdef, state).init_cache(batch, length)


@partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("cache",))
def _read(graphdef: Any, state: Any, cache: Any, tokens: Any, position: Any, start: Any) -> Any:
    return nnx.merge(graphdef, state).extend(tokens, cache, position, start)


def _pick(logits: jax.Array, seen: jax.Array, done: jax.Array, number: Any, draw: Draw) -> tuple[jax.Array, ...]:
    """Chooses token `number` of every row; returns it with the updated `seen` and `done`."""
    if draw.never is not None:
        logits = logits.at[:, draw.never].set(-jnp.inf)
    if draw.allowed is not None:
        low, high = jax.lax.dynamic_index_in_dim(draw.allowed, number, keepdims=False)
        symbol = jnp.arange(logits.shape[1])[None, :]
        logits = jnp.where((low <= symbol) & (symbol < high), logits, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in, (0, None))(draw.keys, number)
    if draw.scale is None:
        token = choose(logits, seen, draw.knobs, keys)
    else:
        drawn, without = jnp.split(logits, 2)
        token = choose(guide(drawn, without, draw.scale), jnp.split(seen, 2)[0], draw.knobs, keys)
        token = jnp.concatenate([token, token])
    if draw.given is not None:
        known = jax.lax.dynamic_index_in_dim(draw.given, number, axis=1, keepdims=False)
        token = jnp.where(known >= 0, known, token)
    token = jnp.where(done, draw.end_of_text, token).astype(jnp.int32)
    seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
    return token, seen, done | (token == draw.end_of_text)


def guide(with_: Float[Array, "b v"], without: Float[Array, "b v"], scale: Float[Array, ""]) -> Float[Array, "b v"]:
    """Classifier-free guidance of logits, u + g (c - u) (Ho and Salimans 2022): c where g is 1, and u where it is 0."""
    mixed = jnp.where(jnp.isfinite(with_), without + scale * (with_ - without), with_)
    return jnp.where(scale == 1, with_, jnp.where(scale == 0, without, mixed))


_pick_first = partial(jax.jit, donate_argnames=("seen",))(_pick)


@partial(jax.jit, static_argnames=("graphdef",), donate_argnames=("decoding",))
def _write(
    graphdef: Any,
    state: Any,
    decoding: Decoding,
    done: Any,
    position: Any,
    start: Any,
    number: Any,
    count: Any,
    draw: Draw,
) -> tuple[Decoding, Int[Array, "b chunk"]]:
    """Reads the last token and chooses the next, `count` times or until all rows have ended or are `done`.

    Returns:
        The new state, and the new tokens, padded with end-of-text.
    """
    net = nnx.merge(graphdef, state)
    decoding = decoding._replace(done=decoding.done | done)
    written = jnp.full((decoding.token.shape[0], CHUNK), draw.end_of_text, jnp.int32)

    def one(carry: tuple[Any, Decoding, jax.Array]) -> tuple[Any, Decoding, jax.Array]:
        i, (cache, token, seen, done), written = carry
        logits, cache = net.extend(token[:, None], cache, position + i, start)
        token, seen, done = _pick(logits, seen, done, number + i, draw)
        written = jax.lax.dynamic_update_slice_in_dim(written, token[:, None], i, axis=1)
        return i + 1, Decoding(cache, token, seen, done), written

    def more(carry: tuple[Any, Decoding, jax.Array]) -> jax.Array:
        return (carry[0] < count) & ~carry[1].done.all()

    _, decoding, written = jax.lax.while_loop(more, one, (jnp.int32(0), decoding, written))
    return decoding, written


def read_prompts(
    graphdef: Any, state: Any, prompts: Sequence[np.ndarray], room: int, context: int | None, tight: bool = False
) -> Reading:
    """Reads prompts of any lengths, at least one token each, into a new cache with `room` free slots.

    A row has at most `context` tokens, prompt and room together; None: no limit. The length of a `tight` cache is a
    multiple of 64, for searches that copy its rows; every such length is compiled separately.
    """
    slots = round_up(max(len(prompt) for prompt in prompts), PIECE)
    start = np.array([slots - len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), slots), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, start[row] :] = prompt
    if tight:
        length = round_up(slots + room, 64)
    else:
        length = min(bucket(slots + room), round_up(context, PIECE) + PIECE) if context else bucket(slots + room)
    cache, logits = _empty_cache(graphdef, state, len(prompts), length), jnp.zeros(())
    for position in range(0, slots, PIECE):
        piece = tokens[:, position : position + PIECE]
        logits, cache = _read(graphdef, state, cache, piece, np.int32(position), start)
    return Reading(cache, logits, slots, jnp.asarray(start))


def write_tokens(
    net: nnx.Module,
    prompts: Sequence[np.ndarray],
    accept: Callable[[np.ndarray], Bool[np.ndarray, " b"]],
    *,
    knobs: Knobs,
    key: Key[Array, ""],
    rows: Sequence[int] | None = None,
    max_new_tokens: int,
    end_of_text: int,
    vocab_size: int,
    never: int | None = None,
    given: Int[np.ndarray, "b n"] | None = None,
    allowed: Int[np.ndarray, "n 2"] | None = None,
    guidance: Guidance | None = None,
    context: int | None = None,
    chunk: int = CHUNK,
) -> None:
    """Continues every prompt until end-of-text, until `accept` ends it, or up to `max_new_tokens`.

    When a row's text fills the context, the last half of the context is read into a new cache and the row continues
    from there. A row's result does not depend on the other rows.

    Args:
        net: see the module's docstring.
        prompts: token ids, at least one and at most `context` each.
        accept: called with each chunk of new tokens, int32 [b chunk]; rows that have ended are padded with
            end-of-text. Returns which rows are finished.
        knobs: sampling settings of each row.
        key: source of randomness; row r uses fold_in(key, r).
        rows: the r of each row; None: in order.
        max_new_tokens: maximum for each row.
        end_of_text: the token that ends a row.
        vocab_size: number of tokens that the network predicts.
        never: a token that is never sampled; None: no such token.
        given: the token number t of each row, if it is known, for all n = `max_new_tokens` tokens; -1: it is sampled.
        allowed: the range of symbols that token number t may have: the first, and the one after the last; None: all.
        guidance: leads away from another row of given tokens, which is read into a cache of its own; None: no guidance.
        context: maximum number of tokens that the network sees; None: no limit.
        chunk: maximum number of tokens between two calls of `accept`, at most `CHUNK`.
    """
    graphdef, state = nnx.split(net)
    keys = row_keys(key, jnp.arange(len(prompts)) if rows is None else jnp.asarray(rows))
    if guidance is not None:
        assert given is not None
        prompts, accept = [*prompts, *prompts], _twice(accept)
        given = np.concatenate([given, guidance.without])
    batch = len(prompts)
    most = context or max(len(prompt) for prompt in prompts) + max_new_tokens
    known, ranges = (None if array is None else jnp.asarray(array, jnp.int32) for array in (given, allowed))
    draw = Draw(knobs, keys, end_of_text, never, known, ranges, None if guidance is None else guidance.scale)
    windows = list(prompts)
    held = np.zeros((batch, vocab_size), bool)
    for row, prompt in enumerate(prompts):
        held[row, prompt[prompt < vocab_size]] = True
    seen, done = jnp.asarray(held), np.zeros(batch, bool)
    number, room = 0, 0
    while number < max_new_tokens and not done.all():
        if room == 0:
            windows = [_last(window, most) for window in windows]
            room = most - max(len(window) for window in windows)
            spare = min(room, max_new_tokens - number)
            reading = read_prompts(graphdef, state, windows, spare, context)
            token, seen, now_done = _pick_first(reading.logits, seen, jnp.asarray(done), number, draw)
            decoding = Decoding(reading.cache, token, seen, now_done)
            position, new = reading.position, np.asarray(token)[:, None]
        else:
            count = min(chunk, room, max_new_tokens - number)
            decoding, written = _write(
                graphdef, state, decoding, done, position, reading.start, number, np.int32(count), draw
            )
            new = np.asarray(written)[:, :count]
            position, room = position + count, room - count
        seen, number = decoding.seen, number + new.shape[1]
        done = np.asarray(decoding.done) | accept(new)
        # A row that has ended needs no window; its padding must not fill the context before the other rows do.
        windows = [
            np.array([end_of_text]) if ended else np.append(window, ids)
            for window, ids, ended in zip(windows, new, done, strict=True)
        ]


def _twice(accept: Callable[[np.ndarray], Bool[np.ndarray, " b"]]) -> Callable[[np.ndarray], Bool[np.ndarray, " b"]]:
    """`accept` for rows of which the second half are those without their caption: they end as the first half does."""
    return lambda new: np.tile(accept(new[: len(new) // 2]), 2)


def _last(window: np.ndarray, context: int) -> np.ndarray:
    """The window; if it is longer than the context, its last `context // 2` tokens."""
    return window if len(window) <= context else window[-max(1, context // 2) :]


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least n."""
    return -(-n // multiple) * multiple


def bucket(n: int) -> int:
    """The smallest of 256, 512, 1024, ... that is at least n."""
    size = SHORTEST_CACHE
    while size < n:
        size *= 2
    return size
