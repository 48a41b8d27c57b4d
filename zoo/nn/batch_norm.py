"""Batch normalisation over the global batch, whatever devices it lies on.

Ioffe & Szegedy 2015, "Batch normalization". For each channel, with moments over all rows and pixels of the batch,

    y = gain (x - mean) / sqrt(variance + epsilon) + bias
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.core import parallel


class BatchNorm(nnx.Module):
    """Batch normalisation as PyTorch's `BatchNorm2d`.

    Its moments are those of the global batch under `jit` and `pmap` alike (synchronised batch normalisation). Running
    averages of them are memory, which changes with every call in training and normalises in evaluation, where a row's
    result does not depend on the others. All rows count: a batch must have none that only fill it up.

    Args:
        features: channels.
        gain_scale: standard deviation of the gain's initial values, whose mean is 1.
        momentum: share of a new batch in the running averages.
        epsilon: added to the variance.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        features: int,
        *,
        gain_scale: float = 0.0,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        self.gain = nnx.Param(1.0 + gain_scale * jax.random.normal(rngs.params(), (features,)))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.variance = nnx.BatchStat(jnp.ones(features))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """Normalises by the batch's moments, which enter the running averages, if `train`; else by those averages."""
        wide = x.astype(jnp.float32)
        mean, variance = self._moments(wide) if train else (self.mean[...], self.variance[...])
        factor = self.gain[...].astype(jnp.float32) * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias[...].astype(jnp.float32) - mean * factor
        return (wide * factor[None, None, None, :] + shift[None, None, None, :]).astype(x.dtype)

    def _moments(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Mean and variance of each channel over the global batch; the running averages move towards them."""
        mean = parallel.mean(x.mean((0, 1, 2)))
        variance = parallel.mean(jnp.square(x - mean[None, None, None, :]).mean((0, 1, 2)))
        # The running variance is of the unbiased estimate, as PyTorch keeps it.
        n = parallel.total(jnp.float32(x.size // x.shape[-1]))
        unbiased = variance * n / jnp.maximum(n - 1.0, 1.0)
        for average, new in ((self.mean, mean), (self.variance, unbiased)):
            moved = (1.0 - self.momentum) * average[...] + self.momentum * jax.lax.stop_gradient(new)
            average[...] = moved
        return mean, variance
