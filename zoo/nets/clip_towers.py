"""The two towers of CLIP, the function of transformers' `CLIPModel` with `hidden_act="gelu"`.

Radford et al. 2021, "Learning transferable visual models from natural language supervision", section 2.4. Images go
through a ViT (Dosovitskiy et al. 2021, "An image is worth 16x16 words") with a norm before its blocks; captions through
a causal Transformer. Both read one position, the class symbol's and that of the end of the text:

    u = W_u norm(block_L(... norm([class, patches] + position)))[0]
    v = W_v norm(block_L(... [embedding[w] + position]))[end]
    s_ij = exp(log_scale) u_i . v_j / (|u_i| |v_j|)

Letters in shapes: b rows, t positions, d features of a vector.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nets.transformer import INIT_SCALE, Block, BlockSettings
from zoo.nn.attend import Mask
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding
from zoo.nn.norm import LayerNorm

EPSILON = 1e-5
"""Added to the variance in normalisation."""
FIRST_SCALE = 1 / 0.07
"""exp(log_scale) before training."""
HIGHEST_SCALE = 100.0
"""Maximum of exp(log_scale): section 2.5."""


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """Settings of both towers.

    Attributes:
        rows, columns: patches of an image.
        channels: of an image.
        patch: height and width of a patch in pixels.
        symbols: tokens that captions can have.
        length: positions of a caption, with the end-of-text token on either side.
        features: size d of the vectors.
        image: settings of the image tower's blocks.
        text: settings of the text tower's blocks.
    """

    rows: int
    columns: int
    channels: int
    patch: int
    symbols: int
    length: int
    features: int
    image: BlockSettings
    text: BlockSettings


class ImageTower(nnx.Module):
    """Maps images to vectors."""

    def __init__(self, settings: TowerSettings, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        s, width = settings, settings.image.width
        self.grid, self.rate, self.dtype = {"y": s.rows, "x": s.columns, "p": s.patch}, s.image.rate, jnp.dtype(dtype)
        pixels = s.patch**2 * s.channels
        self.patches = Dense(pixels, width, bias=False, scale=pixels**-0.5, rngs=rngs)
        self.symbol = nnx.Param(width**-0.5 * nnx.initializers.normal(1.0)(rngs.params(), (width,)))
        self.position = Embedding(1 + s.rows * s.columns, width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        self.first_norm = LayerNorm(width, epsilon=EPSILON, bias=True)
        self.blocks = nnx.List(Block(s.image, rngs) for _ in range(s.image.layers))
        self.norm = LayerNorm(width, epsilon=EPSILON, bias=True)
        self.projection = Dense(width, s.features, bias=False, scale=width**-0.5, rngs=rngs, wide=True)

    def __call__(
        self, x: Float[Array, "b h w c"], *, key: Key[Array, ""] | None = None, rows: Int[Array, " b"] | None = None
    ) -> Float[Array, "b d"]:
        """Returns the vectors of images in [-1, 1], float32 and of any length; see `Block` for the other arguments."""
        cut = rearrange(x.astype(self.dtype), "b (y p) (x q) c -> b (y x) (p q c)", q=self.grid["p"], **self.grid)
        cut = self.patches(cut)
        symbol = jnp.broadcast_to(self.symbol[...].astype(cut.dtype), (len(x), 1, cut.shape[-1]))
        h = jnp.concatenate([symbol, cut], axis=1)
        first_key, *block_keys = split(key, 1 + len(self.blocks))
        h = dropout(self.first_norm(h + self.position(jnp.arange(h.shape[1])[None])), self.rate, first_key, rows)
        for block, block_key in zip(self.blocks, block_keys, strict=True):
            h, _ = block(h, Mask(), key=block_key, rows=rows)
        return self.projection(self.norm(h[:, :1]))[:, 0]


class TextTower(nnx.Module):
    """Maps captions to vectors."""

    def __init__(self, settings: TowerSettings, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        s, width = settings, settings.text.width
        self.rate = s.text.rate
        self.embedding = Embedding(s.symbols, width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        self.position = Embedding(s.length, width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        self.blocks = nnx.List(Block(s.text, rngs) for _ in range(s.text.layers))
        self.norm = LayerNorm(width, epsilon=EPSILON, bias=True)
        self.projection = Dense(width, s.features, bias=False, scale=width**-0.5, rngs=rngs, wide=True)

    def __call__(
        self,
        caption: Int[Array, "b t"],
        length: Int[Array, " b"],
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        """Returns the vectors of captions, float32 and of any length.

        Args:
            caption: end-of-text, the tokens, end-of-text, padding.
            length: number of tokens without padding.
            key: dropout key; None means evaluation.
            rows: each row's index in the global batch.
        """
        first_key, *block_keys = split(key, 1 + len(self.blocks))
        h = self.embedding(caption) + self.position(jnp.arange(caption.shape[1])[None])
        h = dropout(h, self.rate, first_key, rows)
        for block, block_key in zip(self.blocks, block_keys, strict=True):
            h, _ = block(h, Mask(causal=True), key=block_key, rows=rows)
        last = jnp.take_along_axis(h, (length - 1)[:, None, None], axis=1)
        return self.projection(self.norm(last))[:, 0]


class Towers(nnx.Module):
    """Both towers and the scale of their products.

    Args:
        settings: the settings.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, settings: TowerSettings, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.image, self.text = ImageTower(settings, rngs, dtype), TextTower(settings, rngs, dtype)
        self.log_scale = nnx.Param(jnp.array(math.log(FIRST_SCALE)))

    @property
    def scale(self) -> Float[Array, ""]:
        """exp(log_scale), at most `HIGHEST_SCALE`."""
        return jnp.exp(jnp.minimum(self.log_scale[...], math.log(HIGHEST_SCALE)))


def unit_vectors(vectors: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Returns vectors divided by their lengths."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
