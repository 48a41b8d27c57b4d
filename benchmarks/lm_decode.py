"""Times decoding by the zoo with the shape of GPT-2 124M: float32, random weights, prompt 32, 128 new tokens.

    python -m benchmarks lm_decode                 # the zoo and the peers in turn, and the ratios
    python -m benchmarks.lm_decode [1 8 beam5]     # the zoo alone; one JSON line a case

A case is a batch size for greedy decoding, or five beams for one prompt.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from zoo.harness.memory import use_huge_pages

    use_huge_pages()

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from timing import emit, timed

from zoo.sampling.tokens.beam import beam_search
from zoo.sampling.tokens.continuation import make_knobs
from zoo.sampling.tokens.decode import write_tokens
from zoo.sampling.tokens.request import TokenRequest
from zoo.transformer_lm import Transformer, TransformerLM

PROMPT, NEW, VOCAB = 32, 128, 50257
NO_END = -1
"""An id outside the vocabulary, so that no token ends a text; the peers are configured likewise."""

FAMILY = TransformerLM(layers=12, heads=12, width=768, context=1024, mlp="gelu_tanh", bias=True)


def make_net() -> Transformer:
    """GPT-2 124M with random weights, created one array at a time, as when a checkpoint is read."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Transformer(FAMILY, VOCAB, VOCAB - 1, nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.02 * rng.standard_normal(x.shape, x.dtype))

    return nnx.merge(graphdef, jax.tree.map(draw, shapes))


def greedy(net: Transformer, prompts: np.ndarray) -> None:
    """Greedy decoding of `NEW` tokens after each prompt."""
    written = []

    def accept(new: np.ndarray) -> np.ndarray:
        written.append(new)
        return np.zeros(len(prompts), bool)

    write_tokens(
        net,
        prompts,
        accept,
        knobs=make_knobs(TokenRequest(temperature=0.0), len(prompts)),
        key=jax.random.key(0),
        max_new_tokens=NEW,
        end_of_text=NO_END,
        vocab_size=VOCAB,
        context=FAMILY.context,
    )
    assert np.concatenate(written, axis=1).shape == (len(prompts), NEW)


def beams(net: Transformer, prompts: np.ndarray, num_beams: int) -> None:
    """Beam search for `NEW` tokens after each prompt."""
    found = beam_search(
        net, prompts, num_beams=num_beams, max_new_tokens=NEW, end_of_text=NO_END, context=FAMILY.context
    )
    assert all(len(tokens) == NEW for hypotheses in found for tokens, _ in hypotheses)


def main(cases: list[str]) -> None:
    """Times the cases: a batch size for greedy decoding, or beam5."""
    net = make_net()
    for case in cases:
        num_beams = int(case.removeprefix("beam")) if case.startswith("beam") else 1
        batch = 1 if num_beams > 1 else int(case)
        prompts = np.random.default_rng(0).integers(0, 50000, (batch, PROMPT)).astype(np.int32)

        def run(prompts: np.ndarray = prompts, num_beams: int = num_beams) -> None:
            if num_beams == 1:
                greedy(net, prompts)
            else:
                beams(net, prompts, num_beams)

        task = "greedy" if num_beams == 1 else f"beam {num_beams}"
        timing = timed(run, warm=1, min_s=6, min_n=3)
        emit("zoo", f"lm_decode {task} batch {batch}", "new tokens/s", batch * NEW, timing, batch=batch)


if __name__ == "__main__":
    main(sys.argv[1:] or ["1", "8", "beam5"])
