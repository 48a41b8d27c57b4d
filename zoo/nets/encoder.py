"""A bidirectional Transformer encoder that predicts tokens: every position attends to every other.

Devlin et al. 2019, "BERT: Pre-training of deep bidirectional transformers", without its tasks:

    h_0 = embedding[w] + position[t] (+ segment[s]),   h_l = block_l(h_(l-1))   l = 1 .. layers
    P(w_t | ...) = softmax(norm(gelu(h_L[t] @ transform)) @ embedding^T + bias)

BERT normalises h_0 and after each branch of a block (`post_norm`); otherwise h_L and the input of each branch are
normalised, as in GPT-2, which trains with higher learning rates. Beside the learned vectors of the positions, attention
can have rotary positions (Su et al. 2021, "RoFormer"), by which it learns what is beside a token before it has learned
every position.
"""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nets.transformer import ACTIVATIONS, INIT_SCALE, Block, BlockSettings
from zoo.nn.attend import Mask
from zoo.nn.attention import rotary_angles
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding
from zoo.nn.norm import LayerNorm
from zoo.nn.remat import rematerialised

ROPE_THETA = 10000.0
"""Base of the rotary frequencies."""


class TokenEncoder(nnx.Module):
    """The encoder with its token prediction head.

    Args:
        symbols: number of tokens that can be read and predicted.
        positions: longest row.
        segments: number of segments; 0: tokens have no segment.
        block: settings of the blocks, which have LayerNorm and biases; the activation is also the head's, and `rate`
            also the dropout of the input.
        rotary: see the module's docstring.
        remat: recompute blocks in the backward pass.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(
        self,
        symbols: int,
        positions: int,
        segments: int,
        *,
        block: BlockSettings,
        rotary: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.rate, self.post_norm, self.remat = block.rate, block.post_norm, remat
        width = block.width
        table = partial(Embedding, features=width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        norm = partial(LayerNorm, width, epsilon=block.epsilon, bias=True)
        self.embedding, self.position = table(symbols), table(positions)
        self.rotary = (width // block.heads, ROPE_THETA) if rotary else None
        self.segment = table(segments) if segments else None
        self.norm = norm()
        self.blocks = nnx.List(Block(block, rngs) for _ in range(block.layers))
        self.transform = Dense(width, width, bias=True, scale=INIT_SCALE, rngs=rngs)
        self.transform_norm = norm()
        self.activation = ACTIVATIONS[block.activation]
        self.output_bias = nnx.Param(jnp.zeros(symbols))

    def embed(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "#b t"],
        segment: Int[Array, "b t"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t width"]:
        """Returns h_0 of tokens at some positions; see `encode` for the other arguments."""
        x = self.embedding(tokens) + self.position(positions)
        if segment is not None:
            assert self.segment is not None
            x = x + self.segment(segment)
        return dropout(self.norm(x) if self.post_norm else x, self.rate, key, rows)

    def encode(
        self,
        tokens: Int[Array, "b t"],
        segment: Int[Array, "b t"] | None,
        mask: Mask,
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t width"]:
        """Returns h_L of whole rows.

        Args:
            tokens: rows of at most `positions` tokens.
            segment: each token's segment; None if tokens have none.
            mask: hides what is not to be seen, such as padding.
            key: dropout key; None means evaluation.
            rows: each row's index in the global batch.
        """
        input_key, *block_keys = split(key, 1 + len(self.blocks))
        places = jnp.arange(tokens.shape[1])[None]
        x = self.embed(tokens, places, segment, key=input_key, rows=rows)
        angles = None if self.rotary is None else rotary_angles(places, *self.rotary)
        for block, block_key in zip(self.blocks, block_keys, strict=True):
            x, _ = rematerialised(block, self.remat)(x, mask, angles, key=block_key, rows=rows)
        return x if self.post_norm else self.norm(x)

    def token_logits(self, x: Float[Array, "b k width"]) -> Float[Array, "b k symbols"]:
        """Returns token logits from h_L."""
        x = self.transform_norm(self.activation(self.transform(x)))
        return self.embedding.logits(x) + self.output_bias[...][None, None, :]
