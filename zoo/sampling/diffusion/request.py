"""Requests to a diffusion model of images, and the images that they ask for.

New images; a given image made again from part of its noise (SDEdit); the masked part of an image filled in (RePaint);
the path between two images or two noises. Each can be shown as a strip of denoising steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from einops import rearrange, reduce, repeat
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt8

from zoo.core.artifacts import Artifacts, Image, sheet
from zoo.core.errors import UserError, require
from zoo.core.family import Model
from zoo.data.captions.prompts import labelled
from zoo.data.images.files import read_mask
from zoo.data.images.latents import show
from zoo.data.images.pixels import from_pixels, to_pixels
from zoo.data.specs import ImageSpec, LatentSpec
from zoo.nn.arithmetic import identity
from zoo.sampling.batches import in_batches
from zoo.sampling.diffusion.guidance import NO_CLASS, ClassConditional, Condition, conditions_of_samples
from zoo.sampling.diffusion.loop import Sampler, encode, keep_known, part_noised, prior, sample
from zoo.sampling.diffusion.noise_levels import Grid, shifted
from zoo.sampling.diffusion.noise_schedule import Path
from zoo.sampling.diffusion.rules import Denoiser
from zoo.sampling.latent_paths import slerp
from zoo.sampling.prompts import PromptRequest, best_of_many
from zoo.sampling.starting_images import given_pictures

SamplerName = Literal["ddpm", "ddim", "euler", "heun", "midpoint", "dpm++"]

AT_ONCE = 128
"""Images that one call denoises, at most."""


@runtime_checkable
class Diffusion(ClassConditional, Protocol):
    """A family whose network denoises images; hashable, because it is a static argument of compiled functions."""

    @property
    def path(self) -> Path:
        """Signal and noise at each time."""

    @property
    def samplers(self) -> Mapping[str, Sampler]:
        """The samplers that apply to the network, by name."""

    def denoiser(self, state: Any, condition: Condition, guidance: Float[Array, ""]) -> Denoiser:
        """The network in the form that samplers take.

        Args:
            state: holds the network.
            condition: what each row shows.
            guidance: scale of classifier-free guidance.
        """


@dataclass(frozen=True)
class DiffusionRequest(PromptRequest):
    """A request for images."""

    n: Annotated[int, Ge(1)] = 16
    """Number of samples."""
    sampler: SamplerName = "ddim"
    """ddpm: ancestral sampling; ddim: its deterministic form, with noise by eta; euler, heun: solvers of the ODE on the
    EDM grid, or in even steps on a straight path (flow matching), which also has midpoint; dpm++: DPM-Solver++(2M)."""
    steps: Annotated[int, Ge(1)] = 50
    """Number of noise levels, at most those of the schedule; heun and midpoint call the network twice at each."""
    eta: Annotated[float, Ge(0), Le(1)] = 0.0
    """For ddim: share of the ancestral noise that is added again at each step; 0: none, 1: as ddpm."""
    shift: Annotated[float, Gt(0), Lt(np.inf)] = 1.0
    """Above 1, more of the levels are at high noise, where the content of an image is decided."""
    guidance: float = 1.0
    """Scale g of classifier-free guidance, eps_u + g (eps_c - eps_u); 1: plain conditional sampling."""
    label: str = ""
    """Class of the images, by name or number, or 'none'; empty: each class in turn, or none if an image is given."""
    image: tuple[str, ...] = ()
    """Images to start from: files, or numbers of held-out ones. One or more for image-to-image (sample i starts from
    the i-th, in turn) and with a mask; two to interpolate between."""
    strength: Annotated[float, Ge(0), Le(1)] = 0.6
    """How much noise a given image gets before it is denoised, from 0 to 1 (pure noise); without a mask."""
    mask: str = ""
    """A black and white image of the model's size: its white part is filled in, the rest stays as in the image."""
    repeats: Annotated[int, Ge(1)] = 1
    """With a mask: number of times that each step is made, its noise added again in between, which makes new pixels
    consistent with the rest (RePaint's U, there 10); the time grows in proportion."""
    interpolate: int = 0
    """Number of images on the path between two noises, or between two given images; 0: no interpolation."""
    strip: int = 0
    """Number of frames that show the denoising of each sample: noisy images above, estimates of x_0 below; 0: none."""

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
            raise UserError("mask selects the part of an image that is filled in: give the image with --image")
        if self.mask and self.interpolate:
            raise UserError("mask and interpolate are two different tasks: give one of them")
        if self.strip and self.interpolate:
            raise UserError("strip and interpolate are two different outputs: give one of them")
        if self.interpolate and self.image:
            self._check_ends()

    def _check_ends(self) -> None:
        """Refuses what cannot interpolate between given images."""
        if len(self.image) != 2:
            raise UserError(f"image names {len(self.image)} images; interpolate needs two")
        if self.sampler not in ("heun", "midpoint", "dpm++"):
            raise UserError(
                f"sampler is {self.sampler}, which does not reproduce given images from their noise; to interpolate "
                "between them it must be heun, midpoint or dpm++"
            )
        if self.guidance != 1:
            raise UserError(f"guidance is {self.guidance:g}; to interpolate between given images it must be 1")


class Settings(NamedTuple):
    """Settings of a sampler that are arguments of the compiled function, so that other values compile nothing."""

    grid: Grid
    key: Key[Array, ""]
    eta: Float[Array, ""]
    guidance: Float[Array, ""]
    kept: Bool[Array, "h w 1"] | None
    """With a mask: the pixels that stay."""
    repeats: Int[Array, ""] | None
    """With a mask: number of times that each step is made."""


class Start(NamedTuple):
    """A batch of images before the first step."""

    x: Float[Array, "b h w c"]
    """Noisy images at level `level`."""
    rows: Int[Array, " b"]
    """Each row's index among all samples."""
    condition: Condition
    """What each row shows."""
    level: Int[Array, ""] | int = 0
    x_0: Float[Array, "b h w c"] | None = None
    """With a mask: the images whose pixels stay."""


def make_levels(family: Diffusion, sampler: SamplerName, steps: int, shift: float) -> Grid:
    """The noise levels that a sampler visits.

    Raises:
        UserError: the sampler does not apply to the family's network, or cannot make this number of steps.
    """
    if sampler not in family.samplers:
        raise UserError(f"sampler is {sampler}; for this model it must be one of {', '.join(family.samplers)}")
    return shifted(family.samplers[sampler].make_grid(family.path, steps), family.path, shift)


def sample_images(
    family: Diffusion,
    model: Model,
    request: DiffusionRequest,
    key: Key[Array, ""],
    classes: Int[np.ndarray, " n"] | None = None,
) -> Artifacts:
    """Makes the images of a request.

    Args:
        family: the model family.
        model: the trained model; held-out images are taken from its data.
        request: what to make.
        key: sample i draws from fold_in(key, i).
        classes: classes of the samples, for a request without a label; None: each class in turn.

    Returns:
        One image per sample; a strip or an interpolation is one image.

    Raises:
        UserError: the model cannot meet the request.
    """
    return best_of_many(request, model, lambda asked: _sample_images(family, model, asked, key, classes))


def _sample_images(
    family: Diffusion, model: Model, request: DiffusionRequest, key: Key[Array, ""], classes: Any
) -> Artifacts:
    """`sample_images` without ranking."""
    spec = model.spec
    label = request.label or (NO_CLASS if request.image else "")
    prompts, guidance = request.captions, request.guidance
    condition_of = conditions_of_samples(family, spec, prompts, request.negative_prompt, label, guidance, classes)
    grid = make_levels(family, request.sampler, request.steps, request.shift)
    given = _given(request, model) if request.image else None
    settings = Settings(
        grid=grid,
        key=key,
        eta=jnp.float32(request.eta),
        guidance=jnp.float32(request.guidance),
        kept=jnp.asarray(_kept(request.mask, spec)) if request.mask else None,
        repeats=jnp.int32(request.repeats) if request.mask else None,
    )
    walk = partial(_walk, family, request.sampler, request.strip, isinstance(spec, ImageSpec), model.state, settings)
    shape = (spec.height, spec.width, spec.channels)
    if request.interpolate:
        ends = None if given is None else _encode(family, model.state, given, grid, condition_of(np.arange(2)))
        made = _interpolations(request, shape, ends, key, condition_of, walk)
        return [sheet(way[None], "interpolation") for way in _shown(made, model)]
    start = partial(_start, request, settings, shape, given)
    made = in_batches(lambda rows: walk(start(rows, condition_of(np.asarray(rows)))), request.n, AT_ONCE)
    made = _shown(made, model)
    if not request.strip:
        return labelled([Image(pixels) for pixels in made], prompts)
    return [sheet(frames, "strip") for frames in made]


def _start(
    request: DiffusionRequest,
    settings: Settings,
    shape: tuple[int, ...],
    given: Float[np.ndarray, "n h w c"] | None,
    rows: Int[Array, " b"],
    condition: Condition,
) -> Start:
    """Pure noise, or given images with the noise of the requested strength."""
    if given is None:
        return Start(_prior(settings.key, rows, shape), rows, condition, jnp.int32(0))
    x_0 = jnp.asarray(given[np.asarray(rows) % len(given)])
    if request.mask:
        return Start(_prior(settings.key, rows, shape), rows, condition, jnp.int32(0), x_0)
    level = jnp.int32(settings.grid.start(request.strength))
    return Start(_part_noised(x_0, settings.grid, level, settings.key, rows), rows, condition, level)


def _interpolations(
    request: DiffusionRequest,
    shape: tuple[int, ...],
    ends: Float[Array, "2 h w c"] | None,
    key: Key[Array, ""],
    condition_of: Callable[[np.ndarray], Condition],
    walk: Callable[[Start], jax.Array],
) -> Shaped[np.ndarray, "n frames h w c"]:
    """Rows of arrays, each made from points on the arc between two noises: `ends`, or noises of the sample's own."""
    frames = request.interpolate

    def make(places: jax.Array) -> jax.Array:
        rows, weight = places // frames, (places % frames) / (frames - 1)
        if ends is None:
            z = [_prior(k, rows, shape) for k in (key, jax.random.split(key)[1])]  # begins with the sample's own noise
        else:
            z = [jnp.broadcast_to(end[None], (len(rows), *shape)) for end in ends]
        return walk(Start(_between(*z, weight), rows, condition_of(np.asarray(rows)), jnp.int32(0)))

    made = in_batches(make, (request.n if ends is None else 1) * frames, AT_ONCE)
    return rearrange(made, "(n f) h w c -> n f h w c", f=frames)


def _given(request: DiffusionRequest, model: Model) -> Float[np.ndarray, "n h w c"]:
    """Given images as the network takes them."""
    images = given_pictures(request.image, model)
    if isinstance(model.spec, LatentSpec):
        assert model.codec is not None, "latents have a codec"
        batch = {"image": images, "row": np.arange(len(images), dtype=np.int32)}
        return model.spec.from_codec(np.asarray(model.codec.latents(batch)))
    return np.asarray(from_pixels(jnp.asarray(images)))


def _kept(mask: str, spec: ImageSpec | LatentSpec) -> Bool[np.ndarray, "h w 1"]:
    """The places that a mask keeps; one of latents stands for a square of pixels, which must be kept whole."""
    pixels = ~read_mask(mask, spec.image)
    p, q = spec.image.height // spec.height, spec.image.width // spec.width
    return reduce(pixels, "(h p) (w q) 1 -> h w 1", "min", p=p, q=q)


def _shown(made: Shaped[np.ndarray, "n ..."], model: Model) -> UInt8[np.ndarray, "n ..."]:
    """Images of what was made: latents are decoded."""
    if isinstance(model.spec, LatentSpec):
        assert model.codec is not None, "latents have a codec"
        return show(model.spec, made, model.codec)
    return made


@partial(jax.jit, static_argnames=("family", "sampler", "frames", "pixels"))
def _walk(
    family: Diffusion, sampler: SamplerName, frames: int, pixels: bool, state: Any, settings: Settings, start: Start
) -> Shaped[Array, "b ..."]:
    """From noise to images [b h w c], uint8 if `pixels`; with frames, to strips [b 2 f h w c] of x_t and x_0."""
    denoise = family.denoiser(state, start.condition, settings.guidance)
    constrain = None
    if settings.kept is not None and start.x_0 is not None:
        kept = repeat(settings.kept, "h w 1 -> b h w 1", b=len(start.rows))
        constrain = keep_known(start.x_0, kept, settings.grid)
    made, strip = sample(
        family.samplers[sampler].rule, denoise, start.x, settings.grid, settings.key, start.rows, eta=settings.eta,
        start=start.level, constrain=constrain, repeats=1 if settings.repeats is None else settings.repeats,
        frames=frames,
    )  # fmt: skip
    finish = to_pixels if pixels else identity
    if not frames:
        return finish(made)
    both = rearrange(jnp.stack(strip), "two f b h w c -> (b two f) h w c")
    return rearrange(finish(both), "(b two f) h w c -> b two f h w c", two=2, f=frames)


_prior = jax.jit(prior, static_argnums=2)
_part_noised = jax.jit(part_noised)


@jax.jit
def _between(
    z_1: Float[Array, "b h w c"], z_2: Float[Array, "b h w c"], weight: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """From noise z_1 (weight 0) to z_2 (weight 1) along the arc between them, which preserves the norm of noise.

    Song et al. 2021, "Denoising diffusion implicit models", appendix D.5.
    """
    begin, end = (rearrange(z, "b h w c -> b (h w c)") for z in (z_1, z_2))
    return slerp(begin, end, weight[:, None]).reshape(z_1.shape)


@partial(jax.jit, static_argnums=0)
def _encode(
    family: Diffusion, state: Any, given: Float[Array | np.ndarray, "b h w c"], grid: Grid, condition: Condition
) -> Float[Array, "b h w c"]:
    """The noise of given images."""
    denoise = family.denoiser(state, condition, jnp.float32(1.0))
    return encode(family.samplers["heun"].rule, denoise, jnp.asarray(given), grid)
