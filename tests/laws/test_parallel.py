"""Devices: what is refused, and that states with rows lie right under both strategies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.core import parallel
from zoo.core.errors import UserError
from zoo.core.family import Rows
from zoo.core.parallel import Parallel

STRATEGIES = [
    Parallel("jit", 1),
    Parallel("jit", 4),
    Parallel("jit", 8, fsdp=2),
    Parallel("pmap", 1),
    Parallel("pmap", 4),
]


def make(key):
    return {
        "w": jax.random.normal(key, (64, 32)),
        "carry": Rows({"h": jnp.zeros((8, 3))}),
        "n": jnp.zeros((), jnp.int32),
    }


def step(state, batch, number):
    """A recurrent step: rows go on from their carry, and a weight moves by a sum over all rows."""
    carry = 0.5 * state["carry"].value["h"] + batch["x"]
    moved = parallel.total(carry.sum())
    new = {"w": state["w"] + moved, "carry": Rows({"h": carry}), "n": state["n"] + 1}
    return new, {"sum": moved, "mean": parallel.mean(carry.mean()), "number": number}


@pytest.mark.parametrize("settings", STRATEGIES, ids=lambda p: f"{p.strategy}{p.devices}-fsdp{p.fsdp}")
def test_every_strategy_computes_the_same_and_gathers_rows_in_order(settings):
    strategy = settings.start(batch_size=8)
    state = strategy.init(make, jax.random.key(0))
    expected, compiled = make(jax.random.key(0)), strategy.compile_step(step)
    for n in range(3):
        batch = {"x": np.arange(24, dtype=np.float32).reshape(8, 3) * (n + 1)}
        state, metrics = compiled(state, strategy.put(batch), np.int32(n))
        expected, told = step(expected, jax.tree.map(jnp.asarray, batch), n)
        for name in told:
            np.testing.assert_allclose(metrics[name], told[name], rtol=1e-5, err_msg=name)
    whole = strategy.gather(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, expected)

    # What was gathered can be laid out again, as a checkpoint is.
    shapes = strategy.abstract(make, jax.random.key(0))
    assert jax.tree.map(lambda s: s.shape, shapes) == jax.tree.map(lambda x: x.shape, whole)
    again, _ = compiled(strategy.place(jax.device_get(whole)), strategy.put(batch), np.int32(3))
    further, _ = step(expected, batch, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), strategy.gather(again), further)


def test_fsdp_splits_large_parameters_and_their_rows():
    strategy = Parallel("jit", 8, fsdp=4).start(8)
    state = strategy.init(make, jax.random.key(0))
    assert state["w"].addressable_shards[0].data.shape == (16, 32)
    assert state["carry"].value["h"].addressable_shards[0].data.shape == (1, 3)
    assert state["n"].sharding.is_fully_replicated
    state, _ = strategy.compile_step(step)(state, strategy.put({"x": np.ones((8, 3), np.float32)}), np.int32(0))
    assert state["w"].addressable_shards[0].data.shape == (16, 32)


def test_a_layer_can_gather_a_split_parameter_and_a_sampler_gets_all_of_them_whole():
    strategy, seen = Parallel("jit", 8, fsdp=4).start(8), {}

    def observed(state, batch, number):
        for name, w in (("split", state["w"]), ("gathered", parallel.gathered(state["w"]))):
            jax.debug.inspect_array_sharding(w, callback=lambda sharding, name=name: seen.update({name: sharding}))
        return step(state | {"w": parallel.gathered(state["w"]) * 1.0}, batch, number)

    batch = strategy.put({"x": np.ones((8, 3), np.float32)})
    state, _ = strategy.compile_step(observed)(strategy.init(make, jax.random.key(0)), batch, np.int32(0))
    assert seen["gathered"].is_fully_replicated
    assert not seen["split"].is_fully_replicated
    assert state["w"].addressable_shards[0].data.shape == (16, 32)
    assert strategy.replicate(state)["w"].addressable_shards[0].data.shape == state["w"].shape


def test_rows_come_back_in_the_order_of_the_batch():
    for settings in STRATEGIES:
        strategy = settings.start(8)
        state = strategy.init(make, jax.random.key(0))
        rows = strategy.compile_rows(lambda state, batch, n: {"twice": 2 * batch["x"], "n": batch["x"] + n})
        batch = {"x": np.arange(8, dtype=np.int32)}
        out = jax.device_get(rows(state, strategy.put(batch), np.int32(5)))
        np.testing.assert_array_equal(out["twice"], 2 * batch["x"])
        np.testing.assert_array_equal(out["n"], batch["x"] + 5)


@pytest.mark.parametrize(
    ("settings", "batch_size", "microbatches", "words"),
    [
        (Parallel(devices=9), 9, 1, "parallel.devices is 9, but this machine has 8"),
        (Parallel(devices=8), 12, 1, "batch_size is 12; it must be a multiple of 8"),
        (Parallel(devices=4), 12, 2, "batch_size is 12; it must be a multiple of 8"),
        (Parallel(devices=8, fsdp=3), 24, 1, "parallel.fsdp is 3"),
        (Parallel("pmap", 8, fsdp=2), 8, 1, "parallel.fsdp is 2, but pmap"),
    ],
)
def test_what_does_not_fit_is_refused(settings, batch_size, microbatches, words):
    with pytest.raises(UserError, match=words):
        settings.start(batch_size, microbatches)
