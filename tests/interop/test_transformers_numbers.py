"""GPT-2 and Llama are transformers' GPT-2 and Llama: the same numbers from the same files, and the same choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import REFERENCES
from transformers_cases import (
    MODELS,
    Reference,
    check_beams,
    check_greedy,
    check_loss_and_gradients,
    check_padded_logits,
    check_processors,
    load_reference,
)


@pytest.fixture(params=MODELS)
def reference(request) -> Reference:
    return load_reference(REFERENCES / request.param)


# --------------------------------------------------------------------------------- the same numbers


def test_logits_are_transformers(reference):
    logits = jax.jit(reference.net)(jnp.asarray(reference.arrays["tokens"]))
    np.testing.assert_allclose(logits, reference.arrays["logits"], atol=1e-4)


def test_logits_of_padded_rows_from_the_cache_are_transformers(reference):
    check_padded_logits(reference)


def test_loss_and_gradients_are_transformers(reference):
    check_loss_and_gradients(reference)


# ------------------------------------------------------------------------------ the same choices


def test_processors_are_transformers():
    check_processors(REFERENCES)


def test_greedy_continuations_are_transformers(reference):
    check_greedy(reference)


@pytest.mark.slow
def test_beam_search_is_transformers(reference):
    check_beams(reference)
