"""Recurrent layers, LSTM and GRU, in PyTorch's order of gates and with its two biases.

Hochreiter and Schmidhuber 1997, "Long short-term memory", with the forget gate of Gers et al. 2000; Cho et al. 2014,
"Learning phrase representations using RNN encoder-decoder" (the GRU, its reset after the product with h, which is the
form that cuDNN and PyTorch have). With a = W x_t + b_x and r = U h_(t-1) + b_h, both cut in gates:

    LSTM   i, f, o = sigmoid(a + r)      g = tanh(a_g + r_g)      c_t = f c_(t-1) + i g      h_t = o tanh(c_t)
    GRU    s, z = sigmoid(a + r)         n = tanh(a_n + s r_n)    h_t = (1 - z) n + z h_(t-1)

Gates lie in the order i, f, g, o and s (reset), z (update), n. Variational dropout (Gal and Ghahramani 2016, "A
theoretically grounded application of dropout in recurrent neural networks") drops the same features at every step.

Letters in shapes: t steps, b rows, i input features, w features of a state, n features of all gates. Inside, time
comes first, since a step is then one piece of memory.
"""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.nn.dense import Dense, settle
from zoo.nn.random import dropout, split

Cell = Literal["lstm", "gru"]

GATES: dict[Cell, int] = {"lstm": 4, "gru": 3}

State = tuple[Float[Array, "b w"], ...]
"""What a layer carries from step to step: (h, c) for an LSTM, (h,) for a GRU."""

Carry = tuple[State, ...]
"""The states of all layers."""

UNROLL = 2
"""Steps in one turn of the loop, whose fixed cost is that of a small product."""


def cell_step(cell: Cell, a: Float[Array, "b n"], r: Float[Array, "b n"], state: State) -> State:
    """The next state from both products; see the module.

    XLA's CPU compiler makes vector code of what covers all gates, and slow code of what takes them apart. So an LSTM's
    are worked out together, by sigmoid(x) = (1 + tanh(x / 2)) / 2.
    """
    if cell == "lstm":
        half = jnp.where(jnp.arange(a.shape[-1]) * 4 // a.shape[-1] == 2, 1.0, 0.5).astype(a.dtype)[None, :]
        i, f, g, o = jnp.split(settle(jnp.tanh(half * (a + r))), 4, axis=-1)
        c = settle(0.5 * (1 + f) * state[1] + 0.5 * (1 + i) * g)
        return 0.5 * (1 + o) * jnp.tanh(c), c
    (a_s, a_z, a_n), (r_s, r_z, r_n) = jnp.split(a, 3, axis=-1), jnp.split(r, 3, axis=-1)
    z = jax.nn.sigmoid(a_z + r_z)
    n = jnp.tanh(a_n + jax.nn.sigmoid(a_s + r_s) * r_n)
    return ((1 - z) * n + z * state[0],)


def _masked_step(cell: Cell, seen: Any, a: jax.Array, r: jax.Array, state: State) -> State:
    """`cell_step`, or the same state in rows where nothing is seen; `seen` is [b], or None for all."""
    after = cell_step(cell, a, r, state)
    if seen is None:
        return after
    return tuple(jnp.where(seen[:, None], new, old) for new, old in zip(after, state, strict=True))


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
    """All steps of a layer: h_1 .. h_t, and the last state.

    Differentiated as it stands, a scan would add to the kernel's gradient at every step. Here the way back only
    collects the gradients of r, and the kernel's gradient is one product over all steps.

    Args:
        cell: which.
        a: W x + b_x of every step.
        kernel: U.
        bias: b_h.
        state: before the first step.
        seen: steps that count; others leave the state as it is.
        keep: what h is multiplied by before its product with U (variational dropout); None: nothing.
    """
    (h, *_), state, _ = _scan(cell, a, kernel, bias, state, seen, keep)
    return h, state


def _scan(cell, a, kernel, bias, state, seen, keep):
    """The states after every step, the last state, and r of every step."""

    def step(state, now):
        a, seen = now
        r = _kept(state[0], keep) @ kernel + bias[None, :]
        state = _masked_step(cell, seen, a, r, state)
        return state, (state, r)

    state, (states, r) = jax.lax.scan(step, state, (a, seen), unroll=UNROLL)
    return states, state, r


def _kept(h, keep):
    return h if keep is None else h * keep


def _forward(cell, a, kernel, bias, state, seen, keep):
    states, last, r = _scan(cell, a, kernel, bias, state, seen, keep)
    before = tuple(jnp.concatenate([first[None], x[:-1]]) for first, x in zip(state, states, strict=True))
    return (states[0], last), (a, r, kernel, before, seen, keep)


def _backward(cell, saved, gradients):
    a, r, kernel, before, seen, keep = saved
    of_h, of_last = gradients
    transposed = settle(kernel.T)

    def step(of_state, now):
        a, r, state, seen, of_h = now
        of_state = (of_state[0] + of_h, *of_state[1:])
        of_a, of_r, of_state = jax.vjp(partial(_masked_step, cell, seen), a, r, state)[1](of_state)
        of_state = (of_state[0] + _kept(of_r @ transposed, keep), *of_state[1:])
        return of_state, (of_r, None if cell == "lstm" else of_a)

    of_state, (of_r, of_a) = jax.lax.scan(step, of_last, (a, r, before, seen, of_h), reverse=True, unroll=UNROLL)
    of_a = of_r if of_a is None else of_a  # an LSTM's gates see nothing but the sum
    h = before[0] if keep is None else before[0] * keep[None]
    rows, products = settle((rearrange(h, "t b w -> (t b) w"), rearrange(of_r, "t b n -> (t b) n")))
    of_kernel = settle(jax.lax.dot_general(rows, products, (((0,), (0,)), ((), ()))))
    return of_a, of_kernel, products.sum(0), of_state, None, None


recur.defvjp(_forward, _backward)


def _time_first(x):
    """Swaps time and rows."""
    return x.swapaxes(0, 1)


class RecurrentLayer(nnx.Module):
    """One layer: the product of all inputs with W at once, then step by step.

    Args:
        cell: which.
        features_in: of an input.
        width: features of the state.
        rngs: source of the initial values: W as Glorot and Bengio 2010 have it, U orthogonal for each gate (Saxe et al.
            2014), an LSTM's forget gate open (b = 1; Jozefowicz et al. 2015).
    """

    def __init__(self, cell: Cell, features_in: int, width: int, *, rngs: nnx.Rngs):
        gates = GATES[cell]
        self.cell: Cell = cell
        self.width = width
        self.input = Dense(features_in, gates * width, bias=True, scale=math.sqrt(2 / (features_in + width)), rngs=rngs)
        squares = [jax.nn.initializers.orthogonal()(rngs.params(), (width, width)) for _ in range(gates)]
        self.kernel = nnx.Param(jnp.concatenate(squares, axis=1))
        open_gate = jnp.arange(gates * width) // width == 1
        self.bias = nnx.Param(jnp.where(open_gate & (cell == "lstm"), 1.0, 0.0))

    def init_state(self, batch: int) -> State:
        """Zeros."""
        return tuple(jnp.zeros((batch, self.width), self.kernel.dtype) for _ in range(2 if self.cell == "lstm" else 1))

    def __call__(
        self,
        x: Float[Array, "t b i"],
        state: State,
        seen: Bool[Array, "t b"] | None = None,
        keep: Float[Array, "b w"] | None = None,
    ) -> tuple[Float[Array, "t b w"], State]:
        """h after every step, and the last state; see `recur`."""
        computed = jax.tree.map(lambda s: s.astype(self.kernel.dtype), state)
        y, after = recur(self.cell, self.input(x), self.kernel[...], self.bias[...], computed, seen, keep)
        return y, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)


class Recurrent(nnx.Module):
    """Layers one on the other.

    Args:
        cell: which.
        features_in: of an input of the first layer.
        width: features of a state.
        layers: how many.
        rate: dropout of what goes from layer to layer; with `variational` of every layer's h on its way into the next
            step too.
        variational: whether what is dropped is the same at every step.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        cell: Cell,
        features_in: int,
        width: int,
        layers: int,
        *,
        rate: float = 0.0,
        variational: bool = False,
        rngs: nnx.Rngs,
    ):
        self.rate, self.variational = rate, variational
        self.layers = nnx.List(
            RecurrentLayer(cell, width if number else features_in, width, rngs=rngs) for number in range(layers)
        )

    def init_carry(self, batch: int) -> Carry:
        """Zeros."""
        return tuple(layer.init_state(batch) for layer in self.layers)

    def __call__(
        self,
        x: Float[Array, "b t i"],
        carry: Carry,
        *,
        mask: Bool[Array, "b t"] | None = None,
        reverse: bool = False,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t w"], Carry]:
        """Reads t steps.

        Args:
            x: the inputs.
            carry: from `init_carry`, or of the steps before.
            mask: steps that count; others leave the carry as it is, and their output is the last that counted.
            reverse: read from the last step to the first; output t is then of what comes from t on.
            key: of the dropout noise; None means evaluation.
            rows: each row's index in the global batch.

        Returns:
            h of the last layer at every step, and the carry after them.
        """
        seen = None if mask is None else mask.T
        x = _time_first(x)
        if reverse:
            x, seen = x[::-1], None if seen is None else seen[::-1]
        after = []
        for number, (layer, state, layer_key) in enumerate(
            zip(self.layers, carry, split(key, len(self.layers)), strict=True)
        ):
            between, within = split(layer_key, 2)
            if number:
                x = _time_first(drop_steps(_time_first(x), self.rate, self.variational, between, rows))
            keep = None
            if self.variational and self.rate and within is not None:
                keep = dropout(jnp.ones((x.shape[1], layer.width), x.dtype), self.rate, within, rows)
            x, state = layer(x, state, seen, keep)
            after.append(state)
        return _time_first(x[::-1] if reverse else x), tuple(after)


class Bidirectional(nnx.Module):
    """Layers that read a whole sequence from both ends, side by side (Schuster and Paliwal 1997).

    Args:
        cell: which.
        features_in: of an input of the first layer.
        width: features of an output, half of them of each direction.
        layers: how many.
        rate: dropout of what goes from layer to layer.
        rngs: source of the initial values.
    """

    def __init__(self, cell: Cell, features_in: int, width: int, layers: int, *, rate: float = 0.0, rngs: nnx.Rngs):
        self.rate = rate
        make = partial(Recurrent, cell, width=width // 2, layers=1, rngs=rngs)
        sizes = [features_in] + [width] * (layers - 1)
        self.ahead = nnx.List(make(features_in=size) for size in sizes)
        self.back = nnx.List(make(features_in=size) for size in sizes)

    def __call__(
        self,
        x: Float[Array, "b t i"],
        mask: Bool[Array, "b t"],
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t width"], Carry]:
        """Reads the steps that count.

        Returns:
            What both directions know at every step, side by side; and for each layer the states that they end with,
            side by side, from which a layer of `width` features can go on.
        """
        ends: list[State] = []
        for number, (ahead, back, layer_key) in enumerate(
            zip(self.ahead, self.back, split(key, len(self.ahead)), strict=True)
        ):
            x = dropout(x, self.rate if number else 0.0, layer_key, rows)
            runs = [
                layer(x, layer.init_carry(x.shape[0]), mask=mask, reverse=reverse)
                for layer, reverse in ((ahead, False), (back, True))
            ]
            x = jnp.concatenate([y for y, _ in runs], axis=-1)
            ((forward,), (backward,)) = (carry for _, carry in runs)
            ends.append(tuple(jnp.concatenate(pair, axis=-1) for pair in zip(forward, backward, strict=True)))
        return x, tuple(ends)


def drop_steps(
    x: Float[Array, "b t i"], rate: float, same: bool, key: Key[Array, ""] | None, rows: Int[Array, " b"] | None
) -> Float[Array, "b t i"]:
    """Dropout of a sequence; where it is the `same`, one mask serves all steps."""
    if not same or key is None or rate == 0.0:
        return dropout(x, rate, key, rows)
    return x * dropout(jnp.ones((x.shape[0], 1, x.shape[2]), x.dtype), rate, key, rows)
