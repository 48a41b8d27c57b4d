"""A tiny DCGAN before its first step."""

from functools import cache

import jax
import numpy as np

from zoo.core.family import Setup
from zoo.core.learner import Learner
from zoo.core.optimizer import Optimizer
from zoo.data.specs import ImageSpec
from zoo.dcgan import DCGAN

SPEC = ImageSpec(32, 32, 1, ("zero", "one", "two"))
OPTIMIZER = Optimizer(name="adam", learning_rate=1e-2, beta1=0.5, schedule="constant")
KEY = jax.random.key(5)


@cache
def make(spec=SPEC, optimizer=OPTIMIZER, **settings):
    """A tiny family and its state before the first step."""
    family = DCGAN(width=2, latent=4, **settings)
    state = jax.jit(lambda key: family.init(spec, Setup(optimizer, 10, 6), key))(jax.random.key(0))
    return family, state


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b) -> bool:
    return any(bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def memory(net):
    return Learner.create(net, Setup(OPTIMIZER, 10, 6)).memory
