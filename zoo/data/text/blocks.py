"""Text for language models: documents to one stream of tokens, cut in blocks for training and scored whole."""

import functools
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer

from zoo.core.data import Batch, DataSet, Split
from zoo.core.errors import UserError
from zoo.data.order import Shuffled
from zoo.data.specs import BlockSpec
from zoo.data.splits import Parts
from zoo.data.text.documents import Documents
from zoo.data.tokenizers import Characters, Tokenizer, alphabet, check_kind, make_tokenizer


@dataclass(frozen=True)
class Text(Documents):
    """Text in blocks: Shakespeare's plays unless a file or a TFDS set is named."""

    tokenizer: Literal["characters", "bytes", "bpe", "gpt2"] = "characters"
    """What a token is: a character of the text, a byte, a byte pair learned from the text, or a token of GPT-2's."""

    vocabulary: int = 4096
    """How many tokens 'bpe' learns, with the 256 bytes and end-of-text."""

    order: Literal["shuffled", "stream"] = "shuffled"
    """What a row of a training batch holds: a block from anywhere, or the block that follows the one in the same row of
    the batch before, for a network that carries its state from batch to batch."""

    def check_tokenizer(self, spec: BlockSpec) -> None:
        """Refuses a run's spec whose tokenizer is of another kind than this config asks for.

        Raises:
            UserError: it is; the message says which flag agrees with the run.
        """
        check_kind(spec.tokenizer, self.tokenizer)

    def fitting(self, spec: BlockSpec) -> "Text":
        """These settings with the kind of tokenizer of an earlier run."""
        kind: Any = spec.tokenizer.kind
        return replace(self, tokenizer=kind)

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: BlockSpec | None = None,
        split: Split = "dev",
    ) -> "TextBlocks":
        """Reads the documents, splits them and turns them into tokens; see `Data.open`."""
        if length is None:
            raise UserError("text is cut in blocks, and this model family has no context length to cut it by")
        documents = self.documents(split)
        train, *rest = documents.each
        held_out = list(chain(*rest))
        tokenizer = spec.tokenizer if spec else make_tokenizer(self.tokenizer, train, held_out, self.vocabulary)
        if isinstance(tokenizer, Characters):
            tokenizer.check(alphabet(train + held_out))
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
    """Documents in a row."""

    tokens: Integer[np.ndarray, " t"]
    """Each document between two end-of-text tokens, in the smallest type that holds the ids."""
    documents: int
    characters: int


def make_stream(tokenizer: Tokenizer, documents: Sequence[str]) -> Stream:
    """The tokens of documents in a row."""
    end = np.array([tokenizer.end_of_text])
    parts = [part for text in documents for part in (end, tokenizer.encode(text), end)]
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    return Stream(np.concatenate(parts, dtype=dtype, casting="unsafe"), len(documents), sum(map(len, documents)))


@dataclass(frozen=True)
class TextBlocks(DataSet):
    """Text as blocks of `length + 1` tokens that overlap in one, so that each of `length` targets has its input.

    The training stream is a circle: what follows its end is its begin, a document boundary like any other. An epoch
    cuts it in the fewest blocks that cover it, from a place drawn from (seed, epoch), and shuffles them; so every token
    is a target in every epoch, and not always at the same place of a block.

    In the order `stream`, the rows of a batch go round the circle at equal distances, a block in each step, and never
    begin anew; the seed says where the first of them begins.

    Held-out text, `held_out`, is cut in windows from its begin, and these come in the order of a hash of their tokens.
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
        """The tokens to train on."""
        return self.parts.train.tokens

    @property
    def held_out(self) -> Integer[np.ndarray, " h"]:
        """The tokens of the split."""
        return self.parts.held_out[self.split].tokens

    @functools.cached_property
    def _order(self) -> Shuffled:
        return Shuffled(self.blocks, self.seed)

    @property
    def blocks(self) -> int:
        """Blocks in an epoch."""
        return -(-len(self.train) // self.length)

    @property
    def held_out_batches(self) -> int:
        """Batches that hold all windows of the split."""
        return -(-len(self._windows) // self.batch_size)

    @functools.cached_property
    def _windows(self) -> Int64[np.ndarray, " w"]:
        """Where held-out windows begin."""
        begin = np.arange(0, len(self.held_out) - 1, self.length, dtype=np.int64)
        windows = (self.held_out[i : i + self.length + 1].astype("<i4").tobytes() for i in begin)
        digests = [hashlib.sha256(window).digest() for window in windows]
        return begin[sorted(range(len(begin)), key=digests.__getitem__)]

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `tokens` int32 [b, length + 1]; `length`, `row` int32, `valid`, `continues` bool [b].

        Where a row continues, its first target follows the last target of that row in the batch before.
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
        """Held-out batch `index`: windows, each target once; the text's last window is padded with end-of-text.

        `characters` and `bytes` int32 [b] say how much text the targets of each row stand for. `row` is the window's
        index in the whole split, so noise in an evaluation would not depend on the batch size.
        """
        row = index * self.batch_size + np.arange(self.batch_size, dtype=np.int32)[rows]
        end = len(self.held_out) - 1
        begin = np.append(self._windows, end)[np.minimum(row, len(self._windows))]
        targets_left = end - begin
        length = np.where(targets_left > 0, np.minimum(targets_left, self.length) + 1, 0)
        place = np.arange(self.length + 1)[None, :]
        tokens = self.held_out[np.minimum(begin[:, None] + place, len(self.held_out) - 1)]
        tokens = np.where(place < length[:, None], tokens, self.spec.tokenizer.end_of_text).astype(np.int32)
        targets = tokens[:, 1:]  # padding is end-of-text, which stands for no text
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
        """A check sum of the training tokens."""
        return f"{zlib.crc32(self.train.tobytes()):08x}"

    def describe(self) -> str:
        """Documents, characters, tokens and vocabulary in one line."""
        characters = sum(part.characters for part in self.parts.each)
        tokens = " + ".join(f"{len(part.tokens):,}" for part in self.parts.each)
        return (
            f"{self.name}: {self.parts.sizes('documents', lambda part: part.documents)}, {characters:,} characters; "
            f"{tokens} tokens of {self.spec.tokenizer.vocab_size:,} ({self.spec.tokenizer.kind})"
        )


@functools.lru_cache(maxsize=64)
def _offset(seed: int, epoch: int, tokens: int) -> int:
    """Where in the stream an epoch's first block begins."""
    return int(np.random.default_rng((seed, epoch)).integers(tokens))
