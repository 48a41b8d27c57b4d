"""Byte-level byte-pair encoding with the `tokenizers` library, which is imported lazily."""

import functools
import json
import lzma
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Int32

from zoo.core.errors import UserError

END_OF_TEXT = "<|endoftext|>"


def train(texts: Iterable[str], vocab_size: int) -> str:
    """Learns merges from texts until there are `vocab_size` tokens or no pair is left; returns the tokenizer's JSON."""
    import tokenizers

    library = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return library.to_str()


@functools.lru_cache(maxsize=8)
def from_json(text: str, end_of_text: str) -> Any:
    """Loads a `tokenizer.json`; special tokens that occur in a text are encoded as ordinary characters.

    Raises:
        UserError: the JSON cannot be read, is not byte-level BPE, adds a space before texts, or lacks `end_of_text`.
    """
    import tokenizers

    try:
        fields = json.loads(text)
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"the BPE tokenizer's JSON cannot be read as a tokenizer.json: {error}") from None
    model = fields["model"].get("type")
    if model != "BPE" or '"ByteLevel"' not in json.dumps(fields["decoder"]):
        raise UserError(f"the tokenizer.json holds a {model} model over characters: give one of byte-level BPE")
    if '"add_prefix_space": true' in json.dumps(fields["pre_tokenizer"]):
        raise UserError("the tokenizer.json puts a space before every text: give one that encodes texts as they are")
    if library.token_to_id(end_of_text) is None:
        special = ", ".join(token["content"] for token in fields["added_tokens"] if token["special"])
        raise UserError(f"the tokenizer has no token {end_of_text!r} that ends a text: its special ones are {special}")
    return _special_as_text(library, end_of_text)


@functools.cache
def gpt2() -> Any:
    """Returns the library's tokenizer with GPT-2's merges; ids are the bytes, the merges in order, then end-of-text."""
    import tokenizers

    packed = (resources.files("zoo.data") / "embedded" / "gpt2_merges.txt.xz").read_bytes()
    pairs = [line.partition(" ") for line in lzma.decompress(packed).decode().splitlines()[1:]]
    merges = [(left, right) for left, _, right in pairs]
    tokens = [*byte_of_symbol(), *(left + right for left, right in merges), END_OF_TEXT]
    model = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    return _special_as_text(_byte_level(model), END_OF_TEXT)


def encode(library: Any, text: str) -> Int32[np.ndarray, " t"]:
    """Returns the ids of a text.

    The text is encoded in parts on all cores, since the library needs 400 bytes of memory per byte of text.
    """
    parts = list(_parts(text))
    ids = [np.zeros(0, np.int32)]
    for first in range(0, len(parts), 512):
        for encoding in library.encode_batch_fast(parts[first : first + 512], add_special_tokens=False):
            ids.append(np.array(encoding.ids, np.int32))
    return np.concatenate(ids)


# Positions that no byte-level tokenizer's pattern spans: between two words, and between a line's end and a word.
_BREAK = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=\S\n)(?=[^\W\d_])")


def _parts(text: str, size: int = 1 << 13) -> Iterator[str]:
    """Cuts a text into parts of about `size` characters whose tokens, concatenated, are the text's tokens."""
    begin = 0
    while found := _BREAK.search(text, begin + size):
        yield text[begin : found.start()]
        begin = found.start()
    yield text[begin:]


def pieces(library: Any, end_of_text: int) -> tuple[bytes, ...]:
    """Returns the bytes of every token of the library's tokenizer; empty for end-of-text and unused ids."""
    added = library.get_added_tokens_decoder()  # stored as text, not as symbols for bytes
    byte_of = byte_of_symbol()
    vocab = library.get_vocab(with_added_tokens=True)
    found = [b""] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
        found[i] = token.encode() if i in added else bytes(byte_of[symbol] for symbol in token)
    found[end_of_text] = b""
    return tuple(found)


@functools.cache
def byte_of_symbol() -> dict[str, int]:
    """Maps GPT-2's symbols for bytes to bytes, in the order of ids; printable bytes map to themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(model: Any) -> Any:
    import tokenizers

    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    return library


def _special_as_text(library: Any, end_of_text: str) -> Any:
    """Makes the name of a special token in a text encode to the characters of the name."""
    library.add_special_tokens([end_of_text])
    library.encode_special_tokens = True
    return library
