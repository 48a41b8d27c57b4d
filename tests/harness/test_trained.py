"""The mean over a held-out split: each row once, by its weight, and no row that only fills up a batch."""

import jax
import numpy as np
import pytest

from zoo.core.data import DataSet
from zoo.core.family import Family
from zoo.core.parallel import Parallel
from zoo.harness.evaluation import compile_evaluation, evaluate_split


class TenRows(DataSet):
    """Ten held-out rows in batches of four: row i has the value i^2; two rows fill up the last batch."""

    spec, held_out_batches = None, 3

    def batch_at(self, step, rows=slice(None)):
        raise AssertionError("training data is not held out")

    def held_out_at(self, index, rows=slice(None)):
        row = np.arange(4 * index, 4 * index + 4, dtype=np.int32)
        return {"x": np.where(row < 10, row**2, 1000).astype(np.float32), "row": row, "valid": row < 10}


class Weighted(Family):
    """Evaluates row i as the value x at weight i + 1, and a share of 1/4 beside it."""

    def init(self, spec, setup, key):
        raise NotImplementedError

    step = sample = init

    def evaluate(self, state, batch, key):
        weight = batch["row"].astype("float32") + 1
        one = weight / weight
        return {"loss": (batch["x"] * weight, weight), "share": (one, one * 4)}


@pytest.mark.parametrize("parallel", [Parallel(devices=1), Parallel(devices=4), Parallel("pmap", devices=4)], ids=str)
def test_every_held_out_row_counts_once_and_padding_never(parallel):
    strategy = parallel.start(4)
    compiled = compile_evaluation(strategy, Weighted(), jax.random.key(0))
    state = strategy.place(np.zeros(1, np.float32))
    means = evaluate_split(strategy, compiled, state, TenRows())
    assert means["loss"] == pytest.approx(sum(i**2 * (i + 1) for i in range(10)) / 55)
    assert means["share"] == pytest.approx(0.25)
    assert next(iter(means)) == "loss"
    means = evaluate_split(strategy, compiled, state, TenRows(), batches=2)
    assert means["loss"] == pytest.approx(sum(i**2 * (i + 1) for i in range(8)) / 36)
