"""Documents of text and their splits, shared by all data sets of running text."""

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
    """Source of text: Shakespeare's plays by default, or a file or a TFDS set."""

    path: str = ""
    """A UTF-8 text file, a .jsonl file, or a quoted glob ('books/**/*.txt'); each text file and each JSON line is a
    document. Empty: Shakespeare's 38 plays, embedded in this package."""

    field: str = "text"
    """The field of the text in JSON lines, or the text feature of a TFDS set."""

    held_out: float = 0.1
    """Share of the text that is held out: half is dev, half test. A single document: its end. Several: this share of
    them, chosen by a hash of their text; of two, one is halved. Shakespeare's plays have a fixed split: dev is Othello
    and As You Like It, test Macbeth and Twelfth Night."""

    held_out_path: str = ""
    """Text to score instead, a file or glob like `path`; all of `path` is then trained on. Half of it is dev and half
    test, or all is dev if `test_path` is given."""

    test_path: str = ""
    """Text for test only, a file or glob like `path`."""

    tfds: str = ""
    """A TensorFlow Datasets set prepared on this machine as array_record, such as 'lm1b', instead of `path`."""

    tfds_split: str = "train"
    """The split of the TFDS set to train on."""

    tfds_held_out_split: str = ""
    """The split of the TFDS set to score, like `held_out_path`; empty: the share `held_out` of `tfds_split`."""

    tfds_test_split: str = ""
    """The split of the TFDS set for test only."""

    tfds_dir: str = ""
    """The folder of prepared TFDS sets; empty: TFDS's default."""

    @property
    def name(self) -> str:
        """Name of the source."""
        return f"{self.tfds} {self.tfds_split}" if self.tfds else self.path or "Shakespeare's plays"

    def documents(self, split: Split = "dev") -> Parts[list[str]]:
        """Returns the documents of each part; for `all`, every document of the source, with nothing held out from it.

        Raises:
            UserError: a setting is wrong, or there is no readable text.
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
        """Returns these settings for the first 8,000 characters of the first document; see `Data.excerpt`."""
        path = folder / "excerpt.txt"
        path.write_text(self.documents("all").train[0][:8000], encoding="utf-8")
        return replace(self, path=str(path), tfds="", held_out_path="", test_path="")

    def _read(self, path: str, tfds_split: str) -> list[str] | None:
        """Reads the documents of a file or of a split of the TFDS set; None if neither is named."""
        if self.tfds:
            return read_tfds(self.tfds, tfds_split, self.tfds_dir, self.field) if tfds_split else None
        return read_documents(path, self.field) if path else None


def cut_documents(documents: Sequence[str], shares: Shares, rest: Part, name: str) -> dict[Part, list[str]]:
    """Cuts documents into parts by their text alone, keeping their order within a part.

    A single document is cut at its end. Of several, those with the smallest SHA-256 are held out, as a share of their
    number; of two documents for three parts, the held-out one is halved.

    Args:
        documents: non-empty texts.
        shares: shares of the held-out parts, all equal.
        rest: the part of all others.
        name: name of the source, for errors.
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
    """Cuts one document: its beginning is `rest`, its end the held-out parts, the first of `shares` last."""
    if len(text) <= len(shares):
        raise UserError(too_few(len(text), "character", name, shares, rest))
    begin = min(int(len(text) * (1 - sum(shares.values()))), len(text) - len(shares))
    edges = [begin + i * (len(text) - begin) // len(shares) for i in range(len(shares) + 1)]
    ends = {part: [text[i:j]] for part, (i, j) in zip(reversed(list(shares)), pairwise(edges), strict=True)}
    return {rest: [text[:begin]]} | ends
