"""What a diffusion model of pictures can be asked for, and the making of it with the samplers of `diffusion`.

New pictures; a given picture made anew from part of its noise (SDEdit); the masked part of a picture filled in; the way
between two pictures or two noises. Every picture can be shown as it comes out of the noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from zoo.core.artifacts import Image, sheet
from zoo.core.errors import UserError, require
from zoo.core.family import Model, Request
from zoo.data.images.files import read_mask
from zoo.data.images.pixels import from_pixels, to_pixels
from zoo.data.specs import ImageSpec
from zoo.sampling.batches import in_batches
from zoo.sampling.diffusion.loop import SAMPLERS, encode, keep_known, part_noised, prior, sample
from zoo.sampling.diffusion.noise_levels import Grid, shifted
from zoo.sampling.diffusion.rules import Denoiser, heun
from zoo.sampling.latent_paths import slerp
from zoo.sampling.starting_images import given_pictures

SamplerName = Literal["ddpm", "ddim", "euler", "heun", "dpm++"]

BATCH_SIZE = 128
NO_CLASS = "none"


@runtime_checkable
class Diffusion(Protocol):
    """A family whose network takes noise off pictures; hashable, since it is compiled in."""

    @property
    def alpha_bar(self) -> np.ndarray:
        """The noise schedule, [T]."""

    def guidable(self, spec: ImageSpec) -> bool:
        """Whether the network was trained with and without classes."""

    def denoiser(self, state: Any, symbol: Int[Array, " b"], guidance: Float[Array, ""]) -> Denoiser:
        """The network as the samplers take it.

        Args:
            state: holds the network.
            symbol: the class of each row; the number of classes stands for none. Ignored by a network without classes.
            guidance: scale of classifier-free guidance.
        """

    def classes(self, spec: ImageSpec) -> tuple[str, ...]:
        """Names of the classes that the network knows."""


@dataclass(frozen=True)
class PictureRequest(Request):
    """Pictures to make."""

    n: Annotated[int, Ge(1)] = 16
    """How many samples to make."""
    sampler: SamplerName = "ddim"
    """ddpm: ancestral sampling; ddim: its deterministic form, with noise by eta; euler, heun: solvers of the ODE on the
    EDM grid; dpm++: DPM-Solver++(2M)."""
    steps: Annotated[int, Ge(1)] = 50
    """How many noise levels to go through, at most those of the schedule; heun calls the network twice at each."""
    eta: Annotated[float, Ge(0), Le(1)] = 0.0
    """For ddim: share of the ancestral noise put back at each step; 0: none, 1: as ddpm."""
    shift: Annotated[float, Gt(0), Lt(np.inf)] = 1.0
    """Above 1, more of the levels lie where there is much noise, and what a picture shows is decided."""
    guidance: float = 1.0
    """Scale g of classifier-free guidance, eps_u + g (eps_c - eps_u); 1: plain conditional sampling."""
    label: str = ""
    """Class of the pictures, by name or number, or 'none'; empty: each class in turn, and no class where a picture is
    given."""
    image: tuple[str, ...] = ()
    """Pictures to start from: files, or numbers of held-out ones. One or more for image-to-image (sample i starts from
    the i-th, in turn) and with a mask; two to interpolate between."""
    strength: Annotated[float, Ge(0), Le(1)] = 0.6
    """How much of the way to pure noise a given picture is taken before it is denoised, from 0 to 1; without a mask."""
    mask: str = ""
    """A black and white picture of the model's size: what is white is painted anew, the rest stays as in the image."""
    repeats: Annotated[int, Ge(1)] = 1
    """With a mask: how often each step is made, its noise put back in between, so that what is painted comes to agree
    with the rest (RePaint's U, there 10); the time grows with it."""
    interpolate: int = 0
    """Show this many pictures on the way between two noises, or between two given pictures."""
    strip: int = 0
    """Show the denoising of each sample in this many pictures: the noisy ones above what the network takes them for."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("guidance", "0 or above", 0 <= self.guidance < float("inf")),
            ("repeats", "1 without a mask", self.repeats == 1 or self.mask != ""),
            ("interpolate", "0, or at least 2", self.interpolate == 0 or self.interpolate >= 2),
            ("strip", "0, or at least 2", self.strip == 0 or self.strip >= 2),
        )
        if self.eta and self.sampler != "ddim":
            raise UserError(f"eta is {self.eta}, which is a setting of the sampler ddim and not of {self.sampler}")
        if self.mask and len(self.image) < 1:
            raise UserError("mask says what to paint anew of a picture: give the picture by --image")
        if self.mask and self.interpolate:
            raise UserError("mask and interpolate are two different tasks: give one of them")
        if self.strip and self.interpolate:
            raise UserError("strip and interpolate are two different pictures: give one of them")
        if self.interpolate and self.image:
            if len(self.image) != 2:
                raise UserError(f"interpolate goes between two pictures, and image names {len(self.image)}")
            if self.sampler not in ("heun", "dpm++"):
                raise UserError(
                    f"interpolate finds the noise of the given pictures, from which the sampler {self.sampler} does "
                    "not come back to them: give --sampler heun or dpm++"
                )
            if self.guidance != 1:
                raise UserError(f"guidance is {self.guidance:g}; between given pictures it must be 1")


def sample_pictures(
    family: Diffusion,
    model: Model,
    request: PictureRequest,
    key: jax.Array,
    classes: Int[np.ndarray, " n"] | None = None,
) -> list[Image]:
    """Makes what is asked for.

    Args:
        family: the model family.
        model: the trained model; held-out pictures are taken from its data.
        request: what is asked for.
        key: sample i draws from fold_in(key, i).
        classes: of each sample, where the request names none; None: each class in turn.

    Returns:
        An image a sample; a strip or an interpolation is one image.
    """
    spec, shape = model.spec, (model.spec.height, model.spec.width, model.spec.channels)
    grid = SAMPLERS[request.sampler].make_grid(family.alpha_bar, request.steps)
    levels = shifted(grid, family.alpha_bar, request.shift)
    label_of = _labels(family, spec, request, classes)
    given = given_pictures(request.image, model) if request.image else None
    kept = ~read_mask(request.mask, spec) if request.mask else None
    walk = partial(
        _walk, family, request.sampler, request.strip, model.state, grid=levels, key=key, eta=jnp.float32(request.eta),
        guidance=jnp.float32(request.guidance), kept=kept, repeats=jnp.int32(request.repeats) if request.mask else None,
    )  # fmt: skip

    if request.interpolate:
        return _interpolations(family, model.state, request, levels, given, key, shape, label_of, walk)

    def make(rows: jax.Array) -> jax.Array:
        x_0 = None if given is None else from_pixels(jnp.asarray(given[np.asarray(rows) % len(given)]))
        start = jnp.int32(0)
        if x_0 is None or kept is not None:
            x = _prior(key, rows, shape)
        else:
            start = jnp.int32(levels.start(request.strength))
            x = _part_noised(x_0, levels, start, key, rows)
        return walk(x=x, x_0=None if kept is None else x_0, rows=rows, symbol=label_of(np.asarray(rows)), start=start)

    made = in_batches(make, request.n, BATCH_SIZE)
    if not request.strip:
        return [Image(pixels) for pixels in made]
    return [sheet(frames, "strip") for frames in made]


def _interpolations(
    family: Diffusion,
    state: Any,
    request: PictureRequest,
    levels: Grid,
    given: UInt8[np.ndarray, "2 h w c"] | None,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    label_of: Callable[[np.ndarray], jax.Array],
    walk: Callable[..., jax.Array],
) -> list[Image]:
    """Rows of pictures, each from one noise or picture to another along the arc between their noises."""
    frames = request.interpolate
    if given is not None:
        no_class = label_of(np.arange(2))
        ends = _encode(family, state, from_pixels(jnp.asarray(given)), levels, no_class)

    def make(places: jax.Array) -> jax.Array:
        rows, weight = places // frames, (places % frames) / (frames - 1)
        if given is None:
            z = [_prior(k, rows, shape) for k in (key, jax.random.split(key)[1])]  # from the sample's own
        else:
            z = [jnp.broadcast_to(end[None], (len(rows), *shape)) for end in ends]
        x, symbol = _between(*z, weight), label_of(np.asarray(rows))
        return walk(x=x, x_0=None, rows=rows, symbol=symbol, start=jnp.int32(0))

    made = in_batches(make, (1 if given is not None else request.n) * frames, BATCH_SIZE)
    return [sheet(way, "interpolation") for way in rearrange(made, "(n f) h w c -> n 1 f h w c", f=frames)]


@partial(jax.jit, static_argnames=("family", "sampler", "frames"))
def _walk(
    family: Diffusion,
    sampler: SamplerName,
    frames: int,
    state: Any,
    *,
    x: Float[Array, "b h w c"],
    grid: Grid,
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    start: Int[Array, ""],
    eta: Float[Array, ""],
    guidance: Float[Array, ""],
    symbol: Int[Array, " b"],
    x_0: Float[Array, "b h w c"] | None,
    kept: Bool[Array, "h w 1"] | None,
    repeats: Int[Array, ""] | None,
) -> UInt8[Array, "b ..."]:
    """From noise to pictures [b h w c]; with frames, to strips [b 2 f h w c] of x_t and x_0."""
    denoise = family.denoiser(state, symbol, guidance)
    constrain = (
        None if kept is None or x_0 is None else keep_known(x_0, repeat(kept, "h w 1 -> b h w 1", b=len(rows)), grid)
    )
    made, strip = sample(
        SAMPLERS[sampler].rule, denoise, x, grid, key, rows, eta=eta, start=start, constrain=constrain,
        repeats=1 if repeats is None else repeats, frames=frames,
    )  # fmt: skip
    if not frames:
        return to_pixels(made)
    both = rearrange(jnp.stack(strip), "two f b h w c -> (b two f) h w c")
    return rearrange(to_pixels(both), "(b two f) h w c -> b two f h w c", two=2, f=frames)


_prior = jax.jit(prior, static_argnums=2)
_part_noised = jax.jit(part_noised)


@jax.jit
def _between(
    z_1: Float[Array, "b h w c"], z_2: Float[Array, "b h w c"], weight: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """From noise z_1 (weight 0) to z_2 (weight 1) along the arc between them, which keeps the length noise must have.

    Song et al. 2021, "Denoising Diffusion Implicit Models", appendix D.5.
    """
    begin, end = (rearrange(z, "b h w c -> b (h w c)") for z in (z_1, z_2))
    return slerp(begin, end, weight[:, None]).reshape(z_1.shape)


@partial(jax.jit, static_argnums=0)
def _encode(family: Diffusion, state: Any, x_0: jax.Array, grid: Grid, symbol: jax.Array) -> jax.Array:
    """The noise of given pictures."""
    return encode(heun, family.denoiser(state, symbol, jnp.float32(1.0)), x_0, grid)


def check_guidance(family: Diffusion, spec: ImageSpec, guidance: float) -> None:
    """Refuses guidance, any scale but 1, of a model that cannot be guided.

    Raises:
        UserError: the network was trained without classes, or with nothing else.
    """
    if guidance == 1:
        return
    if not family.classes(spec):
        raise UserError(f"guidance is {guidance:g}, but the model was trained without classes; only 1 is possible")
    if not family.guidable(spec):
        raise UserError(
            f"guidance is {guidance:g}, but the model was trained with label-dropout 0 and knows no pictures without a "
            "class; only 1 is possible"
        )


def _labels(
    family: Diffusion, spec: ImageSpec, request: PictureRequest, classes: Int[np.ndarray, " n"] | None
) -> Callable[[np.ndarray], jax.Array]:
    """Turns samples' numbers into their classes, as the network takes them."""
    count, label = len(family.classes(spec)), request.label
    if not count:
        if label and label != NO_CLASS:
            raise UserError(f"label is {label!r}, but the model was trained without classes")
        check_guidance(family, spec, request.guidance)
        return lambda rows: jnp.zeros(rows.shape, jnp.int32)
    if label == NO_CLASS or (not label and request.image):
        chosen = count
    elif label:
        chosen = spec.class_number(label)
    else:
        chosen = -1
    if chosen == count and not family.guidable(spec):
        raise UserError(
            "the model was trained with label-dropout 0 and knows no pictures without a class: give a class by --label"
        )
    check_guidance(family, spec, request.guidance)
    if request.guidance != 1 and chosen == count:
        raise UserError(f"guidance is {request.guidance:g}, and there is no class to guide to: give --label")
    if chosen >= 0:
        return lambda rows: jnp.full(rows.shape, chosen, jnp.int32)
    order = np.arange(count) if classes is None else classes
    return lambda rows: jnp.asarray(order[rows % len(order)], jnp.int32)
