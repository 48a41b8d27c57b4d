"""Masked language models: BERT, and XLNet's permutation objective with the same encoder.

Devlin et al. 2019, "BERT: Pre-training of deep bidirectional transformers". A row is [CLS] a [SEP] b [SEP]; every
position attends to every other. Of the tokens w, a set M is chosen anew for every (seed, step, row); 80 % of it become
[MASK], 10 % another token, 10 % stay. The loss is the sum of two tasks, averaged over rows:

    -1/|M| sum_(t in M) log P(w_t | w with M masked)          masked tokens          (section 3.1, task 1)
    -log P(b follows a | w with M masked)                     next sentence          (section 3.1, task 2)

    h_0 = norm(embedding[w] + position[t] + segment[a or b]),   h_l = block_l(h_(l-1)), normalised after each branch
    P(w_t | ...) = softmax(norm(gelu(h_L[t] @ transform)) @ embedding^T + bias)
    P(b follows a) = softmax(tanh(h_L[0] @ pooler) @ next)[0]

Yang et al. 2019, "XLNet". With `objective = "permutation"` nothing is masked: the tokens of M are predicted in a random
order z, each from the tokens outside M and those of M before it (eq. 3; M is the end of an order of all tokens, section
2.3). A second stream g, which sees a position but not its token, attends to the first with the same weights:

    h_l[z_t] = block_l(query h_(l-1)[z_t], keys and values h_(l-1)[z_<=t])           (section 2.2, content stream)
    g_l[z_t] = block_l(query g_(l-1)[z_t], keys and values h_(l-1)[z_<t]),           (query stream)
    g_0 = norm(embedding[MASK] + position[t] + segment)

and g_L replaces h_L in the token prediction above. XLNet's relative positions and memory are left out.

Tokens are [b t], hidden states [b t width], chosen positions [b k], their logits [b k vocab].
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.artifacts import Artifacts
from zoo.core.bounds import Why
from zoo.core.data import DataSet
from zoo.core.errors import require
from zoo.core.estimates import row_mean
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, Scoring, Setup
from zoo.core.learner import Learner
from zoo.core.random import split
from zoo.data.specs import SegmentSpec
from zoo.data.text.masking import Targets, choose_targets, corrupt, order_of, put
from zoo.data.text.sentence_pairs import FRAME, SegmentPairs
from zoo.metrics.intervals import wilson_interval
from zoo.metrics.text import perplexity
from zoo.nets.encoder import TokenEncoder
from zoo.nets.transformer import INIT_SCALE, BlockSettings
from zoo.nn.attend import Mask
from zoo.nn.dense import Dense
from zoo.nn.losses import cross_entropy
from zoo.nn.remat import rematerialised
from zoo.sampling.tokens.infill import FillRequest, fill_texts, write_lines

HELD_OUT_MASKS = 2018
"""Seed of the masks of held-out rows, the same in every evaluation of every run."""
FOLLOWS, SEGMENTS = 0, 2
"""BERT's next-sentence label (0: b follows a, 1: it does not), and its number of segments, a and b."""


# ------------------------------------------------------------------------------------------- the network


class Encoder(TokenEncoder):
    """The encoder with its prediction heads.

    Args:
        settings: the family's settings.
        spec: the data spec, for its vocabulary and special tokens.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, settings: "MaskedLM", spec: SegmentSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        s = settings
        block = BlockSettings(
            layers=s.layers, width=s.width, heads=s.heads, hidden=s.hidden, epsilon=s.norm_epsilon, activation=s.mlp,
            rate=s.dropout, attention_rate=s.attention_dropout, post_norm=True,
        )  # fmt: skip
        super().__init__(spec.vocab_size, s.context, SEGMENTS, block=block, remat=s.remat, rngs=rngs, dtype=dtype)
        self.permutes = s.objective == "permutation"
        self.mask, self.special, self.vocab_size = spec.mask, spec.special, spec.vocab_size
        dense = partial(Dense, bias=True, scale=INIT_SCALE, rngs=rngs)
        self.pooler = dense(s.width, s.width) if s.next_sentence else None
        self.next = dense(s.width, 2, wide=True) if s.next_sentence else None

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        segment: Int[Array, "b t"],
        length: Int[Array, " b"],
        positions: Int[Array, "b k"],
        rank: Int[Array, "b t"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t width"], Float[Array, "b k width"]]:
        """Encodes rows; padding is masked.

        Args:
            tokens: rows of at most `context` tokens.
            segment: each token's segment, 0 for a and 1 for b.
            length: number of tokens of each row without padding.
            positions: the positions to predict.
            rank: with permutation, each token's place in the order, 0 for tokens that are not predicted; a position
                attends to tokens of no higher rank, and is predicted from tokens of lower rank.
            key: dropout key; None means evaluation.
            rows: each row's index in the global batch.

        Returns:
            Hidden states, whose position 0 represents the whole row, and the states that predict `positions`.
        """
        if rank is not None:
            return self._two_streams(tokens, segment, length, positions, rank, key, rows)
        x = self.encode(tokens, segment, Mask(lengths=length), key=key, rows=rows)
        return x, _at(x, positions)

    def predict(
        self,
        tokens: Int[Array, "b t"],
        segment: Int[Array, "b t"],
        length: Int[Array, " b"],
        unknown: Bool[Array, "b t"],
        positions: Int[Array, "b k"],
    ) -> Float[Array, "b k vocab"]:
        """Returns logits of the tokens at `positions`, given all tokens that are not unknown."""
        if self.permutes:
            _, x = self(tokens, segment, length, positions, unknown.astype(jnp.int32))
        else:
            _, x = self(jnp.where(unknown, self.mask, tokens), segment, length, positions)
        return self.token_logits(x)

    def next_logits(self, x: Float[Array, "b t width"]) -> Float[Array, "b 1 2"]:
        """Returns next-sentence logits from hidden states."""
        assert self.pooler is not None
        assert self.next is not None
        return self.next(jnp.tanh(self.pooler(x[:, :1])))

    def _two_streams(
        self, tokens: Any, segment: Any, length: Any, positions: Any, rank: Any, key: Any, rows: Any
    ) -> tuple[Float[Array, "b t width"], Float[Array, "b k width"]]:
        """Returns the content stream h, and the query stream g at `positions`."""
        (h_key, *h_keys), (g_key, *g_keys) = (split(each, 1 + len(self.blocks)) for each in split(key, 2))
        h = self.embed(tokens, jnp.arange(tokens.shape[1])[None], segment, key=h_key, rows=rows)
        asked = jnp.full_like(positions, self.mask)
        g = self.embed(asked, positions, jnp.take_along_axis(segment, positions, 1), key=g_key, rows=rows)
        asked_rank = jnp.take_along_axis(rank, positions, 1)
        no_later = Mask(lengths=length, visible=rank[:, None, :] <= rank[:, :, None])
        earlier = Mask(lengths=length, visible=rank[:, None, :] < asked_rank[:, :, None])
        for block, h_block_key, g_block_key in zip(self.blocks, h_keys, g_keys, strict=True):
            read = rematerialised(block, self.remat)
            g, _ = read(g, earlier, source=h, key=g_block_key, rows=rows)
            h, _ = read(h, no_later, key=h_block_key, rows=rows)
        return h, g


def ranks(logits: Float[Array, "b k vocab"], labels: Int[Array, "b k"]) -> Int[Array, "b k"]:
    """Returns the rank of each label among the symbols, 0 for the likeliest; ties are ordered by symbol number."""
    of_label = jnp.take_along_axis(logits, labels[:, :, None], 2)
    smaller = jnp.arange(logits.shape[2])[None, None, :] < labels[:, :, None]
    return ((logits > of_label) | (logits == of_label) & smaller).sum(2)


def _at(x: Float[Array, "b t width"], positions: Int[Array, "b k"]) -> Float[Array, "b k width"]:
    return jnp.take_along_axis(x, positions[:, :, None], axis=1)


# -------------------------------------------------------------------------------------------- the family


class State(NamedTuple):
    """The training state of a masked language model: one network."""

    net: Learner


@dataclass(frozen=True)
class MaskedLM(Family):
    """A masked language model."""

    layers: Annotated[int, Ge(1)] = 4
    """Blocks of attention and MLP."""
    heads: Annotated[int, Ge(1)] = 4
    """Attention heads, each with width / heads features."""
    width: Annotated[int, Ge(1)] = 256
    """Features of a position."""
    mlp_width: Annotated[int, Ge(0)] = 0
    """Features inside the MLP; 0: 4 x width."""
    mlp: Literal["gelu", "gelu_tanh"] = "gelu"
    """Activation of the MLP and of the token prediction head."""
    context: Annotated[int, Ge(FRAME + 2), Why("for [CLS] a [SEP] b [SEP]")] = 128
    """Context length in tokens, including [CLS] and [SEP]."""
    objective: Literal["masked", "permutation"] = "masked"
    """Predict tokens all at once from a masked row (BERT), or in a random order (XLNet)."""
    mask_share: Annotated[float, Gt(0), Le(1)] = 0.15
    """Share of the tokens to predict."""
    next_sentence: bool = True
    """Whether to train next-sentence prediction too: whether the second segment follows the first."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Dropout probability of the input and of each residual branch."""
    attention_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability of the attention weights."""
    norm_epsilon: Annotated[float, Gt(0)] = 1e-12
    """Added to the variance in normalisation."""
    remat: bool = False
    """Recompute blocks in the backward pass and store only their inputs: less memory, a third more compute."""

    accepts: ClassVar[type] = SegmentSpec
    Request: ClassVar[type] = FillRequest
    unit: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        require(
            self,
            "family.",
            ("width", f"a multiple of family.heads, {self.heads}", self.heads < 1 or self.width % self.heads == 0),
        )

    @property
    def length(self) -> int:
        return self.context

    @property
    def hidden(self) -> int:
        """Features inside the MLP."""
        return self.mlp_width or 4 * self.width

    def init(self, spec: SegmentSpec, setup: Setup, key: jax.Array) -> State:
        return State(Learner.create(Encoder(self, spec, nnx.Rngs(key), setup.dtype), setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key)
        return State(net), metrics

    def loss(self, net: Encoder, batch: Batch, key: Key[Array, ""]) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns both tasks' nats summed over rows, each the mean over a row's tokens, and the number of rows."""
        target_key, noise_key, dropout_key = jax.random.split(key, 3)
        rows = batch["row"]
        targets = choose_targets(batch["tokens"], net.special, self.mask_share, target_key, rows)
        if self.objective == "masked":
            tokens = corrupt(batch["tokens"], targets, net.mask, net.vocab_size, noise_key, rows)
            batch = batch | {"tokens": tokens}
        figures = self._figures(net, batch, targets, dropout_key)
        total, weight = figures.pop("loss")
        return total.sum(), weight.sum(), {name: (a.sum(), b.sum()) for name, (a, b) in figures.items()}

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        net = state.net.eval_net()
        targets = held_out_targets(self, batch["tokens"], net.special, batch["row"])
        if self.objective == "masked":
            masked = put(batch["tokens"], targets, jnp.full_like(targets.labels, net.mask))
            batch = batch | {"tokens": masked}
        return self._figures(net, batch, targets, None)

    def _figures(self, net: Encoder, batch: Batch, targets: Targets, key: Any) -> RowStatistics:
        """Returns nats and accuracy of both tasks per row; the batch's tokens are the network's input."""
        tokens = batch["tokens"]
        rank = order_of(targets, tokens.shape[1]) if self.objective == "permutation" else None
        x, asked = net(tokens, batch["segment"], batch["length"], targets.positions, rank, key=key, rows=batch["row"])
        logits = net.token_logits(asked)
        counted = targets.counted.astype(jnp.float32)
        count, nats = counted.sum(1), (cross_entropy(logits, targets.labels) * counted).sum(1)
        likelier = ranks(logits.astype(jnp.float32), targets.labels)
        figures = {"masked_nats": (nats, count)}
        figures |= {f"masked_top{n}": (((likelier < n) * counted).sum(1), count) for n in (1, 5)}
        one, loss = jnp.ones(len(tokens)), nats / jnp.maximum(count, 1.0)
        if self.next_sentence:
            logits, label = net.next_logits(x), jnp.where(batch["follows"] == 1, FOLLOWS, 1 - FOLLOWS)
            next_nats = cross_entropy(logits, label[:, None])[:, 0]
            right = (logits[:, 0].argmax(1) == label).astype(jnp.float32)
            figures |= {"next_sentence_nats": (next_nats, one), "next_sentence_accuracy": (right, one)}
            loss = loss + next_nats
        return {"loss": (loss, one)} | figures

    def score(self, model: Model, rows: dict[str, Any], data: DataSet, scoring: Scoring, key: jax.Array) -> Metrics:
        """Returns masked perplexity, a unigram model's accuracy, and the Wilson interval of next-sentence accuracy."""
        assert isinstance(data, SegmentPairs)
        ranked, special = np.argsort(-data.frequencies, kind="stable"), data.spec.special
        hits: dict[int, list[np.ndarray]] = {1: [], 5: []}
        counts = []
        for batch in map(data.held_out_at, range(data.held_out_batches)):
            targets = jax.device_get(_held_out_targets(self, batch["tokens"], special, batch["row"]))
            labels, counted = (array[batch["valid"]] for array in (targets.labels, targets.counted))
            counts.append(counted.sum(1))
            for n, found in hits.items():
                found.append((np.isin(labels, ranked[:n]) & counted).sum(1))
        count = np.concatenate(counts)
        figures: Metrics = {"masked_perplexity": perplexity(rows["masked_nats"]), "masked_tokens": int(count.sum())}
        for n, found in hits.items():
            figures |= row_mean(f"unigram_top{n}", np.concatenate(found), count)
        if self.next_sentence:
            pairs = len(count)
            low, high = wilson_interval(rows["next_sentence_accuracy"], pairs)
            figures |= {"next_sentence_low": low, "next_sentence_high": high, "next_sentence_pairs": pairs}
        return figures

    def sample(self, model: Model, request: FillRequest, key: jax.Array) -> Artifacts:
        if request.fill is not None:
            return fill_texts(model.state.net, model.spec, request, self.context)
        return write_lines(model.state.net, model.spec, request, key, self.context)


def held_out_targets(
    family: MaskedLM, tokens: Int[Array, "b t"], special: tuple[int, ...], rows: Int[Array, " b"]
) -> Targets:
    """Returns the prediction targets of held-out rows, the same in every evaluation."""
    return choose_targets(tokens, special, family.mask_share, jax.random.key(HELD_OUT_MASKS), rows)


_held_out_targets = jax.jit(held_out_targets, static_argnames=("family", "special"))
