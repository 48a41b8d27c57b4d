"""Documents of text and their split: what every data set of running text is made from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.core.errors import UserError
from zoo.data.dataset import Data
from zoo.data.sources import HELD_OUT_PLAYS, read_documents, read_plays, read_tfds


@dataclass(frozen=True)
class Documents(Data):
    """Where text comes from: Shakespeare's plays unless a file or a TFDS set is named."""

    path: str = ""
    """A UTF-8 text file, a .jsonl file, or a quoted glob of them ('books/**/*.txt'); a text file is one document, a
    JSON line another. Empty: Shakespeare's 38 plays, which come with this package."""

    field: str = "text"
    """The field that holds the text in JSON lines, or the feature in a TFDS set."""

    held_out: float = 0.1
    """Share of the text that is never trained on. One document: its end. Several: that share of them, chosen by a hash
    of their text. Shakespeare's plays: always Macbeth and Twelfth Night."""

    held_out_path: str = ""
    """Text to score instead, a file or glob like `path`; all of `path` is then trained on."""

    tfds: str = ""
    """A TensorFlow Datasets set that is prepared on this machine as array_record, such as 'lm1b', instead of `path`."""

    tfds_split: str = "train"
    """The split of the TFDS set to train on."""

    tfds_held_out_split: str = ""
    """The split of the TFDS set to score; empty: the share `held_out` of `tfds_split`."""

    tfds_dir: str = ""
    """The folder of prepared TFDS sets; empty: where TFDS keeps them."""

    @property
    def name(self) -> str:
        """What the text is called."""
        return self.tfds or self.path or "Shakespeare's plays"

    def documents(self) -> tuple[list[str], list[str]]:
        """Training and held-out documents.

        Raises:
            UserError: a setting is wrong, or there is no text to be read.
        """
        if not 0 < self.held_out < 1:
            raise UserError(
                f"--data.held-out {self.held_out} is not a share: give a number between 0 and 1, such as 0.1"
            )
        if self.tfds and (self.path or self.held_out_path):
            raise UserError("--data.tfds and --data.path name two sources of text: give one of them")
        if self.tfds:
            train = read_tfds(self.tfds, self.tfds_split, self.tfds_dir, self.field)
            if self.tfds_held_out_split:
                return train, read_tfds(self.tfds, self.tfds_held_out_split, self.tfds_dir, self.field)
        elif self.path:
            train = read_documents(self.path, self.field)
        else:
            plays = read_plays()
            train = [text for title, text in plays.items() if self.held_out_path or title not in HELD_OUT_PLAYS]
            if not self.held_out_path:
                return train, [plays[title] for title in HELD_OUT_PLAYS]
        if self.held_out_path:
            return train, read_documents(self.held_out_path, self.field)
        return split_documents(train, self.held_out)


def split_documents(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Splits documents into training and held-out ones, by their text alone.

    One document: its last `share` of characters is held out. Several: those whose SHA-256 is smallest, `share` of the
    different texts but at least one; so the split does not depend on the order of files, and no text is on both sides.
    """
    digests = [hashlib.sha256(text.encode()).digest() for text in documents]
    ranked = sorted(set(digests))
    if len(ranked) == 1:
        cut = int(len(documents[0]) * (1 - share))
        return [documents[0][:cut]], [documents[0][cut:]]
    held_out = set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])
    train = [text for text, digest in zip(documents, digests, strict=True) if digest not in held_out]
    return train, [text for text, digest in zip(documents, digests, strict=True) if digest in held_out]
