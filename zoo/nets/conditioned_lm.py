"""The networks of a text VAE: a recurrent encoder, and language models conditioned on a code.

With w_0 = end-of-text before the text w_1 .. w_T, and E the embedding, shared by both networks and the head (Press &
Wolf 2017):

    q(z|w) = N(mean, diag(sigma^2))             [mean, log sigma^2] = W max_t h_t,  h = recurrent(E[w_1 .. w_T])
    P(w_(t+1) | w_<=t, z) = softmax(E y_t)      y = body(E[w_0 .. w_t], z)

Max pooling over time instead of the last state shortens the encoder's gradient paths, which by itself delays posterior
collapse (Long et al. 2019, "Preventing posterior collapse in sequence VAEs with pooling"). The encoder uses the
decoder's embedding, which is trained for rare words too. Bodies:

    lstm, gru      the initial states are tanh(V z + b), and z is concatenated to every input (Bowman et al. 2016)
    transformer    V z is added to the vector of every position (Li et al. 2020, "Optimus")

Letters in shapes: b rows, t positions, d features, v vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import repeat
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nets.transformer import EPSILON, INIT_SCALE, Block, BlockSettings
from zoo.nn.attend import Mask
from zoo.nn.attention import KeyValue
from zoo.nn.cells import Cell
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding
from zoo.nn.norm import LayerNorm
from zoo.nn.recurrent import Carry, Recurrent

BodyKind = Literal["lstm", "gru", "transformer"]


class TextEncoder(nnx.Module):
    """The encoder: mean and log sigma^2 of q(z|w).

    Args:
        cell: cell of the one recurrent layer.
        width: features of a word and of a state.
        latent: units of a code.
        rate: dropout of the word vectors.
        rngs: source of the initial values.
    """

    def __init__(self, cell: Cell, width: int, latent: int, *, rate: float, rngs: nnx.Rngs):
        self.rate = rate
        self.recurrent = Recurrent(cell, width, width, 1, rngs=rngs)
        self.head = Dense(width, 2 * latent, bias=True, scale=width**-0.5, rngs=rngs, wide=True)

    def __call__(
        self,
        words: Float[Array, "b t width"],
        real: Bool[Array, "b t"],
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b latent"], Float[Array, "b latent"]]:
        """Returns mean and log sigma^2 from word vectors; padding (`real` false) has no effect."""
        x = dropout(words, self.rate, key, rows)
        # At padding the last real output is repeated, which leaves the maximum unchanged.
        h, _ = self.recurrent(x, self.recurrent.init_carry(len(x)), mask=real)
        mean, log_variance = jnp.split(self.head(h.max(axis=1, keepdims=True))[:, 0], 2, axis=-1)
        return mean, log_variance


class RecurrentBody(nnx.Module):
    """Recurrent layers whose initial states and inputs depend on a code."""

    def __init__(self, cell: Cell, width: int, layers: int, latent: int, *, rate: float, rngs: nnx.Rngs):
        self.recurrent = Recurrent(cell, width + latent, width, layers, rate=rate, rngs=rngs)
        self.states = len(jax.tree.leaves(self.recurrent.init_carry(1)))
        self.first = Dense(latent, self.states * width, bias=True, scale=latent**-0.5, rngs=rngs) if latent else None

    def begin(self, z: Float[Array, "b latent"], length: int) -> Carry:
        """Returns the states before the first word; their size does not depend on `length`."""
        zeros = self.recurrent.init_carry(len(z))
        if self.first is None:
            return zeros
        first = jnp.split(jnp.tanh(self.first(z[:, None])[:, 0].astype(jnp.float32)), self.states, axis=1)
        return jax.tree.unflatten(jax.tree.structure(zeros), first)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        z: Float[Array, "b latent"],
        *,
        state: Carry | None = None,
        slots: Int[Array, " t"] | None = None,
        start: Int[Array, " b"] | None = None,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t d"], Carry]:
        """Reads words from the beginning of a text, or continues from `state`; slots before `start` are padding."""
        real = None if slots is None or start is None else slots[None, :] >= start[:, None]
        x = jnp.concatenate([x, repeat(z, "b latent -> b t latent", t=x.shape[1])], axis=-1)
        return self.recurrent(x, self.begin(z, 0) if state is None else state, mask=real, key=key, rows=rows)


class TransformerBody(nnx.Module):
    """Transformer blocks with a projection of the code added at every position."""

    def __init__(
        self,
        block: BlockSettings,
        latent: int,
        context: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.position = Embedding(context, block.width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        self.enter = Dense(latent, block.width, bias=False, scale=latent**-0.5, rngs=rngs) if latent else None
        self.blocks = nnx.List(Block(block, rngs) for _ in range(block.layers))
        self.norm = LayerNorm(block.width, epsilon=EPSILON, bias=True)

    def begin(self, z: Float[Array, "b latent"], length: int) -> tuple[KeyValue, ...]:
        """Returns empty keys and values with `length` slots."""
        return tuple(block.attention.init_cache(len(z), length, z.dtype) for block in self.blocks)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        z: Float[Array, "b latent"],
        *,
        state: tuple[KeyValue, ...] | None = None,
        slots: Int[Array, " t"] | None = None,
        start: Int[Array, " b"] | None = None,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t d"], tuple[Any, ...]]:
        """Reads words from the beginning of a text, or into slots of `state`; slots before `start` are padding."""
        slots = jnp.arange(x.shape[1]) if slots is None else slots
        start = jnp.zeros(len(x), jnp.int32) if start is None else start
        mask = Mask(causal=True)
        if state is not None:
            keys = jnp.arange(state[0].keys.shape[2])
            mask = Mask(visible=(keys[None, :] <= slots[:, None])[None] & (keys[None, :] >= start[:, None])[:, None])
        x = x + self.position(jnp.maximum(slots[None, :] - start[:, None], 0))
        if self.enter is not None:
            x = x + self.enter(z[:, None])
        layers: list[Any] = []
        caches = [None] * len(self.blocks) if state is None else state
        for block, cache, block_key in zip(self.blocks, caches, split(key, len(self.blocks)), strict=True):
            x, grown = block(x, mask, cache=cache, slot=slots[0], key=block_key, rows=rows)
            layers.append(grown)
        return self.norm(x), tuple(layers)


@dataclass(frozen=True, kw_only=True)
class TextDecoderSettings:
    """Settings of a text decoder.

    Attributes:
        body: the network between embedding and head.
        vocab_size: size of the tokenizer's vocabulary.
        context: maximum positions of a text.
        layers: layers of the body.
        width: features of a word and of a position.
        heads: attention heads of a transformer body.
        latent: units of a code; 0: a plain language model.
        rate: dropout of the word vectors, between layers, and before the head.
        word_dropout: share of the words hidden from the decoder in training (Bowman et al. 2016), by zeroing their
            vectors.
    """

    body: BodyKind
    vocab_size: int
    context: int
    layers: int
    width: int
    heads: int
    latent: int
    rate: float = 0.0
    word_dropout: float = 0.0


class TextDecoder(nnx.Module):
    """P(w|z) without the final product with the embedding.

    Args:
        settings: sizes and options.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, settings: TextDecoderSettings, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        s = settings
        self.rate, self.word_dropout = s.rate, s.word_dropout
        scale = INIT_SCALE if s.body == "transformer" else s.width**-0.5
        self.embedding = Embedding(s.vocab_size, s.width, scale=scale, rngs=rngs, dtype=dtype)
        if s.body == "transformer":
            block = BlockSettings(layers=s.layers, width=s.width, heads=s.heads, rate=s.rate)
            self.body: Any = TransformerBody(block, s.latent, s.context, rngs=rngs, dtype=dtype)
        else:
            self.body = RecurrentBody(s.body, s.width, s.layers, s.latent, rate=s.rate, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        z: Float[Array, "b latent"],
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Returns y_t of whole texts; their product with the embedding is the logits of each next word."""
        word_key, input_key, body_key, output_key = split(key, 4)
        kept = dropout(jnp.ones(tokens.shape), self.word_dropout, word_key, rows) > 0
        kept = kept | (jnp.arange(tokens.shape[1]) == 0)[None, :]  # end-of-text at the beginning is not a word
        x = self.embedding(tokens) * kept[:, :, None]
        x = dropout(x, self.rate, input_key, rows)
        y, _ = self.body(x, z.astype(x.dtype), key=body_key, rows=rows)
        return dropout(y, self.rate, output_key, rows)


class Conditioned(nnx.Module):
    """A decoder with a code for each row, in the interface of `zoo.sampling.tokens.decode`."""

    def __init__(self, decoder: TextDecoder, z: Float[Array, "b latent"]):
        self.decoder = decoder
        self.z = nnx.Variable(z.astype(decoder.embedding.dtype))

    def init_cache(self, batch: int, length: int) -> tuple[jax.Array, Any]:
        """Returns the codes, and the body's state before the first word."""
        z = self.z[...]
        return z, self.decoder.body.begin(z, length)

    def extend(
        self, tokens: Int[Array, "b t"], cache: tuple[jax.Array, Any], position: Any, start: Int[Array, " b"]
    ) -> tuple[Float[Array, "b v"], tuple[jax.Array, Any]]:
        """Reads t more words of every row and predicts the next; see `zoo.sampling.tokens.decode`."""
        (z, state), slots = cache, position + jnp.arange(tokens.shape[1])
        y, state = self.decoder.body(self.decoder.embedding(tokens), z, state=state, slots=slots, start=start)
        return self.decoder.embedding.logits(y[:, -1:])[:, 0], (z, state)
