"""Figures about models of latent codes: the importance-weighted bound, and how many units of a code are in use.

Burda et al. 2016, "Importance weighted autoencoders". Codes are standard normal a priori, and q(z|x) is a diagonal
Gaussian.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int, Key

from zoo.core.family import Batch, Metrics
from zoo.data.dataset import DataSet
from zoo.nn.random import normal

AT_ONCE = 1024
"""Codes that are scored side by side, at most, unless a batch has more rows."""
ACTIVE = 0.01
"""A latent unit is active where the variance of its mean over the data is above this."""


def importance_weighted(
    log_likelihood: Callable[[Float[Array, "s b d"]], Float[Array, "s b"]],
    mean: Float[Array, "b d"],
    log_variance: Float[Array, "b d"],
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    k: Int[Array, ""] | int,
) -> Float[Array, " b"]:
    """log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) in nats, z_i ~ q(z|x) (equation 8): at most log p(x) in expectation.

    Args:
        log_likelihood: log p(x|z) of every row, for s codes of each.
        mean: of q(z|x).
        log_variance: log sigma^2 of q(z|x).
        key: of the codes.
        rows: each row's index in the whole split.
        k: codes a row; some are scored at a time, so that more of them cost no memory.
    """
    at_once = max(1, AT_ONCE // len(mean))

    def add(chunk: jax.Array, log_sum: Float[Array, " b"]) -> Float[Array, " b"]:
        i = chunk * at_once + jnp.arange(at_once)
        eps = jax.vmap(lambda i: normal(jax.random.fold_in(key, i), rows, mean.shape[1:]))(i)
        z = mean[None] + jnp.exp(0.5 * log_variance)[None] * eps
        log_ratio = 0.5 * (jnp.square(eps) - jnp.square(z) + log_variance[None]).sum(2)  # log p(z) - log q(z|x)
        log_weight = log_likelihood(z) + log_ratio
        return jnp.logaddexp(log_sum, logsumexp(jnp.where(i[:, None] < k, log_weight, -jnp.inf), axis=0))

    return jax.lax.fori_loop(0, -(-k // at_once), add, jnp.full(len(mean), -jnp.inf)) - jnp.log(k)


def active_units(means: Float[np.ndarray, "n d"]) -> int:
    """How many units of a code vary with x, from the means of q(z|x) (appendix C)."""
    return int((means.var(0) > ACTIVE).sum())


def score_codes(
    data: DataSet,
    encode: Callable[[Batch], Float[Array, "b d"]],
    iw_nll: Callable[[Batch], Float[Array, " b"]] | None = None,
) -> Metrics:
    """Figures of the whole held-out split.

    Args:
        data: what holds it.
        encode: the mean of q(z|x) for each row of a batch.
        iw_nll: minus the importance-weighted bound of each row, in nats; None: not wanted.

    Returns:
        `active_units`, and `iw_nll_nats` where wanted.
    """
    means, nll = [], []
    for batch in map(data.held_out_at, range(data.held_out_batches)):
        means.append(np.asarray(encode(batch))[batch["valid"]])
        if iw_nll:
            nll.append(np.asarray(iw_nll(batch))[batch["valid"]])
    metrics: Metrics = {"active_units": active_units(np.concatenate(means))}
    return metrics | ({"iw_nll_nats": float(np.concatenate(nll).mean(dtype=np.float64))} if nll else {})
