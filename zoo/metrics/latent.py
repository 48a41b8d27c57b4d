"""Metrics of variational autoencoders: likelihood bound and use of the latent space.

With q(z|x) = N(mean, diag(sigma^2)) and the aggregate posterior q(z) = 1/n sum_j q(z|x_j) over n rows:

    log p(x) >= E log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x),   z_i ~ q(z|x)     Burda et al. 2016, eq. 8
    a unit is active if Var_x E[z|x] > 0.01                                    the same, section 5.2
    I(x; z) = E_x KL(q(z|x) || q(z))                                           Hoffman & Johnson 2016, "ELBO surgery"

Letters in shapes: b and n rows, s codes per row, d units of a code.
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
"""A latent unit is active if the variance of its mean over rows exceeds this."""
AT_ONCE = 1024
"""Codes that one call decodes or compares with all posteriors, at most."""


def importance_weighted(
    log_likelihood: Callable[[Float[Array, "s b d"]], Float[Array, "s b"]],
    mean: Float[Array, "b d"],
    log_variance: Float[Array, "b d"],
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    k: Int[Array, ""] | int,
    most: int = AT_ONCE,
) -> Float[Array, " b"]:
    """Returns log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) of each row in nats, in memory independent of k.

    Args:
        log_likelihood: log p(x|z) of each row, at s codes per row.
        mean: of q(z|x).
        log_variance: log sigma^2 of q(z|x).
        key: key for the codes.
        rows: each row's index in the split.
        k: codes per row; may be traced.
        most: maximum number of codes decoded at once over all rows, but at least one per row.
    """
    at_once = max(1, most // len(mean))

    def add(chunk: jax.Array, log_sum: Float[Array, " b"]) -> Float[Array, " b"]:
        i = chunk * at_once + jnp.arange(at_once)
        z, log_ratio = draw_codes(mean, log_variance, key, rows, i)
        log_weight = log_likelihood(z) + log_ratio
        return jnp.logaddexp(log_sum, logsumexp(jnp.where(i[:, None] < k, log_weight, -jnp.inf), axis=0))

    return jax.lax.fori_loop(0, -(-k // at_once), add, jnp.full(len(mean), -jnp.inf)) - jnp.log(k)


def active_units(mean: Float[np.ndarray, "n d"]) -> int:
    """Returns the number of active units: those whose mean varies over rows by more than `ACTIVE`."""
    return int((mean.var(0) > ACTIVE).sum())


def log_densities(
    z: Float[Array, "b d"], mean: Float[Array, "n d"], log_variance: Float[Array, "n d"]
) -> Float[Array, "b n"]:
    """Returns log q(z|x_j) in nats of every code under every posterior, as matrix products."""
    precision = jnp.exp(-log_variance)
    constant = (jnp.square(mean) * precision + log_variance + math.log(2 * math.pi)).sum(1)
    return -0.5 * (jnp.square(z) @ precision.T - 2.0 * z @ (mean * precision).T + constant[None, :])


def batch_information(
    z: Float[Array, "b d"], mean: Float[Array, "b d"], log_variance: Float[Array, "b d"]
) -> Float[Array, ""]:
    """Returns I(x; z) in nats over the rows of a batch, one code z ~ q(z|x) each; at most log b."""
    densities = log_densities(z, mean, log_variance)
    return (jnp.diagonal(densities) - logsumexp(densities, axis=1)).mean() + jnp.log(len(z))


def mutual_information(z: Any, mean: Any, log_variance: Any) -> float:
    """Returns `batch_information` over any number of rows n, some codes at a time; at most log n."""
    mean, log_variance = jnp.asarray(mean), jnp.asarray(log_variance)
    surplus = in_batches(lambda rows: _surplus(rows, z, mean, log_variance), len(z), AT_ONCE)
    return float(surplus.mean(dtype=np.float64)) + math.log(len(z))


@jax.jit
def _surplus(rows: Any, z: Any, mean: Any, log_variance: Any) -> Float[Array, " b"]:
    """Returns log q(z|x) - log sum_j q(z|x_j) of some codes."""
    rows = jnp.minimum(rows, len(z) - 1)
    densities = log_densities(z[rows], mean, log_variance)
    return jnp.take_along_axis(densities, rows[:, None], axis=1)[:, 0] - logsumexp(densities, axis=1)


def held_out_rows(data: DataSet, function: Callable[[Any], Any]) -> Any:
    """Returns a function's outputs (an array, or a tuple of arrays) for all held-out rows, in order."""
    parts = []
    for batch in map(data.held_out_at, range(data.held_out_batches)):
        parts.append(jax.tree.map(lambda x, valid=batch["valid"]: np.asarray(x)[valid], function(batch)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
