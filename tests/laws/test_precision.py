"""bfloat16: products in bfloat16 with float32 sums; vectors, tables, statistics and cell states in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.core.extractor import Extractor
from zoo.core.parallel import Parallel
from zoo.data.text.blocks import Text as TextData
from zoo.harness.config import Run
from zoo.harness.loop import fit
from zoo.nets.gan import Discriminator
from zoo.nn.arithmetic import product
from zoo.nn.conv import Conv, ConvTranspose, ToImage
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding
from zoo.nn.group_norm import GroupNorm
from zoo.nn.norm import LayerNorm
from zoo.nn.recurrence import recur
from zoo.nn.recurrent import RecurrentLayer
from zoo.transformer_lm import TransformerLM

HALF = jnp.bfloat16


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def mean_gradients(layer: nnx.Module, *inputs: jax.Array) -> dict[str, jax.Array]:
    """Gradients of the sum over features of the mean over positions of a layer's output, by its parameters."""
    graphdef, params = nnx.split(layer, nnx.Param)

    def mean(params):
        y = nnx.merge(graphdef, params)(*inputs).astype(jnp.float32)
        return y.reshape(-1, y.shape[-1]).mean(0).sum()

    return nnx.to_pure_dict(jax.jit(jax.grad(mean))(params))


VECTORS = {
    "conv": (Conv(2, 3, rngs=rngs()), (8, 28, 28, 2)),
    "conv_transpose": (ConvTranspose(2, 3, rngs=rngs()), (8, 14, 14, 2)),
    "conv_1x1": (Conv(2, 3, 1, rngs=rngs()), (8, 28, 28, 2)),
    "to_image": (ToImage(2, 3, rngs=rngs()), (400, 2)),
    "dense": (Dense(2, 3, bias=True, scale=1.0, rngs=rngs()), (64, 64, 2)),
    "layer_norm": (LayerNorm(4, epsilon=1e-5, bias=True), (64, 64, 4)),
    "group_norm": (GroupNorm(4, 2), (8, 28, 28, 4)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_mean_of_a_bias_over_many_positions_has_the_gradient_one(name):
    layer, shape = VECTORS[name]
    x = jax.random.normal(jax.random.key(1), shape, HALF)
    gradients = mean_gradients(layer, x)
    assert gradients["bias"].dtype == jnp.float32
    np.testing.assert_allclose(gradients["bias"], 1.0, rtol=1e-2)


def test_the_vector_of_a_token_that_fills_a_batch_has_the_gradient_one():
    table = Embedding(3, 4, scale=1.0, rngs=rngs(), dtype=HALF)
    tokens = jnp.zeros((32, 64), jnp.int32)
    assert table(tokens).dtype == HALF
    gradient = mean_gradients(table, tokens)["table"]
    np.testing.assert_allclose(gradient, [[1.0] * 4, [0.0] * 4, [0.0] * 4], rtol=1e-2)


def test_a_product_sums_in_float32():
    ones = jnp.ones((1, 4096), HALF)
    assert product(ones, ones, (1, 1))[0, 0] == 4096
    layer = Dense(1, 1, bias=False, scale=1.0, rngs=rngs())
    gradient = mean_gradients(layer, jnp.ones((64, 64, 1), HALF))["kernel"]
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, 1.0, rtol=1e-2)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_product_rounds_once_to_the_dtype_that_is_asked_for(backend, monkeypatch):
    left, right = (jax.random.normal(jax.random.key(i), (32, 64), HALF) for i in (1, 2))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    y = product(left, right, (1, 1), HALF)
    assert y.dtype == HALF
    exact = np.asarray(left, np.float64) @ np.asarray(right, np.float64).T
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


def test_logits_are_float32_and_their_gradients_reach_the_table():
    table = Embedding(5, 4, scale=1.0, rngs=rngs(), dtype=HALF)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4), HALF)
    exact = np.asarray(x, np.float64) @ np.asarray(table.table[...].astype(HALF), np.float64).T
    assert table.logits(x).dtype == jnp.float32
    np.testing.assert_allclose(table.logits(x), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_states_stay_near_float32s_over_256_steps(cell):
    layer = RecurrentLayer(cell, 8, 16, rngs=rngs())
    x = jax.random.normal(jax.random.key(1), (256, 4, 8))
    (_, state), (y_half, state_half) = (layer(z, layer.init_state(4)) for z in (x, x.astype(HALF)))
    assert y_half.dtype == HALF
    assert {part.dtype for part in state_half} == {jnp.dtype("float32")}
    for exact, half in zip(state, state_half, strict=True):
        assert np.linalg.norm(exact - half) < 0.03 * np.linalg.norm(exact)


def test_the_cell_state_of_an_open_forget_gate_counts_past_256():
    """With gates i, f and o open and g = 1, c_t = c_(t-1) + 1: bfloat16 would stop at 256."""
    a = jnp.full((512, 1, 4), 40.0, HALF)
    zeros = jnp.zeros((1, 1))
    _, (_, c) = recur("lstm", a, jnp.zeros((1, 4)), jnp.zeros(4), (zeros, zeros), None, None)
    np.testing.assert_allclose(c, 512.0, rtol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_layers_gradients_are_float32_sums(cell):
    layer = RecurrentLayer(cell, 8, 16, rngs=rngs())
    graphdef, params = nnx.split(layer, nnx.Param)

    def loss(params, x):
        y, _ = nnx.merge(graphdef, params)(x, layer.init_state(8))
        return y.astype(jnp.float32).mean()

    x = 0.5 + jax.random.normal(jax.random.key(1), (256, 8, 8))
    gradient = jax.jit(jax.grad(loss))
    exact, half = gradient(params, x), gradient(params, x.astype(HALF))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(half), strict=True):
        assert b.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(a)


def test_class_vectors_of_a_discriminator_are_summed_over_pixels_in_float32():
    disc = Discriminator(32, 1, width=4, norm="none", classes=3, rngs=rngs(), dtype=HALF)
    disc.embedding[...] = jnp.ones_like(disc.embedding[...])
    x = jax.random.uniform(jax.random.key(2), (2, 32, 32, 1))
    labels = jnp.array([0, 1])
    with_classes, without = disc(x, labels, train=False), disc(x, jnp.array([-1, -1]), train=False)
    h = x.astype(HALF)
    for down in disc.downs:
        h = jax.nn.leaky_relu(down(h, train=False), 0.2)
    exact = np.asarray(h, np.float64).sum((1, 2, 3))
    np.testing.assert_allclose(with_classes - without, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float32_products_are_float32_in_training_sampling_and_scoring(precision, tmp_path, monkeypatch):
    found = {}
    for name in ("loss", "evaluate", "sample", "score"):
        method = getattr(TransformerLM, name)

        def watched(self, *arguments, name=name, method=method):
            found[name] = jax.config.jax_default_matmul_precision
            return method(self, *arguments)

        monkeypatch.setattr(TransformerLM, name, watched)
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 20)
    trained = fit(
        Run(
            family=TransformerLM(layers=1, heads=1, width=8, context=8),
            data=TextData(path=str(path)),
            parallel=Parallel(devices=1),
            steps=1,
            batch_size=4,
            eval_batches=1,
            precision=precision,
            rundir=str(tmp_path / "run"),
        )
    )
    trained.sample(max_new_tokens=2)
    trained.evaluate()
    assert found == dict.fromkeys(("loss", "evaluate", "sample", "score"), "highest")
    assert jax.config.jax_default_matmul_precision is None
    launch = json.loads((tmp_path / "run" / "launches.jsonl").read_text())
    assert launch["precision"] == precision
    assert trained.setting() == {"compute_dtype": precision, "device": "cpu"}


def test_features_of_images_are_float32():
    found = []

    def apply(images):
        found.append(jax.config.jax_default_matmul_precision)
        return np.zeros((len(images), 2)), np.zeros((len(images), 2))

    Extractor("fake", "0", apply)(np.zeros((3, 4, 4, 1), np.uint8))
    assert found == ["highest"]
