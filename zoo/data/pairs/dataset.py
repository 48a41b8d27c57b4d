"""Pairs of a source and a target for sequence-to-sequence models: CMUdict's words and phones, or the user's."""

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt
from jaxtyping import Int32, Int64

from zoo.core.data import Batch, Data, DataSet, Split
from zoo.core.errors import UserError, require
from zoo.data.order import held_out_rows
from zoo.data.sources import read_cmudict, read_pairs
from zoo.data.specs import PairSpec
from zoo.data.splits import Parts, cut_by_hash, digest
from zoo.data.text.sentences import Lines, check_fits, coverage, pack
from zoo.data.tokenized import Kind, check_characters, check_kind, make_tokenizer
from zoo.data.tokenizers import Tokenizer

Pair = tuple[str, str]

EXAMPLES = 64
"""Number of held-out sources that the spec keeps."""


@dataclass(frozen=True)
class Pairs(Data):
    """Pairs: CMUdict's spellings and pronunciations by default, or those of a file.

    A source may have several targets; all are correct, and all are in the same part of the data.
    """

    path: str = ""
    """A UTF-8 file with a source, a tab and a target per line, a .jsonl file, or a quoted glob. Empty: CMUdict's words
    of letters only and their pronunciations, embedded in this package."""

    source_field: str = "source"
    """The field of the source in JSON lines."""

    target_field: str = "target"
    """The field of the target in JSON lines."""

    dev: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Share of the sources that is scored during training, chosen by a hash of their text."""

    test: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Share of the sources that is held out for the final score, chosen by a hash of their text."""

    source_tokenizer: Kind = "characters"
    """Token type of sources: a character, a word, a byte, a byte pair learned from the sources, or GPT-2's tokens."""

    target_tokenizer: Kind = "words"
    """Token type of targets; phones separated by spaces are words."""

    source_vocabulary: int = 8000
    """Vocabulary size of 'words' or 'bpe' for sources."""

    target_vocabulary: int = 8000
    """Vocabulary size of 'words' or 'bpe' for targets."""

    def __post_init__(self) -> None:
        require(
            self,
            "data.",
            ("test", f"below 1 - data.dev, {1 - self.dev:.3g}", self.dev + self.test < 1),
        )

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.path or "CMUdict"

    def check_tokenizer(self, spec: PairSpec) -> None:
        """Rejects a run's spec whose tokenizers are of other kinds; see `check_kind`."""
        check_kind(spec.source, self.source_tokenizer, "source-tokenizer")
        check_kind(spec.target, self.target_tokenizer, "target-tokenizer")

    def fitting(self, spec: PairSpec) -> "Pairs":
        """Returns these settings with the kinds of tokenizers of an earlier run."""
        kinds: Any = {"source_tokenizer": spec.source.kind, "target_tokenizer": spec.target.kind}
        return replace(self, **kinds)

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: PairSpec | None = None,
        split: Split = "dev",
    ) -> "PairSet":
        """Reads, splits and tokenizes the pairs; see `Data.open`."""
        if length is None:
            raise UserError("pairs are rows of tokens, and this model family has no context length for them")
        pairs = self._read()
        parts = split_pairs(pairs, self.dev, self.test, self.name) if split != "all" else whole_pairs(pairs)
        train, *rest = parts.each
        if spec is None:
            held_out = list(chain(*rest))
            source = _tokenizer(self.source_tokenizer, self.source_vocabulary, 0, train, held_out)
            target = _tokenizer(self.target_tokenizer, self.target_vocabulary, 1, train, held_out)
            fitting = [text for text in dict(parts.held_out[split]) if len(source.encode(text)) < length]
            spec = PairSpec(source, target, tuple(fitting[:EXAMPLES]))
        for side, tokenizer in enumerate((spec.source, spec.target)):
            check_characters(tokenizer, (pair[side] for pair in pairs))
        return PairSet(
            spec=spec,
            parts=parts.map(lambda rows: encode_pairs(spec, rows, length, rows is train and split != "all")),
            texts=parts,
            length=length,
            batch_size=batch_size,
            seed=seed,
            name=self.name,
            split=split,
        )

    def excerpt(self, folder: Path) -> "Pairs":
        """Returns these settings for every 400th of the short pairs; see `Data.excerpt`.

        Their sources have at most 7 characters, their targets at most 7 words.
        """
        path = folder / "excerpt.tsv"
        short = [pair for pair in self._read() if len(pair[0]) < 8 and len(pair[1].split()) < 8]
        text = "".join(f"{source}\t{target}\n" for source, target in short[::400])
        path.write_text(text, encoding="utf-8")
        return replace(self, path=str(path))

    def _read(self) -> list[Pair]:
        return read_pairs(self.path, (self.source_field, self.target_field)) if self.path else read_cmudict()


def _tokenizer(kind: Kind, vocabulary: int, side: int, train: list[Pair], held_out: list[Pair]) -> Tokenizer:
    """Makes a tokenizer for one side of all pairs."""
    return make_tokenizer(kind, [pair[side] for pair in train], [pair[side] for pair in held_out], vocabulary)


def split_pairs(pairs: Sequence[Pair], dev: float, test: float, name: str = "the data") -> Parts[list[Pair]]:
    """Splits pairs by a hash of their sources, so that all targets of a source are in one part; see `cut_by_hash`.

    Args:
        pairs: may contain duplicates, which are dropped.
        dev: share of the distinct sources.
        test: share of the distinct sources.
        name: name of the pairs, for errors.

    Raises:
        UserError: there are fewer than three distinct sources.
    """
    pairs = list(dict.fromkeys(pairs))
    digests = [digest(source) for source, _ in pairs]
    places = cut_by_hash(digests, {"test": test, "dev": dev}, "train", "source", name)
    found = {part: [pairs[i] for i in places[part]] for part in places}
    return Parts(_by_hash(found["train"]), {"dev": found["dev"], "test": found["test"]})


def whole_pairs(pairs: Sequence[Pair]) -> Parts[list[Pair]]:
    """Returns all distinct pairs, sorted by a hash of their sources."""
    return Parts.whole(_by_hash(list(dict.fromkeys(pairs))))


def _by_hash(pairs: list[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: digest(pair[0]))


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Tokenized pairs, without those that are too long."""

    source: Lines
    target: Lines

    def __len__(self) -> int:
        return len(self.source)

    @property
    def too_long(self) -> int:
        """Number of pairs left out."""
        return self.source.too_long


def encode_pairs(spec: PairSpec, pairs: Sequence[Pair], length: int, by_length: bool = False) -> EncodedPairs:
    """Tokenizes the pairs of which each side, including the end-of-text after it, has at most `length` tokens.

    Args:
        spec: has the tokenizers.
        pairs: texts.
        length: the model's context length.
        by_length: whether to sort by length, shortest first; else the order is kept.
    """
    encoded = [(spec.source.encode(source), spec.target.encode(target)) for source, target in pairs]
    fitting = [pair for pair in encoded if max(map(len, pair)) < length]
    longer = [pair for pair in encoded if max(map(len, pair)) >= length]
    if by_length:
        fitting.sort(key=lambda pair: max(map(len, pair)))
    sides = ((spec.source, 0), (spec.target, 1))
    return EncodedPairs(
        *(pack(tokenizer, [pair[i] for pair in fitting], [pair[i] for pair in longer]) for tokenizer, i in sides)
    )


@dataclass(frozen=True, eq=False)
class PairSet(DataSet):
    """Pairs in memory.

    The pairs of a training batch have similar lengths. An epoch sorts the pairs by length, ties in an order drawn from
    (seed, epoch), cuts them into batches, and shuffles the batches likewise; the last batch, of the longest pairs, is
    filled up with the shortest.
    """

    spec: PairSpec
    parts: Parts[EncodedPairs]
    texts: Parts[list[Pair]]
    length: int
    batch_size: int
    seed: int
    name: str
    split: Split = "dev"

    def __post_init__(self) -> None:
        check_fits(self.parts, self.name, "pair", self.length)

    @property
    def train(self) -> EncodedPairs:
        """The training pairs."""
        return self.parts.train

    @property
    def held_out(self) -> EncodedPairs:
        """The held-out pairs of the split."""
        return self.parts.held_out[self.split]

    @property
    def batches(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self.train) // self.batch_size)

    @property
    def held_out_batches(self) -> int:
        """Number of batches that hold all pairs of the split."""
        return -(-len(self.held_out) // self.batch_size)

    @functools.cached_property
    def _sizes(self) -> Int64[np.ndarray, " n"]:
        """Length of each training pair: that of its longer side."""
        return np.maximum(np.diff(self.train.source.begin), np.diff(self.train.target.begin))

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: the arrays in `PairSpec`, `row` int32 [b] and `valid` bool [b]."""
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        place, batch_order = self._epoch(step // self.batches)
        begin = batch_order[step % self.batches] * self.batch_size
        return self._batch(self.train, place[(begin + row) % len(place)], row, np.ones(row.shape, bool))

    @functools.lru_cache(maxsize=2)  # noqa: B019 - the harness reads one step ahead, into the next epoch
    def _epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
        """Returns an epoch's pairs sorted by length, and the order of its batches."""
        random = np.random.default_rng((self.seed % 2**32, epoch))
        place = random.permutation(len(self.train))
        return place[np.argsort(self._sizes[place], kind="stable")], random.permutation(self.batches)

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`, in hash order; `row` is the pair's index in the whole split.

        Rows past the end of the split repeat its last pair and have `valid` false.
        """
        row, place, valid = held_out_rows(index, rows, len(self.held_out), self.batch_size)
        return self._batch(self.held_out, place, row, valid)

    def _batch(self, pairs: EncodedPairs, place: Int64[np.ndarray, " b"], row: Int32[np.ndarray, " b"], valid) -> Batch:
        source, source_length = pairs.source.rows(place, self.length + 1, self.spec.source.end_of_text)
        target, target_length = pairs.target.rows(place, self.length + 1, self.spec.target.end_of_text)
        return {
            "source": source[:, 1:],
            "source_length": source_length - 1,
            "target": target,
            "target_length": target_length,
            "row": row,
            "valid": valid,
        }

    def references(self) -> dict[str, list[str]]:
        """Returns the sources of the split, in hash order, each with all its targets."""
        found: dict[str, list[str]] = {}
        for source, target in self.texts.held_out[self.split]:
            found.setdefault(source, []).append(target)
        return found

    def coverage(self) -> dict[str, float]:
        """Returns the shares of held-out pairs and target tokens that are left out, and of unknown tokens.

        `unknown_share` is for targets, `source_unknown_share` for sources.
        """
        sources, targets = (
            coverage(lines, tokenizer)
            for lines, tokenizer in ((self.held_out.source, self.spec.source), (self.held_out.target, self.spec.target))
        )
        unknown = {f"source_{name}": share for name, share in sources.items() if name == "unknown_share"}
        return targets | unknown

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the training tokens."""
        return f"{zlib.crc32(self.train.target.tokens.tobytes(), zlib.crc32(self.train.source.tokens.tobytes())):08x}"

    def describe(self) -> str:
        """Returns the pairs, those left out, the split's sources and the vocabularies in one line."""
        left_out = sum(part.too_long for part in self.parts.each)
        longer = f" ({left_out:,} of {self.length} tokens or more left out)" if left_out else ""
        sides = (f"{tokenizer.vocab_size:,} {tokenizer.kind}" for tokenizer in (self.spec.source, self.spec.target))
        return (
            f"{self.name}: {self.parts.sizes('pairs', len)}{longer}, {len(self.references()):,} sources in "
            f"{self.split}; from {' to '.join(sides)}"
        )
