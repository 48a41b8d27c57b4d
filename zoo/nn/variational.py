"""Terms of the evidence lower bound where codes are standard normal a priori and q(z|x) is a diagonal Gaussian.

Kingma & Welling 2014, "Auto-encoding variational Bayes". An encoder gives q(z|x) = N(mean, diag(sigma^2)) as its mean
and log sigma^2, of one code a row [b d]; all figures are nats.
"""

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int, Key

from zoo.core.random import normal

NO_KL = "which change a KL term, and the importance-weighted bound has none"
"""Why settings of the KL term are refused with more than one code a row."""


def draw_code(
    mean: Float[Array, "b d"], log_variance: Float[Array, "b d"], key: Key[Array, ""], rows: Int[Array, " b"]
) -> Float[Array, "b d"]:
    """z = mean + sigma eps with eps ~ N(0, 1), through which gradients reach both (section 2.4)."""
    return mean + jnp.exp(0.5 * log_variance) * normal(key, rows, mean.shape[1:])


def draw_codes(
    mean: Float[Array, "b d"],
    log_variance: Float[Array, "b d"],
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    numbers: Int[Array, " k"],
) -> tuple[Float[Array, "k b d"], Float[Array, "k b"]]:
    """Codes z_i = mean + sigma eps_i of each row, and log p(z_i) - log q(z_i|x); code i draws from fold_in(key, i)."""
    eps = jax.vmap(lambda i: normal(jax.random.fold_in(key, i), rows, mean.shape[1:]))(numbers)
    z = mean[None] + jnp.exp(0.5 * log_variance)[None] * eps
    return z, 0.5 * (jnp.square(eps) - jnp.square(z) + log_variance[None]).sum(2)


def iw_bound(log_weight: Float[Array, "k b"]) -> Float[Array, " b"]:
    """L_k = log 1/k sum_i w_i of each row, with w_i = p(x|z_i) p(z_i) / q(z_i|x).

    Burda et al. 2016, "Importance weighted autoencoders", equation 8. E L_k <= log p(x), and the more codes the closer.
    Its gradient is sum_i w_i / (sum_j w_j) grad log w_i (equation 13), which reaches the encoder through z_i.
    """
    return logsumexp(log_weight, axis=0) - jnp.log(len(log_weight))


def kl_divergence(mean: Float[Array, "b d"], log_variance: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """KL(N(mean, sigma^2) || N(0, 1)) of each latent unit (appendix B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


def free_bits(kl: Float[Array, "b d"], floor: float, mean: Float[Array, " d"] | None = None) -> Float[Array, "b d"]:
    """The KL that training is charged: a unit whose mean over the batch is below the floor costs that, no gradient.

    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", equation 15.

    Args:
        kl: of each unit in nats.
        floor: nats of each unit that are free.
        mean: of each unit's KL over the whole batch, if these rows are a part of it; None: they are all.
    """
    free = (kl.mean(0) if mean is None else mean) < floor
    return jnp.where(free[None, :], floor, kl)


def warm_up(step: Int[Array, ""] | int, steps: int, cycle_steps: int = 0) -> Float[Array, ""] | float:
    """Weight of the KL term, which rises from 0 to 1 over so many steps (Bowman et al. 2016); without any it is 1.

    With `cycle_steps` it begins anew after so many (Fu et al. 2019, "Cyclical annealing schedule").
    """
    if not steps:
        return 1.0
    return jnp.minimum(1.0, ((step % cycle_steps if cycle_steps else step) + 1) / steps)
