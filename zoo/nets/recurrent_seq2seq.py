"""Recurrent encoder and decoder with attention over the source.

The bidirectional encoder outputs m_1 .. m_s; the decoder's layers start from the encoder's final states (Sutskever et
al. 2014; Cho et al. 2014). At each step a query q is compared with every m_j, and the context c is their weighted mean:

    a_j = softmax_j(e_j)          c = sum_j a_j m_j

    bahdanau   e_j = v . tanh(W q + U m_j), q the first layer's state before the step, and c is an input of that layer
    luong      e_j = q . U m_j, q the last layer's state after the step ("general")
    none       no context c

    P(y_t | y_<t, x) = softmax(embedding tanh(W' [h_t; c_t]))        h_t of the last layer; without c: tanh(W' h_t)

Bahdanau et al. 2015, "Neural machine translation by jointly learning to align and translate", section 3 and appendix A
(there with a maxout layer before the softmax); Luong et al. 2015, "Effective approaches to attention-based neural
machine translation", section 3.1, without input feeding, so that attention is computed for all steps at once.

Letters in shapes: b rows, s source and t target positions, w features of a state, v target symbols.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nn.arithmetic import add_vector
from zoo.nn.attend import additive_mask
from zoo.nn.cells import Cell
from zoo.nn.dense import Dense, matmul, wide_matmul
from zoo.nn.embedding import Embedding
from zoo.nn.recurrence import cell_step
from zoo.nn.recurrent import Bidirectional, Carry, Recurrent, RecurrentLayer

Score = Literal["bahdanau", "luong", "none"]


class Memory(NamedTuple):
    """An encoded source; the first axis of every array is the batch row."""

    values: jax.Array
    """m, [b s w]."""
    keys: jax.Array
    """U m, [b s w]."""
    mask: jax.Array
    """Added to e: 0, or very negative for padding, [b s]."""
    carry: Carry
    """The decoder's initial states."""


class Attend(nnx.Module):
    """Attention over a memory; see the module's docstring.

    Args:
        score: score function of queries and memory.
        width: features of both.
        rngs: source of the initial values.
    """

    def __init__(self, score: Score, width: int, *, rngs: nnx.Rngs):
        scale = width**-0.5
        self.key = Dense(width, width, bias=False, scale=scale, rngs=rngs)
        additive = score == "bahdanau"
        self.query = Dense(width, width, bias=True, scale=scale, rngs=rngs) if additive else None
        self.v = nnx.Param(scale * jax.random.normal(rngs.params(), (width,))) if additive else None

    def __call__(self, q: Float[Array, "b t w"], memory: Memory) -> tuple[Float[Array, "b t w"], Float[Array, "b t s"]]:
        """Returns c and a for every query."""
        if self.query is None or self.v is None:
            scores = jnp.einsum("btw,bsw->bts", q, memory.keys, preferred_element_type=jnp.float32)
        else:
            hidden = jnp.tanh(self.query(q)[:, :, None] + memory.keys[:, None])
            scores = jnp.einsum("btsw,w->bts", hidden.astype(jnp.float32), self.v[...])
        weights = jax.nn.softmax(scores + memory.mask[:, None], axis=-1)
        return jnp.einsum("bts,bsw->btw", weights.astype(memory.values.dtype), memory.values), weights


class RecurrentSeq2Seq(nnx.Module):
    """The recurrent encoder-decoder.

    Args:
        cell: the recurrent cell.
        layers: layers of the encoder, and of the decoder.
        width: features of a state; each direction of the encoder has half of them.
        embedding: features of a symbol's embedding.
        score: type of attention.
        rate: dropout at the input of each layer and at the output of the last.
        source_size: size of the source vocabulary.
        target_size: size of the target vocabulary.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(
        self,
        cell: Cell,
        layers: int,
        width: int,
        embedding: int,
        score: Score,
        *,
        rate: float,
        source_size: int,
        target_size: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.rate = rate
        self.source = Embedding(source_size, embedding, scale=embedding**-0.5, rngs=rngs, dtype=dtype)
        self.target = Embedding(target_size, embedding, scale=embedding**-0.5, rngs=rngs, dtype=dtype)
        self.encoder = Bidirectional(cell, embedding, width, layers, rate=rate, rngs=rngs)
        self.attend = None if score == "none" else Attend(score, width, rngs=rngs)
        aligned = score == "bahdanau"
        self.first = RecurrentLayer(cell, embedding + width, width, rngs=rngs) if aligned else None
        self.decoder = Recurrent(cell, width if aligned else embedding, width, layers - aligned, rate=rate, rngs=rngs)
        size = width if score == "none" else 2 * width
        self.readout = Dense(size, embedding, bias=True, scale=math.sqrt(2 / (size + embedding)), rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(target_size))

    def encode(
        self,
        source: Int[Array, "b s"],
        real: Bool[Array, "b s"],
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Memory:
        """Encodes sources; positions that are not `real` are padding."""
        input_key, layer_key = split(key, 2)
        x = dropout(self.source(source), self.rate, input_key, rows)
        values, carry = self.encoder(x, real, key=layer_key, rows=rows)
        keys = values if self.attend is None else self.attend.key(values)
        return Memory(values, keys, additive_mask(real), carry)

    def decode(
        self,
        target: Int[Array, "b t"],
        memory: Memory,
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t v"]:
        """Returns logits of each next symbol, for targets from their beginning."""
        return self._read(target, memory.carry, memory, key, rows)[0]

    def init_cache(self, memory: Memory, length: int) -> Carry:
        """Returns the initial states for `extend`; their size does not depend on `length`."""
        return memory.carry

    def extend(
        self, target: Int[Array, "b t"], cache: Carry, position: Int[Array, ""] | int, memory: Memory
    ) -> tuple[Float[Array, "b v"], Carry]:
        """Reads t more symbols of every target, from `position` on, and predicts the next."""
        logits, cache, _ = self._read(target, cache, memory)
        return logits[:, -1], cache

    def alignment(self, target: Int[Array, "b t"], memory: Memory) -> Float[Array, "b t s"]:
        """Returns the attention weights over the source for each next symbol; zeros without attention."""
        return self._read(target, memory.carry, memory)[2]

    def _read(
        self, target: Int[Array, "b t"], carry: Carry, memory: Memory, key: Any = None, rows: Any = None
    ) -> tuple[Float[Array, "b t v"], Carry, Float[Array, "b t s"]]:
        """Returns logits, the states after the last symbol, and the attention weights."""
        input_key, layer_key, between, output_key = split(key, 4)

        x = dropout(self.target(target), self.rate, input_key, rows)
        if self.first is not None:
            x, first, seen, weights = self._aligned(self.first, x, carry[0], memory)
            x, upper = self.decoder(dropout(x, self.rate, between, rows), carry[1:], key=layer_key, rows=rows)
            carry = (first, *upper)
        else:
            x, carry = self.decoder(x, carry, key=layer_key, rows=rows)
            if self.attend is None:
                seen, weights = None, jnp.zeros((*target.shape, memory.mask.shape[1]))
            else:
                seen, weights = self.attend(x, memory)
        x = x if seen is None else jnp.concatenate([x, seen], axis=-1)
        x = jnp.tanh(self.readout(dropout(x, self.rate, output_key, rows)))
        return self.target.logits(x) + self.bias[...][None, None, :], carry, weights

    def _aligned(self, layer: RecurrentLayer, x: Float[Array, "b t e"], state: Any, memory: Memory) -> Any:
        """Runs the layer whose input at each step is a symbol and the context attended to by its previous state.

        Returns:
            h [b t w], the last state, c [b t w] and a [b t s].
        """
        assert self.attend is not None
        attend, (symbol, context) = self.attend, jnp.split(layer.input.kernel[...], [x.shape[-1]])
        bias = layer.input.bias
        assert bias is not None
        a = rearrange(matmul(rearrange(x, "b t e -> (b t) e"), symbol), "(b t) n -> t b n", b=len(x))
        a = add_vector(a, bias[...])
        # Every step reads the memory; float32 makes its gradient a float32 sum over the steps.
        memory = jax.tree.map(lambda m: m.astype(jnp.float32), memory)

        def step(state: Any, a: Float[Array, "b n"]) -> Any:
            h = state[0].astype(x.dtype)
            seen, weights = attend(h[:, None], memory)
            seen = seen[:, 0].astype(x.dtype)
            r = wide_matmul(h, layer.kernel[...]) + layer.bias[...][None, :]
            state = cell_step(layer.cell, a + wide_matmul(seen, context), r, state)
            return state, (state[0].astype(x.dtype), seen, weights[:, 0])

        state, steps = jax.lax.scan(step, state, a)
        h, seen, weights = (y.swapaxes(0, 1) for y in steps)
        return h, state, seen, weights
