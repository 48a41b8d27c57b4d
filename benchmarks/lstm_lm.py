"""Times training steps of the zoo's character LSTM: two layers of 256, embedding 128, 65 symbols, 64 steps, 32 rows.

    python -m benchmarks lstm_lm                 # the zoo and PyTorch's nn.LSTM in turn, and the ratio
    python -m benchmarks.lstm_lm [lstm]          # the zoo alone; one JSON line

The step is that of train.py, on random tokens; the optimizer is Adam, and gradients are clipped at 1.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from zoo.harness.memory import use_huge_pages

    use_huge_pages()

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from timing import emit, timed

from zoo.core.family import Setup
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.data.specs import BlockSpec
from zoo.data.tokenizers import Characters
from zoo.lstm_lm import LSTMLM

SYMBOLS, BATCH = 65, 32
FAMILIES = {"lstm": LSTMLM(layers=2, width=256, embedding=128, context=64)}


def main(case: str = "lstm") -> None:
    """Times training steps."""
    family = FAMILIES[case]
    spec = BlockSpec(Characters("".join(map(chr, range(32, 32 + SYMBOLS - 1)))))  # and end-of-text
    setup = Setup(Optimizer("adam", 1e-3, schedule="constant", clip_norm=1.0), total_steps=1000, batch_size=BATCH)
    strategy, root = Parallel(devices=1).start(BATCH), jax.random.key(0)
    state = strategy.init(lambda key: family.init(spec, setup, key), root)
    compiled = strategy.compile_step(lambda state, batch, i: family.step(state, batch, i, jax.random.fold_in(root, i)))
    random, number = np.random.default_rng(0), 0
    count = sum(leaf.size for leaf in jax.tree.leaves(state.net.params))

    def step() -> None:
        nonlocal state, number
        batch = {
            "tokens": random.integers(0, SYMBOLS - 1, (BATCH, family.context + 1), dtype=np.int32),
            "length": np.full(BATCH, family.context + 1, np.int32),
            "row": np.arange(BATCH, dtype=np.int32),
            "valid": np.ones(BATCH, bool),
            "continues": np.full(BATCH, number > 0),
        }
        state, metrics = compiled(state, strategy.put(batch), np.int32(number))
        number += 1
        jax.block_until_ready(metrics)

    timing = timed(step, warm=3, min_s=6)
    emit("zoo", f"lstm_lm {case}", "tokens/s", BATCH * family.context, timing, params=count, batch=BATCH)


if __name__ == "__main__":
    main(*sys.argv[1:])
