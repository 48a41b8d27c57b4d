"""Sentences, one per row: WordNet's definitions or examples, or a file with one sentence per line."""

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32, Int64, Integer

from zoo.core.data import Batch, Data, DataSet, Split
from zoo.core.errors import UserError
from zoo.data.order import Shuffled, held_out_rows
from zoo.data.sources import read_lines, read_wordnet
from zoo.data.specs import LineSpec
from zoo.data.splits import Part, Parts, Shares, cut_by_hash, digest, make_parts
from zoo.data.tokenized import Kind, Tokenized
from zoo.data.tokenizers import Tokenizer, Words


@dataclass(frozen=True)
class Sentences(Tokenized, Data):
    """Sentences: WordNet's definitions by default, or those of a file."""

    path: str = ""
    """A UTF-8 file with one sentence per line, a .jsonl file, or a quoted glob. Empty: sentences of WordNet, embedded
    in this package."""

    wordnet: Literal["definitions", "examples"] = "definitions"
    """Which of WordNet's sentences: definitions of words, or examples of their use."""

    field: str = "text"
    """The field of the sentence in JSON lines."""

    held_out: float = 0.1
    """Share of the sentences that is held out, chosen by a hash of their text: half is dev, half test."""

    held_out_path: str = ""
    """Sentences to score instead, a file or glob like `path`; all of `path` is then trained on. Half of them are dev
    and half test, or all are dev if `test_path` is given."""

    test_path: str = ""
    """Sentences for test only, a file or glob like `path`."""

    tokenizer: Kind = "words"
    """Token type: a word, a character, a byte, a byte pair learned from the text, or one of GPT-2's tokens."""

    vocabulary: int = 10000
    """Vocabulary size of 'words' or 'bpe'; words other than the most frequent are unknown."""

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.path or f"WordNet's {self.wordnet}"

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: LineSpec | None = None,
        split: Split = "dev",
    ) -> "SentenceSet":
        """Reads, splits and tokenizes the sentences; see `Data.open`."""
        if length is None:
            raise UserError("sentences are rows of tokens, and this model family has no context length for them")
        sentences = self.sentences(split)
        train, *rest = sentences.each
        held_out = list(chain(*rest))
        tokenizer = self.tokenizer_of(spec, train, held_out)
        return SentenceSet(
            spec=spec or LineSpec(tokenizer),
            parts=sentences.map(lambda texts: encode_lines(tokenizer, texts, length)),
            length=length,
            batch_size=batch_size,
            seed=seed,
            name=self.name,
            split=split,
        )

    def sentences(self, split: Split = "dev") -> Parts[list[str]]:
        """Returns the sentences of each part, held-out ones in hash order; `all` is the whole source in that order.

        Raises:
            UserError: a setting is wrong, or there are no sentences, or fewer distinct ones than parts.
        """
        if not 0 < self.held_out < 1:
            raise UserError(
                f"--data.held-out {self.held_out} is not a share: give a number between 0 and 1, such as 0.1"
            )
        for flag, path in (("held-out-path", self.held_out_path), ("test-path", self.test_path)):
            if path and not self.path:
                raise UserError(f"--data.{flag} {path} is given without a --data.path to train on")
        train = self._read()
        if split == "all":
            return Parts.whole(self._cut(train, {}, "dev")["dev"])
        dev, test = (read_lines(path, self.field) if path else None for path in (self.held_out_path, self.test_path))
        return make_parts(train, dev, test, self.held_out, self._cut)

    def excerpt(self, folder: Path) -> "Sentences":
        """Returns these settings for a few short sentences and 50 tokens; see `Data.excerpt`.

        The sentences are those of the first 600 with fewer than 40 characters.
        """
        path = folder / "excerpt.txt"
        path.write_text("\n".join(text for text in self._read()[:600] if len(text) < 40), encoding="utf-8")
        return replace(self, path=str(path), held_out_path="", test_path="", vocabulary=50)

    def _read(self) -> list[str]:
        """Returns the sentences of the source, in its order."""
        return read_lines(self.path, self.field) if self.path else read_wordnet(self.wordnet)

    def _cut(self, sentences: Sequence[str], shares: Shares, rest: Part) -> dict[Part, list[str]]:
        """Cuts sentences into parts by a hash of their text; see `cut_by_hash`."""
        source = self.held_out_path if rest == "dev" else self.name
        places = cut_by_hash([digest(text) for text in sentences], shares, rest, "sentence", source)
        return {part: [sentences[i] for i in places[part]] for part in places}


@dataclass(frozen=True, eq=False)
class Lines:
    """Concatenated token sequences of texts, each between two end-of-text tokens."""

    tokens: Integer[np.ndarray, " t"]
    """All tokens, in the smallest dtype that holds the ids."""
    begin: Int64[np.ndarray, " n_and_1"]
    """Where each text begins, and the end of the last."""
    too_long: int
    """Number of texts left out because they are too long."""
    too_long_tokens: int
    """Number of tokens in these texts."""

    def __len__(self) -> int:
        return len(self.begin) - 1

    def rows(self, place: Int64[np.ndarray, " b"], width: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns texts by index as int32 [b width], padded at the end, and their lengths, int32 [b]."""
        begin, length = self.begin[place], self.begin[place + 1] - self.begin[place]
        slot = np.arange(width)[None, :]
        tokens = self.tokens[np.minimum(begin[:, None] + slot, len(self.tokens) - 1)]
        tokens = np.where(slot < length[:, None], tokens, padding)
        return tokens.astype(np.int32), length.astype(np.int32)


def coverage(lines: Lines, tokenizer: Tokenizer) -> dict[str, float]:
    """Returns the shares of texts and tokens left out, and of unknown tokens; see `DataSet.coverage`."""
    words = lines.tokens[lines.tokens != tokenizer.end_of_text]
    found = {
        "left_out_share": lines.too_long / (len(lines) + lines.too_long),
        "left_out_token_share": lines.too_long_tokens / (len(words) + lines.too_long_tokens),
    }
    if tokenizer.unknown is None:
        return found
    return found | {"unknown_share": float(np.mean(words == tokenizer.unknown))}


def encode_lines(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Lines:
    """Tokenizes the texts with at most `length` targets: their tokens and the end-of-text after them."""
    encoded = [*map(tokenizer.encode, texts)]
    fitting = [tokens for tokens in encoded if len(tokens) < length]
    return pack(tokenizer, fitting, [tokens for tokens in encoded if len(tokens) >= length])


def pack(
    tokenizer: Tokenizer, encoded: Sequence[Int32[np.ndarray, " _"]], longer: Sequence[Int32[np.ndarray, " _"]] = ()
) -> Lines:
    """Concatenates the token sequences of texts; those in `longer` are counted and left out."""
    end = np.array([tokenizer.end_of_text])
    parts = [part for tokens in encoded for part in (end, tokens, end)]
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    return Lines(
        np.concatenate(parts, dtype=dtype, casting="unsafe") if parts else np.zeros(0, dtype),
        np.cumsum([0, *(len(tokens) + 2 for tokens in encoded)], dtype=np.int64),
        too_long=len(longer),
        too_long_tokens=sum(map(len, longer)),
    )


def check_fits(parts: Parts[Any], name: str, row: str, length: int) -> None:
    """Rejects data with a part in which no row fits the model's context.

    Raises:
        UserError: names the part.
    """
    to_train = {} if "all" in parts.held_out else {"train": parts.train}
    for part, rows in (to_train | parts.held_out).items():
        if not len(rows):
            purpose = {"train": "to train on ", "all": ""}.get(part, f"for {part} ")
            raise UserError(
                f"{name} has no {row} {purpose}of less than {length} tokens, the model's context: give a longer "
                f"--family.context, or shorter {row}s"
            )


@dataclass(frozen=True, eq=False)
class SentenceSet(DataSet):
    """Sentences in memory. An epoch visits each training sentence once, in an order drawn from (seed, epoch)."""

    spec: LineSpec
    parts: Parts[Lines]
    length: int
    batch_size: int
    seed: int
    name: str
    split: Split = "dev"

    def __post_init__(self) -> None:
        check_fits(self.parts, self.name, "sentence", self.length)

    @property
    def train(self) -> Lines:
        """The training sentences."""
        return self.parts.train

    @property
    def held_out(self) -> Lines:
        """The held-out sentences of the split."""
        return self.parts.held_out[self.split]

    @functools.cached_property
    def _order(self) -> Shuffled:
        return Shuffled(len(self.train), self.seed)

    @property
    def held_out_batches(self) -> int:
        """Number of batches that hold all sentences of the split."""
        return -(-len(self.held_out) // self.batch_size)

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `tokens` int32 [b, length + 1], `length` and `row` int32 [b], `valid` bool [b]."""
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        place = self._order[step * self.batch_size + row.astype(np.int64)]
        return self._batch(self.train, place, row, np.ones(row.shape, bool))

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`, in hash order; `row` is the sentence's index in the whole split.

        Rows past the end of the split repeat its last sentence and have `valid` false.
        """
        row, place, valid = held_out_rows(index, rows, len(self.held_out), self.batch_size)
        return self._batch(self.held_out, place, row, valid)

    def _batch(self, lines: Lines, place: Int64[np.ndarray, " b"], row: Int32[np.ndarray, " b"], valid: Any) -> Batch:
        tokens, length = lines.rows(place, self.length + 1, self.spec.tokenizer.end_of_text)
        return {"tokens": tokens, "length": length, "row": row, "valid": valid}

    def coverage(self) -> dict[str, float]:
        """Returns the shares of held-out sentences and their tokens that are left out, and of unknown tokens."""
        return coverage(self.held_out, self.spec.tokenizer)

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the training tokens."""
        return f"{zlib.crc32(self.train.tokens.tobytes()):08x}"

    def describe(self) -> str:
        """Returns the sentences, those left out, tokens, vocabulary and unknown words in one line."""
        tokenizer, words = self.spec.tokenizer, self.held_out.tokens
        words = words[words != tokenizer.end_of_text]
        unknown = ""
        if isinstance(tokenizer, Words):
            unknown = f", {np.mean(words == tokenizer.unknown):.1%} of those in {self.split} unknown"
        left_out = sum(part.too_long for part in self.parts.each)
        longer = f" ({left_out:,} of {self.length} tokens or more left out)" if left_out else ""
        tokens = " + ".join(f"{len(part.tokens):,}" for part in self.parts.each)
        return (
            f"{self.name}: {self.parts.sizes('sentences', len)}{longer}; {tokens} tokens of "
            f"{tokenizer.vocab_size:,} ({tokenizer.kind}){unknown}"
        )
