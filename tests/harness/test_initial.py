"""A run that starts from another one: its first state, made without random weights."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from zoo import Optimizer, Run
from zoo.core.parallel import Parallel
from zoo.data.text import Text
from zoo.harness.checkpoint import flatten
from zoo.harness.initial import Weights, first_state, random_state, with_weights
from zoo.harness.loop import fit
from zoo.transformer_lm import TransformerLM

RUN = Run(
    family=TransformerLM(layers=1, heads=2, width=16, context=8), data=Text(), parallel=Parallel(devices=1), steps=1,
    optimizer=Optimizer(ema_decay=0.9), batch_size=8, eval_batches=1, save_every=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source")
    (path / "text.txt").write_text("To be, or not to be. " * 40)
    return fit(replace(RUN, data=Text(path=str(path / "text.txt")), rundir=str(path / "run")))


@pytest.mark.parametrize("parallel", [Parallel(devices=1), Parallel(fsdp=2), Parallel("pmap", devices=4)], ids=str)
def test_weights_and_averages_come_from_the_source_and_the_optimizer_starts_anew(source, parallel):
    run, spec = replace(source.run, seed=1, parallel=parallel), source.model.spec
    strategy = parallel.start(run.batch_size)
    made = jax.device_get(strategy.gather(first_state(run, spec, strategy, source)).net)
    fresh = jax.device_get(strategy.gather(first_state(run, spec, strategy, None)).net)
    weights = source.model.state.net.eval_params
    assert made.updates == 0
    for tree in (made.params, made.ema[0]):
        jax.tree.map(np.testing.assert_array_equal, tree, jax.device_get(weights))
    jax.tree.map(np.testing.assert_array_equal, made.opt_state, fresh.opt_state)
    assert np.any(fresh.params["embedding"]["table"] != made.params["embedding"]["table"])
    assert {name: leaf.dtype for name, leaf in flatten(made).items()} == {
        name: leaf.dtype for name, leaf in flatten(fresh).items()
    }


def test_random_weights_that_would_be_replaced_are_not_computed(source):
    make, key = random_state(RUN, source.model.spec)
    learner = source.model.state.net
    weights = [Weights(learner.eval_params, learner.eval_memory)]
    drawn = jax.jit(make).lower(key).compile().as_text()
    replaced = jax.jit(lambda key, weights: with_weights(make(key), weights)).lower(key, weights).compile().as_text()
    assert "xor" in drawn  # of the random bits
    assert "xor" not in replaced
