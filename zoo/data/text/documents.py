"""Documents of text and their parts: what every data set of running text is made from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from zoo.core.data import Data, Split
from zoo.core.errors import UserError
from zoo.data.sources import DEV_PLAYS, TEST_PLAYS, read_documents, read_plays, read_tfds
from zoo.data.splits import Part, Parts, Shares, cut_by_hash, digest, make_parts, too_few


@dataclass(frozen=True)
class Documents(Data):
    """Where text comes from: Shakespeare's plays unless a file or a TFDS set is named."""

    path: str = ""
    """A UTF-8 text file, a .jsonl file, or a quoted glob of them ('books/**/*.txt'); a text file is one document, a
    JSON line another. Empty: Shakespeare's 38 plays, which come with this package."""

    field: str = "text"
    """The field that holds the text in JSON lines, or the feature in a TFDS set."""

    held_out: float = 0.1
    """Share of the text that is never trained on: half is dev, half test. One document: its end. Several: that share
    of them, chosen by a hash of their text; of two, one is halved. Shakespeare's plays: dev is always Othello and As
    You Like It, test Macbeth and Twelfth Night."""

    held_out_path: str = ""
    """Text to score instead, a file or glob like `path`; all of `path` is then trained on. Half of it is dev and half
    test, or all of it dev where `test_path` is given."""

    test_path: str = ""
    """Text for test alone, a file or glob like `path`."""

    tfds: str = ""
    """A TensorFlow Datasets set that is prepared on this machine as array_record, such as 'lm1b', instead of `path`."""

    tfds_split: str = "train"
    """The split of the TFDS set to train on."""

    tfds_held_out_split: str = ""
    """The split of the TFDS set to score, like `held_out_path`; empty: the share `held_out` of `tfds_split`."""

    tfds_test_split: str = ""
    """The split of the TFDS set for test alone."""

    tfds_dir: str = ""
    """The folder of prepared TFDS sets; empty: where TFDS keeps them."""

    @property
    def name(self) -> str:
        """What the text is called."""
        return f"{self.tfds} {self.tfds_split}" if self.tfds else self.path or "Shakespeare's plays"

    def documents(self, split: Split = "dev") -> Parts[list[str]]:
        """The documents of each part; with `all`, those of the source that is trained on, none held out.

        Raises:
            UserError: a setting is wrong, or there is no text to be read.
        """
        if not 0 < self.held_out < 1:
            raise UserError(
                f"--data.held-out {self.held_out} is not a share: give a number between 0 and 1, such as 0.1"
            )
        if self.tfds and (self.path or self.held_out_path or self.test_path):
            raise UserError("--data.tfds and --data.path name two sources of text: give one of them")
        plays = {} if self.tfds or self.path else read_plays()
        train = list(plays.values()) or self._read(self.path, self.tfds_split) or []
        if split == "all":
            return Parts.whole(train)
        dev = self._read(self.held_out_path, self.tfds_held_out_split)
        test = self._read(self.test_path, self.tfds_test_split)
        if plays and dev is None and test is None:
            train = [text for title, text in plays.items() if title not in DEV_PLAYS + TEST_PLAYS]
            dev, test = ([plays[title] for title in titles] for titles in (DEV_PLAYS, TEST_PLAYS))
        return make_parts(train, dev, test, self.held_out, partial(cut_documents, name=self.name))

    def excerpt(self, folder: Path) -> "Documents":
        """The first 8,000 characters of the first document; see `Data.excerpt`."""
        path = folder / "excerpt.txt"
        path.write_text(self.documents("all").train[0][:8000], encoding="utf-8")
        return replace(self, path=str(path), tfds="", held_out_path="", test_path="")

    def _read(self, path: str, tfds_split: str) -> list[str] | None:
        """The documents of a file or of a split of the TFDS set; None where neither is named."""
        if self.tfds:
            return read_tfds(self.tfds, tfds_split, self.tfds_dir, self.field) if tfds_split else None
        return read_documents(path, self.field) if path else None


def cut_documents(documents: Sequence[str], shares: Shares, rest: Part, name: str) -> dict[Part, list[str]]:
    """Cuts documents in parts, each in their order, by their text alone.

    One document is cut at its end. Of several, those with the smallest SHA-256 are held out, by their number; of two
    that are to be three parts, the one that is held out is halved.

    Args:
        documents: texts, none of them empty.
        shares: of the held-out parts, all equal.
        rest: the part of all others.
        name: of the source, for errors.
    """
    digests = [digest(text) for text in documents]
    different = len(set(digests))
    if not shares:
        return {rest: list(documents)}
    if different == 1:
        return _cut_text(documents[0], shares, rest, name)
    if different == len(shares) == 2:
        (one,) = set(cut_documents(documents, {"dev": 0.5}, rest, name)["dev"])
        return {rest: [text for text in documents if text != one]} | _cut_text(one, {"test": 0.5}, "dev", name)
    places = cut_by_hash(digests, shares, rest, "document", name)
    return {part: [documents[i] for i in np.sort(places[part])] for part in places}


def _cut_text(text: str, shares: Shares, rest: Part, name: str) -> dict[Part, list[str]]:
    """Cuts one document: the first of the shares is its end, and the rest its begin."""
    if len(text) <= len(shares):
        raise UserError(too_few(len(text), "character", name, shares, rest))
    begin = min(int(len(text) * (1 - sum(shares.values()))), len(text) - len(shares))
    edges = [begin + i * (len(text) - begin) // len(shares) for i in range(len(shares) + 1)]
    ends = {part: [text[i:j]] for part, (i, j) in zip(reversed(list(shares)), pairwise(edges), strict=True)}
    return {rest: [text[:begin]]} | ends
