"""CLIP's loss: who is compared with whom, that parts of a batch give the gradient of the whole, and transformers'."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_cases import BATCH, TINY, check_clip, first_state, opened
from paths import REFERENCES

from zoo.clip import CLIP, info_nce, rivals
from zoo.core.errors import UserError
from zoo.core.parallel import Parallel
from zoo.harness.checkpoint import flatten
from zoo.harness.evaluation import compile_evaluation

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


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    whole, told = stepped(Parallel(devices=1))
    for parallel, microbatches in ((Parallel("pmap", 8), 1), (Parallel(devices=1), 4)):
        parts, told_parts = stepped(parallel, microbatches)
        for name in whole:
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=2e-6, err_msg=name)
        for name in told:
            np.testing.assert_allclose(told_parts[name], told[name], rtol=1e-4, err_msg=name)


def test_held_out_rows_are_compared_with_all_devices_rows_and_never_with_padding():
    state, data = first_state(), opened()
    batch = data.held_out_at(data.held_out_batches - 1)
    assert batch["valid"].tolist() == [True] * 4 + [False] * 4
    changed = batch | {"image": np.where(batch["valid"][:, None, None, None], batch["image"], 77).astype(np.uint8)}
    found = []
    for parallel in (Parallel(devices=1), Parallel("pmap", 4)):
        strategy = parallel.start(BATCH)
        evaluate = compile_evaluation(strategy, TINY, jax.random.key(0))
        placed = strategy.place(state)
        found += [evaluate(placed, strategy.put(b), np.int32(0))["loss"][0][:4] for b in (batch, changed)]
    for nats in found:
        np.testing.assert_allclose(nats, found[0], rtol=1e-5)
    assert (np.asarray(found[0]) > 0.1).all()


def test_the_padding_of_a_caption_does_not_change_its_vector_and_its_words_do():
    spec, text = opened().spec.caption, first_state().net.net().text
    caption, length = spec.rows(["a red 3", "a red 3", "a blue 3"])
    caption[1, length[1] :] = 5
    vectors = np.asarray(text(jnp.asarray(caption), jnp.asarray(length)))
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-5


def test_the_scale_is_at_most_100():
    net = first_state().net.net()
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
