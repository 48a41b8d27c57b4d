"""What data is: enough for a family to build its networks, and to sample without the data at hand."""

from dataclasses import dataclass

from zoo.core.errors import UserError
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
