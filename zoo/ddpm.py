"""Denoising diffusion: a network learns to remove noise, and sampling turns pure noise into an image step by step.

Ho et al. 2020, "Denoising diffusion probabilistic models" (DDPM). Noise is added to an image x_0 in T steps, so that

    x_t = signal_t x_0 + noise_t eps,  eps ~ N(0, I)                                                                (4)
    signal_t = sqrt(alpha_bar_t),  noise_t = sqrt(1 - alpha_bar_t)

and a network learns to predict the noise eps (or x_0, or v, see `zoo.sampling.diffusion.prediction`) in x_t, by

    L_simple = E_{t, x_0, eps} || eps - eps_theta(signal_t x_0 + noise_t eps, t) ||^2                               (14)

The variational bound -log p(x_0) <= L_T + sum_{t > 1} L_{t-1} + L_0 (5) is reported in bits per dimension; x_0' is the
network's estimate of the image:

    L_T     = KL(q(x_T | x_0) || N(0, I))
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = (SNR_{t-1} - SNR_t) / 2 || x_0 - x_0' ||^2
    L_0     = -log p(x_0 | x_1), a normal distribution integrated over each of the 256 grey values                  (13)

where SNR_t = (signal_t / noise_t)^2. In a conditional run some labels are dropped in training, for classifier-free
guidance (`zoo.sampling.diffusion.guidance`).

Images are [b h w c] in [-1, 1]. Times are indices: t = 0 is the paper's t = 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt
from flax import nnx
from jaxtyping import Array, Float, Key
from tyro.conf import DisallowNone

from zoo.core.artifacts import Artifacts
from zoo.core.bounds import Why
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.extractor import LoadExtractor
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import normal, uniform
from zoo.data.images.pixels import from_pixels
from zoo.data.specs import ArraySpec, ImageSpec
from zoo.metrics.diffusion_bound import whole_bound
from zoo.metrics.diffusion_scoring import DiffusionScoring, density, score_images, unlike_images
from zoo.nets.denoiser import DenoiserOptions
from zoo.nets.dit import DiT
from zoo.nets.unet import UNet, UNetSettings
from zoo.nn.likelihoods import discretised_gaussian
from zoo.sampling.diffusion.guidance import (
    Condition,
    caption_sizes,
    count_symbols,
    given_of_batch,
    given_of_samples,
    guided,
)
from zoo.sampling.diffusion.loop import SAMPLERS, Sampler
from zoo.sampling.diffusion.noise_schedule import Schedule, VariancePreserving, make_alpha_bar, spread_times
from zoo.sampling.diffusion.prediction import Prediction, estimates, target_weights
from zoo.sampling.diffusion.request import DiffusionRequest, sample_images
from zoo.sampling.diffusion.rules import Denoiser


class State(NamedTuple):
    """The training state of a diffusion model: one network."""

    net: Learner
    """A U-Net or a DiT."""


@dataclass(frozen=True)
class DDPMScoring(DiffusionScoring):
    """Settings for scoring a DDPM."""

    bound_images: Annotated[int, Ge(0)] = 0
    """Number of held-out images for the full variational bound, over every t (1000 calls of the network per image); 0:
    none. `bits_per_dim` estimates it from one t per image. A conditional model's bound is of p(x | y)."""

    def check(self, family: Family, spec: Any, extractor: LoadExtractor) -> dict[str, str]:
        return unlike_images(self, "bound_images", spec) | super().check(family, spec, extractor)

    def of_image(self) -> dict[str, Any]:
        return super().of_image() | {"bound_images": 1}


@dataclass(frozen=True)
class DDPM(DenoiserOptions, Family):
    """A denoising diffusion model."""

    timesteps: Annotated[int, Ge(2)] = 1000
    """Steps T of the noise schedule."""
    schedule: Schedule = "linear"
    """Noise schedule: beta linear in t (Ho et al. 2020), or alpha_bar a squared cosine (Nichol and Dhariwal 2021)."""
    prediction: Prediction = "eps"
    """Target of the network: the noise eps, the image x0, or v (Salimans and Ho 2022)."""
    min_snr: Annotated[float, Ge(0), Lt(math.inf), Why("0: off")] = 0.0
    """Gamma of min-SNR weighting (Hang et al. 2023, who use 5), which balances the noise levels; 0: L_simple."""
    conditional: DisallowNone[bool | None] = None
    """Whether the network is conditioned on the class of an image; None: if the data has classes."""
    label_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability of dropping a label in training, which guidance requires."""
    clip: bool = True
    """Whether estimates of x_0 are clipped to [-1, 1] in sampling and in the bound."""

    accepts: ClassVar[type] = ArraySpec
    Request: ClassVar[type] = DiffusionRequest
    Scoring: ClassVar[type] = DDPMScoring
    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        require(self, "family.", *self.relations())

    # ------------------------------------------------------------------------------------------ networks

    @property
    def path(self) -> VariancePreserving:
        """signal_t and noise_t at t = 0 .. T - 1."""
        return _path(self.schedule, self.timesteps)

    @property
    def samplers(self) -> Mapping[str, Sampler]:
        """The samplers of this path."""
        return SAMPLERS

    def unet_settings(self, spec: ArraySpec) -> UNetSettings:
        """Returns the settings of the U-Net for the images of a data set.

        Raises:
            UserError: the size cannot be halved between all levels, or a conditional run has no classes.
        """
        captions = caption_sizes(self, spec)
        text = None if captions is None else self.text(*captions)
        return self.for_images(spec.height, spec.width, spec.channels, count_symbols(self, spec), caption=text)

    def init(self, spec: ArraySpec, setup: Setup, key: jax.Array) -> State:
        if self.clip and not isinstance(spec, ImageSpec):
            raise UserError("family.clip is True, and latents have no bounds: give --family.no-clip")
        size = (spec.height, spec.width, spec.channels)
        captions = caption_sizes(self, spec)
        net = self.make_network(size, count_symbols(self, spec), nnx.Rngs(key), setup.dtype, captions=captions)
        return State(Learner.create(net, setup))

    # ---------------------------------------------------------------------------------------------- loss

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key)
        return State(net), metrics

    def loss(self, net: UNet | DiT, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Metrics]:
        """L_simple, equation 14, as a mean over pixels, for eps, x_0 or v; weighted by the noise level with min_snr."""
        rows, x_0 = batch["row"], from_pixels(batch["image"])
        noise_key, label_key, dropout_key = jax.random.split(key, 3)
        time_key, eps_key = jax.random.split(noise_key)
        t = spread_times(time_key, rows, self.timesteps)
        eps = normal(eps_key, rows, x_0.shape[1:])
        signal, noise = level = self.path.at(t[:, None, None, None])
        x_t = signal * x_0 + noise * eps
        given = given_of_batch(net, batch, uniform(label_key, rows) < self.label_dropout)
        output = net(x_t, t, **given, key=dropout_key, rows=rows)
        a, b = target_weights(self.prediction, level)  # eps: 0, 1; x_0: 1, 0; v: -noise, signal
        error = jnp.square(a * x_0 + b * eps - output).mean(axis=(1, 2, 3))
        snr = jnp.square(signal / noise)[:, 0, 0, 0]
        return (self.weight(snr) * error).sum(), jnp.asarray(len(rows), jnp.float32), {}

    def weight(self, snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """min(SNR, gamma) as a weight of the error in x_0, converted to the predicted quantity (Hang et al., 3.4)."""
        if not self.min_snr:
            return jnp.ones_like(snr)
        per_x_0 = {"eps": snr, "x0": jnp.ones_like(snr), "v": snr + 1}[self.prediction]
        return jnp.minimum(snr, self.min_snr) / per_x_0

    # --------------------------------------------------------------------------------------------- score

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        time_key, eps_key = jax.random.split(key)
        t = spread_times(time_key, batch["row"], self.timesteps)
        error, last, rest = self.terms(state, batch, t, eps_key)
        one = jnp.ones_like(error)
        bits = {"bits_per_dim": (last + self.timesteps * rest, one)} if batch["image"].dtype == jnp.uint8 else {}
        return {"loss": (error, one)} | bits  # the bound is of pixels; latents have none

    def terms(
        self, state: State, batch: Batch, t: Float[Array, " b"], key: Key[Array, ""]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
        """Returns the evaluation network's L_simple error and `bound` at times t; eps is drawn from `key`."""
        net, x_0 = state.net.eval_net(), from_pixels(batch["image"])
        eps = normal(key, batch["row"], x_0.shape[1:])
        signal, noise = level = self.path.at(t[:, None, None, None])
        x_t = signal * x_0 + noise * eps
        output = net(x_t, t, **given_of_batch(net, batch))
        a, b = target_weights(self.prediction, level)
        error = jnp.square(a * x_0 + b * eps - output).mean(axis=(1, 2, 3))
        estimate, _ = estimates(self.prediction, output, x_t, level, self.clip)
        return error, *self.bound(x_0, estimate, t)

    def bound(
        self, x_0: Float[Array, "b h w c"], estimate: Float[Array, "b h w c"], t: Float[Array, " b"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Returns L_T and the bound's term at time t (L_0 at t = 0), given the network's estimate of x_0.

        Both are in bits per dimension; -log p(x_0) is at most L_T plus the sum of the terms over t.
        """
        signal, noise = self.path.at(np.arange(self.timesteps, dtype=np.float64))
        snr = (signal / noise) ** 2
        half_step = np.append(0.0, (snr[:-1] - snr[1:]) / 2)
        kl = jnp.asarray(half_step, jnp.float32)[t.astype(jnp.int32)] * jnp.square(x_0 - estimate).sum((1, 2, 3))
        # The posterior's standard deviation at t = 0 is 0; that at t = 1 replaces it, as in Improved DDPM.
        deviation = math.sqrt(1 - snr[1] / snr[0]) * float(noise[0])
        grey = discretised_gaussian(x_0, estimate, jnp.float32(math.log(deviation)))
        term = jnp.where(t == 0, -grey.sum((1, 2, 3)), kl)
        power, variance = float(signal[-1] ** 2), float(noise[-1] ** 2)
        last = 0.5 * (power * jnp.square(x_0) + (variance - 1 - math.log(variance))).sum((1, 2, 3))
        bits = math.log(2) * math.prod(x_0.shape[1:])
        return last / bits, term / bits

    def score(self, model: Model, rows: dict[str, Any], data: DataSet, scoring: DDPMScoring, key: jax.Array) -> Metrics:
        metrics: Metrics = {}
        if isinstance(model.spec, ImageSpec):
            metrics["bits_per_dim_of"] = density(self, model, data)
        if scoring.bound_images:
            metrics |= whole_bound(self, model.state, data, scoring.bound_images, key)
        if scoring.samples:
            metrics |= score_images(self, model, data, scoring, key)
        return metrics

    # -------------------------------------------------------------------------------------------- sample

    def denoiser(self, state: State, condition: Condition, guidance: Float[Array, ""]) -> Denoiser:
        """Returns the samplers' denoiser (x_t, t) -> (x_0, eps), with classifier-free guidance."""
        net = state.net.eval_net()
        predict = guided(net, *given_of_samples(net, condition), guidance)

        def denoise(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            level = self.path.at(t[:, None, None, None])
            return estimates(self.prediction, predict(x_t, t), x_t, level, self.clip)

        return denoise

    def sample(self, model: Model, request: DiffusionRequest, key: jax.Array) -> Artifacts:
        return sample_images(self, model, request, key)


@cache
def _path(schedule: Schedule, timesteps: int) -> VariancePreserving:
    return VariancePreserving(make_alpha_bar(schedule, timesteps))
