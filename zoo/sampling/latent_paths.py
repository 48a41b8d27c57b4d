"""Walks through a latent space: pure functions over a decoder that maps codes [n d] to images [n h w c]."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int, Shaped

from zoo.core.errors import UserError

Decoder = Callable[[Float[Array, "n d"]], Shaped[Array | np.ndarray, "n h w c"]]
Path = Callable[[Float[Array, "n d"], Float[Array, "n d"], Float[Array, "#n k"]], Float[Array, "n k d"]]
"""(a, b, t) -> codes between each pair: a at t = 0, b at t = 1. t is in [0, 1]; if [1 k], all pairs share it."""

PARALLEL = 1e-3
"""Below this sine of the angle between two codes, `slerp` falls back to a line, which it equals up to rounding."""


def lerp(a: Float[Array, "n d"], b: Float[Array, "n d"], t: Float[Array, "#n k"]) -> Float[Array, "n k d"]:
    """The straight line (1 - t) a + t b."""
    t = t[:, :, None]
    return (1 - t) * a[:, None] + t * b[:, None]


def slerp(a: Float[Array, "n d"], b: Float[Array, "n d"], t: Float[Array, "#n k"]) -> Float[Array, "n k d"]:
    """The arc sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, with w the angle between a and b.

    Shoemake 1985, "Animating rotation with quaternion curves"; White 2016, "Sampling generative networks". Codes from a
    normal prior all have nearly the same norm, and the arc keeps it, whereas a straight line passes through norms that
    are very unlikely under the prior. Parallel and opposite codes are joined by a line; opposite ones have no unique
    arc.
    """
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    cosine = jnp.clip((a * b).sum(-1) / jnp.maximum(lengths, 1e-12), -1.0, 1.0)[:, None, None]
    sine = jnp.sqrt(1 - cosine**2)
    angle = jnp.arccos(cosine)
    safe = jnp.maximum(sine, PARALLEL)
    places = t[:, :, None]
    arc = (jnp.sin((1 - places) * angle) * a[:, None] + jnp.sin(places * angle) * b[:, None]) / safe
    return jnp.where(sine < PARALLEL, lerp(a, b, t), arc)


def interpolate(
    decode: Decoder, a: Float[Array, "n d"], b: Float[Array, "n d"], steps: int, path: Path = slerp
) -> Shaped[Array | np.ndarray, "n k h w c"]:
    """Decodes the path from each code in `a` to the code of the same row in `b`, ends included.

    Args:
        decode: maps codes to images.
        a: first codes.
        b: last codes.
        steps: number of images per pair, at least 2.
        path: interpolates between codes.
    """
    codes = path(a, b, jnp.linspace(0.0, 1.0, steps)[None])
    return rearrange(decode(rearrange(codes, "n k d -> (n k) d")), "(n k) h w c -> n k h w c", k=steps)


def traverse(
    decode: Decoder, z: Float[Array, "n d"], units: Int[Array, " u"], values: Float[Array, " v"]
) -> Shaped[Array | np.ndarray, "n u v h w c"]:
    """Decodes codes in which one unit at a time is set to each of the values and the others are unchanged.

    Args:
        decode: maps codes to images.
        z: the original codes.
        units: indices of the units to change, one at a time.
        values: values to set them to.
    """
    codes = repeat(z, "n d -> n u v d", u=len(units), v=len(values))
    changed = jnp.arange(z.shape[1])[None, None, None, :] == units[None, :, None, None]
    codes = jnp.where(changed, values[None, None, :, None], codes)
    images = decode(rearrange(codes, "n u v d -> (n u v) d"))
    return rearrange(images, "(n u v) h w c -> n u v h w c", u=len(units), v=len(values))


def most_active(means: Float[Array, "n d"], count: int) -> Int[Array, " u"]:
    """Returns the most informative units of a code: those whose mean of q(z|x) varies most over n different x.

    Raises:
        UserError: a code has fewer than `count` units.
    """
    units = means.shape[1]
    if count > units:
        raise UserError(f"traverse is {count}, but a code has {units} units: give at most that many")
    return jnp.argsort(means.var(0), descending=True)[:count]


def truncated(z: Float[Array, "b d"], limit: Float[Array, ""]) -> Float[Array, "b d"]:
    """Maps standard normal noise, quantile by quantile, to a normal distribution truncated at +-limit."""
    inner = 2**0.5 * jax.lax.erf_inv(jax.lax.erf(limit / 2**0.5) * jax.lax.erf(z / 2**0.5))
    return jnp.where(jnp.isinf(limit), z, jnp.clip(inner, -limit, limit))
