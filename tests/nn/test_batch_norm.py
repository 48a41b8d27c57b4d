"""Batch normalisation over devices, and spectral normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.core import parallel
from zoo.core.parallel import Parallel
from zoo.nn.batch_norm import BatchNorm
from zoo.nn.spectral_norm import SpectralNorm


@pytest.fixture
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.float32(rng.normal(size=(8, 3, 2, 4)) * [1.0, 3.0, 0.2, 1.0] + [0.0, -2.0, 5.0, 1.0])


def test_training_normalises_by_the_batch_and_remembers(x):
    net = BatchNorm(4, gain_scale=0.5, rngs=nnx.Rngs(0))
    net.bias[...] = jnp.arange(4.0)
    y = net(jnp.asarray(x), train=True)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * np.asarray(net.gain[...]) + np.arange(4.0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(net.variance[...], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_evaluation_takes_rows_one_by_one_and_remembers_nothing(x):
    net = BatchNorm(4, rngs=nnx.Rngs(0))
    net(jnp.asarray(x), train=True)
    mean, variance = np.asarray(net.mean[...]), np.asarray(net.variance[...])
    y = net(jnp.asarray(x), train=False)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net(jnp.asarray(x[:1]), train=False), y[:1], rtol=1e-6)
    np.testing.assert_array_equal(net.mean[...], mean)


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_devices_share_their_moments(x, strategy):
    """Outputs, memory and gradients on four devices are those of one: the loss couples all rows through the moments."""
    graphdef, params, memory = nnx.split(BatchNorm(4, gain_scale=0.5, rngs=nnx.Rngs(0)), nnx.Param, ...)
    # On the host, since a step gives up the state that it is passed.
    params, memory = jax.device_get((nnx.to_pure_dict(params), nnx.to_pure_dict(memory)))

    def step(state, batch, _):
        def loss(params, x):
            net = nnx.merge(graphdef, params, state["memory"])
            y = net(x, train=True)
            # Rows weigh differently; otherwise the gradient with respect to x would vanish.
            weight = batch["row"].astype(jnp.float32)[:, None, None, None]
            return (jnp.sin(y) * weight).sum(), nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[2])

        (_, memory), (of_params, of_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(state["params"], batch["x"])
        squares = parallel.total((of_x**2 * batch["x"]).sum())
        return {"params": parallel.total(of_params), "memory": memory}, {"squares": squares}

    results = []
    for devices, how in ((1, "jit"), (4, strategy)):
        placed = Parallel(how, devices).start(8)
        state = placed.place({"params": params, "memory": memory})
        batch = placed.put({"x": x, "row": np.arange(8, dtype=np.int32)})
        state, metrics = placed.compile_step(step)(state, batch, np.int32(0))
        results.append(jax.device_get((placed.gather(state), metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_a_normalised_kernel_has_largest_singular_value_one():
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.normal(size=(4, 4, 3, 5)), jnp.float32)
    net = SpectralNorm(kernel, rngs=nnx.Rngs(0))
    before = net.u[...]
    first = net(kernel, train=False)
    np.testing.assert_array_equal(net.u[...], before)
    for _ in range(20):
        normalised = net(kernel, train=True)
    sigma = np.linalg.svd(np.reshape(kernel, (48, 5)), compute_uv=False)[0]
    np.testing.assert_allclose(normalised, kernel / sigma, rtol=1e-3)
    # The vector starts near the kernel's own, so that the first step does not see another scale.
    np.testing.assert_allclose(first, normalised, rtol=0.05, atol=0.01)
    assert np.abs(net.u[...] - before).max() > 0


def test_the_gradient_of_spectral_normalisation_is_that_of_the_singular_value():
    rng = np.random.default_rng(2)
    kernel, weight = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    net = SpectralNorm(kernel, rngs=nnx.Rngs(0))
    for _ in range(50):
        net(kernel, train=True)
    ours = jax.grad(lambda kernel: (net(kernel, train=False) * weight).sum())(kernel)
    exact = jax.grad(lambda kernel: (kernel / jnp.linalg.norm(kernel, 2) * weight).sum())(kernel)
    np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=1e-4)


def test_no_gradient_flows_through_the_power_iteration():
    """While the vectors are far from the kernel's own, the gradient holds them fixed (the paper's equation 12)."""
    rng = np.random.default_rng(3)
    W, G = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    net = SpectralNorm(W, rngs=nnx.Rngs(0))
    net.u[...] = jnp.array([1.0, 0.0, 0.0, 0.0])
    ours = jax.grad(lambda W: (net(W, train=False) * G).sum())(W)
    v = W @ net.u[...]
    v = v / jnp.linalg.norm(v)
    u = v @ W
    u = u / jnp.linalg.norm(u)
    sigma = v @ W @ u
    np.testing.assert_allclose(ours, G / sigma - (G * W).sum() / sigma**2 * jnp.outer(v, u), rtol=1e-4, atol=1e-5)
