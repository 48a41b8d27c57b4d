"""The pre-norm Transformer block (Vaswani et al. 2017; pre-norm as in Radford et al. 2019, GPT-2).

x = x + attention(norm(x))
x = x + mlp(norm(x))
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from zoo.nn.attention import Attention, KeyValue
from zoo.nn.dense import Dense
from zoo.nn.norm import LayerNorm, RMSNorm
from zoo.nn.random import dropout, split

Activation = Literal["gelu", "gelu_tanh", "swiglu"]
Normalisation = Literal["layernorm", "rmsnorm"]

INIT_SCALE = 0.02
"""Standard deviation of GPT-2's initial weights."""


def make_norm(kind: Normalisation, features: int, *, epsilon: float, bias: bool) -> LayerNorm | RMSNorm:
    """The normalisation named `kind`; `bias` concerns LayerNorm alone."""
    if kind == "layernorm":
        return LayerNorm(features, epsilon=epsilon, bias=bias)
    return RMSNorm(features, epsilon=epsilon)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), Phi the normal distribution's (Hendrycks and Gimpel 2016); by erf, which is quicker than JAX's erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def swiglu(x: Float[Array, "... two_h"]) -> Float[Array, "... h"]:
    """silu(gate) * value, the two halves of x (Shazeer 2020)."""
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "swiglu": swiglu,
}


class MLP(nnx.Module):
    """down(activation(up(x))); SwiGLU's gate and value share the kernel of `up`."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Activation,
        *,
        bias: bool,
        scale: float,
        out_scale: float,
        rngs: nnx.Rngs,
    ):
        inner = 2 * hidden if activation == "swiglu" else hidden
        self.up = Dense(width, inner, bias=bias, scale=scale, rngs=rngs)
        self.down = Dense(hidden, width, bias=bias, scale=out_scale, rngs=rngs, activation=ACTIVATIONS[activation])

    def __call__(self, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
        """Maps every position by itself."""
        return self.down(self.up(x))


class Block(nnx.Module):
    """One layer of a Transformer.

    Args:
        width: features of a position.
        heads: query heads.
        kv_heads: heads of keys and values.
        hidden: features inside the MLP.
        layers: how many blocks the network has; projections onto the residual stream start smaller by
            sqrt(2 layers), so that its variance does not grow with depth (Radford et al. 2019).
        norm: which normalisation.
        activation: which MLP.
        epsilon: of the normalisation.
        bias: whether dense layers and LayerNorm have biases.
        rate: dropout of attention weights and of both branches.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        *,
        layers: int,
        norm: Normalisation,
        activation: Activation,
        epsilon: float,
        bias: bool,
        rate: float,
        rngs: nnx.Rngs,
    ):
        scales = {"scale": INIT_SCALE, "out_scale": INIT_SCALE * (2 * layers) ** -0.5}
        self.rate = rate
        self.attention_norm = make_norm(norm, width, epsilon=epsilon, bias=bias)
        self.attention = Attention(width, heads, kv_heads, bias=bias, rate=rate, rngs=rngs, **scales)
        self.mlp_norm = make_norm(norm, width, epsilon=epsilon, bias=bias)
        self.mlp = MLP(width, hidden, activation, bias=bias, rngs=rngs, **scales)

    def __call__(
        self,
        x: Float[Array, "b t width"],
        mask: Float[Array, "#b t s"],
        angles: Float[Array, "#b t half"] | None = None,
        *,
        cache: KeyValue | None = None,
        slot: Int[Array, ""] | int = 0,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t width"], KeyValue | None]:
        """Adds both branches to the residual stream; see `Attention` for the arguments."""
        weights_key, attention_key, mlp_key = split(key, 3)
        branch, cache = self.attention(
            self.attention_norm(x), mask, angles, cache=cache, slot=slot, key=weights_key, rows=rows
        )
        x = x + dropout(branch, self.rate, attention_key, rows)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.rate, mlp_key, rows), cache
