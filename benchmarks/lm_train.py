"""Times training steps of the zoo's Transformer language model in float32.

    python -m benchmarks lm_train                  # the zoo and PyTorch in turn, and the ratios
    python -m benchmarks.lm_train {small|base}     # the zoo alone; one JSON line

The step is that of train.py, on random tokens; shapes and optimizer are those of the peer.
"""

import sys
from dataclasses import dataclass
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
from zoo.data.tokenizers import Tokenizer
from zoo.transformer_lm import TransformerLM

BATCH, VOCAB = 12, 65
SHAPES = {
    "small": TransformerLM(layers=4, heads=4, width=128, context=64),
    "base": TransformerLM(layers=6, heads=6, width=384, context=256),
}
OPTIMIZER = Optimizer(learning_rate=1e-3, schedule="constant", beta2=0.99, weight_decay=0.1, clip_norm=1.0)


@dataclass(frozen=True)
class Symbols(Tokenizer):
    """A tokenizer of `VOCAB` symbols without meaning; none of them ends a text."""

    kind = "symbols"
    pieces = (b"",) * VOCAB
    end_of_text = VOCAB

    def encode(self, text: str) -> np.ndarray:
        """The first symbol, once for each character."""
        return np.zeros(len(text), np.int32)


def main(size: str) -> None:
    """Times one shape."""
    family = SHAPES[size]
    strategy, setup = Parallel().start(BATCH), Setup(OPTIMIZER, total_steps=1000, batch_size=BATCH)
    state = strategy.init(lambda key: family.init(BlockSpec(Symbols()), setup, key), jax.random.key(0))
    root, random, number = jax.random.key(0), np.random.default_rng(0), 0
    compiled = strategy.compile_step(lambda state, batch, i: family.step(state, batch, i, jax.random.fold_in(root, i)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.net.params))

    def step() -> None:
        nonlocal state, number
        batch = {
            "tokens": random.integers(0, VOCAB, (BATCH, family.context + 1), dtype=np.int32),
            "length": np.full(BATCH, family.context + 1, np.int32),
            "row": np.arange(BATCH, dtype=np.int32),
            "valid": np.ones(BATCH, bool),
        }
        state, metrics = compiled(state, strategy.put(batch), np.int32(number))
        number += 1
        float(metrics["loss"])

    timing = timed(step, warm=3)
    emit("zoo", f"lm_train {size}", "tokens/s", BATCH * family.context, timing, params=parameters)


if __name__ == "__main__":
    main(*sys.argv[1:])
