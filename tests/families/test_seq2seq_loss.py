"""Sequence to sequence: what a loss depends on, lengths, attention."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from seq2seq_cases import FAMILIES, LENGTH, LUONG, NETWORKS, make_batch, make_net

from zoo.nets.recurrent_seq2seq import Attend, Memory
from zoo.nn.by_length import at_length
from zoo.seq2seq import Seq2Seq


def row_nats(family, net, batch):
    return jax.jit(lambda batch: family._losses(net, batch, None)[1])(batch)


@NETWORKS
def test_padding_and_batch_order_never_change_a_loss(name):
    family = FAMILIES[name]
    net, batch = make_net(family), make_batch()
    nats, count = row_nats(family, net, batch)
    np.testing.assert_array_equal(count, [5, 2, 8, 3])
    place = jnp.arange(LENGTH)[None]
    junk = batch | {
        "source": jnp.where(place < batch["source_length"][:, None], batch["source"], 7),
        "target": jnp.where(jnp.arange(LENGTH + 1)[None] < batch["target_length"][:, None], batch["target"], 2),
    }
    order = jnp.array([2, 0, 3, 1])
    for other, moved in ((junk, jnp.arange(4)), (jax.tree.map(lambda x: x[order], batch), order)):
        np.testing.assert_allclose(row_nats(family, net, other)[0], nats[moved], rtol=2e-5)
    total, weight, metrics = family.loss(net, batch, None)
    assert total == pytest.approx(float(nats.sum()), rel=1e-5)
    assert weight == 18
    assert metrics["nats_per_token"][0] == pytest.approx(float(nats.sum()), rel=1e-5)


@NETWORKS
def test_the_loss_is_minus_the_log_probability_of_the_target(name):
    family = FAMILIES[name]
    net, batch = make_net(family), make_batch()
    memory = net.encode(batch["source"], jnp.arange(LENGTH)[None] < batch["source_length"][:, None])
    log_probs = jax.nn.log_softmax(net.decode(batch["target"][:, :-1], memory))
    expected = [-sum(log_probs[0, t, batch["target"][0, t + 1]] for t in range(5))]
    np.testing.assert_allclose(row_nats(family, net, batch)[0][:1], expected, rtol=1e-5)


@NETWORKS
def test_what_a_symbol_depends_on(name):
    """Symbols before it, and every real position of the source: no padding, nothing later."""
    family = FAMILIES[name]
    net, batch = make_net(family), make_batch(((5, 8),))
    graphdef, params = nnx.split(net)

    def logit(of_source, of_target):
        inside = nnx.merge(graphdef, params)
        inside.source, inside.target = Shifted(inside.source, of_source), Shifted(inside.target, of_target)
        memory = inside.encode(batch["source"], jnp.arange(LENGTH)[None] < 5)
        return jax.nn.log_softmax(inside.decode(batch["target"][:, :-1], memory)[0, 3])[2]

    size = net.source.table.shape[1]
    of_source, of_target = jax.jit(jax.grad(logit, argnums=(0, 1)))(*[jnp.zeros((1, LENGTH, size))] * 2)
    moved = [np.linalg.norm(x[0], axis=-1) for x in (of_source, of_target)]
    for norms, last in zip(moved, (5, 4), strict=True):
        assert (norms[:last] > 1e-7).all(), norms
        assert (norms[last:] == 0).all(), norms


class Shifted(nnx.Module):
    """Stands for an embedding and adds something to each vector."""

    def __init__(self, embedding, shift):
        self.embedding, self.shift = embedding, shift

    def __call__(self, symbols):
        return self.embedding(symbols) + self.shift

    def logits(self, x):
        return self.embedding.logits(x)


@NETWORKS
def test_reading_on_equals_reading_at_once(name):
    family = FAMILIES[name]
    net, batch = make_net(family), make_batch()
    memory = net.encode(batch["source"], jnp.arange(LENGTH)[None] < batch["source_length"][:, None])
    whole = net.decode(batch["target"][:, :-1], memory)
    cache = net.init_cache(memory, LENGTH)
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves((memory, cache)))
    extend = jax.jit(lambda target, cache, position: net.extend(target, cache, position, memory))
    logits, cache = extend(batch["target"][:, :3], cache, 0)
    for t in range(3, LENGTH + 1):
        np.testing.assert_allclose(logits, whole[:, t - 1], atol=2e-5, rtol=1e-4)
        if t < LENGTH:
            logits, cache = extend(batch["target"][:, t : t + 1], cache, t)


@pytest.mark.parametrize("name", ["luong", pytest.param("transformer", marks=pytest.mark.slow)])
def test_cutting_batches_changes_neither_losses_nor_gradients(name):
    long = replace(FAMILIES[name], context=20, dropout=0.3, label_smoothing=0.1)
    assert long._lengths == (8, 12, 20)
    net = make_net(long)
    graphdef, params = nnx.split(net)
    batch = make_batch(((9, 4), (3, 10)), length=20)

    def at(lengths):
        class Cut(Seq2Seq):
            _lengths = lengths

        family = Cut(**{field.name: getattr(long, field.name) for field in fields(long)})

        def loss(params):
            total, weight, metrics = family.loss(nnx.merge(graphdef, params), batch, jax.random.key(1))
            return total / weight, metrics

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    whole, cut = at((20,)), at((8, 12, 20))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, cut)


def test_the_shortest_length_that_holds_the_batch_is_taken():
    def taken(length, params):
        return params * length, jnp.int32(length)

    run = jax.jit(jax.value_and_grad(lambda p, n: at_length(taken, (4, 6, 9), n, p), has_aux=True))
    for needed, length in ((1, 4), (4, 4), (5, 6), (6, 6), (7, 9), (9, 9)):
        (total, aux), gradient = run(2.0, jnp.int32(needed))
        assert (float(total), int(aux), float(gradient)) == (2.0 * length, length, length)


def test_label_smoothing_spreads_a_share_over_all_symbols():
    net, batch, e = make_net(LUONG), make_batch(), 0.2
    memory = net.encode(batch["source"], jnp.arange(LENGTH)[None] < batch["source_length"][:, None])
    log_probs = np.asarray(jax.nn.log_softmax(net.decode(batch["target"][:, :-1], memory)))
    total = 0.0
    for row, size in enumerate([5, 2, 8, 3]):
        for t in range(size):
            right = np.eye(6)[batch["target"][row, t + 1]]
            total -= ((1 - e) * right + e / 6) @ log_probs[row, t]
    smoothed = replace(LUONG, label_smoothing=e)
    assert smoothed.loss(net, batch, None)[0] == pytest.approx(total, rel=1e-4)
    np.testing.assert_allclose(row_nats(smoothed, net, batch)[0], row_nats(LUONG, net, batch)[0], rtol=1e-5)


@pytest.mark.parametrize("score", ["bahdanau", "luong"])
def test_attention_is_as_its_paper_has_it(score):
    attend = Attend(score, 4, rngs=nnx.Rngs(0))
    q, values = (jax.random.normal(jax.random.key(n), (1, size, 4)) for n, size in enumerate((2, 3)))
    memory = Memory(values, attend.key(values), jnp.array([[0.0, 0.0, -1e30]]), ())
    seen, weights = attend(q, memory)
    keys = np.asarray(values[0] @ attend.key.kernel[...])
    for t in range(2):
        if score == "luong":
            scores = [q[0, t] @ keys[j] for j in range(2)]
        else:
            asked = q[0, t] @ attend.query.kernel[...] + attend.query.bias[...]
            scores = [attend.v[...] @ np.tanh(asked + keys[j]) for j in range(2)]
        expected = np.append(np.exp(scores) / np.sum(np.exp(scores)), 0.0)
        np.testing.assert_allclose(weights[0, t], expected, atol=1e-6)
        np.testing.assert_allclose(seen[0, t], expected @ np.asarray(values[0]), atol=1e-6)
