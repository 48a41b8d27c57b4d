"""The loop over the steps of a recurrent layer; a single step is in `zoo.nn.cells`.

Gates and states are float32; products take operands in the dtype of a and accumulate in float32.

Letters in shapes: t steps, b rows, w features of a state, n features of all gates. Time is the first axis, so that a
step is contiguous in memory.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zoo.nn.arithmetic import product
from zoo.nn.cells import Cell, State, gru_step, lstm_step
from zoo.nn.cpu import recurrence as cpu
from zoo.nn.platform import by_platform


@by_platform(cpu=cpu.cell_step, accelerator=cpu.cell_step)
def cell_step(cell: Cell, a: Float[Array, "b n"], r: Float[Array, "b n"], state: State) -> State:
    """Returns the next state from a and r; see `zoo.nn.cells`."""
    return (lstm_step if cell == "lstm" else gru_step)(a, r, state)


@by_platform(cpu=cpu.recur, accelerator=cpu.recur)
def recur(
    cell: Cell,
    a: Float[Array, "t b n"],
    kernel: Float[Array, "w n"],
    bias: Float[Array, " n"],
    state: State,
    seen: Bool[Array, "t b"] | None,
    keep: Float[Array, "b w"] | None,
) -> tuple[Float[Array, "t b w"], State]:
    """Runs all steps of a layer; returns h_1 .. h_t and the last state.

    Args:
        cell: the recurrent cell.
        a: W x + b_x of every step, in the dtype of the returned h.
        kernel: U, float32.
        bias: b_h, float32.
        state: the state before the first step, float32.
        seen: mask of real steps; at other steps the state does not change.
        keep: factor of h before its product with U (variational dropout); None: 1.
    """
    matrix = kernel.astype(a.dtype)

    def step(state, now):
        a, seen = now
        h = state[0] if keep is None else state[0] * keep
        after = cell_step(cell, a, product(h.astype(matrix.dtype), matrix) + bias[None, :], state)
        if seen is not None:
            after = tuple(jnp.where(seen[:, None], new, old) for new, old in zip(after, state, strict=True))
        return after, after[0]

    last, h = jax.lax.scan(step, state, (a, seen))
    return h.astype(a.dtype), last
