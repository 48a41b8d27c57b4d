"""Data specs: what a family needs to build its networks, and to sample without the data."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from zoo.core.artifacts import Artifacts, Text
from zoo.core.codec import Coder
from zoo.core.data import Spec
from zoo.core.errors import UserError
from zoo.data.tokenizers import Characters, Tokenizer, Words

UNITS = {
    "characters": ("bits_per_character", math.log(2)),
    "bytes": ("bits_per_byte", math.log(2)),
    "dims": ("bits_per_dim", math.log(2)),
    "images": ("nats_per_image", 1.0),
}
"""Figures of the likelihood, each with its unit in nats, by the key of a held-out batch that counts what they are per:
int32 [b], the number of characters, ... that each row's scored targets represent."""


@dataclass(frozen=True)
class GivenPart:
    """What is given of samples: their captions, and the part of an image that they keep.

    Attributes:
        image: path of the image; empty: none, or `pictures`.
        keep_rows: number of rows of pixels, from the top, to keep; 0: see `mask`.
        mask: path of a black and white image of the same size; its white part is sampled, the rest is kept.
        prompts: captions; sample i has number i mod m of them.
        negative_prompt: the caption that guidance leads away from; empty: the empty one.
        pictures: images that are read already, instead of `image`, of the model's size; sample i has number i mod m.
    """

    image: str = ""
    keep_rows: int = 0
    mask: str = ""
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    pictures: UInt8[np.ndarray, "m h w c"] | None = None

    @property
    def has_image(self) -> bool:
        """Whether there is an image."""
        return self.image != "" or self.pictures is not None

    @property
    def completes(self) -> bool:
        """Whether a part of the image is kept, and the rest is to be sampled."""
        return self.keep_rows > 0 or self.mask != ""


class Given(NamedTuple):
    """The tokens of samples that are given, and what the others may be."""

    tokens: Int32[np.ndarray, "m longest"]
    """Rows; sample i has row i mod m. -1 for the tokens to sample."""
    allowed: Int32[np.ndarray, "longest 2"] | None = None
    """The range of symbols of each token, the first and the one after the last; None: all."""
    without: Int32[np.ndarray, "m longest"] | None = None
    """The rows that guidance leads away from; None: there is no guidance."""

    def row(self, number: Int[np.ndarray, " b"]) -> "Given":
        """Returns what is given of samples of these numbers."""
        place = number % len(self.tokens)
        return self._replace(tokens=self.tokens[place], without=None if self.without is None else self.without[place])


@dataclass(frozen=True)
class TokenSpec(Spec):
    """Sequences of tokens: `tokens` int32 [b, length + 1]; the first `length` int32 [b] tokens of each row are valid.

    This is all that a token model needs. Subclasses give tokens their meaning: they decode samples, and their data sets
    define the units of the likelihood (see `UNITS`). Every sequence begins with `end`, and ends with it unless it has
    `longest` tokens, as images have.
    """

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, including `end`."""

    @property
    @abc.abstractmethod
    def end(self) -> int:
        """The id that begins and ends a sequence."""

    @property
    def outputs(self) -> int:
        """Number of ids that a model predicts, the first ones; the others are only read."""
        return self.vocab_size

    @property
    def never(self) -> int | None:
        """An id that is never sampled; None: all may be sampled."""
        return None

    @property
    def longest(self) -> int | None:
        """Maximum number of tokens in a sample, excluding `end`; None: unlimited."""
        return None

    @abc.abstractmethod
    def decode(self, samples: Sequence[Int[np.ndarray, " t"]], codec: Coder | None) -> Artifacts:
        """Returns the artifacts that samples represent.

        Args:
            samples: the tokens of each sample, without `end`.
            codec: the codec of the data, if it has one.
        """

    def given(self, part: GivenPart, codec: Coder | None) -> Given | None:
        """Returns the tokens of samples that a request determines; None: none.

        Raises:
            UserError: the tokens are not of images, or the image or mask does not fit.
        """
        if part.has_image:
            raise UserError(f"image is {part.image!r}, and the model's tokens are not of images: leave it out")
        if part.prompts:
            raise UserError(f"prompt is {part.prompts[0]!r}, which is for texts, and the model's tokens are of none")
        return None


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

    def decode(self, samples: Sequence[Int[np.ndarray, " t"]], codec: Coder | None) -> list[Text]:
        return [Text(self.tokenizer.decode(ids)) for ids in samples]


@dataclass(frozen=True)
class BlockSpec(TextSpec):
    """Documents in one stream, cut into blocks: `tokens` int32 [b, length + 1] with `length` int32 [b].

    Each document is between two end-of-text tokens: its first token is predicted from end-of-text, and its last target
    is end-of-text. Two consecutive end-of-text tokens mark a document boundary.
    """


@dataclass(frozen=True)
class LineSpec(TextSpec):
    """One text per row: `tokens` int32 [b, length + 1]; the first `length` int32 [b] tokens of each row are valid.

    These are end-of-text, the text, and end-of-text; padding follows. So a text of n tokens has n + 1 targets.
    """


@dataclass(frozen=True)
class CaptionSpec(LineSpec):
    """Captions of images: `caption` int32 [b, length + 1] with `caption_length` int32 [b], rows as those of `LineSpec`.

    So a caption has at most `length - 1` tokens. The empty caption is two end-of-text tokens. Captions in words are
    lower-case.
    """

    length: int
    """End-of-text and the tokens of the longest caption."""

    @property
    def longest(self) -> int:
        return self.length - 1

    def encode(self, caption: str) -> Int32[np.ndarray, " t"]:
        """Returns all tokens of a caption, without end-of-text; there may be more than `longest`.

        Raises:
            UserError: the tokenizer lacks characters of the caption.
        """
        return self.tokenizer.encode(caption.lower() if isinstance(self.tokenizer, Words) else caption)

    def rows(self, captions: Sequence[str]) -> tuple[Int32[np.ndarray, "b t"], Int32[np.ndarray, " b"]]:
        """Returns `caption` and `caption_length` of captions; longer ones are cut to `longest` tokens."""
        rows = np.full((len(captions), self.length + 1), self.end, np.int32)
        lengths = np.empty(len(captions), np.int32)
        for row, caption in enumerate(captions):
            tokens = self.encode(caption)[: self.longest]
            rows[row, 1 : 1 + len(tokens)] = tokens
            lengths[row] = len(tokens) + 2
        return rows, lengths

    def unknown_words(self, caption: str) -> tuple[str, ...]:
        """Returns the words or characters of a caption that the tokenizer lacks, each once, in order."""
        match self.tokenizer:
            case Words():
                words = self.tokenizer.cut(caption.lower())
                known = set(self.tokenizer.words)
                missing = [word.strip() for word in words if word not in known]
            case Characters():
                missing = [character for character in caption if character not in self.tokenizer.characters]
            case _:
                missing = []
        return tuple(dict.fromkeys(missing))


@dataclass(frozen=True)
class SegmentSpec(Spec):
    """Two segments of text per row, [CLS] a [SEP] b [SEP] and padding; BERT calls them a pair of sentences.

    `tokens` int32 [b, t], of which the first `length` int32 [b] are valid; `segment` int32 [b, t], 0 up to the first
    [SEP] and 1 after it; `follows` int32 [b], 1 if b follows a in the text, else 0.
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
        """Ids that represent no text."""
        return self.padding, self.classify, self.separate, self.mask

    @property
    def vocab_size(self) -> int:
        """Number of ids, including the special ones."""
        return max(self.tokenizer.vocab_size, *(i + 1 for i in self.special))


@dataclass(frozen=True)
class PairSpec(Spec):
    """A source and a target per row: `source` int32 [b, length] and `target` int32 [b, length + 1].

    The first `source_length` int32 [b] tokens of a source are valid: the text and end-of-text. The first
    `target_length` of a target are valid: end-of-text, the text, and end-of-text. Padding follows both.
    """

    source: Tokenizer
    target: Tokenizer
    examples: tuple[str, ...] = ()
    """Some held-out sources, to try a model with."""


@dataclass(frozen=True)
class ArraySpec(Spec):
    """Arrays of one size, images or their latents: `image` [b height width channels], `label` int32 [b], -1: none.

    With captions, the arrays in `CaptionSpec` come along.
    """

    height: int
    width: int
    channels: int
    """Of images: 1 for grey, 3 for colour."""
    classes: tuple[str, ...] = ()
    """Class names; label i is class i. Empty: nothing is labelled."""
    caption: CaptionSpec | None = None
    """The captions; None: there are none."""

    def class_number(self, label: str) -> int:
        """Returns the number of a class given by name or number.

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


@dataclass(frozen=True)
class ImageSpec(ArraySpec):
    """Images of one size: `image` is uint8."""

    @property
    def image(self) -> "ImageSpec":
        """The spec of the images that samples are shown as: this one."""
        return self


@dataclass(frozen=True)
class SceneSpec(ImageSpec):
    """Captioned scenes of coloured digits, with what is in them: `scene` int32 [b 2 3].

    It holds digit, colour and place of each object as numbers; see `zoo.data.captions.scenes`.
    """


@dataclass(frozen=True, kw_only=True)
class LatentSpec(ArraySpec):
    """Latents of images by a codec: `image` is float32, with mean 0 and deviation 1 in every channel.

    A codec's vector for a whole image is an array of height and width 1.
    """

    image: ImageSpec
    """The images that the latents are decoded to."""
    mean: tuple[float, ...]
    """Means of the codec's latents over the training images, by channel."""
    deviation: tuple[float, ...]
    """Their standard deviations."""
    codec: str
    """Check sum of the codec."""

    def from_codec(self, latents: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, "b h w c"]:
        """Standardises the codec's latents."""
        arrays = latents.reshape(len(latents), self.height, self.width, self.channels)
        return ((arrays - np.array(self.mean)) / np.array(self.deviation)).astype(np.float32)

    def to_codec(self, arrays: Float[np.ndarray, "b h w c"], shape: tuple[int, ...]) -> Float[np.ndarray, "b ..."]:
        """The reverse of `from_codec`; `shape` is that of the codec's latents of one image."""
        latents = arrays * np.array(self.deviation) + np.array(self.mean)
        return latents.reshape(len(arrays), *shape).astype(np.float32)
