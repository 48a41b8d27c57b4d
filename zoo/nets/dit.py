"""The diffusion Transformer (DiT), with the weights of diffusers' `DiTTransformer2DModel`.

Peebles and Xie 2023, "Scalable diffusion models with Transformers". An image is cut into patches, each a position of a
Transformer without masks. The embedding c of the noise level and the class or caption sets a shift, a scale and a gate
for each branch of a block (adaLN-zero, section 3.2):

    beta_1, gamma_1, alpha_1, beta_2, gamma_2, alpha_2 = dense(silu(c))
    x = x + alpha_1 attention((1 + gamma_1) norm(x) + beta_1)
    x = x + alpha_2 mlp((1 + gamma_2) norm(x) + beta_2)

All six are initially zero, so that a block starts as the identity. With captions, x = x + cross(norm(x), caption)
stands between the two, as in PixArt (Chen et al. 2023, "PixArt-alpha", section 2.3). Positions are sines and cosines of
the patch's column and row. Letters in shapes: b rows, h w c image, t patches, d features.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nets.captions import CaptionSettings, Context, CrossAttention
from zoo.nets.level_embedding import NEAR_ZERO, Conditioned, dense
from zoo.nets.transformer import MLP
from zoo.nn.attend import Mask
from zoo.nn.attention import Attention
from zoo.nn.norm import LayerNorm, layer_norm
from zoo.nn.remat import rematerialised
from zoo.nn.sinusoids import grid_features

EPSILON = 1e-6
"""Added to the variance in normalisation."""
TIME_FEATURES = 256
"""Sines and cosines of the noise level."""


@dataclass(frozen=True, kw_only=True)
class DiTSettings:
    """Settings of a DiT.

    Attributes:
        rows, columns: patches of an image.
        features_in: channels of the images.
        symbols: number of embedded classes, including "no class"; 0: unconditional.
        spans: whether the network receives the length of an interval of time; see `UNetSettings`.
        patch: height and width of a patch in pixels.
        width: features of a patch.
        heads: attention heads.
        layers: blocks.
        dropout: dropout probability of the branches.
        cos_first, frequency_shift: order and frequencies of the embedding of t; see `UNetOptions`.
        remat: whether blocks are recomputed in the backward pass.
        caption: settings of the text encoder; None: images have no captions.
    """

    rows: int
    columns: int
    features_in: int
    symbols: int = 0
    spans: bool = False
    patch: int
    width: int
    heads: int
    layers: int
    dropout: float = 0.0
    cos_first: bool = True
    frequency_shift: int = 0
    remat: bool = False
    caption: CaptionSettings | None = None


def modulate(
    x: Float[Array, "b t d"], shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"]
) -> Float[Array, "b t d"]:
    """(1 + scale) norm(x) + shift, with LayerNorm without parameters; in float32, returns the dtype of x."""
    normalised = layer_norm(x.astype(jnp.float32), jnp.ones(x.shape[-1]), EPSILON)
    return (normalised * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)).astype(x.dtype)


def gated(gate: Float[Array, "b 1 d"], branch: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """gate * branch in float32, in the dtype of the branch."""
    return (gate.astype(jnp.float32) * branch.astype(jnp.float32)).astype(branch.dtype)


class DiTBlock(nnx.Module):
    """Attention and an MLP, modulated by the embedding; see the module's docstring."""

    def __init__(self, s: DiTSettings, rngs: nnx.Rngs):
        self.rate, scale = s.dropout, s.width**-0.5
        self.modulation = dense(s.width, 6 * s.width, rngs, scale=0.0, activation=jax.nn.silu)
        self.attention = Attention(
            s.width, s.heads, s.heads, bias=True, scale=scale, out_scale=scale, rate=0.0, rngs=rngs
        )
        self.mlp = MLP(
            s.width, 4 * s.width, "gelu_tanh", bias=True, scale=scale, out_scale=(4 * s.width) ** -0.5, rngs=rngs
        )
        self.cross_norm = LayerNorm(s.width, epsilon=EPSILON, bias=True) if s.caption else None
        self.cross = (
            CrossAttention(s.width, s.heads, s.caption.width, out_scale=NEAR_ZERO * scale, rngs=rngs)
            if s.caption
            else None
        )

    def __call__(
        self,
        x: Float[Array, "b t d"],
        embedding: Float[Array, "b 1 d"],
        key: Key[Array, ""] | None,
        rows: Int[Array, " b"] | None,
        context: Context | None = None,
    ) -> Float[Array, "b t d"]:
        """Returns the features after all branches."""
        keys = split(key, 2)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(self.modulation(embedding), 6, axis=-1)
        mixed, _ = self.attention(modulate(x, shift, scale), Mask())
        x = x + gated(gate, dropout(mixed, self.rate, keys[0], rows))
        if self.cross is not None and self.cross_norm is not None:
            assert context is not None, "a network with captions needs one for every row"
            x = x + self.cross(self.cross_norm(x), context)
        return x + gated(mlp_gate, dropout(self.mlp(modulate(x, mlp_shift, mlp_scale)), self.rate, keys[1], rows))


class DiT(Conditioned):
    """The diffusion Transformer.

    Args:
        settings: sizes and options.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, settings: DiTSettings, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.settings, self.dtype = settings, jnp.dtype(dtype)
        s, pixels = settings, settings.patch**2 * settings.features_in
        self.patch_in = dense(pixels, s.width, rngs)
        self.create_embedding(TIME_FEATURES, s.width, rngs)
        self.blocks = nnx.List([DiTBlock(s, rngs) for _ in range(s.layers)])
        self.modulation = dense(s.width, 2 * s.width, rngs, scale=0.0, activation=jax.nn.silu)
        self.patch_out = dense(s.width, pixels, rngs, scale=NEAR_ZERO)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        symbol: Int[Array, " b"] | None = None,
        span: Float[Array, " b"] | None = None,
        *,
        context: Context | None = None,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predicts eps, x_0, v or a velocity for noisy images; returns float32. The arguments are those of `UNet`."""
        s = self.settings
        cut = {"y": s.rows, "x": s.columns, "p": s.patch, "q": s.patch}
        embedding = self.embed(t, symbol, span, context)
        places = jnp.asarray(grid_features(s.rows, s.columns, s.width), self.dtype)[None]
        x = self.patch_in(rearrange(x.astype(self.dtype), "b (y p) (x q) c -> b (y x) (p q c)", **cut)) + places
        for block, block_key in zip(self.blocks, split(key, s.layers), strict=True):
            x = rematerialised(block, wanted=s.remat)(x, embedding, block_key, rows, context)
        x = self.patch_out(modulate(x, *jnp.split(self.modulation(embedding), 2, axis=-1)))
        return rearrange(x, "b (y x) (p q c) -> b (y p) (x q) c", **cut).astype(jnp.float32)
