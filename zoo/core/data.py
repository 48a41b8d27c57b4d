"""Interface of data sets: batch number `step` is `batch_at(step)`, so that a data set has no state to save."""

import abc
import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from zoo.core.artifacts import Artifacts
from zoo.core.errors import UserError

Batch = dict[str, np.ndarray]


Split = Literal["dev", "test", "all"]
"""Rows to score: `dev` for selection, `test` for reported figures, or `all` of a source that is not trained on."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """Description of data, sufficient to build networks and to sample without the data; saved in the run directory."""


class DataSet(abc.ABC):
    """An opened data set: a spec, training batches by number, and the held-out rows of one split.

    The order of held-out rows is random, so that the first of them are a random sample. Subclasses are dataclasses.
    """

    spec: Spec
    split: Split = "dev"
    """The held-out rows; training evaluates dev."""

    def on(self, split: Split) -> "DataSet":
        """The same data with the held-out rows of another split; the source is not read again."""
        return self if split == self.split else dataclasses.replace(self, split=split)  # type: ignore[type-var]

    @property
    @abc.abstractmethod
    def held_out_batches(self) -> int:
        """Number of batches in the split."""

    @abc.abstractmethod
    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch number `step`, a pure function of (seed, step); `rows` selects part of the global batch."""

    @abc.abstractmethod
    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`; `row` is the index in the split, and `valid` is false for padding rows at its end."""

    def augment(self, batch: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        """Augments a training batch at random, row by row, on the device. Traced within the training step."""
        return batch

    def preview(self, key: jax.Array) -> Artifacts:
        """The first training batch after `augment`, in readable form; written to the run directory."""
        return []

    def coverage(self) -> dict[str, float]:
        """Shares of the held-out split that are left out or unknown; empty if there are none.

        Returns:
            `left_out_share` of the rows and `left_out_token_share` of the tokens (excluding end-of-text) that are too
            long, and `unknown_share`, the share of scored tokens that the tokenizer lacks, if any.
        """
        return {}

    def fingerprint(self) -> str:
        """A string that changes when the training data changes."""
        return self.describe()

    def describe(self) -> str:
        """One line about the kind and amount of the data."""
        return type(self).__name__


class Data(abc.ABC):
    """A data set's settings, a frozen dataclass; fields are the command line's `--data.*` flags."""

    @property
    def name(self) -> str:
        """The source's name; different sources have different names."""
        return type(self).__name__

    @property
    def codec(self) -> str:
        """The run directory of the codec that encodes the data; empty: none.

        If it is not empty, `open` is called with the loaded codec, a `zoo.core.codec.Coder`, as `codec=`.
        """
        return ""

    def check_tokenizer(self, spec: Any) -> None:  # noqa: B027 - most data has no tokenizer
        """Checks that the tokenizer in the spec of an earlier run is of the kind that these settings select.

        Raises:
            UserError: it is of another kind; the message names the flag that matches.
        """

    def fitting(self, spec: Any) -> "Data":
        """These settings, adapted to the spec of an earlier run; see `--init.from`."""
        return self

    def of_image(self, path: str, spec: Any) -> "Data":
        """These settings for one image, all of which `open` returns with the split `all`.

        Args:
            path: a file.
            spec: spec of the run that scores it.

        Raises:
            UserError: the data is not of images.
        """
        raise UserError(f"image is {path!r}, and the run's data is {self.name}, which is not of images")

    def excerpt(self, folder: Path) -> "Data":
        """The same settings for a small excerpt of the data, for tests.

        A few dozen images or a few hundred short texts are enough; the default is all of the data.

        Args:
            folder: an existing folder, to which the excerpt may be written.
        """
        return self

    @abc.abstractmethod
    def open(
        self, *, length: int | None, batch_size: int, seed: int, spec: Any = None, split: Split = "dev"
    ) -> DataSet:
        """Reads the data.

        Args:
            length: positions in a sequence, from the family; None if rows have no length.
            batch_size: rows in the global batch.
            seed: seed of the order of the training rows.
            spec: spec of an earlier run, whose tokenizer is used and must fit the data; None: made from the data.
            split: the held-out rows; with `all`, no rows are kept for training, and the source may have any size.

        Raises:
            UserError: the data is missing, empty, too short, too small for three splits, unreadable, or does not fit
                `spec`.
        """
