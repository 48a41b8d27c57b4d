"""Log-probability of text with overlapping windows or a carried state, and of a user's text.

Evaluation cuts held-out text into windows without overlap, so the first tokens of each have little context. Two
protocols give every token more:

    stride   windows overlap, and each scores only its last `stride` targets     Baevski and Auli 2019, section 5.2
    carry    a recurrent network's state is carried from window to window        Zaremba et al. 2014, section 4.1

With a carried state the sum is log P of the whole text, as if read in one pass. Letters in shapes: w windows, t targets
of a window, v vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.core.artifacts import Text
from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.estimates import row_mean
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, State
from zoo.data.specs import TextSpec, TokenSpec
from zoo.data.text.blocks import TextBlocks
from zoo.data.text.windows import text_windows
from zoo.data.tokenizers import Tokenizer
from zoo.metrics.text import likelihood_statistics, perplexity
from zoo.nn.losses import counted
from zoo.sampling.batches import over_rows

Read = Callable[[Any, Int[Array, "1 t"], Any], tuple[Float[Array, "1 t v"], Any]]
"""`read(net, tokens, carry) -> (logits, carry)`: a module-level function, since it is a static argument of `jit`."""


def strided_figures(model: Model, data: DataSet, stride: int) -> Metrics:
    """Returns the figures of `evaluate` and perplexity with overlapping windows, as `NAME_stride_S`."""
    if not isinstance(data, TextBlocks):
        raise UserError(f"stride is {stride}, which is of text in one stream, and this data is of separate rows")
    if stride > data.length:
        raise UserError(f"stride is {stride}; it must be from 1 to the model's context, {data.length}")
    windows = text_windows(model.spec.tokenizer, data.held_out, data.length, stride)
    statistics = over_rows(partial(_evaluate, model.family, model.state), windows, data.batch_size)
    return _means(statistics, f"stride_{stride}")


@partial(jax.jit, static_argnums=0)
def _evaluate(family: Family, state: State, batch: Batch) -> RowStatistics:
    return family.evaluate(state, batch, jax.random.key(0))  # a language model's likelihood is deterministic


def carried_figures(net: nnx.Module, read: Read, carry: Any, data: DataSet) -> Metrics:
    """Returns loss, perplexity and bits of the whole held-out text with a carried state, as `NAME_carried`.

    Args:
        net: a language model.
        read: runs it.
        carry: its initial state, for one row.
        data: the text.
    """
    if not isinstance(data, TextBlocks):
        raise UserError("carry is of text in one stream, and this data is of separate rows")
    tokenizer = data.spec.tokenizer
    windows = text_windows(tokenizer, data.held_out, data.length, data.length)
    scored = np.asarray(counted(windows, tokenizer.end_of_text))
    nats = np.where(scored, -log_probabilities(net, read, carry, windows["tokens"]), 0.0)
    count = scored.sum(1).astype(np.float32)
    return _means(likelihood_statistics(jnp.asarray(nats.sum(1)), jnp.asarray(count), windows), "carried")


def _means(statistics: dict[str, tuple[Any, Any]], name: str) -> Metrics:
    """Returns means over windows with their standard errors, as `FIGURE_name`."""
    means: Metrics = {}
    for figure, pair in statistics.items():
        means |= row_mean(f"{figure}_{name}", *pair)
    return means | {f"perplexity_{name}": perplexity(means[f"loss_{name}"])}


def log_probabilities(
    net: nnx.Module, read: Read, carry: Any, tokens: Int[np.ndarray, "w n"]
) -> Float[np.ndarray, "w t"]:
    """Returns log P of each window's targets in nats; windows are read in order, and the carry is passed on."""
    return np.asarray(_log_probabilities(*nnx.split(net), read, carry, tokens))


@partial(jax.jit, static_argnames=("graphdef", "read"))
def _log_probabilities(graphdef: Any, state: Any, read: Read, carry: Any, tokens: Any) -> Float[Array, "w t"]:
    net = nnx.merge(graphdef, state)

    def one(carry: Any, window: Int[Array, " n"]) -> tuple[Any, Float[Array, " t"]]:
        logits, carry = read(net, window[None, :-1], carry)
        log_p = jax.nn.log_softmax(logits[0].astype(jnp.float32))
        return carry, jnp.take_along_axis(log_p, window[1:, None], axis=1)[:, 0]

    return jax.lax.scan(one, carry, tokens)[1]


def score_document(net: nnx.Module, read: Read, carry: Any, spec: TokenSpec, text: str, length: int) -> Text:
    """Returns log P of each token of a text as a separate document, from end-of-text before it to end-of-text after it.

    Args:
        net: a language model.
        read: runs it.
        carry: its initial state, for one row.
        spec: spec of the model's tokens.
        text: any text; if longer than a window, it is read in windows without overlap, with the carry passed on.
        length: targets per window.

    Raises:
        UserError: the model's tokens are not text, or the tokenizer lacks characters of the text.
    """
    if not isinstance(spec, TextSpec):
        raise UserError("score is the log-probability of a text, and the model's tokens are of none")
    tokenizer = spec.tokenizer
    ids = np.array([tokenizer.end_of_text, *tokenizer.encode(text), tokenizer.end_of_text], np.int32)
    windows = text_windows(tokenizer, ids, length, length)
    log_p = log_probabilities(net, read, carry, windows["tokens"]).reshape(-1)
    return token_listing(tokenizer, ids[1:], log_p[: len(ids) - 1], {"text": text})


def token_listing(
    tokenizer: Tokenizer, ids: Int[np.ndarray, " t"], log_p: Float[np.ndarray, " t"], about: dict[str, str]
) -> Text:
    """Lists tokens with their log-probabilities in nats, one per line, and the sum; the record holds lists.

    Args:
        tokenizer: tokenizer of the tokens.
        ids: the tokens; the last is end-of-text.
        log_p: log P of each.
        about: further entries of the record.
    """
    tokens = [*(tokenizer.decode([token]) for token in ids[:-1]), "<end of text>"]
    total = float(log_p.sum(dtype=np.float64))
    lines = [f"{value:10.4f}  {token!r}" for token, value in zip(tokens, log_p, strict=True)]
    record = about | {
        "tokens": tokens,
        "log_probabilities": [float(value) for value in log_p],
        "log_probability": total,
    }
    return Text("\n".join([*lines, f"{total:10.4f}  nats in all, of {len(tokens)} tokens"]), record=record)
