"""A recurrent layer whose backward pass has one matrix product per step.

A step is elementwise except for its product with U, so the backward pass can compute all factors of gradients for all
steps at once, before its loop. The loop only computes the gradients of r = U h + b, and the kernel's gradient is one
product over all steps; JAX's gradient of a scan would add to that gradient at every step. Accelerators, where the
barriers do nothing, use it too.

Letters in shapes are those of `zoo.nn.recurrence`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from zoo.nn.arithmetic import product
from zoo.nn.cells import Cell, State, gru_step
from zoo.nn.cpu.barriers import settle

UNROLL = 2
"""Steps per iteration of the loop; an iteration's overhead is that of a small product."""


def cell_step(cell: Cell, a: Float[Array, "b n"], r: Float[Array, "b n"], state: State) -> State:
    """Implements `zoo.nn.recurrence.cell_step`."""
    return _lstm_state(_lstm_gates(a + r), state[1]) if cell == "lstm" else gru_step(a, r, state)


def _lstm_gates(total: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Returns y = tanh(total / 2) for the gates i, f and o, which are (1 + y) / 2, and g = tanh(total) for g.

    XLA's CPU compiler vectorises operations over all gates together, and generates slow code for separate gates.
    """
    return settle(jnp.tanh(_half(total) * total))


def _half(gates: Float[Array, "*steps b n"]) -> Float[Array, "*ones n"]:
    """Returns 1/2 for an LSTM's gates i, f and o, and 1 for g."""
    n = gates.shape[-1]
    half = jnp.where(jnp.arange(n) * 4 // n == 2, 1.0, 0.5).astype(gates.dtype)
    return jnp.expand_dims(half, range(gates.ndim - 1))


def _lstm_state(gates: Float[Array, "b n"], c: Float[Array, "b w"]) -> State:
    """Returns h and c of the next step from the result of `_lstm_gates`."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = settle(0.5 * (1 + f) * c + 0.5 * (1 + i) * g)
    return 0.5 * (1 + o) * jnp.tanh(c), c


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(
    cell: Cell,
    a: Float[Array, "t b n"],
    kernel: Float[Array, "w n"],
    bias: Float[Array, " n"],
    state: State,
    seen: Bool[Array, "t b"] | None,
    keep: Float[Array, "b w"] | None,
) -> tuple[Float[Array, "t b w"], State]:
    """Implements `zoo.nn.recurrence.recur`."""
    return _forward(cell, a, kernel, bias, state, seen, keep)[0]


def _scan(cell, a, kernel, bias, state, seen, keep):
    """Returns the states after every step, the last state, and every step's residuals: r, or an LSTM's gates."""
    matrix = kernel.astype(a.dtype)

    def step(state, now):
        a, seen = now
        inner = product(_kept(state[0], keep).astype(matrix.dtype), matrix) + bias[None, :]
        if cell == "lstm":
            inner = _lstm_gates(a + inner)
            after = _lstm_state(inner, state[1])
        else:
            after = gru_step(a, inner, state)
        if seen is not None:
            after = tuple(jnp.where(seen[:, None], new, old) for new, old in zip(after, state, strict=True))
        return after, (after, inner)

    state, (states, inner) = jax.lax.scan(step, state, (a, seen), unroll=UNROLL)
    return states, state, inner


def _kept(h, keep):
    return h if keep is None else h * keep


def _forward(cell, a, kernel, bias, state, seen, keep):
    states, last, inner = _scan(cell, a, kernel, bias, state, seen, keep)
    before = tuple(jnp.concatenate([first[None], x[:-1]]) for first, x in zip(state, states, strict=True))
    saved = (inner, states[1]) if cell == "lstm" else (a.astype(jnp.float32), inner)
    # An empty array stores the dtype of a.
    return (states[0].astype(a.dtype), last), (saved, kernel, before, seen, keep, a[:0])


def _backward(cell, saved, gradients):
    saved, kernel, before, seen, keep, a = saved
    kernel_t = settle(kernel.T.astype(a.dtype))
    gradients = (gradients[0].astype(jnp.float32), gradients[1])

    def back(of_r):
        return _kept(product(of_r.astype(a.dtype), kernel_t), keep)

    by_cell = _lstm_backward if cell == "lstm" else _gru_backward
    of_a, of_r, of_state = by_cell(saved, before, seen, gradients, back)
    h = before[0] if keep is None else before[0] * keep[None]
    rows, of_rows = settle((rearrange(h, "t b w -> (t b) w"), rearrange(of_r, "t b n -> (t b) n")))
    of_kernel = settle(product(rows.astype(a.dtype), of_rows.astype(a.dtype), (0, 0)))
    return of_a.astype(a.dtype), of_kernel, of_rows.sum(0), of_state, None, None


def _lstm_backward(saved, before, seen, gradients, back):
    """Returns the gradients of a, r and the first state; factors that depend on no gradient precede the loop.

    With y of `_lstm_gates` and the gradients dh and dc of h_t and c_t:

        dc += dh o (1 - tanh^2 c_t)      dr = (dc g, dc c_(t-1), dc i, dh tanh c_t) y'      dc <- dc f

    where y' is (1 - y^2) / 4, and 1 - g^2 at g.
    """
    (gates, c), (of_h, of_last) = saved, gradients
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    tanh = jnp.tanh(c)
    others = settle(jnp.concatenate([g, before[1], 0.5 * (1 + i), tanh], axis=-1))
    of_gates = _half(gates) ** 2 * (1 - gates * gates) * others
    through, onward = 0.5 * (1 + o) * (1 - tanh * tanh), 0.5 * (1 + f)
    if seen is not None:
        seen = seen[..., None]
        of_gates, through, onward = seen * of_gates, seen * through, jnp.where(seen, onward, 1)

    def step(of_state, now):
        of_gates, through, onward, seen, of_h = now
        h = of_state[0] + of_h
        c = settle(of_state[1] + h * through)
        of_r = settle(jnp.concatenate([c, c, c, h], axis=-1) * of_gates)
        passed = back(of_r) if seen is None else back(of_r) + jnp.where(seen, 0, h)
        return (passed, c * onward), of_r

    of_state, of_r = jax.lax.scan(step, of_last, (of_gates, through, onward, seen, of_h), reverse=True, unroll=UNROLL)
    return of_r, of_r, of_state


def _gru_backward(saved, before, seen, gradients, back):
    """Returns the gradients of a, r and the first state; factors that depend on no gradient precede the loop."""
    of_h, of_last = gradients
    pull = jax.vjp(jax.vmap(gru_step), *saved, before)[1]
    slope_a, slope_r, (onward,) = settle(pull((jnp.ones_like(of_h),)))
    if seen is not None:
        seen = seen[..., None]
        slope_a, slope_r, onward = seen * slope_a, seen * slope_r, jnp.where(seen, onward, 1)

    def step(of_state, now):
        slope_r, onward, of_h = now
        h = settle(of_state[0] + of_h)
        of_r = settle(jnp.concatenate([h, h, h], axis=-1) * slope_r)
        return (back(of_r) + h * onward,), (of_r, h)

    of_state, (of_r, h) = jax.lax.scan(step, of_last, (slope_r, onward, of_h), reverse=True, unroll=UNROLL)
    return jnp.concatenate([h, h, h], axis=-1) * slope_a, of_r, of_state


recur.defvjp(_forward, _backward)
