"""Splits of a data set: `train` for training, `dev` to choose settings and checkpoints, `test` for reported scores.

The SHA-256 of a row's contents determines its part: the smallest hashes are test, the next dev, the rest train. So the
parts do not depend on the order of files, and equal rows are in the same part. Held-out rows are sorted by hash, so the
first N of them are a random sample.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Int64

from zoo.core.data import Split
from zoo.core.errors import UserError

Part = Literal["train", "dev", "test"]
Shares = Mapping[Part, float]

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Parts(Generic[T]):
    """Training rows, and held-out rows: `dev` and `test`, or `all` rows of a source, which are then also `train`."""

    train: T
    held_out: dict[Split, T]

    @classmethod
    def whole(cls, rows: T) -> "Parts[T]":
        """Returns the parts of a source whose rows are all scored."""
        return cls(rows, {"all": rows})

    def map(self, function: Callable[[T], U]) -> "Parts[U]":
        """Returns the same parts with a function applied to each, once per part."""
        train = function(self.train)
        held_out = {name: train if rows is self.train else function(rows) for name, rows in self.held_out.items()}
        return Parts(train, held_out)

    @property
    def each(self) -> tuple[T, ...]:
        """All parts, each once."""
        return (self.train, *(rows for rows in self.held_out.values() if rows is not self.train))

    def sizes(self, unit: str, count: Callable[[T], int]) -> str:
        """Returns the number of rows per part, such as "800 images to train on, 100 for dev and 100 for test"."""
        if "all" in self.held_out:
            return f"all of {count(self.train):,} {unit}"
        dev, test = (count(self.held_out[name]) for name in ("dev", "test"))
        return f"{count(self.train):,} {unit} to train on, {dev:,} for dev and {test:,} for test"


def digest(text: str) -> bytes:
    """Returns the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()


def cut_by_hash(
    digests: Sequence[bytes], shares: Shares, rest: Part, unit: str, source: str
) -> dict[Part, Int64[np.ndarray, " _"]]:
    """Assigns rows to parts by their digests.

    Args:
        digests: digest of each row's contents.
        shares: share of the distinct rows per part, at least one row each; the first part has the smallest digests.
        rest: the part of the remaining rows.
        unit: what a row is, for errors, such as "picture".
        source: name of the source, for errors.

    Returns:
        Row numbers: those of `train` in their original order, those of held-out parts sorted by digest.

    Raises:
        UserError: there are fewer distinct rows than parts.
    """
    ranked = sorted(set(digests))
    if len(ranked) <= len(shares):
        raise UserError(too_few(len(ranked), f"different {unit}", source, shares, rest))
    sizes = [max(1, round(share * len(ranked))) for share in shares.values()]
    while sum(sizes) >= len(ranked):  # leaves at least one row for the rest
        sizes[max(reversed(range(len(sizes))), key=sizes.__getitem__)] -= 1
    rank = {digest: i for i, digest in enumerate(ranked)}
    ranks = np.array([rank[digest] for digest in digests], np.int64)
    part = np.searchsorted(np.cumsum(sizes), ranks, side="right")
    order = np.argsort(ranks, kind="stable")
    found = {name: order[part[order] == i] for i, name in enumerate((*shares, rest))}
    return found | {"train": np.sort(found["train"])} if "train" in found else found


def too_few(count: int, unit: str, source: str, shares: Shares, rest: Part) -> str:
    """Returns the error message for too few rows for the requested parts."""
    names = sorted((*shares, rest), key=["train", "dev", "test"].index)
    needed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"{source} has {count} {unit}{'s' * (count > 1)}, too few for {needed}: give at least {len(names)}"


def make_parts(
    train: T, dev: T | None, test: T | None, share: float, cut: Callable[[T, Shares, Part], dict[Part, T]]
) -> Parts[T]:
    """Makes train, dev and test parts; dev and test may be given.

    Args:
        train: rows to train on.
        dev: given held-out rows; without `test`, half of them become the test rows.
        test: given test rows.
        share: share of `train` that is held out if `dev` is not given: half dev and half test, or, if `test` is given,
            half of the share is dev and the other half stays in train.
        cut: cuts rows into shares and a rest, as `cut_by_hash` does.
    """
    half = share / 2
    parts: dict[Part, T] = {"train": train}
    if dev is not None:
        parts |= cut(dev, {} if test is not None else {"test": 0.5}, "dev")
    else:
        parts |= cut(train, {"dev": half} if test is not None else {"test": half, "dev": half}, "train")
    if test is not None:
        parts |= cut(test, {}, "test")
    return Parts(parts["train"], {"dev": parts["dev"], "test": parts["test"]})
