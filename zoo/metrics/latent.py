"""How good a variational autoencoder is, and how much of its latent space it uses.

With q(z|x) = N(mean, diag(sigma^2)) and the aggregate posterior q(z) = 1/n sum_j q(z|x_j) over n rows:

    log p(x) >= E log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x),   z_i ~ q(z|x)     Burda et al. 2016, eq. 8
    a unit is active where Var_x E[z|x] > 0.01                                 the same, section 5.2
    I(x; z) = E_x KL(q(z|x) || q(z))                                           Hoffman & Johnson 2016, "ELBO surgery"

Letters in shapes: b and n rows, s codes a row, d units of a code.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int, Key

from zoo.core.data import DataSet
from zoo.nn.variational import draw_codes
from zoo.sampling.batches import in_batches

ACTIVE = 0.01
"""A latent unit is active where the variance of its mean over rows is above this."""
AT_ONCE = 1024
"""Codes that are decoded, or held against all posteriors, at once."""


def importance_weighted(
    log_likelihood: Callable[[Float[Array, "s b d"]], Float[Array, "s b"]],
    mean: Float[Array, "b d"],
    log_variance: Float[Array, "b d"],
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    k: Int[Array, ""] | int,
    most: int = AT_ONCE,
) -> Float[Array, " b"]:
    """log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) of each row in nats; some codes at a time, so that k costs no memory.

    Args:
        log_likelihood: log p(x|z) of each row, at s codes of its own.
        mean: of q(z|x).
        log_variance: log sigma^2 of q(z|x).
        key: of the codes.
        rows: each row's index in the split.
        k: codes a row; may be traced.
        most: how many codes of all rows are decoded side by side, unless there are more rows.
    """
    at_once = max(1, most // len(mean))

    def add(chunk: jax.Array, log_sum: Float[Array, " b"]) -> Float[Array, " b"]:
        i = chunk * at_once + jnp.arange(at_once)
        z, log_ratio = draw_codes(mean, log_variance, key, rows, i)
        log_weight = log_likelihood(z) + log_ratio
        return jnp.logaddexp(log_sum, logsumexp(jnp.where(i[:, None] < k, log_weight, -jnp.inf), axis=0))

    return jax.lax.fori_loop(0, -(-k // at_once), add, jnp.full(len(mean), -jnp.inf)) - jnp.log(k)


def active_units(mean: Float[np.ndarray, "n d"]) -> int:
    """How many units have a mean that differs from row to row."""
    return int((mean.var(0) > ACTIVE).sum())


def log_densities(
    z: Float[Array, "b d"], mean: Float[Array, "n d"], log_variance: Float[Array, "n d"]
) -> Float[Array, "b n"]:
    """log q(z|x_j) in nats of every code under every posterior, by three matrix products."""
    precision = jnp.exp(-log_variance)
    constant = (jnp.square(mean) * precision + log_variance + math.log(2 * math.pi)).sum(1)
    return -0.5 * (jnp.square(z) @ precision.T - 2.0 * z @ (mean * precision).T + constant[None, :])


def batch_information(
    z: Float[Array, "b d"], mean: Float[Array, "b d"], log_variance: Float[Array, "b d"]
) -> Float[Array, ""]:
    """I(x; z) in nats of the rows at hand, one code z ~ q(z|x) each; at most log b."""
    densities = log_densities(z, mean, log_variance)
    return (jnp.diagonal(densities) - logsumexp(densities, axis=1)).mean() + jnp.log(len(z))


def mutual_information(z: Any, mean: Any, log_variance: Any) -> float:
    """`batch_information` of any number of rows n, some codes at a time; at most log n."""
    mean, log_variance = jnp.asarray(mean), jnp.asarray(log_variance)
    surplus = in_batches(lambda rows: _surplus(rows, z, mean, log_variance), len(z), AT_ONCE)
    return float(surplus.mean(dtype=np.float64)) + math.log(len(z))


@jax.jit
def _surplus(rows: Any, z: Any, mean: Any, log_variance: Any) -> Float[Array, " b"]:
    """log q(z|x) - log sum_j q(z|x_j) of some of the codes."""
    rows = jnp.minimum(rows, len(z) - 1)
    densities = log_densities(z[rows], mean, log_variance)
    return jnp.take_along_axis(densities, rows[:, None], axis=1)[:, 0] - logsumexp(densities, axis=1)


def held_out_rows(data: DataSet, function: Callable[[Any], Any]) -> Any:
    """What a function of a batch gives (an array, or a tuple of some) for all rows of the held-out split, in order."""
    parts = []
    for batch in map(data.held_out_at, range(data.held_out_batches)):
        parts.append(jax.tree.map(lambda x, valid=batch["valid"]: np.asarray(x)[valid], function(batch)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
