"""Losses shared by several families."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.core.family import Batch


def cross_entropy(
    logits: Float[Array, "b t n"], targets: Int[Array, "b t"], smoothing: float = 0.0
) -> Float[Array, "b t"]:
    """-log softmax(logits)[target] in nats, in float32.

    With smoothing (Szegedy et al. 2016, section 7), that share of the target is spread evenly over all n symbols.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * logits.mean(-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def real_targets(batch: Batch) -> Bool[Array, "b t"]:
    """Returns a mask of the targets that are not padding."""
    return jnp.arange(1, batch["tokens"].shape[1])[None, :] < batch["length"][:, None]


def counted(batch: Batch, end_of_text: int) -> Bool[Array, "b t"]:
    """Returns a mask of the targets in the loss: real tokens, except the end-of-text token that begins a document.

    Nothing before that token predicts it. If the batch has `first` int32 [b], targets before it are context only; see
    `zoo.data.text.windows`.
    """
    tokens = batch["tokens"]
    real = real_targets(batch)
    if "first" in batch:
        real &= jnp.arange(real.shape[1])[None, :] >= batch["first"][:, None]
    return real & ~((tokens[:, :-1] == end_of_text) & (tokens[:, 1:] == end_of_text))
