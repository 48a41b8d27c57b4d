"""Fast forms against plain ones, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same_with_gradients(fast, plain, *inputs, atol=2e-6):
    """Values, and gradients by every input of a random projection, agree to float32 rounding."""
    value, pull = jax.vjp(fast, *inputs)
    towards = normal(99, *value.shape)

    @jax.jit
    def expect(inputs, towards):
        expected, pull = jax.vjp(plain, *inputs)
        return expected, pull(towards)

    expected, gradients = expect(inputs, towards)
    np.testing.assert_allclose(value, expected, atol=atol, rtol=2e-5)
    for got, want in zip(pull(towards), gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max() + 1), rtol=1e-5)
