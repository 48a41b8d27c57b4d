"""Denoising diffusion: pictures are made by taking noise off noise, a little at a time.

Ho et al. 2020, "Denoising diffusion probabilistic models". Noise is added to a picture x_0 in T steps, so that

    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)                                          (equation 4)

and a U-Net learns to tell the noise eps (or x_0, or v, see `zoo.sampling.diffusion.noise_schedule`) in x_t, by

    L_simple = E_{t, x_0, eps} || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2      (14)

Its variational bound, -log p(x_0) <= L_T + sum_{t > 1} L_{t-1} + L_0 (5), in which the network enters by its estimate
x_0' of the picture, is reported in bits per dimension:

    L_T     = KL(q(x_T | x_0) || N(0, I))
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = (SNR_{t-1} - SNR_t) / 2 || x_0 - x_0' ||^2
    L_0     = -log p(x_0 | x_1), a normal distribution summed over each of the 256 grey values            (13)

where SNR_t = alpha_bar_t / (1 - alpha_bar_t). With classes, the network is trained without its label now and then, and
sampled by eps_u + g (eps_c - eps_u): Ho and Salimans 2022, "Classifier-free diffusion guidance".

Pictures are [b h w c] from -1 to 1. Times are indices: t = 0 is the paper's t = 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8
from tyro.conf import DisallowNone

from zoo.core.artifacts import Artifacts
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.extractor import LoadExtractor
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import normal, uniform
from zoo.data.images.pixels import from_pixels
from zoo.data.specs import ImageSpec
from zoo.metrics.diffusion_bound import whole_bound
from zoo.metrics.images import ImageScoring, drawn_classes, score_samples
from zoo.nets.unet import UNet, UNetSettings
from zoo.nn.likelihoods import discretised_gaussian
from zoo.sampling.diffusion.noise_schedule import (
    Prediction,
    Schedule,
    add_noise,
    alpha_bar_at,
    make_alpha_bar,
    spread_times,
    to_eps,
    to_target,
    to_x_0,
)
from zoo.sampling.diffusion.request import PictureRequest, SamplerName, check_guidance, sample_pictures
from zoo.sampling.diffusion.rules import Denoiser


@dataclass(frozen=True)
class DDPMScoring(ImageScoring):
    """How a diffusion model is scored."""

    sampler: SamplerName = "ddim"
    """Which sampler makes the samples that are scored."""
    steps: int = 50
    """How many steps it takes."""
    eta: float = 0.0
    """ddim: share of the ancestral noise in each step; 0: none."""
    shift: float = 1.0
    """Above 1, more of the steps are made where there is much noise."""
    guidance: float = 1.0
    """Scale g of classifier-free guidance; 1: plain conditional sampling. Classes are drawn as in the reference."""
    bound_images: int = 0
    """On how many held-out images to compute the variational bound whole, at every t (1000 calls of the network an
    image); 0: none. `bits_per_dim` estimates it from one t an image. A conditional model's are of p(x | y)."""
    sampling: ClassVar[tuple[str, ...]] = ("sampler", "steps", "eta", "shift", "guidance")  # recorded with the figures

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request(n=1)  # what a sampler refuses is refused before anything is trained or scored

    def request(self, n: int) -> PictureRequest:
        """What the sampler is asked for to make n samples."""
        return PictureRequest(n=n, **{name: getattr(self, name) for name in self.sampling})

    def check(self, family: Any, spec: Any, extractor: LoadExtractor) -> dict[str, str]:
        check_guidance(family, spec, self.guidance)
        return super().check(family, spec, extractor)


class State(NamedTuple):
    """The state of a diffusion model: one network in training."""

    unet: Learner


@dataclass(frozen=True)
class DDPM(Family):
    """A denoising diffusion model."""

    channels: tuple[int, ...] = (64, 128, 256)
    """Features of each level of the U-Net; every level is half as high and wide as the one before."""
    layers: int = 2
    """Residual blocks of a level on the way down; on the way up there is one more."""
    attention: tuple[int, ...] = (16,)
    """Heights of feature maps, in pixels, at which there is self-attention; the middle always has it."""
    head_width: int = 0
    """Features of an attention head; 0: one head."""
    groups: int = 32
    """Groups of group normalisation; fewer where the channels cannot be divided so into groups of two or more."""
    dropout: float = 0.0
    """Probability of dropping a feature in residual blocks."""
    timesteps: int = 1000
    """Steps T of the noise schedule."""
    schedule: Schedule = "linear"
    """How the noise grows: beta linear in t (Ho et al. 2020), or alpha_bar a squared cosine (Nichol, Dhariwal 2021)."""
    prediction: Prediction = "eps"
    """What the network tells: the noise eps, the picture x0, or v (Salimans and Ho 2022)."""
    min_snr: float = 0.0
    """Gamma of min-SNR weighting (Hang et al. 2023), which evens out the noise levels; 5 is theirs; 0: L_simple."""
    conditional: DisallowNone[bool | None] = None
    """Whether the network is given the class of a picture; None: where the data has classes."""
    label_dropout: float = 0.1
    """Probability of withholding a label in training, which guidance needs."""
    clip: bool = True
    """Whether estimates of x_0 are clipped to -1 .. 1 in sampling and in the bound."""
    norm_epsilon: float = 1e-5
    """Added to the variance in group normalisation."""
    cos_first: bool = True
    """Whether t is embedded by its cosines before its sines."""
    frequency_shift: int = 0
    """1: the lowest frequency in the embedding of t is exactly 1/10000, as in DDPM's own program."""
    pad_evenly: bool = True
    """Whether halving pads all four sides, or only below and on the right, as DDPM's own program does."""
    remat: bool = False
    """Whether the U-Net's blocks are computed again for gradients and keep only their input: less memory, a third more
    work."""

    accepts: ClassVar[type] = ImageSpec
    Request: ClassVar[type] = PictureRequest
    Scoring: ClassVar[type] = DDPMScoring
    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        width = self.head_width or 1
        require(
            self,
            "family.",
            ("channels", "at least one level", len(self.channels) >= 1),
            ("channels", "at least 4 in every level", all(c >= 4 for c in self.channels)),
            ("channels", f"multiples of head-width, {width}", width < 1 or not any(c % width for c in self.channels)),
            ("layers", "at least 1", self.layers >= 1),
            ("head_width", "at least 0", self.head_width >= 0),
            ("groups", "at least 1", self.groups >= 1),
            ("dropout", "from 0 to below 1", 0 <= self.dropout < 1),
            ("timesteps", "at least 2", self.timesteps >= 2),
            ("min_snr", "0 (off) or above", 0 <= self.min_snr < math.inf),
            ("label_dropout", "from 0 to below 1", 0 <= self.label_dropout < 1),
            ("norm_epsilon", "above 0", self.norm_epsilon > 0),
            ("frequency_shift", "0 or 1", self.frequency_shift in (0, 1)),
        )

    # ------------------------------------------------------------------------------------------ networks

    @property
    def alpha_bar(self) -> Float[np.ndarray, " T"]:
        """The noise schedule: the share of signal in the variance at t = 0 .. T - 1."""
        return _alpha_bar(self.schedule, self.timesteps)

    def guidable(self, spec: ImageSpec) -> bool:
        """Whether the network was trained with and without classes."""
        return bool(self.classes(spec)) and self.label_dropout > 0

    def classes(self, spec: ImageSpec) -> tuple[str, ...]:
        """Names of the classes that the network knows; none: it is unconditional."""
        return () if self.conditional is False else spec.classes

    def unet_settings(self, spec: ImageSpec) -> UNetSettings:
        """The network for pictures of a kind.

        Raises:
            UserError: their size cannot be halved as often as there are levels, or they have no classes.
        """
        halvings = len(self.channels) - 1
        if spec.height % 2**halvings or spec.width % 2**halvings:
            raise UserError(
                f"family.channels has {halvings + 1} levels, so images must be multiples of {2**halvings} pixels high "
                f"and wide, and they are {spec.height} x {spec.width}; give fewer levels, or --data.size"
            )
        if self.conditional and not spec.classes:
            raise UserError("family.conditional is True, but the images have no classes: give --family.no-conditional")
        classes = self.classes(spec)
        return UNetSettings(
            height=spec.height,
            features_in=spec.channels,
            channels=self.channels,
            layers=self.layers,
            attention=self.attention,
            head_width=self.head_width,
            groups=self.groups,
            rate=self.dropout,
            norm_epsilon=self.norm_epsilon,
            cos_first=self.cos_first,
            frequency_shift=self.frequency_shift,
            pad_evenly=self.pad_evenly,
            symbols=len(classes) + 1 if classes else 0,  # the last stands for no class
            remat=self.remat,
        )

    def init(self, spec: ImageSpec, setup: Setup, key: jax.Array) -> State:
        return State(Learner.create(UNet(self.unet_settings(spec), nnx.Rngs(key), setup.dtype), setup))

    # ---------------------------------------------------------------------------------------------- loss

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        unet, metrics = state.unet.descend(self.loss, batch, step, key)
        return State(unet), metrics

    def loss(self, net: UNet, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Metrics]:
        """L_simple, equation 14, as a mean over pixels; weighted by the noise level if min_snr says so."""
        rows = batch["row"]
        noise_key, label_key, dropout_key = jax.random.split(key, 3)
        x_0, x_t, t, eps = self.noised(batch, noise_key)
        symbol = self.symbols(net, batch["label"], uniform(label_key, rows) < self.label_dropout)
        output = net(x_t, t, symbol, key=dropout_key, rows=rows)
        alpha_bar_t = self.at(t)
        target = to_target(self.prediction, x_0, eps, alpha_bar_t)
        error = jnp.square(target - output).mean(axis=(1, 2, 3))
        return (self.weight(alpha_bar_t) * error).sum(), jnp.asarray(len(rows), jnp.float32), {}

    def noised(
        self, batch: Batch, key: Key[Array, ""], t: Float[Array, " b"] | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Pictures x_0, the same with noise x_t, their times t (at random unless given), and the noise eps."""
        time_key, eps_key = jax.random.split(key)
        x_0 = from_pixels(batch["image"])
        t = spread_times(time_key, batch["row"], self.timesteps) if t is None else t
        eps = normal(eps_key, batch["row"], x_0.shape[1:])
        return x_0, add_noise(x_0, eps, self.at(t)), t, eps

    def at(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        """alpha_bar at whole times."""
        return jnp.asarray(self.alpha_bar, jnp.float32)[t.astype(jnp.int32)]

    def weight(self, alpha_bar_t: Float[Array, " b"]) -> Float[Array, " b"]:
        """min(SNR, gamma) as a weight of the error in x_0, in terms of what is predicted (Hang et al., section 3.4)."""
        if not self.min_snr:
            return jnp.ones_like(alpha_bar_t)
        snr = alpha_bar_t / (1 - alpha_bar_t)
        per_x_0 = {"eps": snr, "x0": jnp.ones_like(snr), "v": snr + 1}[self.prediction]
        return jnp.minimum(snr, self.min_snr) / per_x_0

    def symbols(self, net: UNet, label: Int[Array, " b"], withheld: Any) -> Int[Array, " b"] | None:
        """Labels as the network takes them: pictures without a label, or with a withheld one, are of no class."""
        none = net.settings.symbols - 1
        return jnp.where(withheld | (label < 0), none, label) if net.settings.symbols else None

    # --------------------------------------------------------------------------------------------- score

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        error, last, rest = self.terms(state, batch, *self.noised(batch, key))
        one = jnp.ones_like(error)
        return {"loss": (error, one), "bits_per_dim": (last + self.timesteps * rest, one)}

    def terms(
        self, state: State, batch: Batch, x_0: jax.Array, x_t: jax.Array, t: jax.Array, eps: jax.Array
    ) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
        """The evaluation network's part of L_simple at times t, and `bound` there."""
        net = state.unet.eval_net()
        output = net(x_t, t, self.symbols(net, batch["label"], False))
        alpha_bar_t = self.at(t)
        error = jnp.square(to_target(self.prediction, x_0, eps, alpha_bar_t) - output).mean(axis=(1, 2, 3))
        return error, *self.bound(x_0, self.x_0(output, x_t, alpha_bar_t), t)

    def bound(
        self, x_0: Float[Array, "b h w c"], estimate: Float[Array, "b h w c"], t: Float[Array, " b"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """L_T, and the term of the bound in which the network's estimate of x_0 at time t takes part (L_0 at t = 0).

        Both in bits per dimension; -log p(x_0) is at most L_T and the terms of all t.
        """
        alpha_bar = self.alpha_bar
        snr = alpha_bar / (1 - alpha_bar)
        half_step = np.append(0.0, (snr[:-1] - snr[1:]) / 2)
        kl = jnp.asarray(half_step, jnp.float32)[t.astype(jnp.int32)] * jnp.square(x_0 - estimate).sum((1, 2, 3))
        # The posterior's deviation at t = 0 is 0; that of t = 1 stands in, as in Improved DDPM.
        deviation = math.sqrt((1 - alpha_bar[1] / alpha_bar[0]) * (1 - alpha_bar[0]) / (1 - alpha_bar[1]))
        grey = discretised_gaussian(x_0, estimate, jnp.float32(math.log(deviation)))
        term = jnp.where(t == 0, -grey.sum((1, 2, 3)), kl)
        signal, noise = float(alpha_bar[-1]), float(1 - alpha_bar[-1])
        last = 0.5 * (signal * jnp.square(x_0) + (noise - 1 - math.log(noise))).sum((1, 2, 3))
        bits = math.log(2) * math.prod(x_0.shape[1:])
        return last / bits, term / bits

    def score(self, model: Model, rows: dict[str, Any], data: DataSet, scoring: DDPMScoring, key: jax.Array) -> Metrics:
        metrics: Metrics = {"bits_per_dim_of": "p(x | y)" if self.classes(model.spec) else "p(x)"}
        if scoring.bound_images:
            metrics |= whole_bound(self, model.state, data, scoring.bound_images, key)
        if scoring.samples:

            def make(classes: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
                made = sample_pictures(self, model, scoring.request(len(classes)), key, classes)
                return np.stack([image.pixels for image in made])

            how = {name: getattr(scoring, name) for name in scoring.sampling}
            how |= drawn_classes(self.classes(model.spec))
            metrics |= score_samples(make, data, scoring, how, key, model.extractor)
        return metrics

    # -------------------------------------------------------------------------------------------- sample

    def denoiser(self, state: State, symbol: Int[Array, " b"], guidance: Float[Array, ""]) -> Denoiser:
        """(x_t, t) -> (x_0, eps) for the samplers, guided by eps_u + g (eps_c - eps_u)."""
        net = state.unet.eval_net()
        alpha_bar = jnp.asarray(self.alpha_bar, jnp.float32)
        none = jnp.full_like(symbol, net.settings.symbols - 1)

        def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
            if not net.settings.symbols:
                return net(x_t, t)

            def add(i: jax.Array, total: jax.Array) -> jax.Array:
                weight = jnp.where(i == 0, guidance, 1 - guidance)
                return total + weight * net(x_t, t, jnp.where(i == 0, symbol, none))

            # A loop, so that the network is compiled once and called once where g = 1.
            return jax.lax.fori_loop(0, jnp.where(guidance == 1, 1, 2), add, jnp.zeros_like(x_t))

        def denoise(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            alpha_bar_t = alpha_bar_at(alpha_bar, t)
            x_0 = self.x_0(guided(x_t, t), x_t, alpha_bar_t)
            return x_0, to_eps(x_0, x_t, alpha_bar_t)

        return denoise

    def x_0(
        self, output: Float[Array, "b h w c"], x_t: Float[Array, "b h w c"], alpha_bar_t: Float[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """The picture that the network's output stands for."""
        x_0 = to_x_0(self.prediction, output, x_t, alpha_bar_t)
        return jnp.clip(x_0, -1.0, 1.0) if self.clip else x_0

    def sample(
        self, model: Model, request: PictureRequest, key: jax.Array, stream: Callable[[str], None] | None = None
    ) -> Artifacts:
        return sample_pictures(self, model, request, key)


@cache
def _alpha_bar(schedule: Schedule, timesteps: int) -> Float[np.ndarray, " T"]:
    return make_alpha_bar(schedule, timesteps)
