"""Retrieval: how often the right candidate is among the k that agree most with a query.

Letters in shapes: n queries, m candidates.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float

from zoo.core.data import DataSet
from zoo.core.family import Metrics
from zoo.metrics.intervals import wilson_interval

DEPTHS = (1, 5)
"""k of the recalls that are reported."""


def found(scores: Float[np.ndarray, "n m"], right: Bool[np.ndarray, "n m"], k: int) -> Bool[np.ndarray, " n"]:
    """Returns for which queries a right candidate is among the k with the highest scores; ties count against it.

    Args:
        scores: of each candidate for each query.
        right: candidates that are right, at least one for each query.
        k: number of candidates that are looked at.
    """
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    return ((scores >= best) & ~right).sum(1) < k


def chance(right: Bool[np.ndarray, "n m"], k: int) -> float:
    """Returns the expected share of queries with a right candidate among the first k of a random order.

    With r of m candidates right it is 1 - C(m - r, k) / C(m, k).
    """
    m, r = right.shape[1], right.sum(1)
    none = np.prod([np.maximum(m - r - i, 0) / (m - i) for i in range(min(k, m))], axis=0)
    return float(1.0 - none.mean())


def share(name: str, hits: Bool[np.ndarray, " n"]) -> Metrics:
    """Returns a share of trials as metric `name`, with its 95 % interval as `name_low` and `name_high`."""
    value = float(hits.mean())
    low, high = wilson_interval(value, len(hits))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def recalls(scores: Float[np.ndarray, "n n"], right: Bool[np.ndarray, "n n"], query: str, candidate: str) -> Metrics:
    """Returns recall at 1 and 5 of n pairs both ways, with intervals, and what a random order would have.

    Args:
        scores: of query i and candidate j; pair i is both i.
        right: whether j is a right candidate for i; symmetric.
        query: name of the kind of thing that rows are, such as `image`.
        candidate: the same for columns.

    Returns:
        `QUERY_to_CANDIDATE_recall_at_K` and the reverse, with `_low` and `_high`, and `chance_recall_at_K`.
    """
    figures: Metrics = {}
    for k in DEPTHS:
        figures |= share(f"{query}_to_{candidate}_recall_at_{k}", found(scores, right, k))
        figures |= share(f"{candidate}_to_{query}_recall_at_{k}", found(scores.T, right.T, k))
        figures[f"chance_recall_at_{k}"] = chance(right, k)
    return figures


def read_pairs(data: DataSet, most: int = 0) -> dict[str, np.ndarray]:
    """Returns `image`, `caption`, `caption_length` and `label` of the first held-out pairs; 0: of all."""
    return first_rows(data, ("image", "caption", "caption_length", "label"), most)


def first_rows(data: DataSet, names: tuple[str, ...], most: int = 0) -> dict[str, np.ndarray]:
    """Returns arrays of the first held-out rows by name, at most `most` rows; 0: of all."""
    parts: list[dict[str, np.ndarray]] = []
    for index in range(data.held_out_batches):
        batch = data.held_out_at(index)
        parts.append({name: batch[name][batch["valid"]] for name in names})
        if 0 < most <= sum(len(part[names[0]]) for part in parts):
            break
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: most or None], *parts)
