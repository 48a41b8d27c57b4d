"""The mean over a held-out split: each row once, by its weight, and no row that only fills up a batch."""

import jax
import jax.numpy as jnp
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


class Shares(Weighted):
    """Evaluates a row as its share of the sum of x over the valid rows of its batch."""

    compares_rows = True

    def evaluate(self, state, batch, key):
        x = jnp.where(batch["valid"], batch["x"], 0.0)
        return {"loss": (x / x.sum(), jnp.ones(len(x)))}


@pytest.mark.parametrize("parallel", [Parallel(devices=4), Parallel("pmap", devices=4)], ids=str)
def test_a_family_that_compares_rows_sees_the_whole_batch_on_every_device(parallel):
    strategy = parallel.start(4)
    compiled = compile_evaluation(strategy, Shares(), jax.random.key(0))
    state = strategy.place(np.zeros(1, np.float32))
    rows = compiled(state, strategy.put(TenRows().held_out_at(2)), np.int32(0))["loss"][0]
    np.testing.assert_allclose(rows, [64 / 145, 81 / 145, 0.0, 0.0], rtol=1e-6)
    assert evaluate_split(strategy, compiled, state, TenRows())["loss"] == pytest.approx(3 / 10)
