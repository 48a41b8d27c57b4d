"""Blocks that are computed again for gradients: the same gradients, from less memory."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.core.family import Setup
from zoo.core.optimizer import Optimizer
from zoo.data.specs import BlockSpec, ImageSpec, PairSpec, SegmentSpec
from zoo.data.tokenizers import Bytes
from zoo.ddpm import DDPM
from zoo.flow_matching import FlowMatching
from zoo.masked_diffusion import MaskedDiffusion
from zoo.masked_lm import MaskedLM
from zoo.seq2seq import Seq2Seq
from zoo.transformer_lm import TransformerLM

ROWS, CONTEXT = 8, 14
"""Below 16 positions, so that a sequence-to-sequence model compiles one length."""
BYTES = Bytes()
TOKENS = np.random.default_rng(0).integers(0, 200, (ROWS, CONTEXT + 1), dtype=np.int32)
LENGTH = np.array([CONTEXT, 9, 12, CONTEXT] * 2, np.int32)
SIZES: dict[str, Any] = {"layers": 3, "heads": 2, "width": 16, "context": CONTEXT, "dropout": 0.2}
ROW = {"row": np.arange(ROWS, dtype=np.int32), "label": np.full(ROWS, -1, np.int32)}
SEGMENTS = {"tokens": TOKENS[:, 1:], "length": LENGTH, "segment": TOKENS[:, 1:] % 2, "follows": LENGTH % 2} | ROW
MASKED_SPEC = SegmentSpec(BYTES, padding=257, classify=258, mask=259)
PAIRS = {"source": TOKENS[:, 1:], "source_length": LENGTH, "target": TOKENS, "target_length": LENGTH + 1} | ROW
IMAGES = {"image": np.random.default_rng(1).integers(0, 256, (ROWS, 16, 16, 3), dtype=np.uint8)} | ROW
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "transformer_lm": (TransformerLM(**SIZES), BlockSpec(BYTES), {"tokens": TOKENS, "length": LENGTH + 1} | ROW),
    "masked_lm": (MaskedLM(**SIZES), MASKED_SPEC, SEGMENTS),
    "permutation_lm": (MaskedLM(**SIZES, objective="permutation"), MASKED_SPEC, SEGMENTS),
    "masked_diffusion": (MaskedDiffusion(**SIZES), BlockSpec(BYTES), {"tokens": TOKENS, "length": LENGTH + 1} | ROW),
    "seq2seq": (Seq2Seq(network="transformer", **SIZES), PairSpec(BYTES, BYTES), PAIRS),
    "ddpm": (
        DDPM(channels=(8, 16), layers=1, attention=(8,), dropout=0.2, conditional=False), ImageSpec(16, 16, 3), IMAGES,
    ),
    "dit": (
        FlowMatching(network="dit", layers=3, heads=2, width=16, dropout=0.2, conditional=False), ImageSpec(16, 16, 3),
        IMAGES,
    ),
}  # fmt: skip


SLOW = ("masked_lm", "permutation_lm", "masked_diffusion", "seq2seq", "ddpm", "dit")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_remat_changes_no_gradient_and_saves_memory(case):
    family, spec, batch = CASES[case]
    batch = jax.tree.map(jnp.asarray, batch)

    def compiled(remat):
        some = replace(family, remat=remat)
        learner = jax.jit(lambda: some.init(spec, Setup(Optimizer(), 1, ROWS), jax.random.key(0)))()[0]

        def loss(params):
            return some.loss(nnx.merge(learner.graphdef, params, learner.memory), batch, jax.random.key(1))[0]

        return jax.jit(jax.value_and_grad(loss)).lower(learner.params).compile(), learner.params

    (plain, params), (again, _) = compiled(False), compiled(True)
    (loss, gradients), (other_loss, others) = plain(params), again(params)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), others, gradients)
    kept, kept_again = (each.memory_analysis().temp_size_in_bytes for each in (plain, again))
    assert kept_again < 0.9 * kept, kept_again / kept
