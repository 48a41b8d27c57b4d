"""A tiny image VAE, and discs to train it on."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core.data import DataSet
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.specs import ImageSpec
from zoo.image_vae import ImageVAE

SIZE = 8
LATENT = 3
TINY = ImageVAE(width=16, latent=LATENT)
LEVELS = ImageVAE(width=16, latent=LATENT, binarise=False, likelihood="logistic")


class Blobs(DataSet):
    """Discs of random place and brightness; the last held-out batch is filled up with rows that do not count."""

    spec = ImageSpec(SIZE, SIZE, 1)
    batch_size = 8
    held_out_batches = 3
    held_out_rows = 20

    def batch_at(self, step, rows=slice(None)):
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        return self._batch(np.random.default_rng(step + 1000), row, np.ones(len(row), bool))

    def held_out_at(self, index, rows=slice(None)):
        row = (index * self.batch_size + np.arange(self.batch_size, dtype=np.int32))[rows]
        return self._batch(np.random.default_rng(index), row, row < self.held_out_rows)

    def _batch(self, rng, row, valid):
        y, x, light = rng.uniform(1, SIZE - 1, (3, self.batch_size, 1, 1))
        grid = np.arange(SIZE)
        distance = np.hypot(grid[None, :, None] - y, grid[None, None, :] - x)
        image = np.round(255 * (0.5 + light / 16) * np.clip(3 - distance, 0, 1)).astype(np.uint8)[..., None]
        return {"image": image[: len(row)], "row": row, "valid": valid, "label": np.full(len(row), -1, np.int32)}


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def start(family, steps=1, learning_rate=1e-3):
    data = Blobs()
    setup = Setup(Optimizer(learning_rate=learning_rate), steps, data.batch_size)
    state = jax.jit(lambda key: family.init(data.spec, setup, key))(jax.random.key(0))
    return Model(family, data.spec, state, 0, lambda: data)


def train(family, steps, learning_rate):
    model, data, told = start(family, steps, learning_rate), Blobs(), []
    state, step = model.state, jax.jit(family.step)
    for n in range(steps):
        state, metrics = step(state, data.batch_at(n), np.int32(n), jax.random.fold_in(jax.random.key(1), n))
        told.append(jax.device_get(metrics))
    return replace(model, state=state), told


def shapes(family, spec):
    return jax.eval_shape(lambda key: family.init(spec, Setup(Optimizer(), 1, 8), key), jax.random.key(0))
