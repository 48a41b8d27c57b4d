"""DCGAN: a generative adversarial network whose generator and discriminator are convolutional.

Goodfellow et al. 2014, "Generative adversarial nets"; Radford et al. 2016, "Unsupervised representation learning with
deep convolutional generative adversarial networks". The generator G maps noise z to an image, the discriminator D
returns the probability that an image is real, and they play the minimax game

    min_G max_D V(D, G),    V(D, G) = E_x log D(x) + E_z log(1 - D(G(z)))

With D = sigmoid(logit), log D = log_sigmoid(logit) and log(1 - D) = log_sigmoid(-logit), both exact at any logit. The
loss of each player by `objective`:

                      discriminator                                 generator
    minimax          -V(D, G)                                       log(1 - D(G(z)))
    nonsaturating    -V(D, G)                                      -log D(G(z))
    hinge            max(0, 1 - logit(x)) + max(0, 1 + logit(G(z)))  -logit(G(z))

A training step updates the discriminator `disc_steps` times (k of Goodfellow's algorithm 1), then the generator once
against the updated discriminator. Each of the k updates draws new noise but reuses the batch of real images, where
algorithm 1 draws new ones. Images are [b h w c] in [-1, 1], noise is [b latent], logits are [b].

The networks are in `zoo.nets.gan`. The running averages of a player's batch normalisation are updated in its own step
only; the other player's step normalises by batch moments and leaves them unchanged.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Lt
from einops import rearrange
from flax import nnx
from jax.nn import log_sigmoid, relu, sigmoid
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core.artifacts import Artifacts, Image, sheet
from zoo.core.bounds import Why
from zoo.core.data import DataSet
from zoo.core.errors import UserError, refuse, require
from zoo.core.family import Batch, Family, Metrics, Model, Request, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import normal
from zoo.data.images.augment import diff_augment
from zoo.data.images.pixels import from_pixels, to_pixels
from zoo.data.specs import ImageSpec
from zoo.metrics.images import ImageScoring, drawn_classes, score_samples
from zoo.nets.gan import Discriminator, Generator, Normalisation
from zoo.sampling.batches import in_batches
from zoo.sampling.latent_paths import slerp, truncated

SIZES = (32, 64)
AT_ONCE = 256
"""Images that one call generates, at most."""
KEYS = 4
"""Number of keys the losses split a step's key into; `fold_in` with a smaller number would repeat one of them."""

Objective = Literal["minimax", "nonsaturating", "hinge"]


# ------------------------------------------------------------------------------------------- the game


def value(real: Float[Array, " b"], fake: Float[Array, " b"]) -> Float[Array, " b"]:
    """log D(x) + log(1 - D(G(z))) in nats, from the logits of real images and of fakes (Goodfellow 2014, eq. 1)."""
    return log_sigmoid(real) + log_sigmoid(-fake)


def verdict(real: Float[Array, " b"], fake: Float[Array, " b"]) -> dict[str, Float[Array, " b"]]:
    """Per-row statistics of the game from the logits of real images and of fakes: V, D(x) and D(G(z))."""
    return {"value": value(real, fake), "d_real": sigmoid(real), "d_fake": sigmoid(fake)}


def discriminator_loss(
    objective: Objective, real: Float[Array, " b"], fake: Float[Array, " b"], smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Returns the discriminator's loss.

    Args:
        objective: the form of the game.
        real: logits of real images.
        fake: logits of generated images.
        smoothing: one-sided label smoothing (Salimans et al. 2016): the target is 1 - smoothing for real images and 0
            for fakes; for minimax and nonsaturating.
    """
    if objective == "hinge":
        return relu(1.0 - real) + relu(1.0 + fake)
    return -value(real, fake) + smoothing * (log_sigmoid(real) - log_sigmoid(-real))


def generator_loss(objective: Objective, fake: Float[Array, " b"]) -> Float[Array, " b"]:
    """Returns the generator's loss from the discriminator's logits of its images.

    The minimax gradient vanishes where D(G(z)) is near 0, as it is early in training; the non-saturating gradient has
    the same sign and is (1 - D) / D times as large.
    """
    if objective == "minimax":
        return log_sigmoid(-fake)
    return -log_sigmoid(fake) if objective == "nonsaturating" else -fake


def gradient_penalty(logits: Callable[[jax.Array], jax.Array], x: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """R1: |d logit(x_i) / d x_i|^2 of each image (Mescheder et al. 2018, "Which training methods for GANs converge?").

    Args:
        logits: maps images to logits; each logit must depend on its own image only.
        x: real images.
    """
    slope = jax.grad(lambda x: logits(x).sum())(x)
    return jnp.square(slope).sum((1, 2, 3))


# -------------------------------------------------------------------------------------------- the family


class State(NamedTuple):
    """The training state of both players."""

    generator: Learner
    discriminator: Learner


@dataclass(frozen=True)
class GANRequest(Request):
    """A request for samples of a GAN."""

    n: Annotated[int, Ge(1)] = 64
    """Number of samples."""
    label: str = ""
    """Class of the samples in a conditional run, by name or number; empty: each class in turn."""
    truncation: Annotated[float, Ge(0), Lt(math.inf), Why("0: none")] = 0.0
    """Draw z from a normal distribution truncated at this many standard deviations: less variety, more typical images;
    0: no truncation."""
    interpolate: int = 0
    """Make each sample a strip of this many images, interpolated from its z to another; 0: single images."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("interpolate", "0, or at least 2 images", self.interpolate == 0 or self.interpolate >= 2),
        )


@dataclass(frozen=True)
class DCGAN(Family):
    """Deep convolutional GAN; the run's optimizer settings are the generator's."""

    width: Annotated[int, Ge(1)] = 64
    """Channels of both players at the highest resolution; each halving of the resolution doubles them."""
    latent: Annotated[int, Ge(2)] = 100
    """Size of z."""
    objective: Objective = "nonsaturating"
    """Losses of both players: minimax (the value V itself), nonsaturating, or hinge."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """One-sided label smoothing: the discriminator's target for real images is 1 minus this (not with hinge)."""
    r1: Annotated[float, Ge(0)] = 0.0
    """Weight gamma of the gradient penalty gamma / 2 E |d logit(x) / d x|^2 on real images (not with disc_norm batch,
    where an image's logit depends on the others)."""
    disc_norm: Normalisation = "batch"
    """Normalisation in the discriminator: batch (DCGAN), spectral (of each kernel), or none."""
    disc_steps: Annotated[int, Ge(1)] = 1
    """Discriminator updates for each generator update, on one batch of real images."""
    disc_learning_rate_ratio: Annotated[float, Gt(0)] = 1.0
    """The discriminator's learning rate as a multiple of the generator's."""
    conditional: bool = False
    """Whether both players are conditioned on the class of an image."""
    diff_augment: bool = False
    """Whether real and generated images get differentiable random augmentation, for small data sets."""

    accepts: ClassVar[type] = ImageSpec
    unit: ClassVar[str] = "images"
    monitor: ClassVar[tuple[str, str]] = ("fid", "min")
    couples_rows: ClassVar[str] = "batch normalisation takes its moments over a microbatch"
    Request: ClassVar[type] = GANRequest
    Scoring: ClassVar[type] = ImageScoring

    def __post_init__(self) -> None:
        smooths = self.label_smoothing == 0 or self.objective != "hinge"
        require(
            self,
            "family.",
            ("label_smoothing", "0 with family.objective hinge, which has no labels", smooths),
        )
        refuse(
            f"family.r1 is {self.r1}, a penalty on each image's own logit, which depends on the whole batch with "
            "family.disc_norm batch; give --family.disc-norm spectral or none",
            when=self.r1 > 0 and self.disc_norm == "batch",
        )

    def init(self, spec: ImageSpec, setup: Setup, key: jax.Array) -> State:
        self.check(spec)
        gen_key, disc_key = jax.random.split(key)
        rate = setup.optimizer.learning_rate * self.disc_learning_rate_ratio
        disc_setup = replace(setup, optimizer=replace(setup.optimizer, learning_rate=rate, ema_decay=0.0))
        classes = len(spec.classes) if self.conditional else 0
        both: dict[str, Any] = {"size": spec.height, "channels": spec.channels, "width": self.width}
        both |= {"classes": classes, "dtype": setup.dtype}
        gen = Generator(**both, latent=self.latent, rngs=nnx.Rngs(gen_key))
        disc = Discriminator(**both, norm=self.disc_norm, rngs=nnx.Rngs(disc_key))
        return State(Learner.create(gen, setup), Learner.create(disc, disc_setup))

    def check(self, spec: ImageSpec) -> None:
        """Checks that the networks support these images.

        Raises:
            UserError: the size is not supported, or a conditional run has no classes.
        """
        if spec.height != spec.width or spec.height not in SIZES:
            raise UserError(
                f"the images are {spec.height}x{spec.width} and DCGAN takes 32x32 or 64x64: give --data.size 32 or "
                "--data.size 64, with --data.fit pad to keep small ones such as MNIST's as they are"
            )
        if self.conditional and not spec.classes:
            raise UserError("family.conditional is True, but the data has no classes; give --family.no-conditional")

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        disc_loss = partial(self.disc_loss, gen=state.generator)

        def ahead(i: jax.Array, disc: Learner) -> Learner:
            return disc.descend(disc_loss, batch, step, jax.random.fold_in(key, KEYS + i))[0]

        disc = state.discriminator
        if self.disc_steps > 1:
            disc = jax.lax.fori_loop(0, self.disc_steps - 1, ahead, disc)
        # Both losses get the same key and draw the same z, so the compiler computes G(z) once.
        disc, of_disc = disc.descend(disc_loss, batch, step, key)
        gen, of_gen = state.generator.descend(partial(self.gen_loss, disc=disc), batch, step, key)
        metrics = {"loss": of_disc.pop("loss"), "gen_loss": of_gen.pop("loss")}
        for name in ("grad_norm", "learning_rate", "skipped"):
            metrics |= {f"disc_{name}": of_disc.pop(name), f"gen_{name}": of_gen.pop(name)}
        return State(gen, disc), metrics | of_disc | of_gen

    def disc_loss(
        self, net: Discriminator, batch: Batch, key: Key[Array, ""], gen: Learner
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """The discriminator's loss, summed over a batch of real images and as many fakes from `gen`, and the count."""
        rows, label = batch["row"], batch["label"]
        z_key, real_key, fake_key, _ = jax.random.split(key, KEYS)
        x = self.seen(from_pixels(batch["image"]), real_key, rows)
        fakes = gen.net()(normal(z_key, rows, (self.latent,)), label, train=True)
        count, metrics, penalty = jnp.float32(len(rows)), {}, jnp.zeros(len(rows))
        if self.r1:
            # Before the first training call, which updates the spectral norm; the penalty thus uses the same estimate.
            penalty = gradient_penalty(lambda x: net(x, label, train=False), x)
            metrics["r1_penalty"] = (penalty.sum(), count)
        real = net(x, label, train=True)
        fake = net(self.seen(fakes, fake_key, rows), label, train=True)
        loss = discriminator_loss(self.objective, real, fake, self.label_smoothing) + 0.5 * self.r1 * penalty
        metrics |= {name: (figure.sum(), count) for name, figure in verdict(real, fake).items()}
        return loss.sum(), count, metrics

    def gen_loss(
        self, net: Generator, batch: Batch, key: Key[Array, ""], disc: Learner
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """The generator's loss against `disc`, whose weights and running averages do not change."""
        rows, label = batch["row"], batch["label"]
        z_key, _, _, judged_key = jax.random.split(key, KEYS)
        fakes = net(normal(z_key, rows, (self.latent,)), label, train=True)
        fake = disc.net()(self.seen(fakes, judged_key, rows), label, train=True)
        return generator_loss(self.objective, fake).sum(), jnp.float32(len(rows)), {}

    def seen(self, x: Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        """Returns the discriminator's training input: augmented images if `diff_augment`, otherwise x."""
        return diff_augment(x, key, rows) if self.diff_augment else x

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        # With batch normalisation the discriminator's running averages mix real and generated images, so its figures
        # differ from those in training, which normalises each batch by its own moments.
        rows, label = batch["row"], batch["label"]
        gen, disc = state.generator.eval_net(), state.discriminator.eval_net()
        fakes = gen(normal(key, rows, (self.latent,)), label, train=False)
        real = disc(from_pixels(batch["image"]), label, train=False)
        fake = disc(fakes, label, train=False)
        figures = {
            "loss": discriminator_loss(self.objective, real, fake, self.label_smoothing),
            "gen_loss": generator_loss(self.objective, fake),
        }
        return {name: (figure, jnp.ones(len(rows))) for name, figure in (figures | verdict(real, fake)).items()}

    def score(self, model: Model, rows: dict[str, Any], data: DataSet, scoring: Any, key: jax.Array) -> Metrics:
        if not scoring.samples:
            return {}

        def make(classes: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
            return self.pixels(model, GANRequest(n=len(classes)), key, classes)[:, 0]

        how = {"sampler": "generator"} | drawn_classes(model.spec.classes if self.conditional else ())
        return score_samples(make, data, scoring, how, key, model.extractor)

    def sample(self, model: Model, request: GANRequest, key: jax.Array) -> Artifacts:
        walks = self.pixels(model, request, key)
        if not request.interpolate:
            return [Image(walk[0]) for walk in walks]
        return [sheet(walk[None], "interpolation") for walk in walks]

    def pixels(
        self, model: Model, request: GANRequest, key: jax.Array, classes: Int[np.ndarray, " n"] | None = None
    ) -> UInt8[np.ndarray, "n k h w c"]:
        """Returns samples 0 .. n - 1, each an interpolation of k images; k = 1 without `interpolate`.

        Their class is the request's `label`; if empty, `classes`; if None, each class in turn.
        """
        length, label = max(request.interpolate, 1), self.label_number(model.spec, request.label)
        truncation = jnp.float32(request.truncation or jnp.inf)
        order = np.arange(max(len(model.spec.classes), 1)) if classes is None else classes

        def make(rows: Int[Array, " b"]) -> UInt8[Array, "b k h w c"]:
            labels = jnp.asarray(order, jnp.int32)[rows % len(order)] if label < 0 else jnp.full_like(rows, label)
            return generate(model.state.generator, key, rows, labels, truncation, latent=self.latent, length=length)

        return in_batches(make, request.n, max(AT_ONCE // length, 1))

    def label_number(self, spec: ImageSpec, label: str) -> int:
        """Returns the number of a class given by name or number; -1 for an empty label.

        Raises:
            UserError: there is no such class, or the run is not conditional.
        """
        if not label:
            return -1
        if not self.conditional:
            raise UserError(f"label is {label!r}, but the model was trained without classes; leave it out")
        return spec.class_number(label)


@partial(jax.jit, static_argnames=("latent", "length"))
def generate(
    gen: Learner,
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    label: Int[Array, " b"],
    truncation: Float[Array, ""],
    *,
    latent: int,
    length: int,
) -> UInt8[Array, "b k h w c"]:
    """Returns G(z) along each row's path through z, from its own noise to another draw."""
    start, end = (truncated(normal(k, rows, (latent,)), truncation) for k in jax.random.split(key))
    z = start[:, None] if length == 1 else slerp(start, end, jnp.linspace(0.0, 1.0, length)[None])
    x = gen.eval_net()(rearrange(z, "b k d -> (b k) d"), jnp.repeat(label, length), train=False)
    return rearrange(to_pixels(x), "(b k) h w c -> b k h w c", k=length)
