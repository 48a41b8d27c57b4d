"""One step of an LSTM and of a GRU, with PyTorch's gate order and its two biases.

Hochreiter and Schmidhuber 1997, "Long short-term memory", with the forget gate of Gers et al. 2000; Cho et al. 2014,
"Learning phrase representations using RNN encoder-decoder" (the GRU, with the reset after the product with h, as in
cuDNN and PyTorch). With a = W x_t + b_x and r = U h_(t-1) + b_h, both split into gates:

    LSTM   i, f, o = sigmoid(a + r)      g = tanh(a_g + r_g)      c_t = f c_(t-1) + i g      h_t = o tanh(c_t)
    GRU    s, z = sigmoid(a + r)         n = tanh(a_n + s r_n)    h_t = (1 - z) n + z h_(t-1)

The gate order is i, f, g, o and s (reset), z (update), n. Gates and states are float32: in bfloat16, c would be 10 %
off after 256 steps.

Letters in shapes: b rows, w features of a state, n features of all gates.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Cell = Literal["lstm", "gru"]

GATES: dict[Cell, int] = {"lstm": 4, "gru": 3}

State = tuple[Float[Array, "b w"], ...]
"""The state of a layer: (h, c) for an LSTM, (h,) for a GRU."""


def lstm_step(a: Float[Array, "b n"], r: Float[Array, "b n"], state: State) -> State:
    """Returns the next h and c from a and r."""
    i, f, g, o = jnp.split(a + r, 4, axis=-1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru_step(a: Float[Array, "b n"], r: Float[Array, "b n"], state: State) -> State:
    """Returns the next h from a and r."""
    (a_s, a_z, a_n), (r_s, r_z, r_n) = jnp.split(a, 3, axis=-1), jnp.split(r, 3, axis=-1)
    z = jax.nn.sigmoid(a_z + r_z)
    n = jnp.tanh(a_n + jax.nn.sigmoid(a_s + r_s) * r_n)
    return ((1 - z) * n + z * state[0],)
