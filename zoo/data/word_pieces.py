"""BERT's tokenizer, WordPiece, with the `tokenizers` library, which is imported lazily."""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32

from zoo.core.errors import UserError
from zoo.data.tokenizers import Tokenizer

SPECIAL = PADDING, UNKNOWN, CLASSIFY, SEPARATE, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
CONTINUES = "##"


@dataclass(frozen=True)
class WordPiece(Tokenizer):
    """Words cut into the longest pieces of a vocabulary (Schuster and Nakajima 2012; as in Devlin et al. 2019, BERT).

    The vocabulary comes with a checkpoint. Encoding loses information: runs of white space become one space, and
    normalisation may remove case and accents. `[SEP]` is end-of-text.
    """

    kind: ClassVar[str] = "wordpiece"

    json: str
    """The text of a `tokenizer.json`."""

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of each token: words begin with a space, special tokens are literal."""
        return _pieces(self.json)

    @property
    def end_of_text(self) -> int:
        """The id that ends a text."""
        return library(self.json).token_to_id(SEPARATE)

    @property
    def unknown(self) -> int:
        """The id of words that cannot be composed of the vocabulary's pieces."""
        return library(self.json).token_to_id(UNKNOWN)

    def encode(self, text: str) -> Int32[np.ndarray, " t"]:
        """Returns token ids of `text`; words with characters outside the vocabulary become `[UNK]`."""
        return np.array(library(self.json).encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Returns the text of token ids, without the leading space that `stream` includes."""
        return super().decode(ids).removeprefix(" ")


@functools.lru_cache(maxsize=8)
def library(text: str) -> Any:
    """Loads a `tokenizer.json`; special tokens that occur in a text are encoded as ordinary characters.

    Raises:
        UserError: it is not WordPiece, or lacks one of BERT's special tokens.
    """
    import tokenizers

    try:
        library, model = tokenizers.Tokenizer.from_str(text), json.loads(text)["model"]
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"the WordPiece tokenizer's JSON cannot be read as a tokenizer.json: {error}") from None
    if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix") != CONTINUES:
        raise UserError(f"the tokenizer.json holds a {model.get('type')} model: give one of WordPiece with {CONTINUES}")
    for token in SPECIAL:
        if library.token_to_id(token) is None:
            raise UserError(f"the tokenizer.json has no token {token}, which a BERT needs")
    library.encode_special_tokens = True
    return library


@functools.lru_cache(maxsize=8)
def _pieces(text: str) -> tuple[bytes, ...]:
    vocab = library(text).get_vocab(with_added_tokens=True)
    found = [b""] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
        found[i] = (token.removeprefix(CONTINUES) if token.startswith(CONTINUES) else f" {token}").encode()
    for token in SPECIAL:
        found[vocab[token]] = token.encode() if token != SEPARATE else b""
    return tuple(found)
