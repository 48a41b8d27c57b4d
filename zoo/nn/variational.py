"""Terms of the evidence lower bound where codes are standard normal a priori and q(z|x) is a diagonal Gaussian.

Kingma & Welling 2014, "Auto-encoding variational Bayes". An encoder gives q(z|x) = N(mean, diag(sigma^2)) as its mean
and log sigma^2, of one code a row [b d]; all figures are nats.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from zoo.core import parallel
from zoo.nn.random import normal


def draw_code(
    mean: Float[Array, "b d"], log_variance: Float[Array, "b d"], key: Key[Array, ""], rows: Int[Array, " b"]
) -> Float[Array, "b d"]:
    """z = mean + sigma eps with eps ~ N(0, 1), through which gradients reach both (section 2.4)."""
    return mean + jnp.exp(0.5 * log_variance) * normal(key, rows, mean.shape[1:])


def kl_divergence(mean: Float[Array, "b d"], log_variance: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """KL(N(mean, sigma^2) || N(0, 1)) of each latent unit (appendix B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


def free_bits(kl: Float[Array, "b d"], floor: float, mean: Float[Array, " d"] | None = None) -> Float[Array, "b d"]:
    """The KL that training is charged: a unit whose mean over the batch is below the floor costs that, no gradient.

    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", equation 15.

    Args:
        kl: of each unit in nats.
        floor: nats of each unit that are free.
        mean: of each unit's KL over the whole batch, where these rows are a microbatch of it; None: they are all.
    """
    free = (parallel.mean(kl.mean(0)) if mean is None else mean) < floor
    return jnp.where(free[None, :], floor, kl)


def warm_up(step: Int[Array, ""] | int, steps: int, cycle_steps: int = 0) -> Float[Array, ""] | float:
    """Weight of the KL term, which rises from 0 to 1 over so many steps (Bowman et al. 2016); without any it is 1.

    With `cycle_steps` it begins anew after so many (Fu et al. 2019, "Cyclical annealing schedule").
    """
    if not steps:
        return 1.0
    return jnp.minimum(1.0, ((step % cycle_steps if cycle_steps else step) + 1) / steps)
