"""Plain forms and what is tuned for the CPU: the choice, equal values and gradients, and forward-mode derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradients import assert_same_with_gradients, normal

from benchmarks.cpu_forms import FORMS, inputs
from zoo.nets.transformer import Block, BlockSettings
from zoo.nets.unet import UNet, UNetSettings
from zoo.nn.attend import Mask
from zoo.nn.conv import conv_transpose2d, subpixel_conv_transpose2d
from zoo.nn.dense import matmul
from zoo.nn.platform import by_platform, plain_forms


def plain(f):
    """f in its plain form, wherever it is called."""

    def run(*arguments):
        with plain_forms():
            return f(*arguments)

    return run


def assert_forward_mode_is_the_transpose(f, *arguments):
    """u . (J v), by jax.jvp of the plain form, is (u J) . v, by the gradients of the CPU's form."""
    leaves, structure = jax.tree.flatten(arguments)
    along = structure.unflatten([normal(50 + i, *leaf.shape) for i, leaf in enumerate(leaves)])
    value, tangent = jax.jit(lambda a, v: jax.jvp(plain(f), a, v))(arguments, along)
    expected, pull = jax.vjp(jax.jit(f), *arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max() + 1))
    towards = normal(99, *value.shape)
    gradient = jax.tree.leaves(pull(towards))
    terms = [float(jnp.vdot(g, v)) for g, v in zip(gradient, jax.tree.leaves(along), strict=True)]
    scale = float(jnp.abs(tangent * towards).sum()) + sum(map(abs, terms))
    assert float(jnp.vdot(tangent, towards)) == pytest.approx(sum(terms), abs=1e-4 * scale)
    assert abs(sum(terms)) > 1e-3 * scale, "the product is not lost in rounding"


@pytest.mark.parametrize("name", FORMS)
def test_a_form_for_the_cpu_is_its_plain_form(name):
    f, arrays = FORMS[name].function, inputs(FORMS[name].tiny)
    mark = "prevent_cse" if name == "lean" else "custom_vjp"
    assert mark in str(jax.make_jaxpr(f)(*arrays))
    assert mark not in str(jax.make_jaxpr(plain(f))(*arrays))
    assert_same_with_gradients(jax.jit(f), jax.jit(plain(f)), *arrays, atol=2e-5)


def test_a_u_net_has_forward_mode_derivatives_in_plain_form():
    settings = UNetSettings(height=4, features_in=1, channels=(4, 4), layers=1, attention=(4,), groups=2, remat=True)
    graphdef, params = nnx.split(UNet(settings, nnx.Rngs(0)))
    assert_forward_mode_is_the_transpose(
        lambda params, x, t: nnx.merge(graphdef, params)(x, t), params, normal(0, 2, 4, 4, 1), jnp.array([3.0, 40.0])
    )


def test_a_transformer_block_has_forward_mode_derivatives_in_plain_form():
    settings = BlockSettings(layers=1, width=8, heads=4, kv_heads=2, hidden=16, activation="swiglu")
    block = Block(settings, nnx.Rngs(0))
    graphdef, params = nnx.split(block)
    # Initial weights are so small that a block is nearly its residual stream.
    params = jax.tree.map(lambda w: 10 * w, params)
    assert_forward_mode_is_the_transpose(
        lambda params, x: nnx.merge(graphdef, params)(x, Mask(causal=True))[0], params, normal(0, 2, 5, 8)
    )


def test_a_jitted_function_is_traced_again_for_its_plain_form():
    x, kernel = normal(0, 3, 4), normal(1, 4, 5)
    f = jax.jit(matmul)
    outside = f(x, kernel)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (x, kernel), (x, kernel))
    with plain_forms():
        inside, tangent = jax.jvp(f, (x, kernel), (x, kernel))
        with plain_forms(False), pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(f, (x, kernel), (x, kernel))
    np.testing.assert_allclose(inside, outside, rtol=1e-6)
    # A product is linear in each factor.
    np.testing.assert_allclose(tangent, 2 * outside, rtol=1e-6)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (x, kernel), (x, kernel))


@pytest.mark.parametrize(
    ("backend", "forms", "chosen"),
    [
        ("cpu", {"cpu": "tuned"}, "tuned"),
        ("gpu", {"cpu": "tuned"}, "plain"),
        ("tpu", {"cpu": "tuned", "accelerator": "other"}, "other"),
        ("gpu", {"accelerator": "other"}, "other"),
        ("cpu", {"accelerator": "other"}, "plain"),
    ],
)
def test_the_platform_chooses_where_the_caller_does_not(monkeypatch, backend, forms, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    @by_platform(**{platform: lambda name=name: name for platform, name in forms.items()})
    def form():
        return "plain"

    assert form() == chosen
    with plain_forms():
        assert form() == "plain"


def test_the_transposed_convolution_of_accelerators_is_the_plain_one():
    x, kernel = normal(0, 2, 3, 5, 2), normal(1, 4, 4, 2, 3)
    subpixel, textbook = (jax.jit(f) for f in (subpixel_conv_transpose2d, plain(conv_transpose2d)))
    assert_same_with_gradients(subpixel, textbook, x, kernel, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plain_form_computes_in_the_dtype_of_its_input(dtype):
    for name in ("dense", "layer_norm", "rms_norm", "group_norm", "conv3x3", "causal_attention", "lstm"):
        f, (x, *rest) = FORMS[name].function, inputs(FORMS[name].tiny)
        narrow = (x.astype(dtype), *(z.astype(dtype) if name == "causal_attention" else z for z in rest))
        for form in (f, plain(f)):
            y, of_x = jax.eval_shape(lambda *a, form=form: (form(*a), jax.grad(lambda *a: form(*a).sum())(*a)), *narrow)
            assert (y.dtype, of_x.dtype) == (dtype, dtype), name
