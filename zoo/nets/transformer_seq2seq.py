"""Transformer encoder and decoder (Vaswani et al. 2017), normalised before each branch.

The encoder's blocks let every position of a source see every other; the decoder's let a position of a target see those
before it and, in between, all of the source as the encoder's last block left it. Positions are learned vectors.

    P(y_t | y_<t, x) = softmax(embedding norm(h_t))        h_t of the last block, for the position of y_(t-1)

Letters in shapes: b rows, s source and t target positions, w features of a position, v target symbols.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nets.transformer import EPSILON, INIT_SCALE, gpt2_block
from zoo.nn.attend import Mask, attention_weights
from zoo.nn.attention import KeyValue
from zoo.nn.embedding import Embedding
from zoo.nn.norm import LayerNorm
from zoo.nn.remat import rematerialised


class Memory(NamedTuple):
    """A source that was read; every array leads with the row."""

    layers: tuple[KeyValue, ...]
    """Keys and values for each of the decoder's blocks."""
    mask: Mask
    """Which of its positions are real."""


class TransformerSeq2Seq(nnx.Module):
    """The network.

    Args:
        layers: blocks of the encoder, and of the decoder.
        heads: attention heads of a block.
        width: features of a position.
        context: the most positions of a source or a target.
        rate: dropout of what goes into the first block and of each branch.
        remat: whether blocks are computed again for gradients; see `zoo.nn.remat`.
        source_size: symbols of a source.
        target_size: symbols of a target.
        rngs: source of the initial values.
        dtype: that the layers compute in.
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
        block = partial(gpt2_block, width, heads, layers=layers, rate=rate, rngs=rngs)
        self.source, self.target = table(source_size), table(target_size)
        self.source_position, self.target_position = table(context), table(context)
        self.encoder = nnx.List(block() for _ in range(layers))
        self.encoder_norm = LayerNorm(width, epsilon=EPSILON, bias=True)
        self.decoder = nnx.List(block(reads=True) for _ in range(layers))
        self.decoder_norm = LayerNorm(width, epsilon=EPSILON, bias=True)

    def encode(
        self,
        source: Int[Array, "b s"],
        real: Bool[Array, "b s"],
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Memory:
        """Reads sources, of which the first positions are real and the others padding."""
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
        """Logits of the symbol after each, of targets from their beginning on."""
        x, mask = self._embed(target, 0), Mask(causal=True)
        input_key, *block_keys = split(key, 1 + len(self.decoder))
        x = dropout(x, self.rate, input_key, rows)
        for block, layer, block_key in zip(self.decoder, memory.layers, block_keys, strict=True):
            read = rematerialised(block, self.remat)
            x, _ = read(x, mask, memory=layer, memory_mask=memory.mask, key=block_key, rows=rows)
        return self.target.logits(self.decoder_norm(x))

    def init_cache(self, memory: Memory, length: int) -> tuple[KeyValue, ...]:
        """What `extend` starts from, with slots for so many symbols."""
        rows = len(memory.layers[0].keys)
        return tuple(block.attention.init_cache(rows, length, self.target.dtype) for block in self.decoder)

    def extend(
        self,
        target: Int[Array, "b t"],
        cache: tuple[KeyValue, ...],
        position: Int[Array, ""] | int,
        memory: Memory,
    ) -> tuple[Float[Array, "b v"], tuple[KeyValue, ...]]:
        """Reads t more symbols of every target, number `position` and on, and predicts the next."""
        x, places = self._embed(target, position), position + jnp.arange(target.shape[1])
        mask = Mask(visible=(jnp.arange(cache[0].keys.shape[2])[None, :] <= places[:, None])[None])
        after: list[Any] = []
        for block, layer, slots in zip(self.decoder, memory.layers, cache, strict=True):
            x, grown = block(x, mask, cache=slots, slot=position, memory=layer, memory_mask=memory.mask)
            after.append(grown)
        return self.target.logits(self.decoder_norm(x[:, -1:]))[:, 0], tuple(after)

    def alignment(self, target: Int[Array, "b t"], memory: Memory) -> Float[Array, "b t s"]:
        """How much each source position counts for the symbol after each: the mean over all blocks and heads."""
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
        """Vectors of symbols number `position` and on."""
        places = position + jnp.arange(target.shape[1])
        return self.target(target) + self.target_position(places[None])
