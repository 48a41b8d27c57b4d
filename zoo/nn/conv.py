"""Convolutions of images [b h w c] with kernels [kh kw in out] and PyTorch's padding."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from zoo.core.parallel import gathered
from zoo.nn.arithmetic import add_vector
from zoo.nn.cpu.convolution import conv_transpose4x4, fitting_form
from zoo.nn.dense import matmul
from zoo.nn.platform import by_platform


def xla_conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], stride: int = 1, padding: int = 0
) -> Float[Array, "b h2 w2 o"]:
    """XLA's own convolution."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _cpu_conv2d(x, kernel, stride, padding):
    form = fitting_form(x, kernel, stride, padding)
    return xla_conv2d(x, kernel, stride, padding) if form is None else form(x, kernel)


@by_platform(cpu=_cpu_conv2d)
def _conv2d(x, kernel, stride, padding):
    return xla_conv2d(x, kernel, stride, padding)


def conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], stride: int = 1, padding: int = 0
) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation with `padding` zeros on every side, as PyTorch's `Conv2d`.

    With a kernel of one pixel or of the image's size it is computed as a matrix product.
    """
    size = kernel.shape[:2]
    if size == (1, 1) and stride == 1 and padding == 0:
        y = matmul(rearrange(x, "b h w i -> (b h w) i"), kernel[0, 0])
        return rearrange(y, "(b h w) o -> b h w o", h=x.shape[1], w=x.shape[2])
    if size == x.shape[1:3] and padding == 0:
        y = matmul(rearrange(x, "b h w i -> b (h w i)"), rearrange(kernel, "h w i o -> (h w i) o"))
        return y[:, None, None]
    return _conv2d(x, gathered(kernel).astype(x.dtype), stride, padding)


def subpixel_conv_transpose2d(x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"]) -> Float[Array, "b h2 w2 o"]:
    """`conv_transpose2d` in its exact sub-pixel form, whose gradients are those of a plain convolution.

    Output row 2m + a, a in {0, 1}, depends on two input rows only: m - 1 and m through kernel rows 3 and 1 if a = 0, m
    and m + 1 through 2 and 0 if a = 1. A 2x2 convolution to the four phases (a, b) of every output pixel, interleaved,
    is therefore the same map (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?").
    """
    phases = rearrange(kernel[::-1, ::-1], "(kh a) (kw b) i o -> kh kw i (a b o)", a=2, b=2)
    h, w = x.shape[1:3]
    y = rearrange(xla_conv2d(x, phases, padding=1), "n h w (a b o) -> n h w a b o", a=2, b=2)
    rows = [jnp.stack([y[:, a : a + h, b : b + w, a, b] for b in (0, 1)], axis=3) for a in (0, 1)]
    return rearrange(jnp.stack(rows, axis=2), "n h a w b o -> n (h a) (w b) o")


@by_platform(cpu=conv_transpose4x4, accelerator=subpixel_conv_transpose2d)
def _conv_transpose2d(x, kernel):
    # A convolution with the flipped kernel over the image with a zero between every two pixels.
    return jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        [(2, 2)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def conv_transpose2d(x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"]) -> Float[Array, "b h2 w2 o"]:
    """PyTorch's `ConvTranspose2d` with a 4x4 kernel, stride 2 and padding 1: doubles height and width."""
    return _conv_transpose2d(x, gathered(kernel).astype(x.dtype))


def add_bias(y: Float[Array, "b h w o"], bias: nnx.Param | None) -> Float[Array, "b h w o"]:
    """Adds a bias per channel, if present."""
    return y if bias is None else add_vector(y, bias[...])


class Conv(nnx.Module):
    """A convolution.

    Args:
        features_in: channels of the input.
        features_out: channels of the output.
        kernel: height and width of the kernel.
        stride: stride in pixels.
        padding: zeros on every side; None: (kernel - 1) // 2, which keeps the size at stride 1.
        bias: whether to add a bias, initially zero.
        scale: standard deviation of the kernel's initial values; None: 1 / sqrt(fan-in).
        rngs: source of the initial values.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        scale: float | None = None,
        rngs: nnx.Rngs,
    ):
        fan_in = kernel * kernel * features_in
        scale = fan_in**-0.5 if scale is None else scale
        shape = (kernel, kernel, features_in, features_out)
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(features_out)) if bias else None
        self.stride, self.padding = stride, (kernel - 1) // 2 if padding is None else padding

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Maps an image to an image."""
        return add_bias(conv2d(x, self.kernel[...], self.stride, self.padding), self.bias)


class ConvTranspose(nnx.Module):
    """Doubles height and width: PyTorch's `ConvTranspose2d(features_in, features_out, 4, stride=2, padding=1)`.

    Its `kernel[kh, kw, i, o]` is PyTorch's `weight[i, o, kh, kw]`.

    Args:
        features_in: channels of the input.
        features_out: channels of the output.
        bias: whether to add a bias, initially zero.
        scale: standard deviation of the kernel's initial values; None: 1 / sqrt(4 features_in), since each output
            pixel depends on 4 kernel taps.
        rngs: source of the initial values.
    """

    def __init__(
        self, features_in: int, features_out: int, *, bias: bool = True, scale: float | None = None, rngs: nnx.Rngs
    ):
        scale = (4 * features_in) ** -0.5 if scale is None else scale
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (4, 4, features_in, features_out)))
        self.bias = nnx.Param(jnp.zeros(features_out)) if bias else None

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Maps an image to one of twice its size."""
        return add_bias(conv_transpose2d(x, self.kernel[...]), self.bias)


class ToImage(nnx.Module):
    """A dense layer from vectors to small images: PyTorch's `ConvTranspose2d(features_in, features_out, size)` on 1x1.

    Its `kernel[kh, kw, i, o]` is PyTorch's `weight[i, o, kh, kw]`.

    Args:
        features_in: size of the vector.
        features_out: channels of the image.
        size: height and width of the image.
        bias: whether to add a bias per channel, initially zero.
        scale: standard deviation of the kernel's initial values; None: 1 / sqrt(features_in).
        rngs: source of the initial values.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int = 4,
        *,
        bias: bool = True,
        scale: float | None = None,
        rngs: nnx.Rngs,
    ):
        scale = features_in**-0.5 if scale is None else scale
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (size, size, features_in, features_out)))
        self.bias = nnx.Param(jnp.zeros(features_out)) if bias else None

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b size size o"]:
        """Maps vectors to images."""
        size = self.kernel.shape[0]
        y = matmul(x, rearrange(self.kernel[...], "kh kw i o -> i (kh kw o)"))
        return add_bias(rearrange(y, "b (kh kw o) -> b kh kw o", kh=size, kw=size), self.bias)
