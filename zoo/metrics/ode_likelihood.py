"""Exact likelihood of a flow, by the instantaneous change of variables.

Chen et al. 2018, "Neural ordinary differential equations", theorem 1; Grathwohl et al. 2019, "FFJORD". Along the flow
d x / d t = v(x, t) from an image at t = 0 to noise at t = 1,

    d log p(x(t)) / d t = -div v,        so        log p(x(0)) = log N(x(1); 0, I) + integral of div v over t

The divergence is exact, a sum over all directions, for at most `EXACT` dimensions. Above, it is Hutchinson's estimate
e^T (d v / d x) e with one e of random signs a row, which is the same over the whole flow (FFJORD, section 3.1), so that
the estimate of log p is unbiased up to the solver's error.

The solver is Runge and Kutta's of fourth order with fixed steps between the times (k / steps)^3: a velocity changes
fastest near the image, on the scale of its finest noise. In 40 steps, a normal pixel as narrow as a grey level has its
log density to 0.002 bits, two standard deviations from its mean.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.estimates import row_mean
from zoo.core.family import Batch, Metrics
from zoo.core.random import row_keys
from zoo.data.images.pixels import dequantise

EXACT = 64
"""Dimensions up to which the divergence is exact."""
LEVEL_WIDTH = 2 / 255
"""Width of a grey level among numbers from -1 to 1."""

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
"""(x [b h w c], t []) -> d x / d t [b h w c]."""


def make_probes(key: Key[Array, ""], rows: Int[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "k #b ..."]:
    """Directions e with div v = sum over k of e^T (d v / d x) e: all axes, or random signs, on average."""
    dimensions = math.prod(shape)
    if dimensions <= EXACT:
        return jnp.eye(dimensions).reshape(dimensions, 1, *shape)
    return jax.vmap(lambda row_key: jax.random.rademacher(row_key, shape, jnp.float32))(row_keys(key, rows))[None]


def log_density(
    velocity: Velocity, x: Float[Array, "b h w c"], probes: Float[Array, "k #b h w c"], steps: Int[Array, ""] | int
) -> Float[Array, " b"]:
    """log p(x) in nats under the flow to standard normal noise; other steps compile nothing.

    Args:
        velocity: v, supporting forward-mode differentiation (`zoo.nn.platform.plain_forms`).
        x: points of the data space.
        probes: see `make_probes`.
        steps: steps of the solver, each with four calls of v and its derivative.
    """
    axes = tuple(range(1, x.ndim))

    def slope(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        v, push = jax.linearize(lambda x: velocity(x, t), x)

        def along(e: jax.Array) -> jax.Array:
            e = jnp.broadcast_to(e, x.shape)
            return (e * push(e)).sum(axes)

        return v, jax.lax.map(along, probes).sum(0)

    reach, share = jnp.array([0.0, 0.5, 0.5, 1.0]), jnp.array([1.0, 2.0, 2.0, 1.0]) / 6

    def step(k: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, integral = at
        t, t_next = ((n.astype(jnp.float32) / steps) ** 3 for n in (k, k + 1))
        h = t_next - t

        def stage(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            v, v_mean, div_mean = carry
            v, div = slope(x + reach[i] * h * v, t + reach[i] * h)
            return v, v_mean + share[i] * v, div_mean + share[i] * div

        # A loop rather than four calls in a row, so that the network is compiled once.
        _, v_mean, div_mean = jax.lax.fori_loop(
            0, 4, stage, (jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros_like(integral))
        )
        return x + h * v_mean, integral + h * div_mean

    noise, integral = jax.lax.fori_loop(0, steps, step, (x, jnp.zeros(x.shape[0])))
    return integral - 0.5 * (jnp.square(noise) + math.log(2 * math.pi)).sum(axes)


def ode_bits(family: Any, state: Any, data: DataSet, count: int, steps: int, key: Key[Array, ""]) -> Metrics:
    """Bits per dimension of held-out images under a flow.

    The density is that of dequantised pixels (`zoo.data.images.pixels.dequantise`), one draw an image; its mean in bits
    bounds that of the pixels' probability from above.

    Args:
        family: a family with `velocity(state, batch) -> Velocity`.
        state: its networks.
        data: its first held-out images are used.
        count: number of images.
        steps: steps of the solver.
        key: source of the noise.

    Returns:
        The mean over the images with its standard error, and how it was computed.

    Raises:
        UserError: the data has no held-out images.
    """
    found: list[np.ndarray] = []
    for index in range(data.held_out_batches):
        batch = data.held_out_at(index)
        names = ("image", "label", "row", "caption", "caption_length")
        arrays = {name: batch[name] for name in names if name in batch}
        found.extend(np.asarray(image_bits(family, state, arrays, steps, key))[batch["valid"]])
        if len(found) >= count:
            break
    if not found:
        raise UserError(f"ode-images is {count}, but there are no held-out images; it must be 0")
    exact = math.prod(batch["image"].shape[1:]) <= EXACT
    return {
        **row_mean("ode_bits_per_dim", found[:count]),
        "ode_images": len(found[:count]),
        "ode_steps": steps,
        "ode_divergence": "exact" if exact else "Hutchinson's estimate, one direction an image",
    }


@partial(jax.jit, static_argnums=0)
def image_bits(
    family: Any, state: Any, batch: Batch, steps: Int[Array, ""] | int, key: Key[Array, ""]
) -> Float[Array, " b"]:
    """Bits per dimension of each image, dequantised with noise of its row."""
    noise_key, probe_key = jax.random.split(key)
    x = dequantise(batch["image"], noise_key, batch["row"])
    probes = make_probes(probe_key, batch["row"], x.shape[1:])
    nats = log_density(family.velocity(state, batch), x, probes, steps)
    return -nats / (math.log(2) * math.prod(x.shape[1:])) - math.log2(LEVEL_WIDTH)
