"""Tokenizers: characters, bytes, words, byte-pair encoding, and GPT-2's.

A tokenizer is a frozen dataclass whose fields are plain JSON, so that it can be stored in a run directory; objects
built from the fields are cached separately. Every tokenizer has an end-of-text id that no text encodes to.
"""

import abc
import codecs
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32, UInt32

from zoo.core.errors import UserError
from zoo.data import byte_pairs


@dataclass(frozen=True)
class Tokenizer(abc.ABC):
    """Base class of tokenizers. A token represents a string of bytes, so a character may take several tokens."""

    kind: ClassVar[str]
    """The name that selects it in a config."""

    @property
    @abc.abstractmethod
    def pieces(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes of each token; end-of-text has none."""

    @property
    @abc.abstractmethod
    def end_of_text(self) -> int:
        """The id that begins and ends a document."""

    @abc.abstractmethod
    def encode(self, text: str) -> Int32[np.ndarray, " t"]:
        """Returns token ids of `text`, without end-of-text.

        Raises:
            UserError: the tokenizer lacks characters of the text.
        """

    @property
    def unknown(self) -> int | None:
        """The id of text without a token of its own; None if all text has one, or such text is rejected."""
        return None

    @property
    def vocab_size(self) -> int:
        """Number of ids, including end-of-text."""
        return len(self.pieces)

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Returns the text of token ids. Invalid UTF-8 becomes U+FFFD; end-of-text becomes nothing."""
        return self.stream()(ids, True)

    def stream(self) -> Callable[..., str]:
        """Makes an incremental decoder.

        Returns:
            A function of (ids, final=False) that returns the text completed by the ids. It holds back the bytes of an
            unfinished character until the rest arrives, or until `final`.
        """
        pieces = self.pieces
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def push(ids: Iterable[int | np.integer], final: bool = False) -> str:
            return decoder.decode(b"".join([pieces[i] for i in ids]), final)

        return push

    def byte_lengths(self) -> Int32[np.ndarray, " v"]:
        """Returns the number of bytes of each token."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def character_lengths(self) -> Int32[np.ndarray, " v"]:
        """Returns the number of characters that begin in each token; they add up to the length of a text."""
        return np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces], np.int32)


@dataclass(frozen=True)
class Characters(Tokenizer):
    """One token for each character of a fixed alphabet; the id after the last one is end-of-text."""

    kind: ClassVar[str] = "characters"

    characters: str
    """The alphabet: character i has id i."""

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of each token."""
        return _character_pieces(self.characters)

    @property
    def end_of_text(self) -> int:
        """The id that begins and ends a document."""
        return len(self.characters)

    def encode(self, text: str) -> Int32[np.ndarray, " t"]:
        """Returns token ids of `text`; see `Tokenizer.encode`."""
        table = _character_ids(self.characters)
        ids = table[np.minimum(code_points(text), np.uint32(len(table) - 1))]
        if ids.min(initial=0) < 0:
            self.check(text)
        return ids

    def check(self, characters: Iterable[str]) -> None:
        """Raises a UserError that names the characters outside the alphabet, if there are any."""
        missing = sorted(set(characters) - set(self.characters))
        if missing:
            named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in missing[:5])
            count = f"{len(missing)} characters, {named}{', ...' * (len(missing) > 5)}" if len(missing) > 1 else named
            known = self.characters if len(self.characters) <= 200 else self.characters[:200] + "..."
            raise UserError(
                f"the text has {count}, that the tokenizer lacks: its {len(self.characters)} characters are {known!r}"
            )


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """One token for each byte of UTF-8; id 256 is end-of-text."""

    kind: ClassVar[str] = "bytes"

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of each token."""
        return _byte_pieces()

    @property
    def end_of_text(self) -> int:
        """The id that begins and ends a document."""
        return 256

    def encode(self, text: str) -> Int32[np.ndarray, " t"]:
        """Returns the bytes of `text` as token ids."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)


@dataclass(frozen=True)
class Words(Tokenizer):
    """One token for each word in a list, then one for all other words, then end-of-text.

    A word is a run of letters and digits or a single other mark, with the preceding space if present; an ending such as
    's is a word too. A run of white space counts as one space. A text is encoded as if it followed a space, which
    `decode` removes.
    """

    kind: ClassVar[str] = "words"
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"'\w+| ?\w+| ?[^\w\s]")

    words: tuple[str, ...]
    """The words with their spaces: word i has id i."""

    @classmethod
    def learn(cls, texts: Iterable[str], vocab_size: int) -> "Words":
        """Takes the `vocab_size - 2` most frequent words."""
        counts = Counter(word for text in texts for word in cls.cut(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked[: vocab_size - 2]))

    @classmethod
    def cut(cls, text: str) -> list[str]:
        """Returns the words of a text, known or not; joined, they are a space and the text with single spaces."""
        return cls.pattern.findall(" " + " ".join(text.split()))

    # Cached on the object: a global cache would hash ten thousand words at every lookup.
    @functools.cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of each token."""
        return *(word.encode() for word in self.words), b" <unk>", b""

    @property
    def unknown(self) -> int:
        """The id of every word that is not in the list."""
        return len(self.words)

    @property
    def end_of_text(self) -> int:
        """The id that begins and ends a document."""
        return len(self.words) + 1

    def encode(self, text: str) -> Int32[np.ndarray, " t"]:
        """Returns token ids of `text`; words that are not in the list have the id `unknown`."""
        _utf8(text)
        return np.array([self._ids.get(word, self.unknown) for word in self.cut(text)], np.int32)

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Returns the text of token ids, unknown words as `<unk>`, without the leading space that `stream` includes."""
        return super().decode(ids).removeprefix(" ")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


class _BytePairs(Tokenizer):
    """Byte-pair encoding with the `tokenizers` library."""

    @abc.abstractmethod
    def _library(self) -> Any:
        """The library's tokenizer."""

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of each token."""
        return _byte_pair_pieces(self)

    def encode(self, text: str) -> Int32[np.ndarray, " t"]:
        """Returns token ids of `text`."""
        _utf8(text)
        return byte_pairs.encode(self._library(), text)


@dataclass(frozen=True)
class BPE(_BytePairs):
    """Byte-pair encoding over bytes (Sennrich et al. 2016, arXiv:1508.07909; over bytes: GPT-2, Radford et al. 2019).

    `BPE.train` learns one from texts; `BPE(json, end_of_text_token)` loads the `tokenizer.json` of any model with a
    byte-level BPE (GPT-2, Llama 3, SmolLM2, Qwen, ...).
    """

    kind: ClassVar[str] = "bpe"

    json: str
    """The text of a `tokenizer.json`."""

    end_of_text_token: str = byte_pairs.END_OF_TEXT
    """The token that ends a text."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPE":
        """Learns merges from texts until there are `vocab_size` tokens or no pair is left."""
        return cls(byte_pairs.train(texts, vocab_size))

    @property
    def end_of_text(self) -> int:
        """The id that begins and ends a document."""
        return self._library().token_to_id(self.end_of_text_token)

    def _library(self) -> Any:
        return byte_pairs.from_json(self.json, self.end_of_text_token)


@dataclass(frozen=True)
class GPT2(_BytePairs):
    """GPT-2's tokenizer with GPT-2's ids (Radford et al. 2019): 256 bytes, 50,000 merges, and `<|endoftext|>`."""

    kind: ClassVar[str] = "gpt2"

    @property
    def end_of_text(self) -> int:
        """The id that begins and ends a document."""
        return 50256

    def _library(self) -> Any:
        return byte_pairs.gpt2()


def code_points(text: str) -> UInt32[np.ndarray, " t"]:
    """Returns the Unicode code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has {text[error.start]!a} at character {error.start}, which is no Unicode character: "
            "give text that is valid UTF-8"
        ) from None


@functools.lru_cache(maxsize=8)
def _character_pieces(characters: str) -> tuple[bytes, ...]:
    return *(c.encode("utf-8", "surrogatepass") for c in characters), b""


@functools.lru_cache(maxsize=8)
def _character_ids(characters: str) -> Int32[np.ndarray, " n"]:
    """Returns the id of each code point up to one past the alphabet's last; -1 for code points outside it."""
    codes = code_points(characters)
    table = np.full(int(codes.max(initial=0)) + 2, -1, np.int32)
    table[codes] = np.arange(len(codes))
    return table


@functools.cache
def _byte_pieces() -> tuple[bytes, ...]:
    return *(bytes([i]) for i in range(256)), b""


@functools.lru_cache(maxsize=8)
def _byte_pair_pieces(tokenizer: _BytePairs) -> tuple[bytes, ...]:
    return byte_pairs.pieces(tokenizer._library(), tokenizer.end_of_text)
