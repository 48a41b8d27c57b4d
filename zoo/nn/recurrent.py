"""Recurrent layers, LSTM and GRU: stacked and bidirectional.

Their steps are in `zoo.nn.cells` and `zoo.nn.recurrence`. Variational dropout (Gal and Ghahramani 2016, "A
theoretically grounded application of dropout in recurrent neural networks") drops the same features at every step.

Letters in shapes: t steps, b rows, i input features, w features of a state, n features of all gates. Internally time
is the first axis, so that a step is contiguous in memory.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import dropout, split
from zoo.nn.cells import GATES, Cell, State
from zoo.nn.dense import Dense
from zoo.nn.recurrence import recur

Carry = tuple[State, ...]
"""The states of all layers."""


def _time_first(x):
    """Swaps time and rows."""
    return x.swapaxes(0, 1)


class RecurrentLayer(nnx.Module):
    """One layer: a single product of all inputs with W, then a loop over the steps.

    Args:
        cell: the recurrent cell.
        features_in: features of an input.
        width: features of the state.
        rngs: source of the initial values: W as in Glorot and Bengio 2010, U orthogonal for each gate (Saxe et al.
            2014), an LSTM's forget gate bias 1 (Jozefowicz et al. 2015).
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
        """Returns zeros."""
        return tuple(jnp.zeros((batch, self.width)) for _ in range(2 if self.cell == "lstm" else 1))

    def __call__(
        self,
        x: Float[Array, "t b i"],
        state: State,
        seen: Bool[Array, "t b"] | None = None,
        keep: Float[Array, "b w"] | None = None,
    ) -> tuple[Float[Array, "t b w"], State]:
        """Returns h after every step, and the last state; see `recur`."""
        return recur(self.cell, self.input(x), self.kernel[...], self.bias[...], state, seen, keep)


class Recurrent(nnx.Module):
    """Stacked recurrent layers.

    Args:
        cell: the recurrent cell.
        features_in: input features of the first layer.
        width: features of a state.
        layers: number of layers.
        rate: dropout between layers; with `variational` also of every layer's h before the next step.
        variational: whether the dropout mask is the same at every step.
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
        """Returns zeros."""
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
            carry: states from `init_carry`, or after earlier steps.
            mask: mask of real steps; at others the carry does not change and the last real output is repeated.
            reverse: read from the last step to the first; output t then depends on the steps from t on.
            key: dropout key; None means evaluation.
            rows: each row's index in the global batch.

        Returns:
            h of the last layer at every step, and the carry after all steps.
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
    """Bidirectional recurrent layers (Schuster and Paliwal 1997).

    Args:
        cell: the recurrent cell.
        features_in: input features of the first layer.
        width: features of an output, half of them from each direction.
        layers: number of layers.
        rate: dropout between layers.
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
        """Reads the real steps of `mask` in both directions.

        Returns:
            Both directions' outputs at every step, concatenated; and for each layer both final states, concatenated to
            an initial state for a layer of `width` features.
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
    """Dropout of a sequence; with `same`, one mask for all steps."""
    if not same or key is None or rate == 0.0:
        return dropout(x, rate, key, rows)
    return x * dropout(jnp.ones((x.shape[0], 1, x.shape[2]), x.dtype), rate, key, rows)
