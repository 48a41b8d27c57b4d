"""The U-Net of DDPM, in the layout of diffusers' `UNet2DModel`.

Ho et al. 2020, appendix B; Ronneberger et al. 2015, "U-Net". Feature maps go down through levels, each with half the
height and width of the previous one, and up again; skip connections concatenate the output of each block on the way
down to the input of its counterpart on the way up. A residual block is

    h   = conv(silu(norm(x))) + time(silu(embedding))
    out = shortcut(x) + conv(silu(norm(h)))

where embedding encodes the noise level t (sines and cosines of t, then an MLP) and, if there are some, the class or the
caption. Feature maps are [b h w c].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Lt
from einops import rearrange, repeat
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zoo.core.errors import UserError
from zoo.core.random import dropout, split
from zoo.nets.captions import GROUP_EPSILON, CaptionedAttention, CaptionSettings, Context
from zoo.nets.level_embedding import NEAR_ZERO, Conditioned, dense
from zoo.nn.arithmetic import identity
from zoo.nn.attend import Mask, attend
from zoo.nn.conv import Conv
from zoo.nn.cpu.barriers import lean
from zoo.nn.group_norm import GroupNorm
from zoo.nn.remat import rematerialised


@dataclass(frozen=True)
class UNetOptions:
    """The options of a U-Net; a family that uses one inherits these fields."""

    channels: tuple[int, ...] = (64, 128, 256)
    """Channels of each level of the U-Net; each level has half the height and width of the previous one."""
    layers: Annotated[int, Ge(1)] = 2
    """Residual blocks per level of the U-Net on the way down; one more on the way up."""
    attention: tuple[int, ...] = (16,)
    """Heights of feature maps, in pixels, with self-attention; the middle always has it."""
    head_width: Annotated[int, Ge(0)] = 0
    """Features of an attention head; 0: one head."""
    groups: Annotated[int, Ge(1)] = 32
    """Groups of group normalisation; fewer if the channels cannot be divided into this many groups of two or more."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability of the blocks."""
    norm_epsilon: Annotated[float, Gt(0)] = 1e-5
    """Added to the variance in group normalisation."""
    cos_first: bool = True
    """Whether the embedding of t has its cosines before its sines."""
    frequency_shift: int = 0
    """1: the lowest frequency in the embedding of t is exactly 1/10000, as in the original DDPM code."""
    pad_evenly: bool = True
    """Whether downsampling pads all four sides, or only below and on the right, as in the original DDPM code."""
    remat: bool = False
    """Recompute the network's blocks in the backward pass and store only their inputs: less memory, a third more
    compute."""

    def relations(self) -> tuple[tuple[str, str, bool], ...]:
        """Returns the conditions for `require` beyond single fields' bounds: (field, requirement, whether it holds)."""
        width = self.head_width or 1
        return (
            ("channels", "at least one level", len(self.channels) >= 1),
            ("channels", "at least 4 in every level", all(c >= 4 for c in self.channels)),
            ("channels", f"multiples of head-width, {width}", width < 1 or not any(c % width for c in self.channels)),
            ("frequency_shift", "0 or 1", self.frequency_shift in (0, 1)),
        )

    def for_images(
        self,
        height: int,
        width: int,
        features_in: int,
        symbols: int,
        spans: bool = False,
        caption: CaptionSettings | None = None,
    ) -> "UNetSettings":
        """Returns the settings of a network with these options for images of some size; see `UNetSettings`.

        Raises:
            UserError: the size cannot be halved between all levels.
        """
        halvings = len(self.channels) - 1
        if height % 2**halvings or width % 2**halvings:
            raise UserError(
                f"family.channels has {halvings + 1} levels, so images must be multiples of {2**halvings} pixels high "
                f"and wide, and they are {height} x {width}; give fewer levels, or --data.size"
            )
        options = {field.name: getattr(self, field.name) for field in fields(UNetOptions)}
        return UNetSettings(
            **options, height=height, features_in=features_in, symbols=symbols, spans=spans, caption=caption
        )


@dataclass(frozen=True, kw_only=True)
class UNetSettings(UNetOptions):
    """The options of a U-Net, and its settings that follow from the data.

    Attributes:
        height: height of the images, which determines the levels with attention.
        features_in: channels of the images.
        symbols: number of embedded classes, including "no class"; 0: unconditional.
        spans: whether the network also receives the length of the interval of time that its output averages over.
        caption: settings of the text encoder; None: images have no captions.
    """

    height: int
    features_in: int
    symbols: int = 0
    spans: bool = False
    caption: CaptionSettings | None = None

    @property
    def embedding_width(self) -> int:
        """Features of the embedding of time and class."""
        return 4 * self.channels[0]

    def attends(self, level: int) -> bool:
        """Whether a level's residual blocks are followed by attention."""
        return self.height >> level in self.attention

    def heads(self, channels: int) -> int:
        """Attention heads of a feature map."""
        return channels // self.head_width if self.head_width else 1

    def norm(
        self, channels: int, activation: Callable[[jax.Array], jax.Array] = identity, epsilon: float | None = None
    ) -> GroupNorm:
        """Returns the group normalisation of a feature map.

        A group has at least two channels: a group of one would remove what the embedding adds to that channel. The
        number of groups divides both c and c // 2 for c channels, so an odd c has one group.
        """
        groups = math.gcd(self.groups, channels // 2, channels)
        epsilon = self.norm_epsilon if epsilon is None else epsilon
        return GroupNorm(channels, groups, epsilon=epsilon, activation=activation)


class ResidualBlock(nnx.Module):
    """Two convolutions with a shortcut; see the module's docstring."""

    def __init__(self, s: UNetSettings, features_in: int, features_out: int, rngs: nnx.Rngs):
        self.rate = s.dropout
        self.norm_in = s.norm(features_in, jax.nn.silu)
        self.conv_in = Conv(features_in, features_out, rngs=rngs)
        self.time = dense(s.embedding_width, features_out, rngs, activation=jax.nn.silu)
        self.norm_out = s.norm(features_out, jax.nn.silu)
        self.conv_out = Conv(features_out, features_out, scale=NEAR_ZERO * (9 * features_out) ** -0.5, rngs=rngs)
        self.shortcut = Conv(features_in, features_out, 1, rngs=rngs) if features_in != features_out else None

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        embedding: Float[Array, "b 1 e"],
        key: Key[Array, ""] | None,
        rows: Int[Array, " b"] | None,
    ) -> Float[Array, "b h w o"]:
        """Returns the features after the block."""
        h = lean(lambda x: self.conv_in(self.norm_in(x)))(x) + self.time(embedding)[:, None]
        h = lean(lambda h: self.conv_out(dropout(self.norm_out(h), self.rate, key, rows)))(h)
        return h + (x if self.shortcut is None else self.shortcut(x))


class ImageAttention(nnx.Module):
    """Residual self-attention between all positions of a feature map."""

    def __init__(self, s: UNetSettings, channels: int, rngs: nnx.Rngs):
        self.heads = s.heads(channels)
        self.norm = s.norm(channels)
        self.qkv = dense(channels, 3 * channels, rngs)
        self.out = dense(channels, channels, rngs, scale=NEAR_ZERO)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """x + attention(norm(x))."""
        height = x.shape[1]
        places = rearrange(self.norm(x), "b h w c -> b (h w) c")
        q, k, v = rearrange(self.qkv(places), "b t (three n d) -> three b n t d", three=3, n=self.heads)
        mixed = attend(q, k, v, Mask())
        out = self.out(rearrange(mixed, "b n t d -> b t (n d)"))
        return x + rearrange(out, "b (h w) c -> b h w c", h=height)


class Layer(nnx.Module):
    """A residual block, followed by attention on some levels."""

    def __init__(self, s: UNetSettings, features_in: int, features_out: int, attends: bool, rngs: nnx.Rngs):
        self.residual = ResidualBlock(s, features_in, features_out, rngs)
        self.attention = _attention(s, features_out, rngs) if attends else None

    def __call__(self, x, embedding, context, key, rows):
        """Returns the features after both."""
        x = self.residual(x, embedding, key, rows)
        if isinstance(self.attention, CaptionedAttention):
            assert context is not None, "a network with captions needs one for every row"
            return self.attention(x, context)
        return x if self.attention is None else self.attention(x)


def _attention(s: UNetSettings, channels: int, rngs: nnx.Rngs) -> ImageAttention | CaptionedAttention:
    """The attention of a feature map: to itself, and to the caption if there is one."""
    if s.caption is None:
        return ImageAttention(s, channels, rngs)
    norm = s.norm(channels, epsilon=GROUP_EPSILON)
    return CaptionedAttention(norm, channels, s.heads(channels), s.caption.width, NEAR_ZERO, rngs)


class Down(nnx.Module):
    """A convolution that halves height and width."""

    def __init__(self, s: UNetSettings, channels: int, rngs: nnx.Rngs):
        self.pad_evenly = s.pad_evenly
        self.conv = Conv(channels, channels, stride=2, padding=1 if s.pad_evenly else 0, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Halves height and width."""
        return self.conv(x if self.pad_evenly else jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))


class Up(nnx.Module):
    """Nearest-neighbour upsampling by 2, followed by a convolution."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Doubles height and width."""
        return self.conv(repeat(x, "b h w c -> b (h two) (w also_two) c", two=2, also_two=2))


class Level(nnx.Module):
    """The layers of one level on the way down or up, and the change of size after them (None at the last level)."""

    def __init__(self, layers: list[Layer], resize: Down | Up | None):
        self.layers, self.resize = nnx.List(layers), resize


class UNet(Conditioned):
    """The U-Net.

    Args:
        settings: sizes and options.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, settings: UNetSettings, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.settings, self.dtype = settings, jnp.dtype(dtype)
        s = settings
        channels = s.channels
        self.conv_in = Conv(s.features_in, channels[0], rngs=rngs)
        self.create_embedding(channels[0], s.embedding_width, rngs)

        last, at, crossing, down = len(channels) - 1, channels[0], [channels[0]], []
        for i, to in enumerate(channels):
            layers = [Layer(s, at if j == 0 else to, to, s.attends(i), rngs) for j in range(s.layers)]
            down.append(Level(layers, Down(s, to, rngs) if i < last else None))
            crossing += [to] * (s.layers + (i < last))
            at = to
        self.down = nnx.List(down)
        self.middle = nnx.List([Layer(s, at, at, True, rngs), Layer(s, at, at, False, rngs)])
        up = []
        for i, to in reversed(list(enumerate(channels))):
            layers = []
            for _ in range(s.layers + 1):
                layers.append(Layer(s, at + crossing.pop(), to, s.attends(i), rngs))
                at = to
            up.append(Level(layers, Up(to, rngs) if i else None))
        self.up = nnx.List(up)
        self.norm_out = s.norm(at, jax.nn.silu)
        self.conv_out = Conv(at, s.features_in, scale=NEAR_ZERO * (9 * at) ** -0.5, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        symbol: Int[Array, " b"] | None = None,
        span: Float[Array, " b"] | None = None,
        *,
        context: Context | None = None,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predicts eps, x_0, v or a velocity for noisy images; returns float32.

        Args:
            x: noisy images.
            t: noise level, of order 1000 at most: the frequencies of its embedding are from 1 to 1/10000.
            symbol: class of each image, if the network has classes.
            span: length of each row's interval, in units of t, if the network has `spans`.
            context: captions, encoded by `read`, if the network has them.
            key: dropout key; None means evaluation.
            rows: each row's index in the global batch, for noise that does not depend on how the batch is split.
        """
        embedding = self.embed(t, symbol, span, context)
        blocks = sum(len(level.layers) for level in (*self.down, *self.up)) + len(self.middle)
        keys = iter(split(key, blocks))
        run = partial(rematerialised, wanted=self.settings.remat)

        x = self.conv_in(x.astype(self.dtype))
        crossing = [x]
        for level in self.down:
            for layer in level.layers:
                crossing.append(x := run(layer)(x, embedding, context, next(keys), rows))
            if level.resize is not None:
                crossing.append(x := level.resize(x))
        for layer in self.middle:
            x = run(layer)(x, embedding, context, next(keys), rows)
        for level in self.up:
            for layer in level.layers:
                x = run(layer)(jnp.concatenate([x, crossing.pop()], axis=-1), embedding, context, next(keys), rows)
            if level.resize is not None:
                x = level.resize(x)
        return self.conv_out(self.norm_out(x)).astype(jnp.float32)
