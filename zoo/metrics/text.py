"""Metrics of texts: likelihood, overlap with references, edit distance, and variety.

Every function says what it takes a token to be. Where one counts words, `tokenize` says how a text is cut in them, by
sacreBLEU's tokenizers: "13a" (Western scripts), "zh" (each Chinese character a word), "char" (each character), "none"
(between spaces: for symbols that were written with spaces between them, such as phones).

    perplexity, bits per byte                       Shannon 1951; Jelinek et al. 1977
    BLEU      Papineni et al. 2002, by `sacrebleu`  (Post 2018), with its signature
    ROUGE     Lin 2004, by `rouge-score`
    WER, PER  edit distance over tokens             Levenshtein 1966
    distinct-n                                      Li et al. 2016
    self-BLEU                                       Zhu et al. 2018, Texygen
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from annotated_types import Ge
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.artifacts import Text
from zoo.core.data import Spec
from zoo.core.errors import require
from zoo.core.estimates import row_mean
from zoo.core.extractor import LoadExtractor
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, Scoring
from zoo.data.specs import UNITS, TextSpec
from zoo.sampling.tokens.request import TokenRequest

WordTokenizer = Literal["13a", "zh", "char", "none"]

# ------------------------------------------------------------------------------------------- likelihood


def perplexity(nats_per_token: float) -> float:
    """exp of the mean -log P of a token: comparable only between models whose tokens are the same."""
    return math.exp(min(nats_per_token, 700.0))  # exp(710) is more than a float holds


def likelihood_statistics(nats: Float[Array, " b"], count: Float[Array, " b"], batch: Batch) -> RowStatistics:
    """-log P of held-out rows for each token, and in bits for each unit of what the tokens stand for.

    A character is a Unicode code point and a byte one of UTF-8, of the text that the scored tokens stand for. The end
    of a document is predicted too and is of no length, so bits a byte are comparable between tokenizers.

    Args:
        nats: -log P of each row's scored tokens.
        count: how many those are.
        batch: has an int32 [b] for each unit that fits the tokens, such as `characters` and `bytes`; see `UNITS`.
    """
    bits = nats / math.log(2)
    units = {f"bits_per_{unit}": batch[name] for name, unit in UNITS.items() if name in batch}
    return {"loss": (nats, count)} | {name: (bits, many.astype(jnp.float32)) for name, many in units.items()}


# ------------------------------------------------------------------------------ overlap with references


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: WordTokenizer = "13a") -> Metrics:
    """BLEU of a whole set of texts, 0 to 100, exactly as `sacrebleu` computes it; case counts.

    Args:
        texts: at least one.
        references: of each text, at least one; texts may have different numbers of them.
        tokenize: what a word is; see the module.

    Returns:
        `bleu`, and sacreBLEU's `bleu_signature`, without which a figure means little.
    """
    scorer = _bleu(tokenize)
    most = max(map(len, references))
    streams = [[many[i] if i < len(many) else None for many in references] for i in range(most)]
    score = scorer.corpus_score(texts, streams).score
    return {"bleu": score, "bleu_signature": str(scorer.get_signature())}


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: WordTokenizer | None = None) -> Metrics:
    """ROUGE-1, ROUGE-2 and ROUGE-L: mean F-measures, 0 to 1, exactly as `rouge-score` computes them, without stemming.

    Args:
        texts: at least one.
        references: of each text, at least one; for each figure the reference that gives most counts.
        tokenize: what a word is. None: rouge-score's own words, runs of the letters a-z and digits, in lower case;
            other scripts have no words then and score 0.

    Returns:
        `rouge1`, `rouge2`, `rougeL`, each with its standard error, and `rouge_words`, how words were cut.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, tokenizer=None if tokenize is None else _Words(tokenize))
    scores = [scorer.score_multi(many, text) for text, many in zip(texts, references, strict=True)]
    figures: Metrics = {}
    for kind in kinds:
        figures |= row_mean(kind, [score[kind].fmeasure for score in scores])
    return figures | {"rouge_words": tokenize or "a-z0-9, lower case"}


def exact_match(texts: Sequence[Any], references: Sequence[Sequence[Any]]) -> float:
    """The share of texts (or sequences of tokens) that are equal to one of their references."""
    return float(np.mean(matches(texts, references)))


def matches(texts: Sequence[Any], references: Sequence[Sequence[Any]]) -> Bool[np.ndarray, " n"]:
    """Which texts (or sequences of tokens) are equal to one of their references."""
    return np.array([text in many for text, many in zip(texts, references, strict=True)], bool)


def error_rate(rows: Sequence[Sequence[Any]], references: Sequence[Sequence[Sequence[Any]]]) -> float:
    """Word or phone error rate: edits over tokens, divided by the references' tokens; it can be above 1.

    A row is scored against its nearest reference, of equally near ones the shortest; edits and lengths are summed over
    all rows before they are divided.

    Args:
        rows: token sequences of any kind: words give WER, phones PER, a string its characters' CER.
        references: of each row, at least one.
    """
    edits, lengths = nearest_edits(rows, references)
    return float(edits.sum() / max(lengths.sum(), 1))


def nearest_edits(
    rows: Sequence[Sequence[Any]], references: Sequence[Sequence[Sequence[Any]]]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The edits from each row to its nearest reference, and how many tokens that has; see `error_rate`."""
    pairs = zip(rows, references, strict=True)
    found = [min((edit_distance(row, right), len(right)) for right in many) for row, many in pairs]
    edits, lengths = np.array(found, np.int64).reshape(-1, 2).T
    return edits, lengths


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The fewest insertions, deletions and substitutions of tokens that turn a into b (Levenshtein 1966)."""
    row = list(range(len(b) + 1))  # row[j]: from the part of a so far to b[:j]
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


# ---------------------------------------------------------------------------------------------- variety


def distinct_n(texts: Sequence[str], n: int, tokenize: WordTokenizer = "13a") -> float:
    """The number of different n-grams of words in the texts, divided by that of all words; 0 without a word.

    Li et al. 2016, "A diversity-promoting objective function for neural conversation models", who divide by tokens for
    every n. It falls with the amount of text, so compare equal amounts.
    """
    cut, grams, total = _Words(tokenize), set[tuple[str, ...]](), 0
    for text in texts:
        words = cut.tokenize(text)
        grams.update(zip(*(words[i:] for i in range(n)), strict=False))
        total += len(words)
    return len(grams) / max(total, 1)


def self_bleu(texts: Sequence[str], tokenize: WordTokenizer = "13a") -> float:
    """The mean BLEU, 0 to 100, of each text with all others as its references: high where texts repeat each other.

    Sentence BLEU by `sacrebleu`, up to 4-grams, fewer in a text that is shorter ("effective order").

    Args:
        texts: at least two.
        tokenize: what a word is; see the module.
    """
    scorer = _bleu(tokenize, effective_order=True)
    others = [[*texts[:i], *texts[i + 1 :]] for i in range(len(texts))]
    return float(np.mean([scorer.sentence_score(text, many).score for text, many in zip(texts, others, strict=True)]))


# ------------------------------------------------------------------------------------- language models


@dataclass(frozen=True)
class TextScoring(Scoring):
    """What is computed of a language model beside likelihood."""

    samples: int = 0
    """Texts to write for distinct-1, distinct-2 and self-BLEU; 0: none."""
    sample_tokens: Annotated[int, Ge(1)] = 300
    """How many tokens each of them has at most."""
    stride: int = 0
    """Score held-out text also in windows that overlap, each only its last `stride` targets, so that every token reads
    at least context - stride before it; 0: no."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("samples", "0, or at least 2 to compare with each other", self.samples == 0 or self.samples >= 2),
            ("stride", "from 1 to the model's context, or 0", self.stride >= 0),
        )

    def check(self, family: Family, spec: Spec, extractor: LoadExtractor) -> dict[str, str]:
        asked = [name for name in ("samples", "stride") if getattr(self, name) and not isinstance(spec, TextSpec)]
        return {
            name: f"{name} is {getattr(self, name)}, which scores texts, and the tokens are of none" for name in asked
        }


def score_language_model(model: Model, rows: Metrics, scoring: TextScoring, key: Key[Array, ""]) -> Metrics:
    """Figures of a language model of the held-out split, and of the variety of what it writes.

    Args:
        model: its family is asked for texts by a `TokenRequest`; they are drawn from the model as it is.
        rows: means over the split, `loss` in nats a token among them.
        scoring: how many texts to write.
        key: of the texts' noise.
    """
    figures: Metrics = {"perplexity": perplexity(rows["loss"])}
    if scoring.samples:
        request = TokenRequest(n=scoring.samples, max_new_tokens=scoring.sample_tokens)
        texts = [sample.text for sample in model.family.sample(model, request, key) if isinstance(sample, Text)]
        figures |= variety(texts) | {"samples": scoring.samples, "sample_tokens": scoring.sample_tokens}
    return figures


def variety(texts: Sequence[str], tokenize: WordTokenizer = "13a") -> Metrics:
    """`distinct_1`, `distinct_2` and `self_bleu` of at least two texts, and `variety_words`, how words were cut."""
    return {
        "distinct_1": distinct_n(texts, 1, tokenize),
        "distinct_2": distinct_n(texts, 2, tokenize),
        "self_bleu": self_bleu(texts, tokenize),
        "variety_words": f"sacrebleu {tokenize}",
    }


def _bleu(tokenize: WordTokenizer, effective_order: bool = False) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize, effective_order=effective_order)


class _Words:
    """Cuts a text in words as sacreBLEU does, in the form that rouge-score takes."""

    def __init__(self, tokenize: WordTokenizer) -> None:
        self._cut = _bleu(tokenize).tokenizer

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return self._cut(text).split()
