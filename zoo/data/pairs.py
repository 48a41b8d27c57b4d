"""Pairs of a source and a target for sequence-to-sequence models: CMUdict's words and phones, or a file of pairs."""

import functools
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64

from zoo.core.errors import UserError, require
from zoo.data.dataset import Batch, Data, DataSet
from zoo.data.sentences import Lines, pack
from zoo.data.sources import read_cmudict, read_pairs
from zoo.data.specs import PairSpec
from zoo.data.tokenizers import Characters, Kind, Tokenizer, alphabet, check_kind, make_tokenizer

Pair = tuple[str, str]
Part = Literal["dev", "test"]

EXAMPLES = 64
"""How many held-out sources the spec keeps."""


@dataclass(frozen=True)
class Pairs(Data):
    """Pairs: CMUdict's spellings and pronunciations unless a file is named.

    A source may come with several targets; all of them are right, and all are in the same part of the data.
    """

    path: str = ""
    """A UTF-8 file with a source, a tab and a target on each line, a .jsonl file, or a quoted glob of them. Empty: the
    words of CMUdict that are letters only, and how they are pronounced, which come with this package."""

    source_field: str = "source"
    """The field that holds the source in JSON lines."""

    target_field: str = "target"
    """The field that holds the target in JSON lines."""

    dev: float = 0.05
    """Share of the sources that is scored while training, chosen by a hash of their text."""

    test: float = 0.05
    """Share of the sources that is kept for the final score, chosen by a hash of their text."""

    source_tokenizer: Kind = "characters"
    """What a token of a source is: a character, a word, a byte, a byte pair learned from them, or one of GPT-2's."""

    target_tokenizer: Kind = "words"
    """What a token of a target is; phones with spaces between them are words."""

    source_vocabulary: int = 8000
    """How many tokens 'words' or 'bpe' take from the sources."""

    target_vocabulary: int = 8000
    """How many tokens 'words' or 'bpe' take from the targets."""

    def __post_init__(self) -> None:
        require(
            self,
            "data.",
            ("dev", "above 0 and below 1", 0 < self.dev < 1),
            ("test", "above 0 and below 1", 0 < self.test < 1),
            ("test", f"below 1 - data.dev, {1 - self.dev:.3g}", self.dev + self.test < 1),
        )

    def check_tokenizer(self, spec: PairSpec) -> None:
        """Refuses a run's spec whose tokenizers are of other kinds; see `check_kind`."""
        check_kind(spec.source, self.source_tokenizer, "source-tokenizer")
        check_kind(spec.target, self.target_tokenizer, "target-tokenizer")

    def open(self, *, length: int | None, batch_size: int, seed: int, spec: PairSpec | None = None) -> "PairSet":
        """Reads the pairs, splits them and turns them into tokens; see `Data.open`."""
        if length is None:
            raise UserError("pairs are rows of tokens, and this model family has no context length for them")
        pairs = read_pairs(self.path, (self.source_field, self.target_field)) if self.path else read_cmudict()
        train, dev, test = split_pairs(pairs, self.dev, self.test)
        if spec is None:
            source = _tokenizer(self.source_tokenizer, self.source_vocabulary, 0, train, dev + test)
            target = _tokenizer(self.target_tokenizer, self.target_vocabulary, 1, train, dev + test)
            fitting = [text for text in dict(dev) if len(source.encode(text)) < length]
            spec = PairSpec(source, target, tuple(fitting[:EXAMPLES]))
        for side, tokenizer in enumerate((spec.source, spec.target)):
            if isinstance(tokenizer, Characters):
                tokenizer.check(alphabet(pair[side] for pair in pairs))
        return PairSet(
            spec=spec,
            train=encode_pairs(spec, train, length),
            dev=encode_pairs(spec, dev, length),
            texts={"dev": dev, "test": test},
            length=length,
            batch_size=batch_size,
            seed=seed,
            name=self.path or "CMUdict",
        )


def _tokenizer(kind: Kind, vocabulary: int, side: int, train: list[Pair], held_out: list[Pair]) -> Tokenizer:
    """A tokenizer for one side of all pairs."""
    return make_tokenizer(kind, [pair[side] for pair in train], [pair[side] for pair in held_out], vocabulary)


def split_pairs(pairs: Sequence[Pair], dev: float, test: float) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Splits pairs into those to train on, to look at while training, and to test at the end, by their sources alone.

    The sources with the smallest SHA-256 are tested, the next are looked at, in this order; at least one each. So the
    split does not depend on the order of lines, and no source is in two parts.

    Raises:
        UserError: there are fewer than three different sources.
    """
    ranked = sorted({source for source, _ in pairs}, key=lambda source: hashlib.sha256(source.encode()).digest())
    if len(ranked) < 3:
        raise UserError(f"there are {len(ranked)} different sources: give at least three, to train, look and test on")
    tested = max(1, round(test * len(ranked)))
    looked_at = min(tested + max(1, round(dev * len(ranked))), len(ranked) - 1)
    tested = min(tested, looked_at - 1)
    rank = {source: i for i, source in enumerate(ranked)}
    # Held-out pairs in the order of the hash, so that the first of them are any.
    ordered = sorted(dict.fromkeys(pairs), key=lambda pair: rank[pair[0]])
    parts: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
    for pair in ordered:
        parts[2 if rank[pair[0]] < tested else 1 if rank[pair[0]] < looked_at else 0].append(pair)
    return parts


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Pairs as tokens, those left out that are too long, in the order of their length."""

    source: Lines
    target: Lines

    def __len__(self) -> int:
        return len(self.source)

    @property
    def too_long(self) -> int:
        """How many pairs were left out."""
        return self.source.too_long


def encode_pairs(spec: PairSpec, pairs: Sequence[Pair], length: int) -> EncodedPairs:
    """Tokens of those pairs of which each side, with an end-of-text after it, has at most `length`."""
    encoded = [(spec.source.encode(source), spec.target.encode(target)) for source, target in pairs]
    sizes = np.array([max(len(source), len(target)) for source, target in encoded], np.int64)
    order = [i for i in np.argsort(sizes, kind="stable") if sizes[i] < length]
    left_out = len(pairs) - len(order)
    source, target = ([encoded[i][side] for i in order] for side in (0, 1))
    return EncodedPairs(pack(spec.source, source, left_out), pack(spec.target, target, left_out))


@dataclass(frozen=True, eq=False)
class PairSet(DataSet):
    """Pairs in memory; the held-out split is `dev`.

    The pairs of a batch are of similar length. An epoch cuts the pairs, sorted by length and those of one length in an
    order drawn from (seed, epoch), into batches, and takes these in an order drawn likewise; the last batch of the
    longest is filled up with pairs from the beginning.
    """

    spec: PairSpec
    train: EncodedPairs
    dev: EncodedPairs
    texts: dict[str, list[Pair]]
    length: int
    batch_size: int
    seed: int
    name: str

    def __post_init__(self) -> None:
        for part, pairs in (("to train on", self.train), ("held out", self.dev)):
            if not len(pairs):
                raise UserError(
                    f"{self.name} has no pair {part} of less than {self.length} tokens, the model's context: give a "
                    "longer --family.context, or shorter pairs"
                )

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.train) // self.batch_size)

    @property
    def held_out_batches(self) -> int:
        """Batches that hold the whole held-out split."""
        return -(-len(self.dev) // self.batch_size)

    @functools.cached_property
    def _sizes(self) -> Int64[np.ndarray, " n"]:
        """The length of each training pair."""
        return np.maximum(np.diff(self.train.source.begin), np.diff(self.train.target.begin))

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: see `PairSpec`; `row` int32 [b] and `valid` bool [b]."""
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        place, batch_order = self._epoch(step // self.batches)
        begin = batch_order[step % self.batches] * self.batch_size
        return self._batch(self.train, place[(begin + row) % len(place)], row, np.ones(row.shape, bool))

    @functools.lru_cache(maxsize=2)  # noqa: B019 - the harness reads one step ahead, into the next epoch
    def _epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
        """The pairs of an epoch in the order of their length, and its batches in theirs."""
        random = np.random.default_rng((self.seed % 2**32, epoch))
        place = random.permutation(len(self.train))
        return place[np.argsort(self._sizes[place], kind="stable")], random.permutation(self.batches)

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`, the shortest pairs first; `row` is the pair's index in the whole split.

        Rows past the end of the split repeat its last pair and are not valid.
        """
        row = index * self.batch_size + np.arange(self.batch_size, dtype=np.int32)[rows]
        return self._batch(self.dev, np.minimum(row, len(self.dev) - 1).astype(np.int64), row, row < len(self.dev))

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

    def references(self, part: Part) -> dict[str, list[str]]:
        """The sources of a part of the data, in an order without meaning, each with all its targets."""
        found: dict[str, list[str]] = {}
        for source, target in self.texts[part]:
            found.setdefault(source, []).append(target)
        return found

    def fingerprint(self) -> str:
        """A check sum of the training tokens."""
        return f"{zlib.crc32(self.train.target.tokens.tobytes(), zlib.crc32(self.train.source.tokens.tobytes())):08x}"

    def describe(self) -> str:
        """Pairs, those left out, sources held out, and vocabularies in one line."""
        left_out = self.train.too_long + self.dev.too_long
        longer = f" ({left_out:,} of {self.length} tokens or more left out)" if left_out else ""
        sides = (f"{tokenizer.vocab_size:,} {tokenizer.kind}" for tokenizer in (self.spec.source, self.spec.target))
        return (
            f"{self.name}: {len(self.train):,} pairs to train on and {len(self.dev):,} held out{longer}, "
            f"{len(self.references('test')):,} sources to test; from {' to '.join(sides)}"
        )
