"""Quantisers compute what vector-quantize-pytorch does."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from zoo.nn.quantisation import Codebook, FiniteScalar


def reference(folder, quantiser):
    """What the library computed: arrays by name."""
    arrays = load_file(folder / "quantisation.safetensors")
    return {name.removeprefix(f"{quantiser}."): x for name, x in arrays.items() if name.startswith(f"{quantiser}.")}


def make_codebook(vectors, counts, decay=0.9, revive=1e-9, batch_size=4):
    """A codebook with given vectors and counts."""
    book = Codebook(*vectors.shape, decay=decay, revive=revive, batch_size=batch_size, rngs=nnx.Rngs(0))
    book.counts[...] = jnp.asarray(counts, jnp.float32)
    book.totals[...] = jnp.asarray(vectors * np.asarray(counts)[:, None], jnp.float32)
    return book


def check_codebook(folder):
    """Nearest codes, straight-through and commitment gradients, and three updates of the moving averages."""
    arrays = reference(folder, "codebook")
    book = make_codebook(arrays["vectors"][0], arrays["counts"][0])
    for step, z in enumerate(arrays["z"]):

        def objective(z, towards=arrays["towards"][step]):
            quantised, codes = book(z)
            commitment = 0.25 * jnp.square(z - jax.lax.stop_gradient(quantised)).mean()
            return (quantised * towards).sum() + commitment, (quantised, codes, commitment)

        (_, (quantised, codes, commitment)), gradient = jax.value_and_grad(objective, has_aux=True)(jnp.asarray(z))
        np.testing.assert_array_equal(codes, arrays["codes"][step])
        np.testing.assert_allclose(quantised, arrays["quantised"][step], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, arrays["gradient"][step], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(commitment, arrays["commitment"][step], rtol=1e-5)
        book.update(book.sums(jnp.asarray(z), codes, jnp.arange(len(z)), jax.random.key(step)))
        np.testing.assert_allclose(book.counts[...], arrays["counts"][step + 1], rtol=1e-5)
        np.testing.assert_allclose(book.vectors, arrays["vectors"][step + 1], rtol=1e-4, atol=1e-5)


def check_finite_scalars(folder):
    """Codes, rounded features, their gradient, and the features of every code."""
    arrays = reference(folder, "fsq")
    quantiser = FiniteScalar(arrays["levels"].tolist())

    def objective(z):
        quantised, codes = quantiser(z)
        return (quantised * arrays["towards"]).sum(), (quantised, codes)

    (_, (quantised, codes)), gradient = jax.value_and_grad(objective, has_aux=True)(jnp.asarray(arrays["z"]))
    np.testing.assert_array_equal(codes, arrays["codes"])
    np.testing.assert_allclose(quantised, arrays["quantised"], rtol=1e-6)
    np.testing.assert_allclose(gradient, arrays["gradient"], rtol=1e-4, atol=1e-6)
    every = quantiser.lookup(jnp.arange(len(arrays["every"]))[None])[0]
    np.testing.assert_allclose(every, arrays["every"], rtol=1e-6)
