"""Transformer language model; GPT-2 and Llama are two settings of it.

Radford et al. 2019, "Language models are unsupervised multitask learners"; Touvron et al. 2023, "LLaMA". An
autoregressive model of texts of tokens w_1 ... w_T, trained by maximum likelihood:

    log P(w_1 ... w_T) = sum_t log P(w_t | w_<t)
    x_0 = embedding[w] (+ position[t])
    x_l = block_l(x_(l-1))                  l = 1 .. layers; see `zoo.nets.transformer`
    P(w_(t+1) | w_<=t) = softmax(norm(x_L) @ head)

GPT-2: `--family.positions learned --family.norm layernorm --family.mlp gelu_tanh --family.bias --family.tied`.
Llama: `--family.positions rope --family.norm rmsnorm --family.mlp swiglu --family.no-bias --family.no-tied`.

Tokens are [b t], hidden states [b t width], logits [b t vocab]. A batch holds `tokens` [b t+1]: the inputs are all
tokens but the last, the targets all but the first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Lt
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zoo.core.artifacts import Artifacts
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import dropout, split
from zoo.data.specs import TokenSpec
from zoo.metrics.text import likelihood_statistics
from zoo.metrics.tokens import TokenScoring, score_language_model
from zoo.metrics.windows import score_document, strided_figures
from zoo.nets.transformer import INIT_SCALE, Activation, Block, BlockSettings, Normalisation, make_norm
from zoo.nn.attend import Mask
from zoo.nn.attention import KeyValue, rotary_angles
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding
from zoo.nn.linear_cross_entropy import linear_cross_entropy, row_cross_entropy
from zoo.nn.losses import counted
from zoo.nn.remat import rematerialised
from zoo.sampling.tokens.request import TokenRequest
from zoo.sampling.tokens.sequences import sample_tokens


class Cache(NamedTuple):
    """The decoding cache of a Transformer; the first axis of every array is the batch row."""

    tokens: jax.Array
    """The tokens read so far, int32 [b s]."""
    layers: tuple[KeyValue, ...]
    """Keys and values of each layer."""


class Transformer(nnx.Module):
    """The Transformer language model's network.

    Args:
        settings: the family's settings.
        vocab_size: size of the tokenizer's vocabulary.
        end_of_text: the token before and after every document.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
        outputs: number of ids that are predicted, the first ones; None: all.
    """

    def __init__(
        self,
        settings: "TransformerLM",
        vocab_size: int,
        end_of_text: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        outputs: int | None = None,
    ):
        s = settings
        self.rate, self.document_mask, self.end_of_text = s.dropout, s.document_mask, end_of_text
        self.outputs = vocab_size if outputs is None else outputs
        self.remat = s.remat
        self.rotary = (s.width // s.heads, s.rope_theta) if s.positions == "rope" else None
        make_table = partial(Embedding, features=s.width, scale=INIT_SCALE, rngs=rngs, dtype=dtype)
        self.embedding = make_table(vocab_size)
        self.position = make_table(s.context) if s.positions == "learned" else None
        block = BlockSettings(
            layers=s.layers, width=s.width, heads=s.heads, kv_heads=s.kv_heads, hidden=s.hidden, norm=s.norm,
            epsilon=s.norm_epsilon, activation=s.mlp, bias=s.bias, rate=s.dropout, attention_rate=s.dropout,
        )  # fmt: skip
        self.blocks = nnx.List(Block(block, rngs) for _ in range(s.layers))
        self.norm = make_norm(s.norm, s.width, epsilon=s.norm_epsilon, bias=s.bias)
        head = partial(Dense, s.width, self.outputs, bias=False, scale=INIT_SCALE, wide=True)
        self.head = None if s.tied else head(rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "b t"], *, key: Key[Array, ""] | None = None, rows: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t vocab"]:
        """Returns logits of each next token.

        Args:
            tokens: rows of at most `context` tokens.
            key: dropout key; None means evaluation.
            rows: each row's index in the global batch, for noise that does not depend on how the batch is split.
        """
        return self._logits(self.features(tokens, key=key, rows=rows))

    def features(
        self, tokens: Int[Array, "b t"], *, key: Key[Array, ""] | None = None, rows: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t width"]:
        """Returns the head's input norm(x_L); see `__call__` for the arguments."""
        x, mask, angles = self._embed(tokens)
        input_key, *block_keys = split(key, 1 + len(self.blocks))
        x = dropout(x, self.rate, input_key, rows)
        for block, block_key in zip(self.blocks, block_keys, strict=True):
            x, _ = rematerialised(block, self.remat)(x, mask, angles, key=block_key, rows=rows)
        return self.norm(x)

    @property
    def head_table(self) -> Float[Array, "vocab width"]:
        """The output vector of each symbol; its product with the features is the symbol's logit."""
        return self.embedding.table[: self.outputs] if self.head is None else self.head.kernel[...].T

    def init_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty cache of `length` slots for `extend`."""
        layers = tuple(block.attention.init_cache(batch, length, self.embedding.dtype) for block in self.blocks)
        return Cache(jnp.full((batch, length), self.end_of_text, jnp.int32), layers)

    def extend(
        self, tokens: Int[Array, "b t"], cache: Cache, position: Int[Array, ""] | int, start: Int[Array, " b"]
    ) -> tuple[Float[Array, "b vocab"], Cache]:
        """Reads t more tokens of every row and predicts the next.

        Args:
            tokens: tokens of the slots from `position` on.
            cache: the cache of earlier slots, from `init_cache` or a previous call.
            position: the slot of the first of these tokens, the same for all rows.
            start: the slot of each row's first real token; slots before it are padding and are masked.

        Returns:
            Logits of the next token, and the cache with these tokens added.
        """
        slots = position + jnp.arange(tokens.shape[1])
        seen = jax.lax.dynamic_update_slice_in_dim(cache.tokens, tokens, position, axis=1)
        x, mask, angles = self._embed(tokens, seen, slots, start)
        layers: list[Any] = []
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x, grown = block(x, mask, angles, cache=layer, slot=position)
            layers.append(grown)
        return self._logits(self.norm(x[:, -1:]))[:, 0], Cache(seen, tuple(layers))

    def attention_weights(self, tokens: Int[Array, "b t"]) -> Float[Array, "layers b heads t t"]:
        """Returns the attention weights of every layer and head."""
        x, mask, angles = self._embed(tokens)
        weights = []
        for block in self.blocks:
            weights.append(block.attention.weights(block.attention_norm(x), mask, angles))
            x, _ = block(x, mask, angles)
        return jnp.stack(weights)

    def _embed(
        self,
        tokens: Int[Array, "b t"],
        seen: Int[Array, "b s"] | None = None,
        slots: Int[Array, " t"] | None = None,
        start: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t width"], Mask, Float[Array, "#b t half"] | None]:
        """Returns embedded tokens, their attention mask over `seen`, and their rotary angles (None without RoPE)."""
        if seen is None or slots is None or start is None:
            seen, slots, visible = tokens, jnp.arange(tokens.shape[1]), None
            positions = slots[None]
        else:
            keys = jnp.arange(seen.shape[1])
            visible = (keys[None, :] <= slots[:, None])[None] & (keys[None, :] >= start[:, None])[:, None]
            positions = jnp.maximum(slots[None, :] - start[:, None], 0)
        causal = visible is None
        if self.document_mask:
            document = document_numbers(seen, self.end_of_text)
            same = document[:, slots][:, :, None] == document[:, None, :]
            visible = same if visible is None else visible & same
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(positions)
        angles = None if self.rotary is None else rotary_angles(positions, *self.rotary)
        return x, Mask(causal=causal, visible=visible), angles

    def _logits(self, x: Float[Array, "b t width"]) -> Float[Array, "b t vocab"]:
        return self.embedding.logits(x, self.outputs) if self.head is None else self.head(x)


def document_numbers(tokens: Int[Array, "b t"], end_of_text: int) -> Int[Array, "b t"]:
    """Numbers the documents of a row; the second of two consecutive end-of-text tokens begins a new document."""
    ends = tokens == end_of_text
    begins = jnp.pad(ends[:, :-1] & ends[:, 1:], ((0, 0), (1, 0)))
    return jnp.cumsum(begins, axis=1)


class State(NamedTuple):
    """The training state of a language model: one network."""

    net: Learner


@dataclass(frozen=True)
class TransformerLM(Family):
    """A Transformer language model."""

    layers: Annotated[int, Ge(1)] = 4
    """Blocks of attention and MLP."""
    heads: Annotated[int, Ge(1)] = 4
    """Attention heads, each with width / heads features."""
    kv_heads: Annotated[int, Ge(0)] = 0
    """Heads of keys and values, each shared by heads / kv-heads query heads; 0: as many as heads."""
    width: Annotated[int, Ge(1)] = 128
    """Features of a position."""
    context: Annotated[int, Ge(1)] = 64
    """Context length in tokens."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability of the input, the attention weights and each residual branch."""
    positions: Literal["learned", "rope"] = "learned"
    """Position encoding: a learned vector for each position (GPT-2), or rotary embedding (Llama)."""
    norm: Normalisation = "layernorm"
    """Normalisation before attention, before the MLP and before the head."""
    mlp: Activation = "gelu"
    """Activation of the MLP; gelu_tanh is GPT-2's approximation, swiglu Llama's gated form."""
    mlp_width: Annotated[int, Ge(0)] = 0
    """Features inside the MLP; 0: 4 x width, for swiglu 8/3 x width rounded up to a multiple of 8."""
    bias: bool = False
    """Whether dense layers and LayerNorm have biases."""
    tied: bool = True
    """Whether the head is the transposed embedding."""
    rope_theta: Annotated[float, Gt(0)] = 10000.0
    """Base of the rotary frequencies."""
    norm_epsilon: Annotated[float, Gt(0)] = 1e-5
    """Added to the variance or mean square in normalisation."""
    document_mask: bool = False
    """Whether a token attends only to tokens of its own document."""
    remat: bool = False
    """Recompute blocks in the backward pass and store only their inputs: less memory, a third more compute."""

    accepts: ClassVar[type] = TokenSpec
    Request: ClassVar[type] = TokenRequest
    Scoring: ClassVar[type] = TokenScoring
    unit: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        kv_heads = self.kv_heads or self.heads
        require(
            self,
            "family.",
            ("width", f"a multiple of family.heads, {self.heads}", self.heads < 1 or self.width % self.heads == 0),
            ("kv_heads", f"a divisor of family.heads, {self.heads}", kv_heads < 1 or self.heads % kv_heads == 0),
        )
        if self.positions == "rope" and self.width // self.heads % 2:
            raise UserError(
                f"family.width is {self.width}, {self.width // self.heads} for each of {self.heads} heads; "
                "rotary positions need an even number of features in a head"
            )

    @property
    def length(self) -> int:
        return self.context

    @property
    def hidden(self) -> int:
        """Features inside the MLP."""
        if self.mlp_width:
            return self.mlp_width
        return 8 * math.ceil(self.width / 3) if self.mlp == "swiglu" else 4 * self.width

    def for_fine_tuning(self, config: "TransformerLM") -> "TransformerLM":
        """Returns these settings; with rotary positions, which have no weights, `context` is at most the config's."""
        return replace(self, context=min(self.context, config.context)) if self.positions == "rope" else self

    def init(self, spec: TokenSpec, setup: Setup, key: jax.Array) -> State:
        net = Transformer(self, spec.vocab_size, spec.end, nnx.Rngs(key), setup.dtype, spec.outputs)
        return State(Learner.create(net, setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key)
        return State(net), metrics

    def loss(self, net: Transformer, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns -sum_t log P(w_t | w_<t) over a batch in nats, and the number of tokens."""
        x = net.features(batch["tokens"][:, :-1], key=key, rows=batch["row"])
        weight = counted(batch, net.end_of_text)
        nats = linear_cross_entropy(x, net.head_table, batch["tokens"][:, 1:], weight)
        return nats, weight.sum(dtype=jnp.float32), {}

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        net = state.net.eval_net()
        weight = counted(batch, net.end_of_text)
        x = net.features(batch["tokens"][:, :-1])
        nats = row_cross_entropy(x, net.head_table, batch["tokens"][:, 1:], weight)
        return likelihood_statistics(nats, weight.sum(1, dtype=jnp.float32), batch)

    def score(
        self, model: Model, rows: dict[str, Any], data: DataSet, scoring: TokenScoring, key: jax.Array
    ) -> Metrics:
        figures = score_language_model(model, rows, data, scoring, key)
        return figures | (strided_figures(model, data, scoring.stride) if scoring.stride else {})

    def sample(self, model: Model, request: TokenRequest, key: jax.Array) -> Artifacts:
        return self.stream(model, request, key, show=None)

    def stream(
        self, model: Model, request: TokenRequest, key: jax.Array, show: Callable[[str], None] | None
    ) -> Artifacts:
        net = model.state.net.eval_net()
        if request.score is not None:
            return [score_document(net, _read, (), model.spec, request.score, self.context)]
        return sample_tokens(net, model, request, key, context=self.context, stream=show)


def _read(net: Transformer, tokens: Int[Array, "1 t"], carry: tuple[()]) -> tuple[Float[Array, "1 t vocab"], tuple[()]]:
    """Returns logits of each next token of one window; nothing is carried to the next window."""
    return net(tokens), carry
