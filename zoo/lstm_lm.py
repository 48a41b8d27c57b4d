"""Recurrent language model: LSTM or GRU layers that read a text token by token and carry a state.

Mikolov et al. 2010, "Recurrent neural network based language model"; Zaremba et al. 2014, "Recurrent neural network
regularization" (dropout between layers); Gal and Ghahramani 2016 (variational dropout: one mask for all steps, applied
to states too). For a text of tokens w_1 ... w_T:

    log P(w_1 ... w_T) = sum_t log P(w_t | w_<t)
    h_t = layers(embedding[w_t], h_(t-1))                  see `zoo.nn.recurrent`
    P(w_(t+1) | w_<=t) = softmax(h_t @ head + bias)        head: its own, or embedding^T (Press and Wolf 2017)

Back-propagation is truncated to `context` steps (Williams and Peng 1990), but the state is not: with
`--data.order stream`, row r of a batch continues row r of the previous batch and starts from its final state. Other
rows and all held-out windows start from zeros; `evaluate.py --carry` scores held-out text with a carried state.

Tokens are [b t], states [b width], logits [b t vocab]. A batch holds `tokens` [b t+1] and `continues` [b], whether a
row continues the previous batch's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Lt
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zoo.core.artifacts import Artifacts
from zoo.core.data import DataSet
from zoo.core.errors import require
from zoo.core.family import Batch, Family, Metrics, Model, Rows, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import split
from zoo.data.specs import TokenSpec
from zoo.metrics.text import likelihood_statistics
from zoo.metrics.tokens import TokenScoring, score_language_model
from zoo.metrics.windows import carried_figures, score_document, strided_figures
from zoo.nn.cells import Cell
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding
from zoo.nn.linear_cross_entropy import linear_cross_entropy, row_cross_entropy
from zoo.nn.losses import counted
from zoo.nn.recurrent import Carry, Recurrent, drop_steps
from zoo.sampling.tokens.request import TokenRequest
from zoo.sampling.tokens.sequences import sample_tokens


class RecurrentLM(nnx.Module):
    """The recurrent language model's network.

    Args:
        settings: the family's settings.
        vocab_size: size of the tokenizer's vocabulary.
        end_of_text: the token before and after every document.
        rngs: source of the initial values.
        dtype: computation dtype of the layers; states stay float32.
        outputs: number of ids that are predicted, the first ones; None: all.
    """

    def __init__(
        self,
        settings: "LSTMLM",
        vocab_size: int,
        end_of_text: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        outputs: int | None = None,
    ):
        s = settings
        self.outputs = vocab_size if outputs is None else outputs
        self.rate, self.variational, self.end_of_text = s.dropout, s.variational, end_of_text
        self.embedding = Embedding(vocab_size, s.embedding, scale=s.embedding**-0.5, rngs=rngs, dtype=dtype)
        self.recurrent = Recurrent(
            s.cell, s.embedding, s.width, s.layers, rate=s.dropout, variational=s.variational, rngs=rngs
        )
        # A tied head needs features of the embedding's size.
        size = s.embedding if s.tied else self.outputs
        fits = s.tied and s.width == s.embedding
        head = partial(Dense, s.width, size, bias=False, scale=s.width**-0.5, wide=not s.tied)
        self.head: Any = None if fits else head(rngs=rngs)
        self.tied = s.tied
        self.bias = nnx.Param(jnp.zeros(self.outputs))

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        carry: Carry,
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t vocab"], Carry]:
        """Returns logits of each next token, and the states after the last token.

        Args:
            tokens: rows of any length.
            carry: the states before the first token; see `init_carry`.
            key: dropout key; None means evaluation.
            rows: each row's index in the global batch, for noise that does not depend on how the batch is split.
        """
        x, carry = self.features(tokens, carry, key=key, rows=rows)
        return self._logits(x), carry

    def features(
        self,
        tokens: Int[Array, "b t"],
        carry: Carry,
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t features"], Carry]:
        """Returns the head's input features and the states; see `__call__` for the arguments."""
        input_key, layer_key, output_key = split(key, 3)
        x = drop_steps(self.embedding(tokens), self.rate, self.variational, input_key, rows)
        x, carry = self.recurrent(x, carry, key=layer_key, rows=rows)
        return self._to_head(drop_steps(x, self.rate, self.variational, output_key, rows)), carry

    @property
    def head_table(self) -> Float[Array, "vocab features"]:
        """The output vector of each symbol; its product with the features, plus the bias, is the symbol's logit."""
        return self.embedding.table[: self.outputs] if self.tied else self.head.kernel[...].T

    def init_carry(self, batch: int) -> Carry:
        """Returns the states before a text: zeros."""
        return self.recurrent.init_carry(batch)

    def init_cache(self, batch: int, length: int) -> Carry:
        """Returns the initial states for `extend`; their size does not depend on `length`."""
        return self.init_carry(batch)

    def extend(
        self, tokens: Int[Array, "b t"], cache: Carry, position: Int[Array, ""] | int, start: Int[Array, " b"]
    ) -> tuple[Float[Array, "b vocab"], Carry]:
        """Reads t more tokens of every row and predicts the next; see `zoo.sampling.tokens.decode`.

        Args:
            tokens: tokens of the slots from `position` on.
            cache: the states after the earlier slots.
            position: the slot of the first of these tokens, the same for all rows.
            start: the slot of each row's first real token; slots before it do not change the states.
        """
        real = position + jnp.arange(tokens.shape[1])[None, :] >= start[:, None]
        x, cache = self.recurrent(self.embedding(tokens), cache, mask=real)
        return self._logits(self._to_head(x[:, -1:]))[:, 0], cache

    def _to_head(self, x: Float[Array, "b t width"]) -> Float[Array, "b t features"]:
        """Projects states to the embedding's size if the head is tied and the sizes differ."""
        return self.head(x) if self.tied and self.head is not None else x

    def _logits(self, x: Float[Array, "b t features"]) -> Float[Array, "b t vocab"]:
        logits = self.embedding.logits(x, self.outputs) if self.tied else self.head(x)
        return logits + self.bias[...][None, None, :]


class State(NamedTuple):
    """The training state of a recurrent language model."""

    net: Learner
    """The network."""
    carry: Rows
    """The final recurrent states of each row of the last batch."""


@dataclass(frozen=True)
class LSTMLMScoring(TokenScoring):
    """Figures to compute in addition to the likelihood in separate windows."""

    carry: bool = False
    """Also score held-out text with the state carried from window to window."""


@dataclass(frozen=True)
class LSTMLM(Family):
    """A recurrent language model."""

    cell: Cell = "lstm"
    """Recurrent cell."""
    layers: Annotated[int, Ge(1)] = 2
    """Recurrent layers."""
    width: Annotated[int, Ge(1)] = 256
    """Features of a state."""
    embedding: Annotated[int, Ge(1)] = 128
    """Features of a token's embedding."""
    context: Annotated[int, Ge(1)] = 64
    """Steps of truncated back-propagation; with --data.order stream the state is carried further."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability at the input of each layer and at the output of the last."""
    variational: bool = False
    """Variational dropout: one mask for all steps, applied to the states too."""
    tied: bool = False
    """Whether the head is the transposed embedding, after a projection if width and embedding differ."""

    accepts: ClassVar[type] = TokenSpec
    Request: ClassVar[type] = TokenRequest
    Scoring: ClassVar[type] = LSTMLMScoring
    unit: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        require(self, "family.")

    @property
    def length(self) -> int:
        return self.context

    def init(self, spec: TokenSpec, setup: Setup, key: jax.Array) -> State:
        net = RecurrentLM(self, spec.vocab_size, spec.end, nnx.Rngs(key), setup.dtype, spec.outputs)
        return State(Learner.create(net, setup), Rows(net.init_carry(setup.batch_size)))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        continues = batch.get("continues", jnp.zeros(len(batch["row"]), bool))
        carry = jax.tree.map(lambda x: jnp.where(continues[:, None], x, 0.0), state.carry.value)
        net, metrics = state.net.descend(self.loss, batch | {"carry": carry}, step, key)
        return State(net, metrics.pop("carry")), metrics

    def loss(self, net: RecurrentLM, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns -sum_t log P(w_t | w_<t) over a batch in nats, the number of tokens, and the final states."""
        tokens, weight = batch["tokens"], counted(batch, net.end_of_text)
        x, carry = net.features(tokens[:, :-1], batch["carry"], key=key, rows=batch["row"])
        nats = linear_cross_entropy(x, net.head_table, tokens[:, 1:], weight, net.bias[...])
        return nats, weight.sum(dtype=jnp.float32), {"carry": Rows(carry)}

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        net = state.net.eval_net()
        tokens, weight = batch["tokens"], counted(batch, net.end_of_text)
        x, _ = net.features(tokens[:, :-1], net.init_carry(len(tokens)))
        nats = row_cross_entropy(x, net.head_table, tokens[:, 1:], weight, net.bias[...])
        return likelihood_statistics(nats, weight.sum(1, dtype=jnp.float32), batch)

    def score(
        self, model: Model, rows: dict[str, Any], data: DataSet, scoring: LSTMLMScoring, key: jax.Array
    ) -> Metrics:
        figures = score_language_model(model, rows, data, scoring, key)
        if scoring.stride:
            figures |= strided_figures(model, data, scoring.stride)
        if scoring.carry:
            net = model.state.net.eval_net()
            figures |= carried_figures(net, _read, net.init_carry(1), data)
        return figures

    def sample(self, model: Model, request: TokenRequest, key: jax.Array) -> Artifacts:
        return self.stream(model, request, key, show=None)

    def stream(
        self, model: Model, request: TokenRequest, key: jax.Array, show: Callable[[str], None] | None
    ) -> Artifacts:
        # A recurrent state reads texts of any length, so there is no context limit.
        net = model.state.net.eval_net()
        if request.score is not None:
            return [score_document(net, _read, net.init_carry(1), model.spec, request.score, self.context)]
        return sample_tokens(net, model, request, key, context=None, stream=show)


def _read(net: RecurrentLM, tokens: Int[Array, "1 t"], carry: Carry) -> tuple[Float[Array, "1 t vocab"], Carry]:
    """Returns logits of each next token, and the states after the last token."""
    return net(tokens, carry)
