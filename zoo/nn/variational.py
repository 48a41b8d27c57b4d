"""Terms of the evidence lower bound with a standard normal prior and a diagonal Gaussian q(z|x).

Kingma & Welling 2014, "Auto-encoding variational Bayes". q(z|x) = N(mean, diag(sigma^2)) is given by mean and log
sigma^2, one code per row [b d]; all figures are in nats.
"""

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int, Key

from zoo.core.random import normal

NO_KL = "which change a KL term, and the importance-weighted bound has none"
"""The reason in the error for settings of the KL term with more than one code per row."""


def draw_code(
    mean: Float[Array, "b d"], log_variance: Float[Array, "b d"], key: Key[Array, ""], rows: Int[Array, " b"]
) -> Float[Array, "b d"]:
    """Draws z = mean + sigma eps with eps ~ N(0, 1), differentiable in both (section 2.4)."""
    return mean + jnp.exp(0.5 * log_variance) * normal(key, rows, mean.shape[1:])


def draw_codes(
    mean: Float[Array, "b d"],
    log_variance: Float[Array, "b d"],
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    numbers: Int[Array, " k"],
) -> tuple[Float[Array, "k b d"], Float[Array, "k b"]]:
    """Draws z_i = mean + sigma eps_i with fold_in(key, i); returns z_i and log p(z_i) - log q(z_i|x)."""
    eps = jax.vmap(lambda i: normal(jax.random.fold_in(key, i), rows, mean.shape[1:]))(numbers)
    z = mean[None] + jnp.exp(0.5 * log_variance)[None] * eps
    return z, 0.5 * (jnp.square(eps) - jnp.square(z) + log_variance[None]).sum(2)


def iw_bound(log_weight: Float[Array, "k b"]) -> Float[Array, " b"]:
    """L_k = log 1/k sum_i w_i of each row, with w_i = p(x|z_i) p(z_i) / q(z_i|x).

    Burda et al. 2016, "Importance weighted autoencoders", equation 8. E L_k <= log p(x), and is tighter for larger k.
    Its gradient is sum_i w_i / (sum_j w_j) grad log w_i (equation 13), which reaches the encoder through z_i.
    """
    return logsumexp(log_weight, axis=0) - jnp.log(len(log_weight))


def kl_divergence(mean: Float[Array, "b d"], log_variance: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """KL(N(mean, sigma^2) || N(0, 1)) of each latent unit (appendix B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


def free_bits(kl: Float[Array, "b d"], floor: float, mean: Float[Array, " d"] | None = None) -> Float[Array, "b d"]:
    """Returns the KL in the training loss: the floor, without gradient, for units whose batch mean is below it.

    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", equation 15.

    Args:
        kl: KL of each unit in nats.
        floor: free nats per unit.
        mean: each unit's mean KL over the whole batch, if these rows are a part of it; None: the mean of these rows.
    """
    free = (kl.mean(0) if mean is None else mean) < floor
    return jnp.where(free[None, :], floor, kl)


def warm_up(step: Int[Array, ""] | int, steps: int, cycle_steps: int = 0) -> Float[Array, ""] | float:
    """Returns the KL weight, which rises linearly to 1 over `steps` steps (Bowman et al. 2016); 1 if `steps` is 0.

    With `cycle_steps` it restarts with that period (Fu et al. 2019, "Cyclical annealing schedule").
    """
    if not steps:
        return 1.0
    return jnp.minimum(1.0, ((step % cycle_steps if cycle_steps else step) + 1) / steps)
