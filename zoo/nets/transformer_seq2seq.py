"""Transformer encoder and decoder (Vaswani et al. 2017), with normalisation before each branch.

In the encoder's blocks every source position attends to every other; in the decoder's, a target position attends to
itself and earlier ones, then to the encoder's normalised output. Position embeddings are learned.

    P(y_t | y_<t, x) = softmax(embedding norm(h_t))        h_t of the last block, for the position of y_(t-1)

Letters in shapes: b rows, s source and t target positions, w features of a position, v target symbols.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nets.transformer import EPSILON, INIT_SCALE, Block, BlockSettings
from zoo.nn.attend import Mask, attention_weights
from zoo.nn.attention import KeyValue
from zoo.nn.embedding import Embedding
from zoo.nn.norm import LayerNorm
from zoo.nn.remat import rematerialised


class Memory(NamedTuple):
    """An encoded source; the first axis of every array is the batch row."""

    layers: tuple[KeyValue, ...]
    """Keys and values for each of the decoder's blocks."""
    mask: Mask
    """The mask of padding."""


class TransformerSeq2Seq(nnx.Module):
    """The Transformer encoder-decoder.

    Args:
        layers: blocks of the encoder, and of the decoder.
        heads: attention heads of a block.
        width: features of a position.
        context: maximum positions of a source or a target.
        rate: dropout of the first block's input and of each branch.
        remat: whether to recompute blocks in the backward pass; see `zoo.nn.remat`.
        source_size: size of the source vocabulary.
        target_size: size of the target vocabulary.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        width: int,
        context: int,
        *,
        rate: float,
        remat: bool = False,
        source_size: int,
        target_size: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.rate, self.remat = rate, remat
        table = partial(Embedding, features=width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        block = BlockSettings(layers=layers, width=width, heads=heads, rate=rate)
        self.source, self.target = table(source_size), table(target_size)
        self.source_position, self.target_position = table(context), table(context)
        self.encoder = nnx.List(Block(block, rngs) for _ in range(layers))
        self.encoder_norm = LayerNorm(width, epsilon=EPSILON, bias=True)
        self.decoder = nnx.List(Block(replace(block, reads=True), rngs) for _ in range(layers))
        self.decoder_norm = LayerNorm(width, epsilon=EPSILON, bias=True)

    def encode(
        self,
        source: Int[Array, "b s"],
        real: Bool[Array, "b s"],
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Memory:
        """Encodes sources; each row has its real positions first, then padding."""
        x = self.source(source) + self.source_position(jnp.arange(source.shape[1])[None])
        mask = Mask(lengths=real.sum(1, dtype=jnp.int32))
        input_key, *block_keys = split(key, 1 + len(self.encoder))
        x = dropout(x, self.rate, input_key, rows)
        for block, block_key in zip(self.encoder, block_keys, strict=True):
            x, _ = rematerialised(block, self.remat)(x, mask, key=block_key, rows=rows)
        x = self.encoder_norm(x)
        return Memory(tuple(block.memory_attention.keys_values(x) for block in self.decoder), mask)

    def decode(
        self,
        target: Int[Array, "b t"],
        memory: Memory,
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t v"]:
        """Returns logits of each next symbol, for targets from their beginning."""
        x, mask = self._embed(target, 0), Mask(causal=True)
        input_key, *block_keys = split(key, 1 + len(self.decoder))
        x = dropout(x, self.rate, input_key, rows)
        for block, layer, block_key in zip(self.decoder, memory.layers, block_keys, strict=True):
            read = rematerialised(block, self.remat)
            x, _ = read(x, mask, memory=layer, memory_mask=memory.mask, key=block_key, rows=rows)
        return self.target.logits(self.decoder_norm(x))

    def init_cache(self, memory: Memory, length: int) -> tuple[KeyValue, ...]:
        """Returns an empty cache for `extend` with `length` slots."""
        rows = len(memory.layers[0].keys)
        return tuple(block.attention.init_cache(rows, length, self.target.dtype) for block in self.decoder)

    def extend(
        self,
        target: Int[Array, "b t"],
        cache: tuple[KeyValue, ...],
        position: Int[Array, ""] | int,
        memory: Memory,
    ) -> tuple[Float[Array, "b v"], tuple[KeyValue, ...]]:
        """Reads t more symbols of every target, from `position` on, and predicts the next."""
        x, places = self._embed(target, position), position + jnp.arange(target.shape[1])
        mask = Mask(visible=(jnp.arange(cache[0].keys.shape[2])[None, :] <= places[:, None])[None])
        after: list[Any] = []
        for block, layer, slots in zip(self.decoder, memory.layers, cache, strict=True):
            x, grown = block(x, mask, cache=slots, slot=position, memory=layer, memory_mask=memory.mask)
            after.append(grown)
        return self.target.logits(self.decoder_norm(x[:, -1:]))[:, 0], tuple(after)

    def alignment(self, target: Int[Array, "b t"], memory: Memory) -> Float[Array, "b t s"]:
        """Returns the attention weights over the source for each next symbol, averaged over all blocks and heads."""
        x, mask = self._embed(target, 0), Mask(causal=True)
        weights = []
        for block, layer in zip(self.decoder, memory.layers, strict=True):
            y = x + block.attention(block.attention_norm(x), mask)[0]
            queries = block.memory_attention.queries(block.memory_norm(y))
            seen = memory.mask.additive(queries.shape[2], layer.keys.shape[2])
            weights.append(attention_weights(queries, layer.keys, seen).mean(1))
            x, _ = block(x, mask, memory=layer, memory_mask=memory.mask)
        return jnp.stack(weights).mean(0)

    def _embed(self, target: Int[Array, "b t"], position: Int[Array, ""] | int) -> Float[Array, "b t w"]:
        """Embeds target symbols that start at `position`."""
        places = position + jnp.arange(target.shape[1])
        return self.target(target) + self.target_position(places[None])
