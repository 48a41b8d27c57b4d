"""What data is: enough for a family to build its networks, and to sample without the data at hand."""

import abc
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from zoo.core.artifacts import Artifact, Text
from zoo.core.data import Spec
from zoo.core.errors import UserError
from zoo.data.tokenizers import Tokenizer

UNITS = {"characters": "character", "bytes": "byte", "dims": "dim", "images": "image"}
"""What bits are counted for, by the key of a held-out batch that says how many of them a row's scored targets stand
for, int32 [b]. A batch has the keys that fit its tokens; `bits_per_UNIT` is reported for each."""


@dataclass(frozen=True)
class TokenSpec(Spec):
    """Sequences of tokens: `tokens` int32 [b, length + 1], of which the first `length` int32 [b] are the row's.

    This is all that a model of tokens knows of them. The spec gives tokens their meaning: it decodes a sample, and its
    data names the likelihood's units (see `UNITS`). Every sequence begins with `end`, and ends with it unless it has
    `longest` tokens. Another data set's spec is a subclass.
    """

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are, `end` among them."""

    @property
    @abc.abstractmethod
    def end(self) -> int:
        """The id that a sequence begins and ends with."""

    @property
    def never(self) -> int | None:
        """The id that is never drawn; None: there is none."""
        return None

    @property
    def longest(self) -> int | None:
        """How many tokens a sample has at most, its ends aside; None: any number."""
        return None

    @abc.abstractmethod
    def decode(self, ids: Int[np.ndarray, " t"]) -> Artifact:
        """What the tokens of a sample stand for; `end` is not among them."""


@dataclass(frozen=True)
class TextSpec(TokenSpec):
    """Tokens of text; `end` is end-of-text."""

    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def end(self) -> int:
        return self.tokenizer.end_of_text

    @property
    def never(self) -> int | None:
        return self.tokenizer.unknown

    def decode(self, ids: Int[np.ndarray, " t"]) -> Text:
        return Text(self.tokenizer.decode(ids))


@dataclass(frozen=True)
class BlockSpec(TextSpec):
    """A stream of documents cut in blocks: `tokens` int32 [b, length + 1] with `length` int32 [b].

    Every document stands in the stream between two end-of-text tokens, so that its first token is predicted from
    end-of-text and end-of-text is its last; two end-of-text tokens in a row are a document boundary.
    """


@dataclass(frozen=True)
class LineSpec(TextSpec):
    """A text a row: `tokens` int32 [b, length + 1], of which the first `length` int32 [b] are the row's.

    Those are end-of-text, the text, and end-of-text; padding follows. So a text of n tokens has n + 1 targets.
    """


@dataclass(frozen=True)
class SegmentSpec(Spec):
    """Two segments of text a row, [CLS] a [SEP] b [SEP] and padding, which BERT calls a pair of sentences.

    `tokens` int32 [b, t], of which the first `length` int32 [b] are the row's; `segment` int32 [b, t], 0 up to the
    first [SEP] and 1 after it; `follows` int32 [b], 1 where b is what follows a in the text and 0 where it is not.
    """

    tokenizer: Tokenizer
    """Its end-of-text is [SEP]."""
    padding: int
    """The id of [PAD]."""
    classify: int
    """The id of [CLS]."""
    mask: int
    """The id of [MASK]."""

    @property
    def separate(self) -> int:
        """The id of [SEP]."""
        return self.tokenizer.end_of_text

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that stand for no text."""
        return self.padding, self.classify, self.separate, self.mask

    @property
    def vocab_size(self) -> int:
        """How many ids there are, the special ones among them."""
        return max(self.tokenizer.vocab_size, *(i + 1 for i in self.special))


@dataclass(frozen=True)
class PairSpec(Spec):
    """A source and a target a row: `source` int32 [b, length] and `target` int32 [b, length + 1].

    The first `source_length` int32 [b] tokens of a source are the row's: the text and end-of-text. The first
    `target_length` of a target are end-of-text, the text, and end-of-text. Padding follows both.
    """

    source: Tokenizer
    target: Tokenizer
    examples: tuple[str, ...] = ()
    """Some sources that are not trained on, to try a model with."""


@dataclass(frozen=True)
class ImageSpec(Spec):
    """Images of one size: `image` uint8 [b height width channels], `label` int32 [b], -1 where there is none."""

    height: int
    width: int
    channels: int
    """1 for grey, 3 for colour."""
    classes: tuple[str, ...] = ()
    """Names of the classes; label i is of class i. Empty: nothing is labelled."""

    def class_number(self, label: str) -> int:
        """The number of a class that is given by its name or its number.

        Raises:
            UserError: there is no such class.
        """
        if label in self.classes:
            return self.classes.index(label)
        if label.isdecimal() and int(label) < len(self.classes):
            return int(label)
        known = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
        raise UserError(
            f"label is {label!r}; it must be one of the classes {known}, or a number below {len(self.classes)}"
        )
