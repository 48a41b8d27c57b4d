"""Data as a function: batch number `step` is `batch_at(step)`, and nothing else has to be remembered."""

import abc
import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from zoo.core.artifacts import Artifacts

Batch = dict[str, np.ndarray]


Split = Literal["dev", "test", "all"]
"""Which rows are scored: `dev` to choose by, `test` to report, or `all` of a source that nothing is trained on."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What data is: enough to build networks, and to sample without the data at hand; saved in the run directory."""


class DataSet(abc.ABC):
    """An opened data set: a spec, training batches by number, and the held-out rows of one split.

    Held-out rows come in an order without meaning, so that the first of them are a random sample. Subclasses are
    dataclasses.
    """

    spec: Spec
    split: Split = "dev"
    """Which rows are held out; training looks at dev."""

    def on(self, split: Split) -> "DataSet":
        """The same data with the held-out rows of another split; nothing is read again."""
        return self if split == self.split else dataclasses.replace(self, split=split)  # type: ignore[type-var]

    @property
    @abc.abstractmethod
    def held_out_batches(self) -> int:
        """How many batches hold all rows of the split."""

    @abc.abstractmethod
    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch number `step`, a pure function of (seed, step); `rows` takes part of the global batch."""

    @abc.abstractmethod
    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`; rows that only fill up the last one have `valid` false, and `row` counts on."""

    def augment(self, batch: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        """Changes a training batch at random, row by row, on the device. Traced within the training step."""
        return batch

    def preview(self, key: jax.Array) -> Artifacts:
        """What the first training batch, changed by `augment`, looks like to a person; kept in the run directory."""
        return []

    def coverage(self) -> dict[str, float]:
        """What the held-out split leaves out, as shares; nothing where it is whole.

        Returns:
            `left_out_share` of the rows and `left_out_token_share` of the tokens (end-of-text aside), since they are
            too long, and `unknown_share`, of the tokens that are scored, where the tokenizer lacks some.
        """
        return {}

    def fingerprint(self) -> str:
        """Changes when the training data does."""
        return self.describe()

    def describe(self) -> str:
        """One line that says what the data is and how much of it there is."""
        return type(self).__name__


class Data(abc.ABC):
    """A data set's settings, a frozen dataclass; fields are the command line's `--data.*` flags."""

    @property
    def name(self) -> str:
        """What the source is called; another name is another source."""
        return type(self).__name__

    @property
    def codec(self) -> str:
        """The run directory of the codec that the data is encoded by; empty: none.

        Data that has such a setting gets the loaded codec, a `zoo.core.codec.Coder`, as `open(..., codec=...)`.
        """
        return ""

    def check_tokenizer(self, spec: Any) -> None:  # noqa: B027 - most data has no tokenizer
        """Refuses a spec of an earlier run whose tokenizer is not the kind that these settings ask for.

        Raises:
            UserError: it is not; the message says which flag agrees.
        """

    def fitting(self, spec: Any) -> "Data":
        """These settings, changed where they ask for another spec than that of an earlier run; see `--init.from`."""
        return self

    def excerpt(self, folder: Path) -> "Data":
        """The same settings for a small piece of the data: what tests train on.

        A few dozen images or some hundred short texts are enough; by default, all of the data.

        Args:
            folder: an existing folder, into which the piece may be written.
        """
        return self

    @abc.abstractmethod
    def open(
        self, *, length: int | None, batch_size: int, seed: int, spec: Any = None, split: Split = "dev"
    ) -> DataSet:
        """Reads the data.

        Args:
            length: positions in a sequence, from the family; None where the data has none.
            batch_size: rows in the global batch.
            seed: of the order of the training rows.
            spec: of an earlier run, whose tokenizer must be used and must fit; None makes one from the data.
            split: the rows that are held out; with `all`, nothing is kept for training, and a source may be of any
                size.

        Raises:
            UserError: the data is missing, empty, too short, too little for three parts, unreadable, or does not fit
                `spec`.
        """
