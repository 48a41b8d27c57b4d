"""A tiny diffusion model, images for it, and what it draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core.data import DataSet
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.specs import ImageSpec
from zoo.ddpm import DDPM
from zoo.sampling.diffusion.noise_schedule import Level
from zoo.sampling.diffusion.request import DiffusionRequest

SPEC = ImageSpec(8, 8, 1, ("cat", "dog", "7"))
FAMILY = DDPM(channels=(8,), layers=1, attention=(8,), timesteps=20)
PREDICTIONS = ("eps", "x0", "v")


class FewImages(DataSet):
    """Six held-out images in batches of four."""

    spec, held_out_batches = SPEC, 2

    def batch_at(self, step, rows=slice(None)):
        return self.held_out_at(step)

    def held_out_at(self, index, rows=slice(None)):
        row = np.arange(4 * index, 4 * index + 4, dtype=np.int32)
        image = np.random.default_rng(index).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
        return {"image": image, "label": row % 3, "row": row, "valid": row < 6}


def make_model(family: DDPM, spec: ImageSpec = SPEC) -> Model:
    """A network whose last layers are not zero, as those of a fresh one are."""
    state = jax.jit(lambda key: family.init(spec, Setup(Optimizer(), 10, 4), key))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(state.net.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    net = state.net.with_params(jax.tree.unflatten(tree, noisy)).inference()
    return Model(family, spec, state._replace(net=net), 0, FewImages)


def draw(model: Model, seed: int = 0, **request: Any) -> np.ndarray:
    """Two samples in five steps, unless something else is asked for."""
    made = model.family.sample(model, DiffusionRequest(**({"n": 2, "steps": 5} | request)), jax.random.key(seed))
    return np.stack([image.pixels for image in made]).astype(int)


def batch_of(rows: int) -> dict[str, jax.Array]:
    row = np.arange(rows, dtype=np.int32)
    image = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8)
    return jax.device_put({"image": image, "label": row % 3, "row": row, "valid": np.ones(rows, bool)})


def level_of(alpha_bar: jax.Array) -> Level:
    """Signal and noise of each row, by DDPM's equation 4."""
    return Level(*(jnp.sqrt(x)[:, None, None, None] for x in (alpha_bar, 1 - alpha_bar)))
