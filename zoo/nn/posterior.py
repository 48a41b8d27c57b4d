"""The Gaussian posterior of a variational autoencoder, q(z|x) = N(mean, diag(sigma^2)), and the weight of its KL term.

Kingma & Welling 2014, "Auto-encoding variational Bayes". Letters in shapes: b rows, d units of a code.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from zoo.core import parallel
from zoo.nn.random import normal


def kl_divergence(mean: Float[Array, "b d"], log_variance: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """KL(N(mean, sigma^2) || N(0, 1)) of each latent unit, in nats (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


def draw_code(
    mean: Float[Array, "b d"], log_variance: Float[Array, "b d"], key: Key[Array, ""], rows: Int[Array, " b"]
) -> Float[Array, "b d"]:
    """z = mean + sigma eps with eps ~ N(0, 1), differentiable in mean and sigma (section 2.4)."""
    return mean + jnp.exp(0.5 * log_variance) * normal(key, rows, mean.shape[1:])


def charge(kl: Float[Array, "b d"], free_bits: float) -> Float[Array, " b"]:
    """What training is charged for the KL of each row: sum_j max(free_bits, mean over the batch of KL_j), on average.

    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", eq. 15; of the batch, or of a
    microbatch. A unit whose mean KL is below `free_bits` nats has no gradient.
    """
    free = parallel.mean(kl.mean(0)) < free_bits
    return jnp.where(free[None, :], free_bits, kl).sum(1)


def kl_weight(step: Int[Array, ""] | int, warmup_steps: int, cycle_steps: int = 0) -> Float[Array, ""] | float:
    """The KL term's weight at a step: it rises from 0 to 1 over `warmup_steps` (Bowman et al. 2016).

    With `cycle_steps` it begins anew after so many (Fu et al. 2019, "Cyclical annealing schedule").
    """
    if not warmup_steps:
        return 1.0
    return jnp.minimum(1.0, ((step % cycle_steps if cycle_steps else step) + 1) / warmup_steps)
