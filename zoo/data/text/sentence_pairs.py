"""Pairs of segments for next-sentence prediction (Devlin et al. 2019, BERT, task 2).

A row is [CLS] a [SEP] b [SEP]. Its text is a window of a document that starts at a line and fills the row; it is cut
into a and b at the start of a line in the window's middle half. In half of the rows b is replaced by equally many
tokens from another place in the same document, also from the start of a line. So neither length nor topic nor layout
reveals the label; what does is whether a's last sentence continues, who speaks, and about what. White space at the end
of a is removed. Lines are those of the text; with a tokenizer that keeps no line ends (WordPiece) every word starts a
line.
"""

import functools
import hashlib
import zlib
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from zoo.core.data import Batch, DataSet, Split
from zoo.core.errors import UserError
from zoo.data.order import Shuffled, held_out_rows
from zoo.data.specs import SegmentSpec
from zoo.data.splits import Parts
from zoo.data.text.documents import Documents
from zoo.data.tokenized import Tokenized
from zoo.data.tokenizers import Tokenizer
from zoo.data.word_pieces import CLASSIFY, MASK, PADDING

FRAME = 3
"""Number of [CLS] and [SEP] tokens per row."""


@dataclass(frozen=True)
class SentencePairs(Tokenized, Documents):
    """Pairs of text segments: from Shakespeare's plays by default, or from a file or a TFDS set."""

    tokenizer: Literal["bpe", "wordpiece", "characters", "bytes", "gpt2"] = "bpe"
    """Token type: a byte pair learned from the text, a word piece of the BERT that the run starts from, a character, a
    byte, or one of GPT-2's tokens."""

    vocabulary: int = 4096
    """Vocabulary size of 'bpe', including the 256 bytes and end-of-text."""

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: SegmentSpec | None = None,
        split: Split = "dev",
    ) -> "SegmentPairs":
        """Reads, splits and tokenizes the documents; see `Data.open`."""
        if length is None or length < FRAME + 2:
            raise UserError(f"a pair of segments takes at least {FRAME + 2} tokens, and this model sees {length}")
        documents = self.documents(split)
        train, *held_out = documents.each
        tokenizer = self.tokenizer_of(spec, train, list(chain(*held_out)))
        return SegmentPairs(
            spec=spec or make_spec(tokenizer),
            parts=documents.map(lambda texts: _read(tokenizer, texts, length - FRAME, self.name)),
            length=length,
            batch_size=batch_size,
            seed=seed,
            name=self.name,
            split=split,
        )

    def make_tokenizer(self, train: list[str], held_out: list[str]) -> Tokenizer:
        """Makes a tokenizer from the texts; see `Tokenized`."""
        if self.tokenizer == "wordpiece":
            raise UserError("--data.tokenizer wordpiece comes with a BERT's weights and is not learned: give bpe")
        return super().make_tokenizer(train, held_out)


def make_spec(tokenizer: Tokenizer) -> SegmentSpec:
    """Makes the spec for a tokenizer, with its own special tokens, or else with new ids after all others."""
    names, pieces = [token.encode() for token in (PADDING, CLASSIFY, MASK)], tokenizer.pieces
    if all(name in pieces for name in names):
        return SegmentSpec(tokenizer, *(pieces.index(name) for name in names))
    return SegmentSpec(tokenizer, *(tokenizer.vocab_size + i for i in range(len(names))))


class Corpus(NamedTuple):
    """Documents as one token stream."""

    tokens: Integer[np.ndarray, " t"]
    ends: Int[np.ndarray, " d"]
    """Where each document ends and the next begins."""
    lines: Int[np.ndarray, " l"]
    """Where non-blank lines begin."""
    begins: Int[np.ndarray, " w"]
    """Where windows may begin: at lines from which a full window fits into the document, and at each document's
    start."""

    def document(self, place: int) -> tuple[int, int]:
        """Returns the beginning and the end of the document that contains position `place`."""
        number = int(np.searchsorted(self.ends, place, side="right"))
        return (int(self.ends[number - 1]) if number else 0), int(self.ends[number])


def _read(tokenizer: Tokenizer, texts: list[str], room: int, name: str) -> Corpus:
    """Tokenizes the texts; those with fewer than two tokens cannot be cut in two and are left out."""
    documents = [ids for ids in map(tokenizer.encode, texts) if len(ids) >= 2]
    if not documents:
        raise UserError(f"{name} has a split without two tokens of text: give more text")
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    tokens = np.concatenate(documents, dtype=dtype, casting="unsafe")
    ends = np.cumsum([len(ids) for ids in documents])
    first = np.append(0, ends[:-1])
    is_line = _after_line_end(tokenizer, tokens)
    is_line[first] = True
    lines = np.flatnonzero(is_line & ~_blank(tokenizer)[tokens])
    end = ends[np.searchsorted(ends, lines, side="right")]
    return Corpus(tokens, ends, lines, np.union1d(first, lines[lines + room <= end]))


def _after_line_end(tokenizer: Tokenizer, tokens: Integer[np.ndarray, " t"]) -> Bool[np.ndarray, " t"]:
    """Returns which tokens begin a line or, if no token ends a line, which begin a word."""
    ends = np.array([piece.endswith(b"\n") for piece in tokenizer.pieces])
    if not ends.any():
        return np.array([piece.startswith(b" ") for piece in tokenizer.pieces])[tokens]
    return np.append(False, ends[tokens[:-1]])


def _blank(tokenizer: Tokenizer) -> Bool[np.ndarray, " v"]:
    """Returns which ids are white space."""
    return np.array([not piece.strip() for piece in tokenizer.pieces])


@dataclass(frozen=True)
class SegmentPairs(DataSet):
    """Pairs cut from a corpus; see the module.

    A training row begins at a position of `begins`, drawn without replacement within an epoch; (seed, row) determines
    where it is cut and what b is. Held-out rows are windows that do not overlap, each starting at the first line after
    the previous window, sorted by a hash of their tokens; in every second one b follows a.
    """

    spec: SegmentSpec
    parts: Parts[Corpus]
    length: int
    batch_size: int
    seed: int
    name: str
    split: Split = "dev"

    @property
    def train(self) -> Corpus:
        """The training text."""
        return self.parts.train

    @property
    def held_out(self) -> Corpus:
        """The held-out text of the split."""
        return self.parts.held_out[self.split]

    @functools.cached_property
    def _order(self) -> Shuffled:
        return Shuffled(len(self.train.begins), self.seed)

    @functools.cached_property
    def _windows(self) -> list[int]:
        """Start positions of the held-out windows, in hash order."""
        found, free = [], 0
        for begin in self.held_out.begins.tolist():
            if begin >= free:
                found.append(begin)
                free = begin + self.length - FRAME
        windows = (self.held_out.tokens[begin : begin + self.length - FRAME] for begin in found)
        digests = [hashlib.sha256(window.astype("<i4").tobytes()).digest() for window in windows]
        return [found[i] for i in sorted(range(len(found)), key=digests.__getitem__)]

    @property
    def held_out_batches(self) -> int:
        """Number of batches that hold all windows of the split."""
        return -(-len(self._windows) // self.batch_size)

    @functools.cached_property
    def frequencies(self) -> Int[np.ndarray, " v"]:
        """Number of occurrences of each token in the training text."""
        return np.bincount(self.train.tokens, minlength=self.spec.vocab_size)

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: the arrays in `SegmentSpec`, `row` int32 [b] and `valid` bool [b]."""
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        pairs = []
        drawn = step * self.batch_size + row.astype(np.int64)
        for i, begin in zip(drawn.tolist(), self.train.begins[self._order[drawn]].tolist(), strict=True):
            rng = np.random.default_rng((self.seed % 2**32, i))
            pairs.append(self._pair(self.train, begin, bool(rng.random() < 0.5), rng))
        return self._batch(pairs) | {"row": row, "valid": np.ones(row.shape, bool)}

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`; `row` is the window's index in the whole split."""
        row, place, valid = held_out_rows(index, rows, len(self._windows), self.batch_size)
        pairs = [
            self._pair(self.held_out, self._windows[i], i % 2 == 0, np.random.default_rng((1, i)))
            for i in place.tolist()
        ]
        return self._batch(pairs) | {"row": row, "valid": valid}

    def _pair(self, corpus: Corpus, begin: int, follows: bool, rng: np.random.Generator) -> tuple[Any, Any, bool]:
        """Returns the two segments of a window, and whether the second follows the first.

        If the document has no other place for b, b follows a.
        """
        first, last = corpus.document(begin)
        end = min(begin + self.length - FRAME, last)
        lines = corpus.lines[np.searchsorted(corpus.lines, first) : np.searchsorted(corpus.lines, last)]
        inner = lines[(lines > begin) & (lines < end)]
        quarter = (end - begin) // 4
        middle = inner[(inner > begin + quarter) & (inner < end - quarter)]
        places = next((some for some in (middle, inner) if len(some)), np.arange(begin + 1, end))
        cut = int(rng.choice(places))
        b = cut
        if not follows:
            size = end - cut
            others = lines[(lines + size <= last) & ((lines + size <= begin) | (lines >= end))]
            follows = len(others) == 0
            b = cut if follows else int(rng.choice(others))
        a = corpus.tokens[begin:cut]
        while len(a) > 1 and self._blank[a[-1]]:
            a = a[:-1]
        return a, corpus.tokens[b : b + end - cut], follows

    @functools.cached_property
    def _blank(self) -> Bool[np.ndarray, " v"]:
        return _blank(self.spec.tokenizer)

    def _batch(self, pairs: list[tuple[Any, Any, bool]]) -> Batch:
        """Returns rows of pairs with [CLS], [SEP] and padding."""
        tokens = np.full((len(pairs), self.length), self.spec.padding, np.int32)
        segment, lengths = np.zeros_like(tokens), np.zeros(len(pairs), np.int32)
        for i, (a, b, _) in enumerate(pairs):
            row = [self.spec.classify, *a, self.spec.separate, *b, self.spec.separate]
            tokens[i, : len(row)], segment[i, len(a) + 2 : len(row)], lengths[i] = row, 1, len(row)
        follows = np.array([follows for _, _, follows in pairs], np.int32)
        return {"tokens": tokens, "segment": segment, "length": lengths, "follows": follows}

    def coverage(self) -> dict[str, float]:
        """Returns the share of unknown tokens, if the tokenizer has an unknown token."""
        unknown = self.spec.tokenizer.unknown
        return {} if unknown is None else {"unknown_share": float(np.mean(self.held_out.tokens == unknown))}

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the training tokens."""
        return f"{zlib.crc32(self.train.tokens.tobytes()):08x}"

    def describe(self) -> str:
        """Returns the documents, tokens, lines, vocabulary and pairs in one line."""
        tokens = " + ".join(f"{len(part.tokens):,}" for part in self.parts.each)
        return (
            f"{self.name}: {self.parts.sizes('documents', lambda part: len(part.ends))}; {tokens} tokens of "
            f"{self.spec.vocab_size:,} ({self.spec.tokenizer.kind}), {len(self.train.lines):,} lines to train on; "
            f"{len(self._windows):,} pairs in {self.split}"
        )
