"""Captions as conditions of an image network: a text encoder, cross-attention, and the block of a U-Net that has it.

Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models", section 3.3. A Transformer encoder,
trained along, maps the tokens of a caption to features c; every position x of a feature map attends to them,

    x + softmax(q k^T / sqrt(d)) v      q = W_q norm(x),  k, v = W_k c, W_v c,  the padding of c is not seen

In a U-Net, the self-attention of a level becomes a Transformer block of self-attention, cross-attention and a gated MLP
(GEGLU) between two projections, that of diffusers' `UNet2DConditionModel`. Letters in shapes: b rows, t tokens of a
caption, s positions of an image, d features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zoo.nets.transformer import INIT_SCALE, MLP, Block, BlockSettings
from zoo.nn.attend import Mask, attend, attention_weights
from zoo.nn.attention import Attention
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding
from zoo.nn.group_norm import GroupNorm
from zoo.nn.norm import LayerNorm

EPSILON = 1e-5
"""Added to the variance in LayerNorm."""
GROUP_EPSILON = 1e-6
"""The same in the group normalisation before a Transformer block, as in diffusers."""


class Context(NamedTuple):
    """Encoded captions."""

    features: Float[Array, "b t d"]
    length: Int[Array, " b"]
    """Number of tokens of each row without padding."""

    @property
    def mask(self) -> Mask:
        """Hides padding."""
        return Mask(lengths=self.length)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Settings of a text encoder.

    Attributes:
        symbols: tokens that captions can have.
        positions: tokens of the longest caption, with end-of-text on either side.
        width: features of a token.
        layers: Transformer blocks.
        heads: attention heads.
    """

    symbols: int
    positions: int
    width: int
    layers: int
    heads: int


class CaptionEncoder(nnx.Module):
    """A bidirectional Transformer over the tokens of captions."""

    def __init__(self, settings: CaptionSettings, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        s = settings
        block = BlockSettings(layers=s.layers, width=s.width, heads=s.heads)
        self.embedding = Embedding(s.symbols, s.width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        self.position = Embedding(s.positions, s.width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        self.blocks = nnx.List(Block(block, rngs) for _ in range(s.layers))
        self.norm = LayerNorm(s.width, epsilon=EPSILON, bias=True)

    def __call__(self, caption: Int[Array, "b t"], length: Int[Array, " b"]) -> Context:
        """Returns the features of captions, as `zoo.data.specs.CaptionSpec` has them."""
        x = self.embedding(caption) + self.position(jnp.arange(caption.shape[1])[None])
        for block in self.blocks:
            x, _ = block(x, Mask(lengths=length))
        return Context(self.norm(x), length)


class CrossAttention(nnx.Module):
    """Attention from the positions of an image to the tokens of its caption; see the module's docstring.

    Args:
        width: features of a position.
        heads: attention heads.
        context: features of a token.
        out_scale: standard deviation of the output projection's initial values.
        rngs: source of the initial values.
    """

    def __init__(self, width: int, heads: int, context: int, *, out_scale: float, rngs: nnx.Rngs):
        self.heads = heads
        self.query = Dense(width, width, bias=False, scale=width**-0.5, rngs=rngs)
        self.key_value = Dense(context, 2 * width, bias=False, scale=context**-0.5, rngs=rngs)
        self.out = Dense(width, width, bias=True, scale=out_scale, rngs=rngs)

    def __call__(self, x: Float[Array, "b s width"], context: Context) -> Float[Array, "b s width"]:
        """Returns what each position reads."""
        mixed = attend(*self._project(x, context), context.mask)
        return self.out(rearrange(mixed, "b n s d -> b s (n d)"))

    def weights(self, x: Float[Array, "b s width"], context: Context) -> Float[Array, "b n s t"]:
        """Returns how much each position looks at each token, for inspection."""
        q, k, _ = self._project(x, context)
        return attention_weights(q, k, context.mask.additive(q.shape[2], k.shape[2]))

    def _project(self, x: Float[Array, "b s width"], context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        q = rearrange(self.query(x), "b s (n d) -> b n s d", n=self.heads)
        pair = self.key_value(context.features.astype(x.dtype))
        k, v = rearrange(pair, "b t (two n d) -> two b n t d", two=2, n=self.heads)
        return q, k, v


class CaptionedAttention(nnx.Module):
    """Residual self-attention between all positions of a feature map, cross-attention to its caption, and an MLP.

    Args:
        norm: group normalisation of the feature map.
        channels: features of a position.
        heads: attention heads.
        context: features of a token.
        out_scale: initial scale of the projections that end a branch.
        rngs: source of the initial values.
    """

    def __init__(self, norm: GroupNorm, channels: int, heads: int, context: int, out_scale: float, rngs: nnx.Rngs):
        scale, end = channels**-0.5, out_scale * channels**-0.5
        self.norm = norm
        self.inward = Dense(channels, channels, bias=True, scale=scale, rngs=rngs)
        self.self_norm, self.cross_norm, self.mlp_norm = (
            LayerNorm(channels, epsilon=EPSILON, bias=True) for _ in range(3)
        )
        self.attention = Attention(channels, heads, heads, bias=True, scale=scale, out_scale=end, rate=0.0, rngs=rngs)
        self.cross = CrossAttention(channels, heads, context, out_scale=end, rngs=rngs)
        self.mlp = MLP(channels, 4 * channels, "geglu", bias=True, scale=scale, out_scale=0.5 * end, rngs=rngs)
        self.outward = Dense(channels, channels, bias=True, scale=end, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], context: Context) -> Float[Array, "b h w c"]:
        """x + outward(block(inward(norm(x)), context))."""
        places = self.inward(rearrange(self.norm(x), "b h w c -> b (h w) c"))
        mixed, _ = self.attention(self.self_norm(places), Mask())
        places = places + mixed
        places = places + self.cross(self.cross_norm(places), context)
        places = places + self.mlp(self.mlp_norm(places))
        return x + rearrange(self.outward(places), "b (h w) c -> b h w c", h=x.shape[1])
