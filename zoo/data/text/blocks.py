"""Text for language models: documents in one token stream, cut into blocks for training and scored in full."""

import functools
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer

from zoo.core.data import Batch, DataSet, Split
from zoo.core.errors import UserError
from zoo.data.order import Shuffled
from zoo.data.specs import BlockSpec
from zoo.data.splits import Parts
from zoo.data.text.documents import Documents
from zoo.data.tokenized import Tokenized
from zoo.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Text(Tokenized, Documents):
    """Text in blocks: Shakespeare's plays by default, or a file or a TFDS set."""

    tokenizer: Literal["characters", "bytes", "bpe", "gpt2"] = "characters"
    """Token type: a character of the text, a byte, a byte pair learned from the text, or one of GPT-2's tokens."""

    vocabulary: int = 4096
    """Vocabulary size of 'bpe', including the 256 bytes and end-of-text."""

    order: Literal["shuffled", "stream"] = "shuffled"
    """Rows of a training batch. shuffled: blocks from random places. stream: each row continues the same row of the
    previous batch, for a network that carries its state from batch to batch."""

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: BlockSpec | None = None,
        split: Split = "dev",
    ) -> "TextBlocks":
        """Reads, splits and tokenizes the documents; see `Data.open`."""
        if length is None:
            raise UserError("text is cut in blocks, and this model family has no context length to cut it by")
        documents = self.documents(split)
        train, *rest = documents.each
        held_out = list(chain(*rest))
        tokenizer = self.tokenizer_of(spec, train, held_out)
        return TextBlocks(
            spec=spec or BlockSpec(tokenizer),
            parts=documents.map(lambda texts: make_stream(tokenizer, texts)),
            length=length,
            batch_size=batch_size,
            seed=seed,
            order=self.order,
            name=self.name,
            split=split,
        )


class Stream(NamedTuple):
    """Concatenated documents."""

    tokens: Integer[np.ndarray, " t"]
    """Each document between two end-of-text tokens, in the smallest dtype that holds the ids."""
    documents: int
    characters: int


def make_stream(tokenizer: Tokenizer, documents: Sequence[str]) -> Stream:
    """Tokenizes and concatenates documents."""
    end = np.array([tokenizer.end_of_text])
    parts = [part for text in documents for part in (end, tokenizer.encode(text), end)]
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    return Stream(np.concatenate(parts, dtype=dtype, casting="unsafe"), len(documents), sum(map(len, documents)))


@dataclass(frozen=True)
class TextBlocks(DataSet):
    """Blocks of `length + 1` tokens that overlap by one, so that each of `length` targets has an input.

    The training stream is circular: its end is followed by its beginning, a document boundary like any other. An epoch
    cuts it into the fewest blocks that cover it, from an offset drawn from (seed, epoch), and shuffles them; so every
    token is a target in every epoch, at varying positions in a block.

    In the order `stream`, the rows of a batch start at equal distances and advance around the circle by one block per
    step, without restarting; the seed determines where the first row starts.

    Held-out text, `held_out`, is cut into windows from its beginning, sorted by a hash of their tokens.
    """

    spec: BlockSpec
    parts: Parts[Stream]
    length: int
    batch_size: int
    seed: int
    order: str
    name: str
    split: Split = "dev"

    def __post_init__(self):
        if self.split != "all" and len(self.train) < self.length + 1:
            raise UserError(
                f"{self.name} has {len(self.train)} tokens to train on, and a block needs {self.length + 1}: "
                "give more text, or a shorter context"
            )

    @property
    def train(self) -> Integer[np.ndarray, " t"]:
        """The training tokens."""
        return self.parts.train.tokens

    @property
    def held_out(self) -> Integer[np.ndarray, " h"]:
        """The held-out tokens of the split."""
        return self.parts.held_out[self.split].tokens

    @functools.cached_property
    def _order(self) -> Shuffled:
        return Shuffled(self.blocks, self.seed)

    @property
    def blocks(self) -> int:
        """Number of blocks per epoch."""
        return -(-len(self.train) // self.length)

    @property
    def held_out_batches(self) -> int:
        """Number of batches that hold all windows of the split."""
        return -(-len(self._windows) // self.batch_size)

    @functools.cached_property
    def _windows(self) -> Int64[np.ndarray, " w"]:
        """Start positions of the held-out windows, in hash order."""
        begin = np.arange(0, len(self.held_out) - 1, self.length, dtype=np.int64)
        windows = (self.held_out[i : i + self.length + 1].astype("<i4").tobytes() for i in begin)
        digests = [hashlib.sha256(window).digest() for window in windows]
        return begin[sorted(range(len(begin)), key=digests.__getitem__)]

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `tokens` int32 [b, length + 1]; `length`, `row` int32, `valid`, `continues` bool [b].

        If `continues`, the row's first target follows the last target of that row in the previous batch.
        """
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        seed, streams = self.seed % 2**32, self.order == "stream"
        if streams:
            begin = _offset(seed, 0, len(self.train)) + row.astype(np.int64) * len(self.train) // self.batch_size
            begin += step * self.length
        else:
            drawn = step * self.batch_size + row.astype(np.int64)
            begin = np.array([_offset(seed, int(i) // self.blocks, len(self.train)) for i in drawn], np.int64)
            begin += self.length * self._order[drawn]
        place = (begin[:, None] + np.arange(self.length + 1)[None, :]) % len(self.train)
        return {
            "tokens": self.train[place].astype(np.int32),
            "length": np.full(row.shape, self.length + 1, np.int32),
            "row": row,
            "valid": np.ones(row.shape, bool),
            "continues": np.full(row.shape, streams and step > 0),
        }

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`: windows with each target once; the text's last window is padded with end-of-text.

        `characters` and `bytes` int32 [b] count the text of each row's targets. `row` is the window's index in the
        whole split, so that noise in an evaluation does not depend on the batch size.
        """
        row = index * self.batch_size + np.arange(self.batch_size, dtype=np.int32)[rows]
        end = len(self.held_out) - 1
        begin = np.append(self._windows, end)[np.minimum(row, len(self._windows))]
        targets_left = end - begin
        length = np.where(targets_left > 0, np.minimum(targets_left, self.length) + 1, 0)
        place = np.arange(self.length + 1)[None, :]
        tokens = self.held_out[np.minimum(begin[:, None] + place, len(self.held_out) - 1)]
        tokens = np.where(place < length[:, None], tokens, self.spec.tokenizer.end_of_text).astype(np.int32)
        targets = tokens[:, 1:]  # padding is end-of-text, whose length is 0
        return {
            "tokens": tokens,
            "length": length.astype(np.int32),
            "row": row,
            "valid": length > 0,
            "characters": self._character_lengths[targets].sum(axis=1, dtype=np.int32),
            "bytes": self._byte_lengths[targets].sum(axis=1, dtype=np.int32),
        }

    @functools.cached_property
    def _character_lengths(self) -> Int32[np.ndarray, " v"]:
        return self.spec.tokenizer.character_lengths()

    @functools.cached_property
    def _byte_lengths(self) -> Int32[np.ndarray, " v"]:
        return self.spec.tokenizer.byte_lengths()

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the training tokens."""
        return f"{zlib.crc32(self.train.tobytes()):08x}"

    def describe(self) -> str:
        """Returns the documents, characters, tokens and vocabulary in one line."""
        characters = sum(part.characters for part in self.parts.each)
        tokens = " + ".join(f"{len(part.tokens):,}" for part in self.parts.each)
        return (
            f"{self.name}: {self.parts.sizes('documents', lambda part: part.documents)}, {characters:,} characters; "
            f"{tokens} tokens of {self.spec.tokenizer.vocab_size:,} ({self.spec.tokenizer.kind})"
        )


@functools.lru_cache(maxsize=64)
def _offset(seed: int, epoch: int, tokens: int) -> int:
    """Returns the position in the stream at which an epoch's first block begins."""
    return int(np.random.default_rng((seed, epoch)).integers(tokens))
