"""What data is: enough for a family to build its networks, and to sample without the data at hand."""

from dataclasses import dataclass

from zoo.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Spec:
    """Base of all specs. A spec is saved in the run directory as JSON."""


@dataclass(frozen=True)
class BlockSpec(Spec):
    """A stream of documents cut in blocks: `tokens` int32 [b, length + 1] with `length` int32 [b].

    Every document stands in the stream between two end-of-text tokens, so that its first token is predicted from
    end-of-text and end-of-text is its last; two end-of-text tokens in a row are a document boundary.
    """

    tokenizer: Tokenizer


@dataclass(frozen=True)
class ImageSpec(Spec):
    """Images of one size: `image` uint8 [b height width channels], `label` int32 [b], -1 where there is none."""

    height: int
    width: int
    channels: int
    """1 for grey, 3 for colour."""
    classes: tuple[str, ...] = ()
    """Names of the classes; label i is of class i. Empty: nothing is labelled."""
