"""Pairs of a source and a target for sequence-to-sequence models: CMUdict's words and phones, or a file of pairs."""

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
from zoo.data.sources import read_cmudict, read_pairs
from zoo.data.specs import PairSpec
from zoo.data.splits import Parts, cut_by_hash, digest
from zoo.data.text.sentences import Lines, check_fits, coverage, pack
from zoo.data.tokenizers import Characters, Kind, Tokenizer, alphabet, check_kind, make_tokenizer

Pair = tuple[str, str]

EXAMPLES = 64
"""How many dev sources the spec keeps."""


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

    dev: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Share of the sources that is scored while training, chosen by a hash of their text."""

    test: Annotated[float, Gt(0), Lt(1)] = 0.05
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
            ("test", f"below 1 - data.dev, {1 - self.dev:.3g}", self.dev + self.test < 1),
        )

    @property
    def name(self) -> str:
        """What the pairs are called."""
        return self.path or "CMUdict"

    def check_tokenizer(self, spec: PairSpec) -> None:
        """Refuses a run's spec whose tokenizers are of other kinds; see `check_kind`."""
        check_kind(spec.source, self.source_tokenizer, "source-tokenizer")
        check_kind(spec.target, self.target_tokenizer, "target-tokenizer")

    def fitting(self, spec: PairSpec) -> "Pairs":
        """These settings with the kinds of tokenizers of an earlier run."""
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
        """Reads the pairs, splits them and turns them into tokens; see `Data.open`."""
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
            if isinstance(tokenizer, Characters):
                tokenizer.check(alphabet(pair[side] for pair in pairs))
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
        """Every 400th pair of at most 7 characters and at most 7 words; see `Data.excerpt`."""
        path = folder / "excerpt.tsv"
        short = [pair for pair in self._read() if len(pair[0]) < 8 and len(pair[1].split()) < 8]
        text = "".join(f"{source}\t{target}\n" for source, target in short[::400])
        path.write_text(text, encoding="utf-8")
        return replace(self, path=str(path))

    def _read(self) -> list[Pair]:
        return read_pairs(self.path, (self.source_field, self.target_field)) if self.path else read_cmudict()


def _tokenizer(kind: Kind, vocabulary: int, side: int, train: list[Pair], held_out: list[Pair]) -> Tokenizer:
    """A tokenizer for one side of all pairs."""
    return make_tokenizer(kind, [pair[side] for pair in train], [pair[side] for pair in held_out], vocabulary)


def split_pairs(pairs: Sequence[Pair], dev: float, test: float, name: str = "the data") -> Parts[list[Pair]]:
    """Splits pairs by a hash of their sources alone: all targets of a source are in one part; see `cut_by_hash`.

    Args:
        pairs: with doubles, which are left out.
        dev: share of the different sources.
        test: likewise.
        name: of the pairs, for errors.

    Raises:
        UserError: there are fewer than three different sources.
    """
    pairs = list(dict.fromkeys(pairs))
    digests = [digest(source) for source, _ in pairs]
    places = cut_by_hash(digests, {"test": test, "dev": dev}, "train", "source", name)
    found = {part: [pairs[i] for i in places[part]] for part in places}
    return Parts(_by_hash(found["train"]), {"dev": found["dev"], "test": found["test"]})


def whole_pairs(pairs: Sequence[Pair]) -> Parts[list[Pair]]:
    """All pairs, none twice, in the order of a hash of their sources."""
    return Parts.whole(_by_hash(list(dict.fromkeys(pairs))))


def _by_hash(pairs: list[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: digest(pair[0]))


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Pairs as tokens, those left out that are too long."""

    source: Lines
    target: Lines

    def __len__(self) -> int:
        return len(self.source)

    @property
    def too_long(self) -> int:
        """How many pairs were left out."""
        return self.source.too_long


def encode_pairs(spec: PairSpec, pairs: Sequence[Pair], length: int, by_length: bool = False) -> EncodedPairs:
    """Tokens of those pairs of which each side, with an end-of-text after it, has at most `length`.

    Args:
        spec: has the tokenizers.
        pairs: texts.
        length: of the model's context.
        by_length: whether the shortest come first; else pairs are in their order.
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

    The pairs of a training batch are of similar length. An epoch cuts the pairs, sorted by length and those of one
    length in an order drawn from (seed, epoch), into batches, and takes these in an order drawn likewise; the last
    batch of the longest is filled up with pairs from the beginning.
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
        """The pairs to train on."""
        return self.parts.train

    @property
    def held_out(self) -> EncodedPairs:
        """The pairs of the split."""
        return self.parts.held_out[self.split]

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.train) // self.batch_size)

    @property
    def held_out_batches(self) -> int:
        """Batches that hold all pairs of the split."""
        return -(-len(self.held_out) // self.batch_size)

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
        """Held-out batch `index`, in the order of a hash; `row` is the pair's index in the whole split.

        Rows past the end of the split repeat its last pair and are not valid.
        """
        row = index * self.batch_size + np.arange(self.batch_size, dtype=np.int32)[rows]
        place = np.minimum(row, len(self.held_out) - 1).astype(np.int64)
        return self._batch(self.held_out, place, row, row < len(self.held_out))

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
        """The sources of the split, in the order of a hash, each with all its targets."""
        found: dict[str, list[str]] = {}
        for source, target in self.texts.held_out[self.split]:
            found.setdefault(source, []).append(target)
        return found

    def coverage(self) -> dict[str, float]:
        """Shares of the held-out pairs and of their targets' tokens that are left out, and of unknown tokens.

        `unknown_share` is of the targets and `source_unknown_share` of the sources.
        """
        sources, targets = (
            coverage(lines, tokenizer)
            for lines, tokenizer in ((self.held_out.source, self.spec.source), (self.held_out.target, self.spec.target))
        )
        unknown = {f"source_{name}": share for name, share in sources.items() if name == "unknown_share"}
        return targets | unknown

    def fingerprint(self) -> str:
        """A check sum of the training tokens."""
        return f"{zlib.crc32(self.train.target.tokens.tobytes(), zlib.crc32(self.train.source.tokens.tobytes())):08x}"

    def describe(self) -> str:
        """Pairs, those left out, sources of the split, and vocabularies in one line."""
        left_out = sum(part.too_long for part in self.parts.each)
        longer = f" ({left_out:,} of {self.length} tokens or more left out)" if left_out else ""
        sides = (f"{tokenizer.vocab_size:,} {tokenizer.kind}" for tokenizer in (self.spec.source, self.spec.target))
        return (
            f"{self.name}: {self.parts.sizes('pairs', len)}{longer}, {len(self.references()):,} sources in "
            f"{self.split}; from {' to '.join(sides)}"
        )
