"""Times a training step of configs/text_vae.py, and its output layer alone.

    python -m benchmarks.text_vae

Prints two JSON lines: the step of train.py, on WordNet's definitions; and `linear_cross_entropy` alone, loss and
gradients, on features of the same shapes with the same words counted. `value` is in sentences a second; `share` in the
second line is its time divided by the step's.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from zoo.harness.memory import use_huge_pages

    use_huge_pages()

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from timing import emit, timed

from zoo.core.parallel import Parallel
from zoo.harness.flags import load_config
from zoo.harness.trained import make_setup
from zoo.nn.linear_cross_entropy import linear_cross_entropy
from zoo.nn.losses import real_targets
from zoo.text_vae import TextVAE

CONFIG = Path(__file__).parents[1] / "configs" / "text_vae.py"


def main() -> None:
    """Times the step, then the output layer."""
    run = load_config(str(CONFIG))
    family, batch_size, root = run.family, run.batch_size, jax.random.key(0)
    assert isinstance(family, TextVAE)
    data = run.data.open(length=family.length, batch_size=batch_size, seed=0)
    strategy, setup = Parallel(devices=1).start(batch_size), make_setup(run)
    state = strategy.init(lambda key: family.init(data.spec, setup, key), root)
    compiled = strategy.compile_step(lambda state, batch, i: family.step(state, batch, i, jax.random.fold_in(root, i)))
    batches, number = [data.batch_at(i) for i in range(64)], 0

    def step() -> None:
        nonlocal state, number
        state, metrics = compiled(state, strategy.put(batches[number % len(batches)]), np.int32(number))
        number += 1
        jax.block_until_ready(metrics)

    whole = timed(step, warm=3, min_s=6)
    emit("zoo", "text_vae step", "sentences/s", batch_size, whole)

    table = jnp.zeros((data.spec.tokenizer.vocab_size, family.width)) + 0.01
    features = jax.random.normal(root, (batch_size, family.context, family.width))
    gradients = jax.jit(jax.value_and_grad(linear_cross_entropy, argnums=(0, 1)))
    targets = [(jnp.asarray(batch["tokens"][:, 1:]), real_targets(batch)) for batch in batches]

    def product() -> None:
        nonlocal number
        jax.block_until_ready(gradients(features, table, *targets[number % len(targets)]))
        number += 1

    alone = timed(product, warm=3, min_s=6)
    share = round(alone["median"] / whole["median"], 3)
    emit("zoo", "text_vae product with the vocabulary", "sentences/s", batch_size, alone, share=share)


if __name__ == "__main__":
    main()
