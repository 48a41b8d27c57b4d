"""Flow matching: a network learns the velocity of straight lines from images to noise, and an ODE follows it back.

Lipman et al. 2023, "Flow matching for generative modeling"; Liu et al. 2023, "Flow straight and fast" (rectified flow).
The path from an image x_0 at t = 0 to noise at t = 1, and its velocity:

    x_t = (1 - t) x_0 + t eps,  eps ~ N(0, I)
    d x_t / d t = eps - x_0

A network learns the mean velocity at a point (Lipman et al., equation 9; t uniform or logit-normal, Esser et al. 2024),

    L = E_{t, x_0, eps} || v_theta(x_t, t) - (eps - x_0) ||^2

and the ODE d x / d t = v_theta(x, t) has at every t the distribution of x_t: followed from noise at t = 1 to t = 0, it
makes images; its likelihood is exact up to the solver (`zoo.metrics.ode_likelihood`).

MeanFlow (objective "mean"; Geng et al. 2025, "Mean flows for one-step generative modeling") learns the average of this
velocity over an interval [r, t], so that one call crosses it:

    u(x_t, r, t) = 1 / (t - r) integral_r^t v(x_s, s) d s,      x_r = x_t - (t - r) u(x_t, r, t)
    u_target = v - (t - r) (v d u / d x + d u / d t),  v = eps - x_0                            (the MeanFlow identity)

where the bracket is the derivative along the path, a Jacobian-vector product with the tangent (v, 0, 1) of (x, r, t).

Images are [b h w c], dequantised: each grey level becomes an interval of 2 / 255 among numbers from -1 to 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from tyro.conf import DisallowNone

from zoo.core.artifacts import Artifacts
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.extractor import LoadExtractor
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import normal, spread, uniform
from zoo.data.images.pixels import dequantise
from zoo.data.specs import ArraySpec
from zoo.metrics.diffusion_scoring import DiffusionScoring, density, score_images, unlike_images
from zoo.metrics.ode_likelihood import Velocity, ode_bits
from zoo.nets.denoiser import DenoiserOptions
from zoo.nets.dit import DiT
from zoo.nets.unet import UNet
from zoo.nn.platform import plain_forms
from zoo.sampling.diffusion.guidance import (
    Condition,
    caption_sizes,
    count_symbols,
    given_of_batch,
    given_of_samples,
    guided,
)
from zoo.sampling.diffusion.loop import STRAIGHT, Sampler
from zoo.sampling.diffusion.noise_levels import Grid, even_grid
from zoo.sampling.diffusion.noise_schedule import Path, StraightPath
from zoo.sampling.diffusion.prediction import VELOCITY, solve
from zoo.sampling.diffusion.request import DiffusionRequest, SamplerName, sample_images
from zoo.sampling.diffusion.rules import Denoiser, average

T = 1000
"""Times of the samplers' path are from 0 to T, those of the equations from 0 to 1."""
WEIGHT_OFFSET = 1e-3
"""c of MeanFlow's weight."""


class State(NamedTuple):
    """The training state of a flow: one network."""

    net: Learner


@dataclass(frozen=True)
class FlowRequest(DiffusionRequest):
    """A request for images."""

    sampler: SamplerName = "euler"
    """euler, heun, midpoint: solvers of the ODE in even steps of t; after training with objective mean, euler crosses
    each step by its average velocity, and one step is enough. ddim: Euler's steps, with noise by eta; ddpm: with all
    noise; dpm++: DPM-Solver++(2M)."""


@dataclass(frozen=True)
class FlowScoring(DiffusionScoring):
    """Settings for scoring a flow."""

    sampler: SamplerName = "euler"
    """The sampler for the scored samples."""
    ode_images: Annotated[int, Ge(0)] = 0
    """Number of held-out images for the likelihood by the ODE, in bits per dimension of dequantised pixels; 0: none. A
    conditional model's likelihood is of p(x | y)."""
    ode_steps: Annotated[int, Ge(1)] = 40
    """Steps of the solver (Runge-Kutta of fourth order, four calls of the network and its derivative each)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "")

    def check(self, family: Family, spec: Any, extractor: LoadExtractor) -> dict[str, str]:
        return unlike_images(self, "ode_images", spec) | super().check(family, spec, extractor)

    def of_image(self) -> dict[str, Any]:
        return super().of_image() | {"ode_images": 1}


def _several(sampler: Sampler) -> Sampler:
    """The sampler, for more than one step: it takes its velocities to hold at one time only."""

    def make_grid(path: Path, steps: int) -> Grid:
        if steps == 1:
            raise UserError(
                "steps is 1, which takes a model trained with --family.objective mean, and the sampler euler; for this "
                "model and sampler it must be at least 2"
            )
        return sampler.make_grid(path, steps)

    return Sampler(sampler.rule, make_grid)


OF_VELOCITIES = {name: _several(sampler) for name, sampler in STRAIGHT.items()}
OF_AVERAGES = OF_VELOCITIES | {"euler": Sampler(average, even_grid)}
"""The samplers of each objective; the velocity at t is the average over the interval [t, t]."""


@dataclass(frozen=True)
class FlowMatching(DenoiserOptions, Family):
    """A flow from noise to images."""

    objective: Literal["velocity", "mean"] = "velocity"
    """velocity: flow matching; mean: MeanFlow, the average velocity over intervals, for samples in one or a few
    steps."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of t in training."""
    times_mean: float = 0.0
    """logit_normal: mean of log(t / (1 - t)); below 0, more of the times are near the image."""
    times_scale: Annotated[float, Gt(0)] = 1.0
    """logit_normal: standard deviation of log(t / (1 - t))."""
    time_scale: Annotated[float, Gt(0)] = 1000.0
    """Factor of times before the network's sines and cosines; with objective mean it also multiplies their derivative,
    which the target contains, so that it must be small."""
    instants: Annotated[float, Ge(0), Le(1)] = 0.75
    """mean: share of the rows with r = t, whose target is the velocity."""
    weight_power: Annotated[float, Ge(0)] = 1.0
    """mean: p of a row's weight 1 / (e + c)^p, where e is its squared error (Geng et al., section 4.3); 0: none."""
    conditional: DisallowNone[bool | None] = None
    """Whether the network is conditioned on the class of an image; None: if the data has classes."""
    label_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability of dropping a label in training, which guidance requires."""

    accepts: ClassVar[type] = ArraySpec
    Request: ClassVar[type] = FlowRequest
    Scoring: ClassVar[type] = FlowScoring
    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        require(self, "family.", *self.relations())

    # ------------------------------------------------------------------------------------------ networks

    @property
    def path(self) -> Path:
        """The straight path."""
        return StraightPath(T)

    @property
    def samplers(self) -> Mapping[str, Sampler]:
        """The samplers that apply to the objective."""
        return OF_AVERAGES if self.objective == "mean" else OF_VELOCITIES

    def init(self, spec: ArraySpec, setup: Setup, key: jax.Array) -> State:
        size, spans = (spec.height, spec.width, spec.channels), self.objective == "mean"
        symbols, captions = count_symbols(self, spec), caption_sizes(self, spec)
        net = self.make_network(size, symbols, nnx.Rngs(key), setup.dtype, spans, captions)
        return State(Learner.create(net, setup))

    def call(
        self,
        net: UNet | DiT,
        x: Float[Array, "b h w c"],
        r: Float[Array, " b"],
        t: Float[Array, " b"],
        **given: Any,
    ) -> Float[Array, "b h w c"]:
        """The network's v(x, t), or u(x, r, t) with objective mean, at times from 0 to 1; see `UNet` for the others."""
        span = self.time_scale * (t - r) if net.settings.spans else None
        return net(x, self.time_scale * t, span=span, **given)

    # ---------------------------------------------------------------------------------------------- loss

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key)
        return State(net), metrics

    def loss(self, net: UNet | DiT, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Metrics]:
        """The squared error, as a mean over pixels; with objective mean, weighted row by row.

        A weighted error is near 1 for any network, so the metric `loss` is the error without the weight.
        """
        error, pixels = self.errors(net, batch, key, training=True), batch["image"][0].size
        count = jnp.asarray(len(error), jnp.float32)
        if self.objective == "velocity":
            return (error / pixels).sum(), count, {}
        weight = 1 / (jax.lax.stop_gradient(error) + WEIGHT_OFFSET) ** self.weight_power
        return (weight * error).sum(), count, {"loss": ((error / pixels).sum(), count)}

    def errors(self, net: UNet | DiT, batch: Batch, key: Key[Array, ""], training: bool) -> Float[Array, " b"]:
        """Returns || output - target ||^2 of each row; all noise is drawn from `key`, that of training if wanted."""
        rows = batch["row"]
        pixel_key, time_key, eps_key, label_key, dropout_key = jax.random.split(key, 5)
        x_0 = dequantise(batch["image"], pixel_key, rows)
        eps = normal(eps_key, rows, x_0.shape[1:])
        r, t = self.draw_times(time_key, rows)
        withheld = training & (uniform(label_key, rows) < self.label_dropout)
        given = given_of_batch(net, batch, withheld) | ({"key": dropout_key, "rows": rows} if training else {})
        share = t[:, None, None, None]
        x_t = (1 - share) * x_0 + share * eps
        v = eps - x_0
        if self.objective == "velocity":
            output, target = self.call(net, x_t, t, t, **given), v
        else:
            output, target = mean_target(lambda x, r, t: self.call(net, x, r, t, **given), x_t, r, t, v)
        return jnp.square(output - target).sum((1, 2, 3))

    def draw_times(self, key: Key[Array, ""], rows: Int[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Returns (r, t) with r <= t for each row, t spread over the batch; r = t unless the objective is mean."""
        one_key, other_key, instant_key = jax.random.split(key, 3)
        one = self.quantile(spread(one_key, rows))
        if self.objective == "velocity":
            return one, one
        other = self.quantile(uniform(other_key, rows))
        t = jnp.maximum(one, other)
        return jnp.where(uniform(instant_key, rows) < self.instants, t, jnp.minimum(one, other)), t

    def quantile(self, share: Float[Array, " b"]) -> Float[Array, " b"]:
        """The times below which a share of the times lies."""
        if self.times == "uniform":
            return share
        return jax.nn.sigmoid(self.times_mean + self.times_scale * jax.scipy.special.ndtri(share))

    # --------------------------------------------------------------------------------------------- score

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        error = self.errors(state.net.eval_net(), batch, key, training=False)
        return {"loss": (error / batch["image"][0].size, jnp.ones_like(error))}

    def velocity(self, state: State, batch: Batch) -> Velocity:
        """Returns the evaluation network's velocity (x, t) -> d x / d t of a batch's rows, without guidance."""
        net = state.net.eval_net()
        given = given_of_batch(net, batch)

        def at(x: jax.Array, t: jax.Array) -> jax.Array:
            times = jnp.broadcast_to(t, x.shape[:1])
            with plain_forms():  # it is differentiated forward
                return self.call(net, x, times, times, **given)

        return at

    def score(self, model: Model, rows: dict[str, Any], data: DataSet, scoring: FlowScoring, key: jax.Array) -> Metrics:
        metrics: Metrics = {}
        if scoring.ode_images:
            metrics |= ode_bits(self, model.state, data, scoring.ode_images, scoring.ode_steps, key)
            metrics |= {"bits_per_dim_of": density(self, model, data)}
        if scoring.samples:
            metrics |= score_images(self, model, data, scoring, key)
        return metrics

    # -------------------------------------------------------------------------------------------- sample

    def denoiser(self, state: State, condition: Condition, guidance: Float[Array, ""]) -> Denoiser:
        """Returns the samplers' denoiser (x_t, t[, r]) -> (x_0, eps), with classifier-free guidance of the velocity."""
        net = state.net.eval_net()
        given, without = given_of_samples(net, condition)

        def denoise(
            x_t: jax.Array, t: Float[Array, " b"], r: Float[Array, " b"] | None = None
        ) -> tuple[jax.Array, jax.Array]:
            r = t if r is None else r
            predict = guided(lambda x, t, **c: self.call(net, x, r / T, t / T, **c), given, without, guidance)
            return solve(predict(x_t, t), x_t, self.path.at(t[:, None, None, None]), VELOCITY)

        return denoise

    def sample(self, model: Model, request: FlowRequest, key: jax.Array) -> Artifacts:
        return sample_images(self, model, request, key)


def mean_target(
    u: Callable[..., jax.Array],
    x_t: Float[Array, "b h w c"],
    r: Float[Array, " b"],
    t: Float[Array, " b"],
    v: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Returns u(x_t, r, t) and its target v - (t - r) d u / d t along the path, which has no gradient."""
    with plain_forms():
        output, change = jax.jvp(u, (x_t, r, t), (v, jnp.zeros_like(r), jnp.ones_like(t)))
    return output, jax.lax.stop_gradient(v - (t - r)[:, None, None, None] * change)
