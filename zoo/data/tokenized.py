"""The tokenizer of a data set: made from its texts, or that of an earlier run."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, TypeVar

import numpy as np

from zoo.core.errors import UserError
from zoo.data.tokenizers import BPE, GPT2, Bytes, Characters, Tokenizer, Words, code_points

Settings = TypeVar("Settings", bound="Tokenized")

Kind = Literal["characters", "bytes", "words", "bpe", "gpt2"]
"""Kinds of tokenizers that `make_tokenizer` makes: `Tokenizer.kind` of each class."""

LEAST = {"words": 3, "bpe": 257}
"""The smallest vocabulary that can be learned, by kind."""


def make_tokenizer(kind: Kind, train: Sequence[str], held_out: Sequence[str], vocabulary: int) -> Tokenizer:
    """Makes a tokenizer for texts.

    Args:
        kind: kind of tokenizer.
        train: texts from which words and merges are learned.
        held_out: other texts, whose characters must also be in the alphabet of `characters`.
        vocabulary: vocabulary size of `words` and `bpe`.

    Raises:
        UserError: the vocabulary is too small.
    """
    if vocabulary < LEAST.get(kind, 0):
        raise UserError(f"--data.vocabulary {vocabulary} is too small for {kind}: give at least {LEAST[kind]}")
    match kind:
        case "characters":
            return Characters(alphabet([*train, *held_out]))
        case "bytes":
            return Bytes()
        case "words":
            return Words.learn(train, vocabulary)
        case "bpe":
            return BPE.train(train, vocabulary)
        case "gpt2":
            return GPT2()


def check_kind(tokenizer: Tokenizer, kind: str, flag: str = "tokenizer") -> None:
    """Rejects the tokenizer of an earlier run if its kind differs from the data settings.

    Raises:
        UserError: it differs; the message names the flag that agrees with the run.
    """
    if tokenizer.kind != kind:
        raise UserError(f"the run's {flag} is {tokenizer.kind}, not {kind}: give --data.{flag} {tokenizer.kind}")


def check_characters(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Rejects texts with characters that a tokenizer of characters lacks.

    Raises:
        UserError: names the characters.
    """
    if isinstance(tokenizer, Characters):
        tokenizer.check(alphabet(texts))


def alphabet(texts: Iterable[str]) -> str:
    """Returns all characters that occur in the texts, sorted."""
    seen = np.zeros(0x110000, bool)
    for text in texts:
        seen[code_points(text)] = True
    return "".join(map(chr, np.flatnonzero(seen)))


class Tokenized:
    """Settings of data with one tokenizer, whose kind is one of them."""

    tokenizer: Any
    vocabulary: int

    def check_tokenizer(self, spec: Any) -> None:
        """Rejects a run's spec whose tokenizer is of another kind; see `check_kind`."""
        check_kind(spec.tokenizer, self.tokenizer)

    def fitting(self: Settings, spec: Any) -> Settings:
        """Returns these settings with the kind of tokenizer of an earlier run."""
        return replace(self, tokenizer=spec.tokenizer.kind)  # type: ignore[type-var]

    def tokenizer_of(self, spec: Any, train: list[str], held_out: list[str]) -> Tokenizer:
        """Returns the tokenizer of an earlier run's spec, or one made from the texts if there is no spec.

        Raises:
            UserError: the vocabulary is too small, or the run's tokenizer lacks characters of the texts.
        """
        if spec is None:
            return self.make_tokenizer(train, held_out)
        check_characters(spec.tokenizer, chain(train, held_out))
        return spec.tokenizer

    def make_tokenizer(self, train: list[str], held_out: list[str]) -> Tokenizer:
        """Makes a tokenizer from the texts; see the function of that name."""
        return make_tokenizer(self.tokenizer, train, held_out, self.vocabulary)
