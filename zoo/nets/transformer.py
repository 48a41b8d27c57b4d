"""The Transformer block, with normalisation before each branch, as in GPT-2, or after it, as in BERT.

before (Radford et al. 2019)      x = x + attention(norm(x))      x = x + mlp(norm(x))
after (Vaswani et al. 2017)       x = norm(x + attention(x))      x = norm(x + mlp(x))

A decoder's block also attends to the encoder's output, the memory m, between the two:
x = x + attention(norm(x), m), or x = norm(x + attention(x, m)).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nn.attend import Mask
from zoo.nn.attention import Attention, KeyValue
from zoo.nn.dense import Dense
from zoo.nn.norm import LayerNorm, RMSNorm

Activation = Literal["gelu", "gelu_tanh", "swiglu", "geglu"]
Normalisation = Literal["layernorm", "rmsnorm"]

INIT_SCALE = 0.02
"""Standard deviation of GPT-2's initial weights."""
EPSILON = 1e-5
"""Added to the variance in GPT-2's normalisation."""


def make_norm(kind: Normalisation, features: int, *, epsilon: float, bias: bool) -> LayerNorm | RMSNorm:
    """Returns the normalisation layer named `kind`; `bias` applies to LayerNorm only."""
    if kind == "layernorm":
        return LayerNorm(features, epsilon=epsilon, bias=bias)
    return RMSNorm(features, epsilon=epsilon)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), with Phi the standard normal CDF (Hendrycks and Gimpel 2016); by erf, faster than JAX's erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def swiglu(x: Float[Array, "... two_h"]) -> Float[Array, "... h"]:
    """silu(gate) * value, where gate and value are the two halves of x (Shazeer 2020)."""
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


def geglu(x: Float[Array, "... two_h"]) -> Float[Array, "... h"]:
    """gelu(gate) * value, where gate and value are the two halves of x (Shazeer 2020)."""
    gate, value = jnp.split(x, 2, axis=-1)
    return gelu(gate) * value


ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "swiglu": swiglu,
    "geglu": geglu,
}
GATED = ("swiglu", "geglu")
"""Activations of a gate and a value, each as wide as the result."""


class MLP(nnx.Module):
    """down(activation(up(x))); the gate and value of SwiGLU and GEGLU share the kernel of `up`."""

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
        inner = 2 * hidden if activation in GATED else hidden
        self.up = Dense(width, inner, bias=bias, scale=scale, rngs=rngs)
        self.down = Dense(hidden, width, bias=bias, scale=out_scale, rngs=rngs, activation=ACTIVATIONS[activation])

    def __call__(self, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
        """Maps every position independently."""
        return self.down(self.up(x))


def _same(norm: nnx.Module, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
    return x


def _apply(norm: LayerNorm | RMSNorm, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
    return norm(x)


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """Settings of a Transformer's blocks; the defaults are GPT-2's.

    Attributes:
        layers: blocks of the network; initial projections onto the residual stream are divided by sqrt(2 layers), so
            that its variance does not grow with depth (Radford et al. 2019).
        width: features of a position.
        heads: query heads.
        kv_heads: heads of keys and values; 0: `heads`.
        hidden: features inside the MLP; 0: 4 `width`.
        norm: type of normalisation.
        epsilon: added to the variance in normalisation.
        activation: activation of the MLP.
        bias: whether dense layers and LayerNorm have biases.
        rate: dropout of the branches.
        attention_rate: dropout of attention weights, which the CPU's fast attention does not support.
        post_norm: normalise after each branch is added, not before it; all projections then have one initial scale.
        reads: whether a block also attends to a memory, between attention and MLP (a decoder's block).
    """

    layers: int
    width: int
    heads: int
    kv_heads: int = 0
    hidden: int = 0
    norm: Normalisation = "layernorm"
    epsilon: float = EPSILON
    activation: Activation = "gelu"
    bias: bool = True
    rate: float = 0.0
    attention_rate: float = 0.0
    post_norm: bool = False
    reads: bool = False


class Block(nnx.Module):
    """One layer of a Transformer."""

    def __init__(self, settings: BlockSettings, rngs: nnx.Rngs):
        s = settings
        self.rate, self.post_norm = s.rate, s.post_norm
        scales = {"scale": INIT_SCALE, "out_scale": INIT_SCALE * (1.0 if s.post_norm else (2 * s.layers) ** -0.5)}
        norm = partial(make_norm, s.norm, s.width, epsilon=s.epsilon, bias=s.bias)
        attention = partial(
            Attention, s.width, s.heads, s.kv_heads or s.heads, bias=s.bias, rate=s.attention_rate, rngs=rngs, **scales
        )
        self.attention_norm, self.attention = norm(), attention()
        self.memory_norm: Any = norm() if s.reads else None
        self.memory_attention: Any = attention() if s.reads else None
        self.mlp_norm = norm()
        self.mlp = MLP(s.width, s.hidden or 4 * s.width, s.activation, bias=s.bias, rngs=rngs, **scales)

    def __call__(
        self,
        x: Float[Array, "b t width"],
        mask: Mask,
        angles: Float[Array, "#b t half"] | None = None,
        *,
        cache: KeyValue | None = None,
        slot: Int[Array, ""] | int = 0,
        source: Float[Array, "b s width"] | None = None,
        memory: KeyValue | None = None,
        memory_mask: Mask | None = None,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t width"], KeyValue | None]:
        """Adds all branches to the residual stream; see `Attention` for the arguments.

        `source` is another stream of the same network, normalised like x. `memory` is an encoder's output, projected to
        keys and values by this block's `memory_attention`.
        """
        weights_key, attention_key, mlp_key, *memory_keys = split(key, 3 if memory is None else 5)
        before, after = (_same, _apply) if self.post_norm else (_apply, _same)
        branch, cache = self.attention(
            before(self.attention_norm, x),
            mask,
            angles,
            cache=cache,
            slot=slot,
            source=None if source is None else before(self.attention_norm, source),
            key=weights_key,
            rows=rows,
        )
        x = after(self.attention_norm, x + dropout(branch, self.rate, attention_key, rows))
        if memory is not None:
            assert memory_mask is not None
            branch, _ = self.memory_attention(
                before(self.memory_norm, x), memory_mask, source=memory, key=memory_keys[0], rows=rows
            )
            x = after(self.memory_norm, x + dropout(branch, self.rate, memory_keys[1], rows))
        branch = self.mlp(before(self.mlp_norm, x))
        return after(self.mlp_norm, x + dropout(branch, self.rate, mlp_key, rows)), cache
