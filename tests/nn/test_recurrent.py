"""Recurrent layers: PyTorch's numbers on PyTorch's weights, masks, noise, and a hand-written gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from paths import REFERENCES
from recurrent_cases import FEATURES, ROWS, STEPS, WIDTH, check_both_directions, check_states_and_gradients

from zoo.nn.recurrence import cell_step, recur
from zoo.nn.recurrent import Recurrent, RecurrentLayer, drop_steps

CELLS = pytest.mark.parametrize("cell", ["lstm", "gru"])


@CELLS
def test_states_and_gradients_are_pytorchs(cell):
    check_states_and_gradients(REFERENCES, cell)


@CELLS
def test_both_directions_are_pytorchs_on_rows_of_different_length(cell):
    check_both_directions(REFERENCES, cell)


@CELLS
def test_the_gradient_by_hand_is_that_of_the_plain_steps(cell):
    """With rows of different length, dropped states, and all inputs."""
    layer = RecurrentLayer(cell, FEATURES, WIDTH, rngs=nnx.Rngs(0))
    draw = lambda n, *shape: jax.random.normal(jax.random.key(n), shape)  # noqa: E731
    kernel, bias = layer.kernel[...], draw(1, layer.bias.size)
    a, towards, keep = draw(2, STEPS, ROWS, bias.size), draw(3, STEPS, ROWS, WIDTH), draw(4, ROWS, WIDTH)
    state = tuple(draw(5 + i, ROWS, WIDTH) for i in range(len(layer.init_state(ROWS))))
    seen = jax.random.bernoulli(jax.random.key(9), 0.7, (STEPS, ROWS))

    def plain(a, kernel, bias, state):
        ys = []
        for t in range(STEPS):
            new = cell_step(cell, a[t], (state[0] * keep) @ kernel + bias[None], state)
            state = tuple(jnp.where(seen[t][:, None], n, o) for n, o in zip(new, state, strict=True))
            ys.append(state[0])
        return jnp.stack(ys), state

    def summed(run):
        def total(*inputs):
            y, last = run(*inputs)
            return (y * towards).sum() + sum((i + 2) * (x * towards[0]).sum() for i, x in enumerate(last))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))(a, kernel, bias, state)

    ours = summed(lambda *inputs: recur(cell, *inputs, seen, keep))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4), ours, summed(plain))


@CELLS
def test_a_masked_step_is_no_step(cell):
    net = Recurrent(cell, FEATURES, WIDTH, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, STEPS, FEATURES))
    mask = jnp.array([[False, False, True, True, False, True]])
    run = jax.jit(lambda x, mask, reverse: net(x, net.init_carry(1), mask=mask, reverse=reverse), static_argnums=2)
    for reverse in (False, True):
        _, masked = run(x, mask, reverse)
        _, alone = run(x[:, jnp.array([2, 3, 5])], jnp.ones((1, 3), bool), reverse)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), masked, alone)


def test_a_text_in_two_parts_is_the_whole():
    net = Recurrent("lstm", FEATURES, WIDTH, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (ROWS, STEPS, FEATURES))
    run = jax.jit(net.__call__)
    whole, after = run(x, net.init_carry(ROWS))
    first, carry = run(x[:, :4], net.init_carry(ROWS))
    second, again = run(x[:, 4:], carry)
    np.testing.assert_allclose(whole, jnp.concatenate([first, second], axis=1), atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), after, again)


def test_variational_dropout_drops_the_same_at_every_step():
    x, key, rows = jnp.ones((3, 8, 50)), jax.random.key(0), jnp.arange(3)
    same = np.asarray(drop_steps(x, 0.4, True, key, rows))
    assert (same == same[:, :1]).all()
    assert (same[0] != same[1]).any()
    assert 0.4 < (same > 0).mean() < 0.8
    assert (np.asarray(drop_steps(x, 0.4, False, key, rows)) != same).any()
    np.testing.assert_array_equal(drop_steps(x, 0.4, True, None, rows), x)


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_noise_is_a_row_s_own(variational):
    net = Recurrent("lstm", FEATURES, 16, 2, rate=0.5, variational=variational, rngs=nnx.Rngs(0))
    x, key = jax.random.normal(jax.random.key(0), (ROWS, STEPS, FEATURES)), jax.random.key(1)
    run = jax.jit(lambda x, rows: net(x, net.init_carry(len(rows)), key=key, rows=rows)[0])
    whole = run(x, jnp.arange(ROWS))
    np.testing.assert_allclose(whole[2:], run(x[2:], jnp.arange(2, ROWS)), atol=1e-6)
    assert not np.allclose(whole, net(x, net.init_carry(ROWS))[0], atol=1e-2)
    # One layer has nothing below it to drop, but with variational dropout its own state.
    single = Recurrent("lstm", FEATURES, 16, 1, rate=0.5, variational=variational, rngs=nnx.Rngs(0))
    noisy, still = (single(x, single.init_carry(ROWS), key=k)[0] for k in (key, None))
    assert np.allclose(noisy, still) != variational


def test_an_lstm_starts_with_its_forget_gate_open():
    layer = RecurrentLayer("lstm", FEATURES, WIDTH, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.bias[...], np.repeat([0, 1, 0, 0], WIDTH))
    square = layer.kernel[...][:, :WIDTH]
    np.testing.assert_allclose(square.T @ square, np.eye(WIDTH), atol=1e-5)
    assert not RecurrentLayer("gru", FEATURES, WIDTH, rngs=nnx.Rngs(0)).bias[...].any()
