"""Samplers of masked diffusion: any positions of a row are given, and the others are filled in K calls of the network.

The network is a function `predict(tokens [b t], unknown [b t]) -> logits [b t v]`, which must ignore the tokens where
`unknown` is true. All tokens that are not given are unknown at first. Each step chooses a token for every unknown
position from p(x_i | known tokens), independently of each other, and then which positions are known from now on:

    ancestral   The reverse process of MDLM (Sahoo et al. 2024, "Simple and effective masked diffusion language models")
                from t to s < t, with alpha_t = 1 - t and t = 1 at first: an unknown token becomes known with
                probability (alpha_s - alpha_t) / (1 - alpha_t). The times are K, K - 1, ..., 0, divided by K.
    remasking   ReMDM (Wang et al. 2025, "Remasking discrete diffusion models with inference-time scaling"): a known
                token becomes unknown again with probability sigma, and an unknown one known with probability
                (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), so that as many are known at each t as before.
                sigma = remask min(1, (1 - alpha_s) / alpha_t), its schedule "rescale"; remask 0 is MDLM.
    confidence  MaskGIT (Chang et al. 2022, "Masked generative image transformer"): after k steps, the
                floor(n cos(pi k / 2K)) of n tokens with the lowest confidence are unknown. The confidence of a token
                is its log-probability when it was chosen, plus Gumbel noise times choice_temperature (1 - k / K).

With as many steps as unknown tokens or more, tokens are chosen nearly one at a time; fewer steps are faster, and tokens
that become known in the same step do not see each other.

Letters in shapes: b rows, t tokens, v vocabulary.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from zoo.sampling.tokens.logits import Knobs
from zoo.sampling.tokens.mask_predict import Predict, choose_all

Sampler = Literal["ancestral", "confidence"]


class Unmasking(NamedTuple):
    """Settings of a sampler; scalars that are traced, so that new values do not recompile."""

    steps: jax.Array | int
    """K, calls of the network."""
    remask: jax.Array | float
    """For ancestral sampling, from 0 to 1; see the module's docstring."""
    choice_temperature: jax.Array | float
    """For sampling by confidence: initial scale of its noise."""


class Step(NamedTuple):
    """What a sampler decides by, in step k."""

    k: jax.Array
    """The number of the step, from 0."""
    unknown: jax.Array
    """Which tokens are unknown before the step, bool [b t]."""
    start: jax.Array
    """Which tokens were unknown at first, bool [b t]."""
    log_probability: jax.Array
    """Of each chosen token, [b t]."""
    keys: jax.Array
    """One key per row."""


def unmask(
    predict: Predict,
    tokens: Int[Array, "b t"],
    given: Bool[Array, "b t"],
    *,
    sampler: Sampler,
    settings: Unmasking,
    knobs: Knobs,
    keys: Key[Array, " b"],
) -> Int[Array, "b t"]:
    """Returns the tokens with all that are not given replaced by samples.

    Args:
        predict: see the module's docstring.
        tokens: rows; tokens that are not given are not read.
        given: which tokens are given; they never change.
        sampler: see the module's docstring.
        settings: its settings.
        knobs: sampling settings of each row, the same at all its positions.
        keys: one key per row.
    """
    still_unknown = {"ancestral": _ancestral, "confidence": _by_confidence}[sampler]

    def step(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        tokens, unknown = state
        token_keys, place_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k)), out_axes=1)(keys)
        chosen, log_probability = choose_all(predict(tokens, unknown), knobs, token_keys)
        now = Step(k, unknown, ~given, log_probability, place_keys)
        return jnp.where(unknown, chosen, tokens), still_unknown(now, settings)

    return jax.lax.fori_loop(0, settings.steps, step, (tokens, ~given))[0]


def _ancestral(step: Step, settings: Unmasking) -> Bool[Array, "b t"]:
    k, K = step.k, settings.steps  # alpha_t = k / K, alpha_s = (k + 1) / K
    sigma = settings.remask * jnp.minimum(1.0, (K - k - 1) / jnp.maximum(k, 1))
    becomes_known = (1 + sigma * k) / (K - k)
    noise = jax.vmap(partial(jax.random.uniform, shape=step.unknown.shape[1:]))(step.keys)
    return jnp.where(step.unknown, noise >= becomes_known, step.start & (noise < sigma))


def _by_confidence(step: Step, settings: Unmasking) -> Bool[Array, "b t"]:
    progress = (step.k + 1) / settings.steps
    count = jnp.floor(step.start.sum(1) * jnp.cos(jnp.pi / 2 * progress)).astype(jnp.int32)
    count = jnp.minimum(count, step.unknown.sum(1) - 1)  # at least one token becomes known
    count = jnp.where(step.k + 1 < settings.steps, count, 0)
    noise = jax.vmap(partial(jax.random.gumbel, shape=step.unknown.shape[1:]))(step.keys)
    confidence = step.log_probability + settings.choice_temperature * (1 - progress) * noise
    confidence = jnp.where(step.unknown, confidence, jnp.inf)
    return jnp.argsort(jnp.argsort(confidence, axis=1), axis=1) < count[:, None]
