"""Sequence to sequence: an encoder reads a source x, and a decoder generates a target y symbol by symbol.

    log P(y | x) = sum_t log P(y_t | y_<t, x)

Sutskever et al. 2014, "Sequence to sequence learning with neural networks". The network is recurrent, with or without
attention (`zoo.nets.recurrent_seq2seq`: Bahdanau et al. 2015; Luong et al. 2015), or a Transformer
(`zoo.nets.transformer_seq2seq`: Vaswani et al. 2017). It is trained by maximum likelihood with teacher forcing; with
label smoothing e (Szegedy et al. 2016) and v target symbols, the loss of a symbol is

    (1 - e) (-log P(y_t | y_<t, x)) + e / v sum_w (-log P(w | y_<t, x))

Decoding is by beam search (`zoo.sampling.tokens.translation`). Sources are [b s], targets [b t+1], which start with
end-of-text: the decoder's inputs are all symbols but the last, its outputs all but the first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from zoo.core.artifacts import Artifact, Artifacts, Text
from zoo.core.bounds import Why
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.estimates import STDERR, row_mean
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, Scoring, Setup
from zoo.core.learner import Learner
from zoo.core.random import split
from zoo.data.pairs.dataset import PairSet
from zoo.data.specs import PairSpec
from zoo.metrics.text import WordTokenizer, bleu, matches, nearest_edits, perplexity, rouge
from zoo.metrics.windows import token_listing
from zoo.nets.recurrent_seq2seq import RecurrentSeq2Seq, Score
from zoo.nets.transformer_seq2seq import TransformerSeq2Seq
from zoo.nn.by_length import Sums, at_length
from zoo.nn.cells import Cell
from zoo.nn.losses import cross_entropy
from zoo.sampling.tokens.translation import (
    TranslationRequest,
    draw_alignment,
    encode_source,
    translate,
    translate_lines,
)

Network = RecurrentSeq2Seq | TransformerSeq2Seq


class State(NamedTuple):
    """The training state of a sequence-to-sequence model: one network."""

    net: Learner


@dataclass(frozen=True)
class Seq2SeqScoring(Scoring):
    """How held-out sources are decoded, and the results compared with the references."""

    removed: ClassVar[tuple[str, ...]] = ("split",)
    """Fields of earlier versions: the split is now one of `evaluate.py`'s own flags."""

    sources: Annotated[int, Ge(0)] = 0
    """Number of the split's sources to decode; 0: all."""
    num_beams: Annotated[int, Ge(1)] = 5
    """Beam size: unfinished targets that the search keeps; 1: greedy decoding."""
    length_penalty: float = 0.0
    """Exponent of the length penalty: beams are ranked by log-probability / length^penalty; above 0 favours long
    targets."""
    strip: str = ""
    """A regular expression whose matches are removed from targets before they are compared, such as '[0-9]' for the
    stress of phones. Figures without removal are reported too, as `unstripped`."""
    words: WordTokenizer = "13a"
    """Word tokenizer of BLEU and ROUGE; see `zoo.metrics.text`."""

    def __post_init__(self) -> None:
        require(self, "")
        try:
            re.compile(self.strip)
        except re.error as error:
            raise UserError(f"strip is {self.strip!r}, which is no regular expression: {error}") from None


@dataclass(frozen=True)
class Seq2Seq(Family):
    """A sequence-to-sequence model."""

    network: Literal["recurrent", "transformer"] = "recurrent"
    """Type of encoder and decoder."""
    layers: Annotated[int, Ge(1)] = 2
    """Layers or blocks of the encoder, and of the decoder."""
    width: Annotated[int, Ge(1)] = 256
    """Features of a state or position; each direction of a recurrent encoder has half of them."""
    context: Annotated[int, Ge(2), Why("for a symbol and the end")] = 32
    """Maximum symbols of a source or a target, including end-of-text."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Dropout probability of the input, between layers or of each residual branch, and, in a recurrent network, before
    the output layer."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share e of the target probability that is spread evenly over all symbols in training."""
    cell: Cell = "lstm"
    """recurrent: the cell."""
    embedding: Annotated[int, Ge(1)] = 128
    """recurrent: features of a symbol's embedding."""
    attention: Score = "luong"
    """recurrent: attention over the source; see `zoo.nets.recurrent_seq2seq`. Bahdanau's is slower, since it attends
    step by step."""
    heads: Annotated[int, Ge(1)] = 4
    """transformer: attention heads, each with width / heads features."""
    remat: bool = False
    """transformer: recompute blocks in the backward pass and store only their inputs: less memory, a third more
    compute."""

    accepts: ClassVar[type] = PairSpec
    Request: ClassVar[type] = TranslationRequest
    Scoring: ClassVar[type] = Seq2SeqScoring
    unit: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        transformer = self.network == "transformer"
        require(
            self,
            "family.",
            ("width", "even, for two directions", transformer or self.width % 2 == 0),
            ("width", f"a multiple of family.heads, {self.heads}", not transformer or self.width % self.heads == 0),
        )

    @property
    def length(self) -> int:
        return self.context

    def init(self, spec: PairSpec, setup: Setup, key: jax.Array) -> State:
        common: dict[str, Any] = {
            "rate": self.dropout,
            "source_size": spec.source.vocab_size,
            "target_size": spec.target.vocab_size,
            "rngs": nnx.Rngs(key),
            "dtype": setup.dtype,
        }
        if self.network == "transformer":
            net: Network = TransformerSeq2Seq(
                self.layers, self.heads, self.width, self.context, remat=self.remat, **common
            )
        else:
            shape = (self.cell, self.layers, self.width, self.embedding, self.attention)
            net = RecurrentSeq2Seq(*shape, **common)
        return State(Learner.create(net, setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key)
        return State(net), metrics

    def loss(self, net: Network, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns the smoothed loss of a batch in nats, the number of target symbols, and -log P(y | x) as a metric."""
        total, (nats, count) = self._losses(net, batch, key)
        return total, count.sum(), {"nats_per_token": (nats.sum(), count.sum())}

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        _, (nats, count) = self._losses(state.net.eval_net(), batch, None)
        return {"loss": (nats, count), "nats_per_target": (nats, jnp.ones_like(nats))}

    def _losses(self, net: Network, batch: Batch, key: Any) -> Sums:
        """Returns the smoothed loss of a batch, and two arrays [b]: -log P(y | x) and the symbols of each row."""
        graphdef, params = nnx.split(net)
        needed = jnp.maximum(batch["source_length"], batch["target_length"] - 1).max()
        sums = partial(self._losses_at, graphdef)
        return at_length(sums, self._lengths, needed, params, batch, key)

    @property
    def _lengths(self) -> tuple[int, ...]:
        """Lengths that batches are cut to; most batches of rows of similar length are far shorter than the context."""
        shares = (0.4, 0.6, 1.0) if self.context >= 16 else (1.0,)  # few, since each is compiled
        return tuple(round(share * self.context) for share in shares)

    def _losses_at(self, graphdef: Any, length: int, params: Any, batch: Batch, key: Any) -> Sums:
        """`_losses` with sources and targets cut to a length."""
        net, rows = nnx.merge(graphdef, params), batch["row"]
        source_key, target_key = split(key, 2)
        source, target = batch["source"][:, :length], batch["target"][:, : length + 1]
        memory = net.encode(source, within(batch["source_length"], length), key=source_key, rows=rows)
        logits = net.decode(target[:, :-1], memory, key=target_key, rows=rows)
        weight = within(batch["target_length"] - 1, length).astype(jnp.float32)
        nats = cross_entropy(logits, target[:, 1:])
        smoothed = cross_entropy(logits, target[:, 1:], self.label_smoothing) if self.label_smoothing else nats
        return (smoothed * weight).sum(), ((nats * weight).sum(1), weight.sum(1))

    def score(
        self, model: Model, rows: dict[str, Any], data: DataSet, scoring: Seq2SeqScoring, key: jax.Array
    ) -> Metrics:
        assert isinstance(data, PairSet)
        references = list(data.references().items())
        references = references[: scoring.sources or len(references)]
        fitting = [source for source, _ in references if len(model.spec.source.encode(source)) < self.context]
        found = translate(
            model.state.net.eval_net(),
            model.spec,
            [encode_source(model.spec, source, self.context) for source in fitting],
            length=self.context,
            num_beams=scoring.num_beams,
            length_penalty=scoring.length_penalty,
        )
        best = {source: beams[0].text for source, beams in zip(fitting, found, strict=True)}
        # A source that exceeds the context counts as decoded to an empty text.
        texts, right = [best.get(source, "") for source, _ in references], [targets for _, targets in references]
        figures = {"perplexity": perplexity(rows["loss"])}
        if scoring.strip:
            figures |= {unstripped(name): value for name, value in error_rates(texts, right).items()}
            texts = [strip(scoring.strip, text) for text in texts]
            right = [[strip(scoring.strip, target) for target in targets] for targets in right]
        figures |= error_rates(texts, right)
        figures |= bleu(texts, right, scoring.words) | rouge(texts, right, scoring.words)
        how = {"sources": len(texts), "num_beams": scoring.num_beams, "strip": scoring.strip}
        return figures | {f"scored_{name}": value for name, value in how.items()}

    def _score_target(self, net: Network, spec: PairSpec, source: Int[np.ndarray, " s"], about: str, text: str) -> Text:
        """Returns log P(target | source), listed symbol by symbol."""
        end = spec.target.end_of_text
        target = np.array([end, *spec.target.encode(text), end], np.int32)
        if len(target) > self.context + 1:
            raise UserError(
                f"score is {len(target) - 2} symbols long, but the model sees {self.context} with the end: "
                f"give at most {self.context - 1}"
            )
        log_p = np.asarray(_log_probabilities(*nnx.split(net), source, target))
        return token_listing(spec.target, target[1:], log_p, {"source": about, "text": text})

    def sample(self, model: Model, request: TranslationRequest, key: jax.Array) -> Artifacts:
        net, spec, drawn = model.state.net.eval_net(), model.spec, request.source is None
        if request.sources:
            return translate_lines(net, spec, request, self.context)
        source = request.source
        if source is None:
            source = spec.examples[int(jax.random.randint(key, (), 0, len(spec.examples)))]
        if request.attention and self.network == "recurrent" and self.attention == "none":
            raise UserError(f"attention is {request.attention!r}, but this model has none to draw")
        tokens = encode_source(spec, source, self.context)
        if request.score is not None:
            return [self._score_target(net, spec, tokens, source, request.score)]
        (found,) = translate(
            net,
            spec,
            [tokens],
            length=self.context,
            num_beams=request.num_beams,
            length_penalty=request.length_penalty,
        )
        best = found[: request.n]
        made: list[Artifact] = [
            Text(f"{source}: {target.text}" if drawn else target.text, {"score": target.score}) for target in best
        ]
        if request.attention:
            picture = draw_alignment(net, spec, tokens, best[0].tokens, self.context)
            made.append(replace(picture, file=request.attention))
        return made


@partial(jax.jit, static_argnames="graphdef")
def _log_probabilities(graphdef: Any, state: Any, source: Any, target: Any) -> Float[Array, " t"]:
    """Returns log P of each symbol of one target except the first, in nats."""
    net = nnx.merge(graphdef, state)
    logits = net.decode(target[None, :-1], net.encode(source[None], jnp.ones((1, len(source)), bool)))
    return -cross_entropy(logits, target[None, 1:])[0]


def within(count: Int[Array, " b"], length: int) -> Bool[Array, "b t"]:
    """Returns a mask of each row's first `count` positions."""
    return jnp.arange(length)[None, :] < count[:, None]


def strip(pattern: str, text: str) -> str:
    """Returns a text without the matches of a pattern."""
    return re.sub(pattern, "", text)


def unstripped(name: str) -> str:
    """Returns the name of a figure, or of its standard error, computed without `strip`."""
    figure = name.removesuffix(STDERR)
    return f"{figure}_unstripped{name.removeprefix(figure)}"


def error_rates(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Metrics:
    """Returns exact match, error rate and token error rate of texts; tokens are separated by spaces.

    Each figure comes with its standard error over the texts.
    """
    figures = row_mean("exact_match", matches(texts, references))
    figures |= {name.replace("exact_match", "error_rate"): value for name, value in figures.items()}
    figures["error_rate"] = 1.0 - figures["exact_match"]
    tokens = [text.split() for text in texts]
    right = [[target.split() for target in targets] for targets in references]
    return figures | row_mean("token_error_rate", *nearest_edits(tokens, right))
