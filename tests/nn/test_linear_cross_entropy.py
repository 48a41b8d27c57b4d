"""The vocabulary's loss in chunks, on the CPU and as other devices compute it, against the plain form and by hand."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.nn import linear_cross_entropy as vocabulary
from zoo.nn import spread_cross_entropy
from zoo.nn.cpu.packed_cross_entropy import CHUNK, packed_gradients, packed_rows
from zoo.nn.linear_cross_entropy import linear_cross_entropy, row_cross_entropy
from zoo.nn.spread_cross_entropy import spread_gradients, spread_rows

PROGRAMS = {"cpu": (packed_gradients, packed_rows), "elsewhere": (spread_gradients, spread_rows)}
each_program = pytest.mark.parametrize("program", PROGRAMS)


@pytest.fixture(autouse=True)
def _in_chunks_whatever_the_vocabulary(monkeypatch):
    monkeypatch.setattr(vocabulary, "SMALL", 0)
    monkeypatch.setattr(spread_cross_entropy, "WIDE_CHUNK", 64)


def inputs(rows, positions, size=4, words=11, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    x, table = jax.random.normal(keys[0], (rows, positions, size)), jax.random.normal(keys[1], (words, size))
    targets = jax.random.randint(keys[2], (rows, positions), 0, words)
    counts = jnp.arange(positions)[None] < jax.random.randint(keys[3], (rows,), 0, positions + 1)[:, None]
    return x.astype(dtype), table, jax.random.normal(keys[4], (words,)), targets, counts


def plain(x, table, bias, targets, counts):
    """-log softmax(x table^T + bias) at the targets, by JAX's own functions; each row's sum."""
    logits = jnp.einsum("btd,vd->btv", x, table) + (0.0 if bias is None else bias[None, None])
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, :, None], 2)[:, :, 0]
    return jnp.where(counts, nats, 0.0).sum(1)


@each_program
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "positions"), [(3, 5), (30, 20), (100, 3)])
def test_the_vocabularys_loss_is_the_plain_one(program, rows, positions, biased):
    x, table, bias, targets, counts = inputs(rows, positions)
    bias = bias if biased else None
    assert rows * positions < CHUNK or rows == 100 or counts.sum() > CHUNK, "one chunk, and several"
    gradients, rows_of = PROGRAMS[program]

    def expect(x, table, bias):
        return plain(x, table, bias, targets, counts).sum()

    @jax.jit
    def both(x, table, bias):
        one = jax.value_and_grad(expect, (0, 1, 2))(x, table, bias)
        other = gradients(x, table, bias, targets, counts)
        return one, other, plain(x, table, bias, targets, counts), rows_of(x, table, bias, targets, counts)

    (total, wanted), (found_total, found), expected_rows, found_rows = both(x, table, bias)
    np.testing.assert_allclose(found_total, total, rtol=1e-5)
    for a, b in zip(found[: 2 + biased], wanted[: 2 + biased], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found_rows, expected_rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("small", [0, 100], ids=["chunks", "one product"])
def test_the_loss_is_differentiable_in_all_that_learns(monkeypatch, small):
    monkeypatch.setattr(vocabulary, "SMALL", small)
    x, table, bias, targets, counts = inputs(30, 20)

    def tripled(x, table, bias):
        return 3.0 * linear_cross_entropy(x, table, targets, counts, bias)

    found = jax.jit(jax.value_and_grad(tripled, (0, 1, 2)))(x, table, bias)
    expected = jax.value_and_grad(lambda *a: 3.0 * plain(*a, targets, counts).sum(), (0, 1, 2))(x, table, bias)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)
    expected_rows = plain(x, table, bias, targets, counts)
    rows = row_cross_entropy(x, table, targets, counts, bias)
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-4, atol=1e-5)
    without_gradient = linear_cross_entropy(x, table, targets, counts, bias)
    np.testing.assert_allclose(without_gradient, expected_rows.sum(), rtol=1e-5)


def test_a_head_of_its_own_is_the_table_transposed():
    x, table, _, targets, counts = inputs(3, 5)
    gradient = jax.jit(jax.grad(lambda kernel: linear_cross_entropy(x, kernel.T, targets, counts)))(table.T)
    expected = jax.grad(lambda table: plain(x, table, None, targets, counts).sum())(table)
    np.testing.assert_allclose(gradient, expected.T, rtol=1e-4, atol=1e-5)


@each_program
def test_equal_logits_cost_the_logarithm_of_the_vocabulary(program):
    # x = 0: every p is 1/v, so n positions cost n log v; a table's gradient is 0, a bias's n/v less the target's count.
    gradients, rows_of = PROGRAMS[program]
    x, table, targets = jnp.zeros((2, 70, 3)), jnp.ones((7, 3)), jnp.full((2, 70), 5)
    counts = jnp.ones((2, 70), bool).at[1, 10:].set(False)
    total, (of_x, of_table, of_bias) = jax.jit(gradients)(x, table, jnp.zeros(7), targets, counts)
    assert float(total) == pytest.approx(80 * math.log(7), rel=1e-5)
    np.testing.assert_allclose(of_bias, 80 / 7 - 80 * (np.arange(7) == 5), rtol=1e-5)
    np.testing.assert_allclose(of_table, 0, atol=1e-6)
    np.testing.assert_allclose(of_x, 0, atol=1e-6)
    np.testing.assert_allclose(rows_of(x, table, None, targets, counts), np.array([70, 10]) * math.log(7), rtol=1e-5)


@each_program
def test_no_position_counts_where_all_are_padding(program):
    x, table, nothing = jnp.ones((2, 3, 4)), jnp.ones((5, 4)), jnp.zeros((2, 3), bool)
    total, (of_x, of_table, _) = jax.jit(PROGRAMS[program][0])(x, table, None, jnp.zeros((2, 3), int), nothing)
    assert total == 0
    np.testing.assert_array_equal(of_x, 0)
    np.testing.assert_array_equal(of_table, 0)


@each_program
def test_a_tables_gradient_is_added_in_float32(program):
    # Every position has the same target and x = 1, logits of 0 and 30: each adds -1 to the target's row but for e^-30.
    # 2,048 of them in bfloat16 would stop at 256.
    x, table = jnp.ones((8, 256, 1), jnp.bfloat16), jnp.array([[0.0], [30.0]])
    targets, counts = jnp.zeros((8, 256), int), jnp.ones((8, 256), bool)
    _, (of_x, of_table, _) = jax.jit(PROGRAMS[program][0])(x, table, None, targets, counts)
    assert of_table.dtype == jnp.float32
    assert of_x.dtype == jnp.bfloat16
    np.testing.assert_allclose(of_table, [[-2048.0], [2048.0]], rtol=1e-6)
    total, gradient = jax.value_and_grad(linear_cross_entropy, 1)(x, table, targets, counts)
    assert float(total) == pytest.approx(2048 * 30, rel=1e-4)
    assert gradient.dtype == jnp.float32


@each_program
def test_a_mesh_splits_the_loss(program):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, table, bias, targets, counts = inputs(16, 40)
    gradients = jax.jit(PROGRAMS[program][0])
    expected = gradients(x, table, bias, targets, counts)
    by_row, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    spread = (jax.device_put(z, by_row) for z in (x, targets, counts))
    kept = (jax.device_put(z, whole) for z in (table, bias))
    x, targets, counts, table, bias = *spread, *kept
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), gradients(x, table, bias, targets, counts), expected
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_program
def test_the_logits_of_gpt_2_are_not_held_at_once(monkeypatch, program, dtype):
    monkeypatch.setattr(spread_cross_entropy, "WIDE_CHUNK", 2048)
    shape = jax.ShapeDtypeStruct
    arguments = (
        shape((8, 1024, 64), dtype), shape((50257, 64), jnp.float32), None, shape((8, 1024), jnp.int32),
        shape((8, 1024), bool),
    )  # fmt: skip
    compiled = jax.jit(PROGRAMS[program][0]).lower(*arguments).compile()
    whole = 8 * 1024 * 50257 * 4
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < whole * (0.7 if program == "elsewhere" else 0.1), temporaries / whole
