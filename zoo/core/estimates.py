"""Means over held-out rows, each with its standard error.

A mean over rows is a ratio of two sums, r = sum_i s_i / sum_i w_i, such as nats over tokens. Rows are independent and
the tokens of a row are not, so the error is that of a ratio estimator over the n rows (Cochran 1977, "Sampling
Techniques", section 2.11; the delta method):

    Var r = n / (n - 1) sum_i (s_i - r w_i)^2 / (sum_i w_i)^2

With w_i = 1 its root is the ordinary standard error of the mean.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from zoo.core.family import Metrics

STDERR = "_stderr"
"""Suffix of the name of a standard error, after the name of its figure."""
DRAWS_STDERR = "_draws" + STDERR
"""Suffix for the part of the error that is due to noise in the evaluation; more draws reduce it."""


def standard_error(sums: Any, weights: Any) -> float | None:
    """Standard error of sum(sums) / sum(weights); None for fewer than two rows.

    Args:
        sums: s of each row [n].
        weights: w of each row [n]; rows with s = w = 0 are not counted.
    """
    s, w = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    n = np.count_nonzero((s != 0) | (w != 0))
    if n < 2 or not w.sum():
        return None
    squares = np.square(s - s.sum() / w.sum() * w).sum()
    return float(np.sqrt(n / (n - 1) * squares) / w.sum())


def row_mean(name: str, sums: Any, weights: Any = None) -> Metrics:
    """The mean of a figure over rows, as metric `name`, with its standard error if there are at least two rows.

    Args:
        name: name of the figure.
        sums: s of each row [n]; without weights, the figure's value for each row.
        weights: w of each row [n]; None: 1.
    """
    s = np.asarray(sums, np.float64)
    w = np.ones(len(s)) if weights is None else np.asarray(weights, np.float64)
    error = standard_error(s, w)
    return {name: float(s.sum() / max(w.sum(), 1e-9))} | ({} if error is None else {name + STDERR: error})


class RowMeans:
    """Accumulates the statistics of held-out batches, each evaluated with several draws of the noise.

    Args:
        draws: evaluations of each batch; a row's s and w are means over them.
    """

    def __init__(self, draws: int = 1) -> None:
        self._draws, self._rows = draws, 0
        self._totals: dict[str, Float[np.ndarray, "k 2"]] = {}
        self._parts: dict[str, list[Float[np.ndarray, "2 b"]]] = {}

    def add(self, draws: Sequence[Any], valid: Bool[np.ndarray, " b"]) -> None:
        """Adds one batch.

        Args:
            draws: its `RowStatistics` for each draw, on the host.
            valid: true for rows that are not padding.
        """
        self._rows += int(valid.sum())
        for name in draws[0]:
            pairs = np.array([[np.where(valid, values, 0) for values in draw[name]] for draw in draws], np.float64)
            self._totals[name] = self._totals.get(name, np.zeros((self._draws, 2))) + pairs.sum(axis=2)
            self._parts.setdefault(name, []).append(pairs.mean(axis=0))

    def metrics(self) -> Metrics:
        """Each mean, `loss` first, with its standard error and, for several draws, the error due to the noise.

        Returns:
            `NAME`, `NAME_stderr` if there are at least two rows, `NAME_draws_stderr` if there are several draws, and
            `rows`, the number of rows.
        """
        found: Metrics = {}
        for name in ["loss", *(name for name in self._totals if name != "loss")]:
            total = self._totals[name].mean(axis=0)
            found[name] = float(total[0] / max(total[1], 1e-9))
            error = standard_error(*np.concatenate(self._parts[name], axis=1))
            if error is not None:
                found[name + STDERR] = error
            if self._draws > 1:
                sums, weights = self._totals[name].T
                found |= {
                    name + DRAWS_STDERR: float(np.std(sums / np.maximum(weights, 1e-9), ddof=1) / self._draws**0.5)
                }
        return found | {"rows": self._rows}
