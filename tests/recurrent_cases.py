"""Recurrent layers with PyTorch's weights compute what PyTorch does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from zoo.nn.recurrent import Bidirectional, Recurrent

ROWS, STEPS, FEATURES, WIDTH = 4, 6, 3, 5


def reference(folder, cell):
    """What PyTorch computed: arrays by name."""
    arrays = load_file(folder / "recurrent.safetensors")
    return {name.removeprefix(f"{cell}."): value for name, value in arrays.items() if name.startswith(f"{cell}.")}


def torch_weights(layer, arrays, number, suffix=""):
    """A layer's parameters beside PyTorch's names of them and how they lie there."""
    name = f"l{number}{suffix}"
    return [
        (layer.input.kernel, arrays[f"weight_ih_{name}"].T),
        (layer.kernel, arrays[f"weight_hh_{name}"].T),
        (layer.input.bias, arrays[f"bias_ih_{name}"]),
        (layer.bias, arrays[f"bias_hh_{name}"]),
    ]


def part(arrays, prefix):
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def set_weights(pairs):
    for parameter, value in pairs:
        parameter[...] = jnp.asarray(value)


def check_states_and_gradients(folder, cell):
    arrays = reference(folder, cell)
    net = Recurrent(cell, FEATURES, WIDTH, 2, rngs=nnx.Rngs(0))
    for number, layer in enumerate(net.layers):
        set_weights(torch_weights(layer, part(arrays, "one."), number))
    graphdef, params = nnx.split(net)
    before = (arrays["h"], arrays["c"]) if cell == "lstm" else (arrays["h"],)
    carry = tuple(tuple(jnp.asarray(x[number]) for x in before) for number in range(2))

    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(params, x):
        y, after = nnx.merge(graphdef, params)(x, carry)
        return (y * arrays["towards"]).sum(), (y, after)

    (_, (y, after)), (gradients, of_x) = jax.jit(run)(params, arrays["x"])
    np.testing.assert_allclose(y, arrays["y"], atol=1e-5)
    for number, states in enumerate(after):
        np.testing.assert_allclose(jnp.stack(states), arrays["last"][:, number], atol=1e-5)
    np.testing.assert_allclose(of_x, arrays["of_x"], atol=1e-4)
    for number, layer in enumerate(nnx.merge(graphdef, gradients).layers):
        for gradient, expected in torch_weights(layer, part(arrays, "gradient."), number):
            np.testing.assert_allclose(gradient[...], expected, atol=1e-4)


def check_both_directions(folder, cell):
    arrays = reference(folder, cell)
    net = Bidirectional(cell, FEATURES, 2 * WIDTH, 2, rngs=nnx.Rngs(0))
    for number, (ahead, back) in enumerate(zip(net.ahead, net.back, strict=True)):
        set_weights(torch_weights(ahead.layers[0], part(arrays, "both."), number))
        set_weights(torch_weights(back.layers[0], part(arrays, "both."), number, "_reverse"))
    mask = np.arange(STEPS)[None] < arrays["lengths"][:, None]
    # What stands in the padding must not matter.
    x = jnp.where(mask[:, :, None], arrays["x"], 9.0)
    y, ends = jax.jit(lambda x, mask: net(x, mask))(x, jnp.asarray(mask))
    np.testing.assert_allclose(jnp.where(mask[:, :, None], y, 0.0), arrays["read"], atol=1e-5)
    for number, states in enumerate(ends):
        expected = np.concatenate([arrays["ends"][:, 2 * number], arrays["ends"][:, 2 * number + 1]], axis=-1)
        np.testing.assert_allclose(jnp.stack(states), expected, atol=1e-5)
