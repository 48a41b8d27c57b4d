"""Text metrics: likelihood, overlap with references, edit distance, and variety.

Each function states what a token is. For words, `tokenize` selects one of sacreBLEU's tokenizers: "13a" (Western
scripts), "zh" (each Chinese character is a word), "char" (each character), "none" (split at spaces: for space-separated
symbols such as phones).

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

WordTokenizer = Literal["13a", "zh", "char", "none"]

# ------------------------------------------------------------------------------------------- likelihood


def perplexity(nats_per_token: float) -> float:
    """Returns exp of the mean -log P of a token: comparable only between models with the same tokens."""
    return math.exp(min(nats_per_token, 700.0))  # exp(710) overflows a float


def likelihood_statistics(nats: Float[Array, " b"], count: Float[Array, " b"], batch: Batch) -> RowStatistics:
    """Returns -log P of held-out rows per token, and in bits per unit of the data that the tokens represent.

    For text, a character is a Unicode code point and a byte is a byte of UTF-8, counted over the scored tokens. The end
    of a document is scored too and has length 0, so bits per byte are comparable between tokenizers.

    Args:
        nats: -log P of each row's scored tokens.
        count: their number.
        batch: has an int32 [b] for each unit of its data, such as `characters` and `bytes`; see `UNITS`.
    """
    bits = nats / math.log(2)
    units = {f"bits_per_{unit}": batch[name] for name, unit in UNITS.items() if name in batch}
    return {"loss": (nats, count)} | {name: (bits, many.astype(jnp.float32)) for name, many in units.items()}


# ------------------------------------------------------------------------------ overlap with references


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: WordTokenizer = "13a") -> Metrics:
    """Returns the corpus BLEU, 0 to 100, exactly as `sacrebleu` computes it; case-sensitive.

    Args:
        texts: at least one.
        references: at least one for each text; their number may differ between texts.
        tokenize: what a word is; see the module.

    Returns:
        `bleu`, and sacreBLEU's `bleu_signature`, which is needed to compare figures.
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
        references: at least one for each text; the best-scoring reference counts, for each figure separately.
        tokenize: what a word is. None: rouge-score's own words, runs of the letters a-z and digits, in lower case;
            texts in other scripts then have no words and score 0.

    Returns:
        `rouge1`, `rouge2`, `rougeL`, each with its standard error, and `rouge_words`, the definition of a word.
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
    """Returns the share of texts (or sequences of tokens) that equal one of their references."""
    return float(np.mean(matches(texts, references)))


def matches(texts: Sequence[Any], references: Sequence[Sequence[Any]]) -> Bool[np.ndarray, " n"]:
    """Returns which texts (or sequences of tokens) equal one of their references."""
    return np.array([text in many for text, many in zip(texts, references, strict=True)], bool)


def error_rate(rows: Sequence[Sequence[Any]], references: Sequence[Sequence[Sequence[Any]]]) -> float:
    """Word or phone error rate: edits over tokens, divided by the references' tokens; it may exceed 1.

    A row is scored against its nearest reference, the shortest in a tie; edits and lengths are summed over all rows
    before the division.

    Args:
        rows: token sequences of any kind: words give WER, phones PER, the characters of a string CER.
        references: at least one for each row.
    """
    edits, lengths = nearest_edits(rows, references)
    return float(edits.sum() / max(lengths.sum(), 1))


def nearest_edits(
    rows: Sequence[Sequence[Any]], references: Sequence[Sequence[Sequence[Any]]]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Returns the edits from each row to its nearest reference, and that reference's length; see `error_rate`."""
    pairs = zip(rows, references, strict=True)
    found = [min((edit_distance(row, right), len(right)) for right in many) for row, many in pairs]
    edits, lengths = np.array(found, np.int64).reshape(-1, 2).T
    return edits, lengths


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Returns the minimum number of token insertions, deletions and substitutions from a to b (Levenshtein 1966)."""
    row = list(range(len(b) + 1))  # row[j]: distance from the processed prefix of a to b[:j]
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


# ---------------------------------------------------------------------------------------------- variety


def distinct_n(texts: Sequence[str], n: int, tokenize: WordTokenizer = "13a") -> float:
    """Returns the number of distinct word n-grams in the texts divided by the number of words; 0 if there are no words.

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
    """Returns the mean BLEU, 0 to 100, of each text against all others: high if texts repeat each other.

    Sentence BLEU by `sacrebleu`, up to 4-grams, or fewer in a shorter text ("effective order").

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
    """Settings for scoring a language model beyond likelihood."""

    samples: int = 0
    """Number of texts to sample for distinct-1, distinct-2 and self-BLEU; 0: none."""
    sample_tokens: Annotated[int, Ge(1)] = 300
    """Maximum number of tokens in each of them."""
    stride: int = 0
    """Also score held-out text in overlapping windows, each only its last `stride` targets, so that every token has at
    least context - stride tokens before it; 0: no."""

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
    """Computes perplexity on the held-out split, and the variety of sampled texts.

    Args:
        model: samples texts with the defaults of its family's request: temperature 1, no truncation.
        rows: means over the split, including `loss` in nats per token.
        scoring: number of texts to sample.
        key: key for sampling.
    """
    figures: Metrics = {"perplexity": perplexity(rows["loss"])}
    if scoring.samples:
        make: Any = model.family.Request
        request = make(n=scoring.samples, max_new_tokens=scoring.sample_tokens)
        texts = [sample.text for sample in model.family.sample(model, request, key) if isinstance(sample, Text)]
        figures |= variety(texts) | {"samples": scoring.samples, "sample_tokens": scoring.sample_tokens}
    return figures


def variety(texts: Sequence[str], tokenize: WordTokenizer = "13a") -> Metrics:
    """Returns `distinct_1`, `distinct_2` and `self_bleu` of at least two texts, and `variety_words`, the tokenizer."""
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
    """Splits a text into words as sacreBLEU does, with the interface that rouge-score expects."""

    def __init__(self, tokenize: WordTokenizer) -> None:
        self._cut = _bleu(tokenize).tokenizer

    def tokenize(self, text: str) -> list[str]:
        """Returns the words of a text."""
        return self._cut(text).split()
