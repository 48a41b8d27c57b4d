"""A tiny text VAE, and its start."""

import jax

from zoo.core.family import Setup
from zoo.core.optimizer import Optimizer
from zoo.data.text import Sentences
from zoo.text_vae import TextVAE

CONTEXT, LATENT, BATCH = 8, 3, 8
TINY = TextVAE(width=16, latent=LATENT, context=CONTEXT, heads=2)
SGD = Optimizer(name="sgd", learning_rate=0.05, momentum=0.0, schedule="constant", clip_norm=1.0)
TEXTS = [f"{a} {b} {c}" for a in ("a", "the") for b in ("old", "new", "red") for c in ("dog", "cat", "hat", "car")]


def open_texts(folder):
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    return Sentences(path=str(folder / "texts.txt"), held_out=0.3).open(length=CONTEXT, batch_size=BATCH, seed=0)


def start(family, data, optimizer=SGD):
    setup = Setup(optimizer, 100, BATCH)
    return jax.jit(lambda key: family.init(data.spec, setup, key))(jax.random.key(0))
