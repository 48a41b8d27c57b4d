"""Spectral normalisation: a layer's kernel divided by its largest singular value, which bounds its Lipschitz constant.

Miyato et al. 2018, "Spectral normalization for generative adversarial networks". With the kernel as a matrix W of
[inputs, outputs], power iteration keeps a vector u between training steps:

    v = normalise(W u),  u = normalise(W^T v),  sigma(W) ~ v^T W u
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float


def normalise(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """x / |x|."""
    return x / (jnp.linalg.norm(x) + 1e-12)


class SpectralNorm(nnx.Module):
    """Divides one kernel by an estimate of its largest singular value.

    Each training call stores the next u, evaluation leaves it unchanged. No gradient flows through u and v; it flows
    through W in sigma (the paper's equation 12).

    Args:
        kernel: the initial kernel, from which u is initialised by 15 power iterations.
        rngs: source of the initial values.
    """

    def __init__(self, kernel: Float[Array, "... o"], *, rngs: nnx.Rngs):
        u = normalise(jax.random.normal(rngs.params(), kernel.shape[-1:]))
        matrix = rearrange(kernel, "... o -> (...) o")
        self.u = nnx.BatchStat(jax.lax.fori_loop(0, 15, lambda _, u: _iterate(matrix, u)[1], u))

    def __call__(self, kernel: Float[Array, "... o"], *, train: bool) -> Float[Array, "... o"]:
        """Returns kernel / sigma."""
        W = rearrange(kernel, "... o -> (...) o").astype(jnp.float32)
        still = jax.lax.stop_gradient(W)
        v, u = _iterate(still, self.u[...])
        if train:
            self.u[...] = u
        return (kernel / (v @ (W @ u))).astype(kernel.dtype)


def _iterate(W: Float[Array, "i o"], u: Float[Array, " o"]) -> tuple[Float[Array, " i"], Float[Array, " o"]]:
    """One step of power iteration; returns the next v and u."""
    v = normalise(W @ u)
    return v, normalise(v @ W)
