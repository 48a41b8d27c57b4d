"""VQ-VAE: an autoencoder of images whose latents are a grid of discrete codes.

van den Oord et al. 2017, "Neural discrete representation learning". An encoder maps an image x to a grid of vectors z,
each is replaced by the nearest of K codebook vectors e_k, and a decoder models p(x | e):

    c_ij = argmin_k |z_ij - e_k|^2                                                   (eq. 1)
    loss = -log p(x | e_c) + beta sum_ij |z_ij - sg[e_c_ij]|^2                       (eq. 3)

sg[.] stops the gradient. That of the decoder's input is copied to z unaltered (straight-through). The codebook has no
gradient: moving averages of the vectors that chose each code take the place of the second term of eq. 3 (appendix A.1),
and dead codes are revived from the batch; see `zoo.nn.quantisation`. With `quantiser` fsq (Mentzer et al. 2024, "Finite
scalar quantization: VQ-VAE made simple") each feature of z is rounded to a few levels: there is no codebook, and the
loss is -log p(x | e) alone.

p(x | e) is that of `zoo.nn.pixel_likelihood`: Bernoulli for binarised grey images, logistic for the levels of colour.
Images are [b H W c] in [-1, 1], vectors [b h w d], codes [b h w] with h = H / `downsampling`.

The model has no prior over codes, so it draws no images: without other flags, `sample.py` makes reconstructions of
held-out images and a picture of the codebook. As a codec it turns images into codes for a model that learns the prior.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Lt
from einops import rearrange, reduce, repeat
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from zoo.core.artifacts import Artifact, Artifacts, grid, sheet
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.extractor import LoadExtractor
from zoo.core.family import Batch, Family, MemorySums, Metrics, Model, Request, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.data.images.pixels import HELD_OUT_NOISE, from_pixels, observe, to_pixels
from zoo.data.specs import ImageSpec
from zoo.metrics.codes import code_use
from zoo.metrics.images import score_samples
from zoo.metrics.latent import held_out_rows
from zoo.metrics.prompted import JudgedScoring
from zoo.nets.grid_autoencoder import GridDecoder, GridEncoder
from zoo.nn.pixel_likelihood import PixelLikelihood
from zoo.nn.quantisation import Codebook, FiniteScalar
from zoo.sampling.batches import over_rows
from zoo.sampling.starting_images import count_held_out, given_pictures

COLUMNS = 16
"""Pairs of image and reconstruction in one sheet."""
DRAWN_CODES = 1024
"""Maximum number of codes in the picture of the codebook."""
AT_ONCE = 256
"""Images that one call encodes or decodes, at most."""
ENOUGH = 0.9
"""Share of the codes in use from which the verdict asks for no other settings."""


class Network(nnx.Module):
    """Encoder, quantiser and decoder, with float32 inputs and outputs.

    Args:
        family: the settings.
        spec: of the images.
        batch_size: rows in the global batch.
        rngs: source of the initial values.
        dtype: computation dtype of encoder and decoder.
    """

    def __init__(self, family: "VQVAE", spec: ImageSpec, batch_size: int, rngs: nnx.Rngs, dtype: DTypeLike):
        c, outputs = spec.channels, family.outputs(spec.channels)
        scale, width, blocks, d = family.downsampling, family.width, family.layers, family.features
        self.encoder = GridEncoder(c, scale, width, blocks, d, rngs=rngs)
        self.decoder = GridDecoder(d, scale, width, blocks, c * outputs, rngs=rngs)
        if family.quantiser == "fsq":
            self.quantiser: Any = FiniteScalar(family.levels)
        else:
            self.quantiser = Codebook(
                family.codes, d, decay=family.decay, revive=family.revive, batch_size=batch_size, rngs=rngs
            )
        self.outputs, self.dtype = outputs, jnp.dtype(dtype)

    def encode(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
        """Returns the vectors z before quantisation."""
        return self.encoder(x.astype(self.dtype)).astype(jnp.float32)

    def quantise(self, z: Float[Array, "b h w d"]) -> tuple[Float[Array, "b h w d"], Int[Array, "b h w"]]:
        """Returns the quantised vectors, with a gradient for z, and their codes."""
        e, codes = self.quantiser(rearrange(z, "b h w d -> b (h w) d"))
        return e.reshape(z.shape), codes.reshape(z.shape[:3])

    def lookup(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """Returns the quantised vectors of codes."""
        return self.quantiser.lookup(codes.reshape(len(codes), -1)).reshape(*codes.shape, -1)

    def decode(self, e: Float[Array, "b h w d"]) -> Float[Array, "b H W c k"]:
        """Returns the k parameters of p(x | e) for every channel of every pixel."""
        parameters = self.decoder(e.astype(self.dtype)).astype(jnp.float32)
        return rearrange(parameters, "b h w (c k) -> b h w c k", k=self.outputs)


class State(NamedTuple):
    """The training state: encoder and decoder, with the codebook in the learner's memory."""

    net: Learner


@dataclass(frozen=True)
class VQVAERequest(Request):
    """Pictures of reconstructions and of the codebook; a VQ-VAE without a prior draws no images."""

    n: Annotated[int, Ge(1)] = 2
    """Pictures: n - 1 sheets of held-out images drawn at random, each above its reconstruction, and the codebook: each
    code decoded alone, as a constant grid."""
    reconstruct: Annotated[int, Ge(0)] = 0
    """Instead, reconstruct this many held-out images, the first ones."""
    images: tuple[str, ...] = ()
    """Instead, reconstruct these images: files, or numbers of held-out images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and self.reconstruct:
            raise UserError("reconstruct is of the first held-out images, and images names others: give one of them")


@dataclass(frozen=True)
class VQVAEScoring(JudgedScoring):
    """Settings for scoring reconstructions of held-out images."""

    def check(self, family: Family, spec: Any, extractor: LoadExtractor) -> dict[str, str]:
        self.check_judges(spec.caption, spec, extractor)
        return super().check(family, spec, extractor)


@dataclass(frozen=True)
class VQVAE(PixelLikelihood, Family):
    """A vector-quantised variational autoencoder of images."""

    width: Annotated[int, Ge(1)] = 64
    """Channels of a patch of 4x4 pixels; each further halving of the resolution doubles them, up to four times."""
    layers: Annotated[int, Ge(1)] = 2
    """Residual blocks per level, in the encoder and in the decoder."""
    downsampling: Literal[4, 8, 16] = 4
    """Height and width in pixels of the square that one code stands for."""
    quantiser: Literal["ema", "fsq"] = "ema"
    """ema: a codebook by moving averages; fsq: finite scalar quantisation, without a codebook."""
    codes: Annotated[int, Ge(2)] = 512
    """ema: codes in the codebook, K."""
    latent: Annotated[int, Ge(1)] = 32
    """ema: features of a code's vector."""
    beta: Annotated[float, Ge(0)] = 0.25
    """ema: weight of the commitment term."""
    decay: Annotated[float, Ge(0), Lt(1)] = 0.99
    """ema: decay of the codebook's moving averages."""
    revive: Annotated[float, Gt(0), Lt(1)] = 0.03
    """ema: share of the mean use of a code; a code that is used less becomes a vector of the batch."""
    levels: tuple[int, ...] = (8, 8, 8)
    """fsq: levels of each feature, at least 3; there are as many codes as combinations."""

    accepts: ClassVar[type] = ImageSpec
    Request: ClassVar[type] = VQVAERequest
    Scoring: ClassVar[type] = VQVAEScoring
    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        require(
            self, "family.", ("levels", "one or more numbers of at least 3", bool(self.levels) and min(self.levels) > 2)
        )
        super().__post_init__()

    @property
    def symbols(self) -> int:
        """Number of codes."""
        return math.prod(self.levels) if self.quantiser == "fsq" else self.codes

    @property
    def features(self) -> int:
        """Features of a vector."""
        return len(self.levels) if self.quantiser == "fsq" else self.latent

    def init(self, spec: ImageSpec, setup: Setup, key: jax.Array) -> State:
        self.check_channels(spec.channels)
        if spec.height % self.downsampling or spec.width % self.downsampling:
            raise UserError(
                f"images are {spec.height} x {spec.width}, and family.downsampling is {self.downsampling}, which must "
                f"divide both: give --data.size, such as {max(spec.height // self.downsampling, 1) * self.downsampling}"
            )
        return State(Learner.create(Network(self, spec, setup.batch_size, nnx.Rngs(key), setup.dtype), setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        move = None if self.quantiser == "fsq" else _move_codebook
        net, metrics = state.net.descend(self.loss, batch, step, key, update_memory=move)
        return State(net), metrics

    def loss(self, net: Network, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns -log p(x | e) + beta |z - sg[e]|^2 summed over a batch in nats, and the number of images."""
        pixel_key, code_key = jax.random.split(key)
        x = self.observe(batch["image"], pixel_key, batch["row"])
        z = net.encode(x)
        e, codes = net.quantise(z)
        nats, commitment = -self.log_likelihood(x, net.decode(e)), self.commitment(z, e)
        count = jnp.float32(len(x))
        metrics: Metrics = {"reconstruction_nats": (nats.sum(), count), "commitment": (commitment.sum(), count)}
        if self.quantiser == "ema":
            vectors, flat = (rearrange(array, "b h w ... -> b (h w) ...") for array in (z, codes))
            metrics["codebook"] = MemorySums(net.quantiser.sums(vectors, flat, batch["row"], code_key))
        return (nats + self.beta * commitment).sum(), count, metrics

    def commitment(self, z: Float[Array, "b h w d"], e: Float[Array, "b h w d"]) -> Float[Array, " b"]:
        """Returns |z - sg[e]|^2 summed over the positions of each image; 0 for fsq, whose z are unbounded."""
        if self.quantiser == "fsq":
            return jnp.zeros(len(z))
        return jnp.square(z - jax.lax.stop_gradient(e)).sum((1, 2, 3))

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        net, x = state.net.eval_net(), self.observe_held_out(batch)
        z = net.encode(x)
        e, _ = net.quantise(z)
        parameters = net.decode(e)
        nats, commitment = -self.log_likelihood(x, parameters), self.commitment(z, e)
        figures = {
            "loss": nats + self.beta * commitment,
            "reconstruction_nats": nats,
            "commitment": commitment,
            "psnr_db": psnr(from_pixels(batch["image"]), self.mean(parameters)),
        }
        return {name: (figure, jnp.ones(len(x))) for name, figure in figures.items()}

    def observe(
        self, image: UInt8[Array, "b H W c"], key: Key[Array, ""], rows: Int[Array, " b"]
    ) -> Float[Array, "b H W c"]:
        """Returns the x that is modelled, in [-1, 1]; see `zoo.data.images.pixels.observe`."""
        return observe(image, self.pixels(image.shape[-1]), key, rows)

    def observe_held_out(self, batch: Batch) -> Float[Array, "b H W c"]:
        """`observe` with the fixed noise of evaluation."""
        return self.observe(batch["image"], jax.random.key(HELD_OUT_NOISE), batch["row"])

    def latents(self, state: State, batch: Batch) -> Float[Array, "b h w d"]:
        """Returns the vectors before quantisation, for models of real-valued latents; `decode` quantises them."""
        return state.net.eval_net().encode(self.observe_held_out(batch))

    def encode(self, state: State, batch: Batch) -> Int[Array, "b h w"]:
        """Returns the codes of images; the encoder of the family as a codec."""
        return state.net.eval_net().quantise(self.latents(state, batch))[1]

    def decode(self, state: State, codes: Int[Array, "b h w"] | Float[Array, "b h w d"]) -> UInt8[Array, "b H W c"]:
        """Returns the mean of p(x | e) as pixels, for codes or latents; the decoder of the family as a codec."""
        net = state.net.eval_net()
        e = net.lookup(codes) if codes.ndim == 3 else net.quantise(codes)[0]
        return to_pixels(self.mean(net.decode(e)))

    def score(
        self, model: Model, rows: dict[str, Any], data: DataSet, scoring: VQVAEScoring, key: jax.Array
    ) -> Metrics:
        net = model.state.net
        codes, inked = held_out_rows(data, partial(_codes, self, net))
        figures = code_use(codes, self.symbols, inked if model.spec.channels == 1 else None)
        figures["codebook"] = self.verdict(figures, len(codes))
        if scoring.samples:
            scoring = replace(scoring, samples=min(scoring.samples, len(codes)))  # there are no more images

            def reconstructions(classes: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n H W c"]:
                return self._decode(model, codes[: len(classes)])

            how = {"sampler": "reconstructions of held-out images"}
            load, judge = model.extractor, scoring.judge
            figures |= score_samples(reconstructions, data, scoring, how, key, load, "reconstruction_", judge)
        return figures

    def verdict(self, use: Metrics, images: int) -> str:
        """Returns a sentence on how the codes of held-out images are used, with the settings to change if needed.

        Args:
            use: figures of `code_use`.
            images: number of images.
        """
        used, varied = use["codes_in_use"], use["code_perplexity"]
        facts = f"{used} of {self.symbols} codes are in use on {images} images, with a perplexity of {varied:.0f}"
        if "inked_code_perplexity" in use:
            facts += f", and of {use['inked_code_perplexity']:.0f} over inked places"
        if use["share_in_use"] >= ENOUGH:
            return facts
        if self.quantiser == "fsq":
            return f"{facts}; fewer --family.levels leave fewer codes idle"
        more = min(3 * self.revive, 0.9)
        return f"{facts}; the others are idle: train longer, or start over with --family.revive {more:g} or fewer codes"

    def sample(self, model: Model, request: VQVAERequest, key: jax.Array) -> Artifacts:
        if request.images or request.reconstruct:
            return self._reconstructions(model, request.images or map(str, range(request.reconstruct)))
        made: list[Artifact] = []
        for number in range(request.n - 1):
            order = jax.random.permutation(jax.random.fold_in(key, number), count_held_out(model))
            made += self._reconstructions(model, map(str, order[:COLUMNS].tolist()))
        return [*made, self._codebook(model)]

    def _reconstructions(self, model: Model, names: Any) -> list[Artifact]:
        """Sheets of images, each above its reconstruction."""
        images = given_pictures(names, model)
        batch = {"image": images, "row": np.arange(len(images), dtype=np.int32)}
        codes, _ = _codes(self, model.state.net, batch)
        pairs = np.stack([_shown(self, batch), self._decode(model, codes)])
        return [sheet(pairs[:, i : i + COLUMNS], "reconstruction") for i in range(0, len(images), COLUMNS)]

    def _codebook(self, model: Model) -> Artifact:
        """Each code decoded alone, as a constant grid."""
        h, w = model.spec.height // self.downsampling, model.spec.width // self.downsampling
        codes = repeat(jnp.arange(min(self.symbols, DRAWN_CODES)), "k -> k h w", h=h, w=w)
        return replace(grid(self._decode(model, codes)), name="codebook")

    def _decode(self, model: Model, codes: Any) -> UInt8[np.ndarray, "n H W c"]:
        return over_rows(partial(_decode, self, model.state.net), jnp.asarray(codes), AT_ONCE)


def psnr(image: Float[Array, "b H W c"], other: Float[Array, "b H W c"]) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio in decibels of images in [-1, 1], 10 log10(2^2 / mean squared error); at most 100."""
    error = jnp.square(image - jnp.clip(other, -1.0, 1.0)).mean((1, 2, 3))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(error, 4e-10))


def _move_codebook(net: Network, sums: dict[str, Any]) -> None:
    net.quantiser.update(sums["codebook"])


@partial(jax.jit, static_argnames="family")
def _codes(family: VQVAE, net: Learner, batch: Batch) -> tuple[Int[Array, "b h w"], Bool[Array, "b h w"]]:
    """Returns the codes of images, and whether the square of each has a pixel above mid-grey: ink on black paper."""
    x, size = family.observe_held_out(batch), family.downsampling
    inked = reduce(x, "b (h p) (w q) c -> b h w", "max", p=size, q=size) > 0
    return family.encode(State(net), batch), inked


@partial(jax.jit, static_argnames="family")
def _decode(family: VQVAE, net: Learner, codes: Int[Array, "b h w"]) -> UInt8[Array, "b H W c"]:
    return family.decode(State(net), codes)


@partial(jax.jit, static_argnames="family")
def _shown(family: VQVAE, batch: Batch) -> UInt8[Array, "b H W c"]:
    """Returns the encoder's input as pixels."""
    return to_pixels(family.observe_held_out(batch))
