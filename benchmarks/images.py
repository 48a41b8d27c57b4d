"""Times training steps of the zoo's image families and sampling from its diffusion model, in float32.

    python -m benchmarks images                                          # the zoo and PyTorch in turn, and the ratios
    python -m benchmarks.images {ddpm_train|ddpm_sample|dcgan|vae}       # the zoo alone; one JSON line

The step is that of train.py and the sampler that of sample.py, on random images. Networks, shapes and optimizers are
those of the peer: a U-Net of 14.7 M parameters for 32x32 in batches of 16, and DDIM with 50 steps in batches of 8;
DCGAN for 64x64 in batches of 64; a VAE of 784-400-20 units in batches of 128. Compiled programs are cached as in
train.py; at the first run, peak memory includes the compiler's.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and sys.argv[1:] != ["ddpm_sample"]:  # as train.py does, and sample.py does not
    from zoo.harness.memory import use_huge_pages

    use_huge_pages()

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from timing import emit, timed

from zoo.core.family import Family, Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.data.specs import ImageSpec
from zoo.dcgan import DCGAN
from zoo.ddpm import DDPM
from zoo.harness.platform import prepare
from zoo.harness.trained import inference_state
from zoo.image_vae import ImageVAE

UNET = DDPM(channels=(64, 128, 256), layers=2, attention=(16,), head_width=32, conditional=False)
COLOUR = ImageSpec(32, 32, 3)
# Family, images, batch, optimizer.
TRAINING: dict[str, tuple[Family, ImageSpec, int, Optimizer]] = {
    "ddpm_train": (UNET, COLOUR, 16, Optimizer("adam", 2e-4, schedule="constant", clip_norm=1.0)),
    "dcgan": (DCGAN(), ImageSpec(64, 64, 3), 64, Optimizer("adam", 2e-4, schedule="constant", beta1=0.5)),
    "vae": (ImageVAE(), ImageSpec(28, 28, 1), 128, Optimizer("adam", 1e-3, schedule="constant")),
}
SAMPLES = 8


def parameters(state) -> int:
    """Number of trained parameters in a state."""
    return sum(leaf.size for learner in state for leaf in jax.tree.leaves(learner.params))


def train(case: str) -> None:
    """Times training steps."""
    family, spec, batch_size, optimizer = TRAINING[case]
    strategy, setup = Parallel().start(batch_size), Setup(optimizer, total_steps=1000, batch_size=batch_size)
    state = strategy.init(lambda key: family.init(spec, setup, key), jax.random.key(0))
    root, random, number = jax.random.key(0), np.random.default_rng(0), 0
    compiled = strategy.compile_step(lambda state, batch, i: family.step(state, batch, i, jax.random.fold_in(root, i)))

    def step() -> None:
        nonlocal state, number
        shape = (batch_size, spec.height, spec.width, spec.channels)
        batch = {
            "image": random.integers(0, 256, shape, dtype=np.uint8),
            "label": np.full(batch_size, -1, np.int32),
            "row": np.arange(batch_size, dtype=np.int32),
            "valid": np.ones(batch_size, bool),
        }
        state, metrics = compiled(state, strategy.put(batch), np.int32(number))
        number += 1
        jax.block_until_ready(metrics)

    timing = timed(step, warm=3)
    emit("zoo", f"images {case}", "images/s", batch_size, timing, params=parameters(state), batch=batch_size)


def sample() -> None:
    """Times DDIM with 50 steps."""
    setup = Setup(Optimizer(), total_steps=1, batch_size=SAMPLES)
    shapes = jax.eval_shape(lambda key: inference_state(UNET.init(COLOUR, setup, key)), jax.random.key(0))
    # Like sample.py, which reads weights from a checkpoint, this compiles no initialisation.
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(0.02 * random.standard_normal(x.shape, np.float32), x.dtype), shapes)
    model = Model(UNET, COLOUR, state, step=0)
    request = UNET.Request(n=SAMPLES, sampler="ddim", steps=50)

    def step() -> None:
        assert len(UNET.sample(model, request, jax.random.key(0))) == SAMPLES

    timing = timed(step, warm=1, min_n=2)
    emit("zoo", "images ddpm_sample", "images/s", SAMPLES, timing, params=parameters(state), batch=SAMPLES)


def main(case: str) -> None:
    """Times one case."""
    prepare()
    if case == "ddpm_sample":
        sample()
    else:
        train(case)


if __name__ == "__main__":
    main(*sys.argv[1:])
