"""Image VAE: an encoder and a decoder that learn a latent space by the evidence lower bound.

Kingma & Welling 2014, "Auto-encoding variational Bayes". An image x is made by a code z, of `latent` numbers that are
standard normal a priori, and a decoder p(x|z); an encoder q(z|x) = N(mean, diag(sigma^2)) stands in for the posterior:

    log p(x)  >=  ELBO(x) = E_q log p(x|z) - KL(q(z|x) || N(0, 1))                   (eq. 3)
    KL = 1/2 sum_j (mean_j^2 + sigma_j^2 - 1 - log sigma_j^2)                        (appendix B)
    z = mean + sigma eps,  eps ~ N(0, 1)                                             (section 2.4)

What training descends is  -E_q log p(x|z) + beta w KL,  with beta from Higgins et al. 2017, "beta-VAE", and w rising
from 0 to 1 over `kl_warmup_steps` (Bowman et al. 2016); or with the KL term's free bits (Kingma et al. 2016, eq. 15):
sum_j max(free_bits, mean over the batch of KL_j). Figures of the held-out split are of the bound itself, beta = 1.

Importance weighting (Burda et al. 2016, "Importance weighted autoencoders", eq. 8) gives a tighter bound,
    log p(x)  >=  E log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x),   z_i ~ q(z|x).

What p(x|z) is of, by `likelihood`; images are [b h w c] from -1 (black) to 1 (white), codes [b latent]:

    bernoulli   pixels that are 0 or 1, drawn as x ~ Bernoulli(k / 255) where `binarise` is on
    gaussian    levels 0 .. 255 with uniform noise on them, so that the density bounds the levels' probability
                (Theis et al. 2016, "A note on the evaluation of generative models")
    logistic    levels 0 .. 255, each with the mass that a logistic distribution has around it
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jax.nn import sigmoid
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core.artifacts import Artifacts, Image, grid
from zoo.core.errors import UserError, require
from zoo.core.family import Batch, Family, Metrics, Model, Request, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.data.dataset import DataSet
from zoo.data.image_files import read_image
from zoo.data.specs import ImageSpec
from zoo.metrics.images import ImageScoring, score_samples
from zoo.metrics.latent import active_units, held_out_rows, importance_weighted
from zoo.nn.autoencoder import MLP, OUTPUT_GAIN, ConvDecoder, ConvEncoder
from zoo.nn.likelihoods import bernoulli, discretised_logistic, gaussian
from zoo.nn.pixels import from_pixels, to_pixels
from zoo.nn.posterior import charge, draw_code, kl_divergence, kl_weight
from zoo.nn.random import normal, row_keys, uniform
from zoo.sampling.batches import in_batches
from zoo.sampling.latent import interpolate, lerp, slerp, traverse

HELD_OUT_NOISE = 2014
"""Seed of the noise that makes the held-out pixels, the same in every evaluation of every run."""
AT_ONCE = 1024
"""Images that are decoded side by side, at most, where nothing is learned."""
COLUMNS = 16
"""Pairs of image and reconstruction in a picture."""
TRAVERSED = 13
"""Values that a unit takes in a traversal, from -3 to 3."""


def binarise(image: UInt8[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Pixels that are 1 with probability k / 255 and 0 otherwise, exact to 2^-17; 0 and 255 never change.

    Sixteen bits a pixel, half of what a uniform float takes: P(bits < t) = t / 65536, with t nearest to 65536 k / 255.
    """
    bits = jax.vmap(lambda row_key: jax.random.bits(row_key, image.shape[1:], jnp.uint16))(row_keys(key, rows))
    level = image.astype(jnp.int32)
    return (bits.astype(jnp.int32) < 257 * level + (level >= 128)).astype(jnp.float32)


# ------------------------------------------------------------------------------------------ the networks


class VAE(nnx.Module):
    """The two networks. What they compute in is the dtype of their weights; what goes in and comes out is float32.

    Args:
        settings: the family, whose fields describe them.
        spec: the images.
        rngs: source of the initial values.
    """

    def __init__(self, settings: "ImageVAE", spec: ImageSpec, rngs: nnx.Rngs):
        s, self.shape = settings, (spec.height, spec.width, spec.channels)
        self.flat = s.network == "mlp"
        if self.flat:
            pixels, inner = math.prod(self.shape), [s.width] * s.layers
            self.encoder: Any = MLP([pixels, *inner, 2 * s.latent], rngs=rngs)
            self.decoder: Any = MLP([s.latent, *inner, pixels * s.outputs], gain=OUTPUT_GAIN, rngs=rngs)
        else:
            made = (*self.shape[:2], spec.channels * s.outputs)
            self.encoder = ConvEncoder(self.shape, s.width, s.layers, s.hidden, 2 * s.latent, rngs=rngs)
            self.decoder = ConvDecoder(s.latent, s.hidden, s.width, s.layers, made, rngs=rngs)

    def encode(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b latent"], Float[Array, "b latent"]]:
        """Mean and log sigma^2 of q(z|x)."""
        x = rearrange(x, "b h w c -> b (h w c)") if self.flat else x
        mean, log_variance = jnp.split(self.encoder(x.astype(self.dtype)).astype(jnp.float32), 2, axis=-1)
        return mean, log_variance

    def decode(self, z: Float[Array, "b latent"]) -> Float[Array, "b h w c k"]:
        """The k parameters of p(x|z) for every channel of every pixel."""
        h, w, c = self.shape
        return self.decoder(z.astype(self.dtype)).astype(jnp.float32).reshape(z.shape[0], h, w, c, -1)

    @property
    def dtype(self) -> Any:
        """What the networks compute in: the dtype of their weights."""
        return jax.tree.leaves(nnx.state(self, nnx.Param))[0].dtype


# -------------------------------------------------------------------------------------------- the family


class State(NamedTuple):
    """The state of a VAE: encoder and decoder in training."""

    vae: Learner


@dataclass(frozen=True)
class Pictures(Request):
    """Images to make: draws from the prior, or another picture of the latent space. An image is the mean of p(x|z)."""

    interpolate: int = 0
    """Not draws, but n rows of this many images on the way from one code to another, ends included."""
    path: Literal["slerp", "lerp"] = "slerp"
    """How interpolation joins two codes: on a great circle or on a straight line."""
    traverse: int = 0
    """Not draws, but n pictures, in each of which this many latent units, the most active, go from -3 to 3."""
    reconstruct: int = 0
    """Not draws, but this many held-out images, each above its reconstruction."""
    images: tuple[str, ...] = ()
    """Image files to reconstruct, to traverse from, or to interpolate between, each and the next."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("n", "at least 1", self.n >= 1),
            ("interpolate", "at least 2, since both ends count", self.interpolate == 0 or self.interpolate >= 2),
            ("traverse", "at least 0", self.traverse >= 0),
            ("reconstruct", "at least 0", self.reconstruct >= 0),
            ("images", "two files or more to interpolate between", not self.interpolate or len(self.images) != 1),
        )
        modes = [name for name in ("interpolate", "traverse", "reconstruct") if getattr(self, name)]
        if len(modes) > 1:
            raise UserError(f"{modes[0]} and {modes[1]} are two kinds of picture: give one of them")
        if self.images and self.reconstruct:
            raise UserError(
                f"reconstruct is {self.reconstruct}, for held-out images, and images names files: give one of them"
            )


@dataclass(frozen=True)
class Scores(ImageScoring):
    """What is computed beside the bound and the active units."""

    iw_samples: int = 0
    """Codes an image for the importance-weighted bound (k of Burda et al. 2016, eq. 8); 0: without it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "", ("iw_samples", "at least 0", self.iw_samples >= 0))


@dataclass(frozen=True)
class ImageVAE(Family):
    """A variational autoencoder of images."""

    network: Literal["mlp", "conv"] = "mlp"
    """Dense layers over all pixels, or residual convolutions over patches of 4x4 pixels."""
    width: int = 400
    """mlp: features of a hidden layer; conv: channels of a patch."""
    layers: int = 1
    """mlp: hidden layers of each network; conv: residual blocks of a level; images above 32 pixels have several."""
    hidden: int = 256
    """conv: features of the dense layer between the last level and the code."""
    latent: int = 20
    """Units of a code."""
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = "bernoulli"
    """What p(x|z) is; see the module's docstring."""
    binarise: bool = True
    """Draw pixels as 1 with probability k / 255 and else 0: anew in every training step, once for held-out images."""
    scale: float = 0.0
    """Standard deviation of the gaussian likelihood, where black is -1 and white 1; 0: learned, one for each pixel."""
    beta: float = 1.0
    """Weight of the KL term in training (Higgins et al. 2017)."""
    kl_warmup_steps: int = 0
    """Steps over which the KL term's weight rises from 0 to beta."""
    free_bits: float = 0.0
    """Nats of each latent unit's KL, averaged over the batch, that training leaves free."""

    accepts: ClassVar[type] = ImageSpec
    Request: ClassVar[type] = Pictures
    Scoring: ClassVar[type] = Scores
    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        require(
            self,
            "family.",
            *((name, "at least 1", getattr(self, name) >= 1) for name in ("width", "layers", "hidden", "latent")),
            *((name, "at least 0", getattr(self, name) >= 0)
              for name in ("scale", "beta", "kl_warmup_steps", "free_bits")),
        )  # fmt: skip
        if self.binarise and self.likelihood != "bernoulli":
            raise UserError(
                f"family.likelihood is {self.likelihood}, which is of 256 levels, and family.binarise leaves two: "
                "give --family.no-binarise"
            )
        if self.scale and self.likelihood != "gaussian":
            raise UserError(
                f"family.scale is {self.scale}, which only the gaussian likelihood has: leave it at 0, or give "
                "--family.likelihood gaussian"
            )

    @property
    def outputs(self) -> int:
        """Parameters of p(x|z) for each channel of each pixel."""
        return 1 if self.likelihood == "bernoulli" or self.scale else 2

    def init(self, spec: ImageSpec, setup: Setup, key: jax.Array) -> State:
        if self.likelihood == "bernoulli" and spec.channels > 1:
            raise UserError(
                f"family.likelihood is bernoulli, for pixels that are black or white, and images have {spec.channels} "
                "channels: give --family.likelihood logistic --family.no-binarise"
            )
        return State(Learner.create(VAE(self, spec, nnx.Rngs(key)), setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        weight = self.beta * kl_weight(step, self.kl_warmup_steps)
        vae, metrics = state.vae.descend(partial(self.loss, weight=weight), batch, key)
        return State(vae), metrics

    def loss(
        self, net: VAE, batch: Batch, key: Any, weight: Float[Array, ""] | float = 1.0
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """-E_q log p(x|z) + weight KL over a batch in nats, with free bits, and how many images it is of."""
        pixel_key, code_key = jax.random.split(key)
        x = self.observe(batch["image"], pixel_key, batch["row"])
        log_likelihood, kl = self.terms(net, x, code_key, batch["row"])
        count = jnp.asarray(float(len(kl)))
        pairs = {"reconstruction_nats": (-log_likelihood.sum(), count), "kl_nats": (kl.sum(), count)}
        return (weight * charge(kl, self.free_bits) - log_likelihood).sum(), count, pairs

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        x = self.observe(batch["image"], jax.random.key(HELD_OUT_NOISE), batch["row"])
        log_likelihood, kl = self.terms(state.vae.eval_net(), x, key, batch["row"])
        kl, one = kl.sum(1), jnp.ones(len(kl))
        loss = kl - log_likelihood
        bits = loss / (math.log(2) * math.prod(x.shape[1:]))
        figures = {"loss": loss, "reconstruction_nats": -log_likelihood, "kl_nats": kl, "bits_per_dim": bits}
        return {name: (value, one) for name, value in figures.items()}

    def terms(
        self, net: Any, x: Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]
    ) -> tuple[Float[Array, " b"], Float[Array, "b latent"]]:
        """log p(x|z) at one z ~ q(z|x), and the KL of each unit: the two terms of the bound, in nats."""
        mean, log_variance = net.encode(x)
        z = draw_code(mean, log_variance, key, rows)
        return self.log_likelihood(x, net.decode(z)), kl_divergence(mean, log_variance)

    def observe(
        self, image: UInt8[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """The x that the model is of, from -1 to 1: binary, with noise on its levels, or the levels themselves."""
        if self.binarise:
            return 2.0 * binarise(image, key, rows) - 1.0
        if self.likelihood == "gaussian":
            return (image + uniform(key, rows, image.shape[1:])) / 128.0 - 1.0
        return from_pixels(image)

    def log_likelihood(self, x: Float[Array, "b h w c"], parameters: Float[Array, "b h w c k"]) -> Float[Array, " b"]:
        """log p(x|z) of whole images in nats, for levels a probability and not a density."""
        first = parameters[..., 0]
        log_scale = jnp.log(self.scale) if self.scale else jnp.maximum(parameters[..., -1], -7.0)
        if self.likelihood == "bernoulli":
            elements = bernoulli(0.5 * (x + 1.0), first)
        elif self.likelihood == "gaussian":
            elements = gaussian(x, first, log_scale) - math.log(128.0)
        else:
            elements = discretised_logistic(x, first, log_scale)
        return elements.sum((1, 2, 3))

    def image(self, parameters: Float[Array, "b h w c k"]) -> UInt8[Array, "b h w c"]:
        """The mean of p(x|z) as pixels."""
        first = parameters[..., 0]
        return to_pixels(2.0 * sigmoid(first) - 1.0 if self.likelihood == "bernoulli" else first)

    def iw_log_likelihood(
        self, net: Any, x: Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"], k: Int[Array, ""] | int
    ) -> Float[Array, " b"]:
        """The importance-weighted bound of each image from k codes, in nats; see `importance_weighted`."""
        mean, log_variance = net.encode(x)
        at_once = max(1, AT_ONCE // len(x))
        images = repeat(x, "b h w c -> (s b) h w c", s=at_once)

        def log_likelihood(z: Float[Array, "s b latent"]) -> Float[Array, "s b"]:
            parameters = net.decode(rearrange(z, "s b latent -> (s b) latent"))
            return rearrange(self.log_likelihood(images, parameters), "(s b) -> s b", s=at_once)

        return importance_weighted(log_likelihood, mean, log_variance, key, rows, k, at_once)

    def score(self, model: Model, rows: dict[str, Any], data: DataSet, scoring: Scores, key: jax.Array) -> Metrics:
        vae = model.state.vae
        means = held_out_rows(data, lambda batch: _encode(self, vae, batch["image"], batch["row"]))
        figures: Metrics = {"active_units": active_units(means)}
        if scoring.iw_samples:
            k = scoring.iw_samples
            nll = held_out_rows(data, lambda batch: _iw_nll(self, vae, batch["image"], batch["row"], key, k))
            figures |= {"iw_nll_nats": float(nll.mean(dtype=np.float64)), "iw_samples": k}
        if scoring.samples:
            figures |= score_samples(partial(self._draw, model, key), data, scoring, {"sampler": "prior"})
        return figures

    def sample(
        self, model: Model, request: Pictures, key: jax.Array, stream: Callable[[str], None] | None = None
    ) -> Artifacts:
        if request.images or request.reconstruct:
            images = self._given(model, request)
            codes = _encode(self, model.state.vae, images, jnp.arange(len(images)))
        else:
            images, codes = None, normal(key, jnp.arange(2 * request.n), (self.latent,))
        if request.interpolate:
            begin, end = (codes[:-1], codes[1:]) if request.images else (codes[::2], codes[1::2])
            path = {"slerp": slerp, "lerp": lerp}[request.path]
            rows = interpolate(partial(self._decode, model), begin, end, request.interpolate, path)
            return [_sheet("interpolation", rows)]
        if request.traverse:
            units = self._most_active(model, request.traverse)
            codes = codes if request.images else codes[: request.n]
            sheets = traverse(partial(self._decode, model), codes, units, jnp.linspace(-3.0, 3.0, TRAVERSED))
            return [_sheet("traversal", rows) for rows in sheets]
        if images is not None:
            shown = np.asarray(_shown(self, images, jnp.arange(len(images))))
            pairs = np.stack([shown, self._decode(model, codes)])
            return [_sheet("reconstruction", pairs[:, i : i + COLUMNS]) for i in range(0, len(images), COLUMNS)]
        return [Image(pixels) for pixels in self._draw(model, key, request.n)]

    def _draw(self, model: Model, key: Key[Array, ""], n: int) -> UInt8[np.ndarray, "n h w c"]:
        """Images 0 .. n - 1 from the prior."""
        decode = partial(_decode, self, model.state.vae)
        return in_batches(lambda rows: decode(normal(key, rows, (self.latent,))), n, AT_ONCE)

    def _decode(self, model: Model, codes: Float[Array, "n latent"]) -> UInt8[np.ndarray, "n h w c"]:
        """Images of given codes."""
        decode, last = partial(_decode, self, model.state.vae), len(codes) - 1
        return in_batches(lambda rows: decode(codes[jnp.minimum(rows, last)]), len(codes), AT_ONCE)

    def _most_active(self, model: Model, count: int) -> Int[Array, " u"]:
        """The units whose mean differs most from image to image, over images that the model itself makes."""
        if count > self.latent:
            raise UserError(f"traverse is {count}, but a code has {self.latent} units: give at most that many")
        rows = jnp.arange(AT_ONCE)
        images = _decode(self, model.state.vae, normal(jax.random.key(0), rows, (self.latent,)))
        return jnp.argsort(_encode(self, model.state.vae, images, rows).var(0), descending=True)[:count]

    def _given(self, model: Model, request: Pictures) -> UInt8[np.ndarray, "n h w c"]:
        """The images that a picture starts from: files, or the first of the held-out split."""
        if request.images:
            return np.stack([read_image(path, model.spec) for path in request.images])
        if model.data is None:
            raise UserError(f"reconstruct is {request.reconstruct}, but the data is not at hand: give --images files")
        data, found = model.data(), list[np.ndarray]()
        for index in range(data.held_out_batches):
            batch = data.held_out_at(index)
            found.extend(batch["image"][batch["valid"]])
            if len(found) >= request.reconstruct:
                return np.stack(found[: request.reconstruct])
        raise UserError(f"reconstruct is {request.reconstruct}; it must be at most {len(found)}, which are held out")


@partial(jax.jit, static_argnames="family")
def _encode(family: ImageVAE, vae: Learner, image: Any, rows: Any) -> Float[Array, "b latent"]:
    """The mean of q(z|x) for each image, its pixels made as in every evaluation."""
    return vae.eval_net().encode(family.observe(image, jax.random.key(HELD_OUT_NOISE), rows))[0]


@partial(jax.jit, static_argnames="family")
def _decode(family: ImageVAE, vae: Learner, z: Any) -> UInt8[Array, "b h w c"]:
    return family.image(vae.eval_net().decode(z))


@partial(jax.jit, static_argnames="family")
def _shown(family: ImageVAE, image: Any, rows: Any) -> UInt8[Array, "b h w c"]:
    """What the encoder sees of an image."""
    return to_pixels(family.observe(image, jax.random.key(HELD_OUT_NOISE), rows))


@partial(jax.jit, static_argnames="family")
def _iw_nll(family: ImageVAE, vae: Learner, image: Any, rows: Any, key: Any, k: Any) -> Float[Array, " b"]:
    x = family.observe(image, jax.random.key(HELD_OUT_NOISE), rows)
    return -family.iw_log_likelihood(vae.eval_net(), x, key, rows, k)


def _sheet(name: str, rows: UInt8[Array | np.ndarray, "rows k h w c"]) -> Image:
    """Rows of images as one picture."""
    images = np.asarray(rearrange(rows, "rows k h w c -> (rows k) h w c"))
    return Image(grid(images, columns=rows.shape[1]).pixels, name)
