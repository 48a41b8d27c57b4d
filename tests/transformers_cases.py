"""What transformers computed with checkpoints that it wrote, and whether the zoo computes the same.

Both are in `tests/references` (tools/make_references.py).
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from zoo.interop.transformers import LAYOUTS, read_transformers
from zoo.sampling.tokens.beam import beam_search
from zoo.sampling.tokens.decode import write_tokens
from zoo.sampling.tokens.logits import Knobs, penalize, truncate
from zoo.transformer_lm import Transformer, TransformerLM

MODELS = ("gpt2", "llama", "llama_tied")
END = 0


class Reference(NamedTuple):
    """A checkpoint as read by the zoo, and what transformers computed with it."""

    family: TransformerLM
    params: dict[str, Any]
    net: Transformer
    arrays: dict[str, np.ndarray]
    lists: dict[str, Any]


def make_net(family: TransformerLM, vocab_size: int, params: dict[str, Any]) -> Transformer:
    abstract = nnx.eval_shape(lambda: Transformer(family, vocab_size, END, nnx.Rngs(0)))
    graphdef, _, rest = nnx.split(abstract, nnx.Param, ...)
    return nnx.merge(graphdef, params, nnx.to_pure_dict(rest))


@cache
def load_reference(folder: Path) -> Reference:
    family, params = read_transformers(folder)
    net = make_net(family, params["embedding"]["table"].shape[0], params)
    lists = json.loads((folder / "expected.json").read_text())
    return Reference(family, params, net, load_file(folder / "expected.safetensors"), lists)


def check_padded_logits(reference: Reference) -> None:
    """Reads left-padded rows a few tokens at a time; where a row's text has begun, its logits are transformers'."""
    tokens, start = jnp.asarray(reference.arrays["padded_tokens"]), jnp.asarray(reference.arrays["padded_start"])
    expected = reference.arrays["padded_logits"]
    extend = jax.jit(reference.net.extend)
    cache, read = reference.net.init_cache(*tokens.shape), 0
    for size in (8, 1, 1, tokens.shape[1] - 10):
        logits, cache = extend(tokens[:, read : read + size], cache, read, start)
        read += size
        begun = np.asarray(start) < read
        assert begun.any()
        np.testing.assert_allclose(logits[begun], expected[begun, read - 1], atol=1e-4)
    assert begun.all()


def check_loss_and_gradients(reference: Reference) -> None:
    family, params, net, arrays, _ = reference
    graphdef, _, rest = nnx.split(net, nnx.Param, ...)
    rows = np.arange(len(arrays["tokens"]), dtype=np.int32)
    batch = {"tokens": arrays["tokens"], "length": arrays["length"], "row": rows, "valid": rows >= 0}

    def mean_nats(params):
        total, weight, _ = family.loss(nnx.merge(graphdef, params, rest), jax.tree.map(jnp.asarray, batch), None)
        return total / weight

    loss, gradients = jax.jit(jax.value_and_grad(mean_nats))(params)
    assert loss == pytest.approx(arrays["loss"].item(), abs=1e-5)
    layout = next(layout for layout in LAYOUTS if not layout.misfits(family))
    theirs = {name.removeprefix("gradient."): value for name, value in arrays.items()}
    entries = layout.entries(family, params["embedding"]["table"].shape[0])
    assert len(entries) == len(jax.tree.leaves(gradients))
    for entry in entries:
        ours = gradients
        for name in entry.path:
            ours = ours[name]
        np.testing.assert_allclose(ours, entry.join(theirs), atol=2e-5, rtol=1e-3, err_msg=str(entry.path))


def check_processors(folder: Path) -> None:
    arrays = load_file(folder / "processors.safetensors")
    logits, tokens = jnp.asarray(arrays["logits"]), arrays["seen"]
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    neutral = {"repetition_penalty": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for number, case in enumerate(json.loads((folder / "processors.json").read_text())["cases"]):
        knobs = {name: jnp.full(len(logits), value) for name, value in (neutral | case).items()}
        ours = penalize(logits, jnp.asarray(seen), knobs["repetition_penalty"]) / knobs["temperature"][:, None]
        ours = truncate(ours, knobs["top_k"], knobs["top_p"], knobs["min_p"])
        np.testing.assert_allclose(ours, arrays[f"processed.{number}"], rtol=1e-5, err_msg=str(case))


def greedy(reference: Reference, case: dict[str, Any]) -> list[list[int]]:
    """Continuations of a case's prompts in one batch, each up to and with its end."""
    prompts = [np.array(prompt, np.int32) for prompt in case["prompts"]]
    knobs = Knobs(*(jnp.full(len(prompts), value) for value in (0.0, 0, 1.0, 0.0, 1.0)))
    written: list[np.ndarray] = []

    def accept(chunk: np.ndarray) -> np.ndarray:
        written.append(chunk)
        return np.zeros(len(prompts), bool)

    write_tokens(
        reference.net, prompts, accept, knobs=knobs, key=jax.random.key(0), max_new_tokens=case["new_tokens"],
        end_of_text=case["end"], vocab_size=len(reference.params["embedding"]["table"]),
        context=reference.family.context,
    )  # fmt: skip
    rows = np.concatenate(written, axis=1).tolist()
    return [row[: row.index(case["end"]) + 1] if case["end"] in row else row for row in rows]


def check_greedy(reference: Reference) -> None:
    for case in reference.lists["greedy"]:
        assert greedy(reference, case) == case["found"]


def check_beams(reference: Reference) -> None:
    for case in reference.lists["beam"]:
        told = {name: case[name] for name in ("num_beams", "length_penalty", "early_stopping")}
        hypotheses = beam_search(
            reference.net, [np.array(prompt, np.int32) for prompt in case["prompts"]],
            max_new_tokens=case["new_tokens"], end_of_text=case["end"], context=reference.family.context, **told,
        )  # fmt: skip
        assert [[tokens.tolist() for tokens, _ in best] for best in hypotheses] == case["found"], told
        scores = [[score for _, score in best] for best in hypotheses]
        np.testing.assert_allclose(scores, case["scores"], rtol=1e-4, err_msg=str(told))
