"""CLIP's loss: who is compared with whom, that parts of a batch give the gradient of the whole, and transformers'."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_cases import BATCH, TINY, check_clip, first_state, opened, tiny_state
from flax import nnx
from paths import REFERENCES

from zoo.clip import CLIP, Network, info_nce, rivals, tabulate
from zoo.core.errors import UserError
from zoo.core.parallel import Parallel
from zoo.harness.checkpoint import flatten
from zoo.harness.evaluation import compile_evaluation
from zoo.nets.clip_towers import FIRST_SCALE

RNG = np.random.default_rng(0)


def test_towers_logits_and_loss_are_transformers():
    check_clip(REFERENCES / "clip")


def test_equal_captions_and_padding_rows_are_not_negatives():
    """Rows 0 and 2 have one caption, row 3 only fills up the batch; by hand, one softmax at a time."""
    caption = jnp.array([[9, 1, 9, 9], [9, 1, 1, 9], [9, 1, 9, 9], [9, 5, 9, 9]])
    valid = jnp.array([True, True, True, False])
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in RNG.normal(size=(2, 4, 3)))
    s = 4.0 * u @ v.T
    seen = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2], 3: [3]}
    expected = [
        -0.5 * np.log(np.exp(s[i, i]) / np.exp(s[i, js]).sum()) - 0.5 * np.log(np.exp(s[i, i]) / np.exp(s[js, i]).sum())
        for i, js in seen.items()
    ]
    c = rivals(caption, valid)
    nats = info_nce(jnp.asarray(u, jnp.float32), jnp.asarray(v, jnp.float32), jnp.float32(4.0), c)
    np.testing.assert_allclose(nats, expected, atol=1e-5)
    assert rivals(caption)[3].all()


class Free(Network):
    """Vectors and log-scale that are parameters themselves."""

    def __init__(self, u, v):
        self.u, self.v, self.log_scale, self.batch_size = (
            nnx.Param(u),
            nnx.Param(v),
            nnx.Param(jnp.float32(1.0)),
            len(u),
        )

    def vectors(self, batch, key):
        return tuple(jnp.take(x[...], batch["row"], axis=0) for x in (self.u, self.v))


def test_gradients_of_parts_sum_to_the_gradient_of_the_whole():
    """Of vectors and scale, with equal captions in different parts; each part's value is that of its own rows."""
    vectors = RNG.normal(size=(2, 6, 3)).astype(np.float32)
    graphdef, params = nnx.split(Free(*vectors))
    caption = jnp.array([0, 1, 0, 2, 1, 3], jnp.int32)[:, None] + jnp.zeros((1, 4), jnp.int32)
    batch = {"row": jnp.arange(6), "caption": caption}

    def part(rows):
        return {name: array[jnp.array(rows)] for name, array in batch.items()}

    @jax.jit
    def gradient(batch, means=None):
        return jax.value_and_grad(lambda p: TINY.loss(nnx.merge(graphdef, p), batch, None, means)[0])(params)

    parts = [part(rows) for rows in ([4, 0], [1, 2], [5, 3])]
    first_pass = jax.jit(lambda part: tabulate(nnx.merge(graphdef, params), part, None))
    tables, shares = zip(*map(first_pass, parts), strict=True)
    assert sum(shares) == pytest.approx(1)
    table = jax.tree.map(lambda *arrays: sum(arrays), *tables)
    value, whole = gradient(batch)
    values, gradients = zip(*(gradient(part, table) for part in parts), strict=True)
    nats = info_nce(*map(jnp.asarray, vectors), jnp.exp(jnp.float32(1.0)), rivals(caption))
    np.testing.assert_allclose(values, [nats[4] + nats[0], nats[1] + nats[2], nats[5] + nats[3]], rtol=1e-5)
    assert value == pytest.approx(float(sum(values)), rel=1e-5)
    total = jax.tree.map(lambda *arrays: sum(arrays), *gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), total, whole)
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(whole))


def stepped(parallel: Parallel, microbatches: int = 1):
    """Parameters and metrics after one step of a CLIP with dropout, on a batch in which two captions are empty."""
    family, data = replace(TINY, dropout=0.2), opened(0.3)
    batch = data.batch_at(1)
    assert (batch["caption_length"] == 2).sum() >= 2
    base = first_state(family)
    optimizer = replace(base.net.optimizer, microbatches=microbatches)
    strategy = parallel.start(BATCH, microbatches)
    state = strategy.init(lambda key: first_state(family, optimizer, data.spec), jax.random.key(0))
    step = strategy.compile_step(lambda state, batch, n: family.step(state, batch, n, jax.random.key(1)))
    state, metrics = step(state, strategy.put(batch), np.int32(0))
    return flatten(strategy.gather(state).net.params), metrics


@pytest.mark.slow
def test_devices_and_microbatches_give_the_gradient_of_the_whole():
    whole, told = stepped(Parallel(devices=1))
    for parallel, microbatches in ((Parallel("pmap", 8), 1), (Parallel(devices=1), 4)):
        parts, told_parts = stepped(parallel, microbatches)
        for name in whole:
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=2e-6, err_msg=name)
        for name in told:
            np.testing.assert_allclose(told_parts[name], told[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("spread", [(), pytest.param((Parallel("pmap", 4),), marks=pytest.mark.slow)])
def test_held_out_rows_are_compared_with_all_devices_rows_and_never_with_padding(spread):
    state, data = tiny_state(), opened()
    batch = data.held_out_at(data.held_out_batches - 1)
    assert batch["valid"].tolist() == [True] * 4 + [False] * 4
    changed = batch | {"image": np.where(batch["valid"][:, None, None, None], batch["image"], 77).astype(np.uint8)}
    found = []
    for parallel in (Parallel(devices=1), *spread):
        strategy = parallel.start(BATCH)
        evaluate = compile_evaluation(strategy, TINY, jax.random.key(0))
        placed = strategy.place(state)
        found += [evaluate(placed, strategy.put(b), np.int32(0))["loss"][0][:4] for b in (batch, changed)]
    for nats in found:
        np.testing.assert_allclose(nats, found[0], rtol=1e-5)
    assert (np.asarray(found[0]) > 0.1).all()


def test_the_padding_of_a_caption_does_not_change_its_vector_and_its_words_do():
    spec, text = opened().spec.caption, tiny_state().net.net().text
    caption, length = spec.rows(["a red 3", "a red 3", "a blue 3"])
    caption[1, length[1] :] = 5
    vectors = np.asarray(jax.jit(text.__call__)(jnp.asarray(caption), jnp.asarray(length)))
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-5


def test_the_scale_is_at_most_100():
    net = Free(*np.ones((2, 1, 3), np.float32))
    net.log_scale[...] = jnp.float32(math.log(FIRST_SCALE))
    assert net.scale == pytest.approx(1 / 0.07)
    net.log_scale[...] = jnp.float32(9.0)
    assert net.scale == pytest.approx(100)


def test_data_without_captions_and_patches_that_do_not_fit_are_refused():
    spec = opened().spec
    with pytest.raises(UserError, match="the data has no captions"):
        first_state(spec=replace(spec, caption=None))
    with pytest.raises(
        UserError, match=r"images are 16 x 16, and family\.patch is 5, .* give --data\.size, such as 15"
    ):
        first_state(replace(TINY, patch=5))
    with pytest.raises(UserError, match=r"family\.width is 10; it must be a multiple of family\.heads, 4"):
        CLIP(width=10)
