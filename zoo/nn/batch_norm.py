"""Batch normalisation over the global batch, on any number of devices.

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

    Moments are those of the global batch under both `jit` and `pmap` (synchronised batch normalisation). Every training
    call updates their running averages, which evaluation normalises by, so that a row's result does not depend on the
    others. All rows count: a batch must not contain padding rows.

    Args:
        features: channels.
        gain_scale: standard deviation of the gain's initial values, whose mean is 1.
        momentum: weight of a new batch in the running averages.
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
        """Normalises by the batch's moments and updates the running averages if `train`, else by the averages."""
        wide = x.astype(jnp.float32)
        mean, variance = self._moments(wide) if train else (self.mean[...], self.variance[...])
        factor = self.gain[...].astype(jnp.float32) * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias[...].astype(jnp.float32) - mean * factor
        return (wide * factor[None, None, None, :] + shift[None, None, None, :]).astype(x.dtype)

    def _moments(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Returns each channel's mean and variance over the global batch, and updates the running averages."""
        mean = parallel.mean(x.mean((0, 1, 2)))
        variance = parallel.mean(jnp.square(x - mean[None, None, None, :]).mean((0, 1, 2)))
        # The running variance averages the unbiased estimate, as in PyTorch.
        n = parallel.total(jnp.float32(x.size // x.shape[-1]))
        unbiased = variance * n / jnp.maximum(n - 1.0, 1.0)
        for average, new in ((self.mean, mean), (self.variance, unbiased)):
            moved = (1.0 - self.momentum) * average[...] + self.momentum * jax.lax.stop_gradient(new)
            average[...] = moved
        return mean, variance
