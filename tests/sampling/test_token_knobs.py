"""The token sampler's knobs are what they are defined to be, and bad requests are named."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import REFERENCES
from safetensors.numpy import load_file
from token_cases import sample

from zoo.core.errors import UserError
from zoo.sampling.tokens.continuation import make_knobs
from zoo.sampling.tokens.logits import Knobs, choose, penalize, truncate
from zoo.sampling.tokens.request import TokenRequest

# -------------------------------------------------------------------------------------------- knobs


def by_definition(logits, seen, repetition_penalty=1.0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """One row of logits through all knobs, written token by token."""
    logits = logits.astype(np.float64)
    for token in seen:
        logits[token] *= repetition_penalty if logits[token] < 0 else 1 / repetition_penalty
    logits /= temperature
    order = np.argsort(-logits)
    if top_k:
        logits[order[top_k:]] = -np.inf
    probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    before = np.cumsum(probability[order]) - probability[order]
    logits[order[before >= top_p]] = -np.inf
    logits[probability < min_p * probability.max()] = -np.inf
    return logits


KNOBS = [
    {},
    {"repetition_penalty": 1.4},
    {"temperature": 0.5},
    {"top_k": 4},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"repetition_penalty": 0.7, "temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 1000, "top_p": 0.99},
]


def knob_rows(rows) -> Knobs:
    full = [TokenRequest(**row) for row in rows]
    stacked = [make_knobs(request, 1) for request in full]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *stacked)


def process(logits, seen, knobs):
    logits = penalize(logits, seen, knobs.repetition_penalty) / knobs.temperature[:, None]
    return truncate(logits, knobs.top_k, knobs.top_p, knobs.min_p)


def test_knobs_are_what_they_are_defined_to_be():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(len(KNOBS), 50)).astype(np.float32) * 2
    seen = draw.random(logits.shape) < 0.3
    found = process(jnp.asarray(logits), jnp.asarray(seen), knob_rows(KNOBS))
    for row, knobs in enumerate(KNOBS):
        expected = by_definition(logits[row], np.flatnonzero(seen[row]), **knobs)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, err_msg=str(knobs))


@pytest.mark.parametrize(("penalties", "chosen"), [((1.0, 1.0), (0, 0)), ((2.0, 2.0), (1, 1)), ((1.0, 2.0), (0, 1))])
def test_the_choice_is_of_penalised_tokens(penalties, chosen):
    """By hand: a logit of 3 that was seen counts 1.5 with penalty 2, below the 2 of another token."""
    knobs = knob_rows([{"temperature": 0.0, "repetition_penalty": penalty} for penalty in penalties])
    logits, seen = jnp.array([[3.0, 2.0, -1.0]] * 2), jnp.array([[True, False, False]] * 2)
    assert choose(logits, seen, knobs, jax.random.split(jax.random.key(0), 2)).tolist() == list(chosen)


def test_knobs_are_transformers():
    cases = json.loads((REFERENCES / "processors.json").read_text())["cases"]
    arrays = load_file(REFERENCES / "processors.safetensors")
    for i, case in enumerate(cases):
        logits, tokens = arrays["logits"], arrays["seen"]
        seen = np.zeros(logits.shape, bool)
        np.put_along_axis(seen, tokens, True, axis=1)
        found = process(jnp.asarray(logits), jnp.asarray(seen), knob_rows([case] * len(logits)))
        np.testing.assert_allclose(found, arrays[f"processed.{i}"], rtol=1e-5, atol=1e-5, err_msg=str(case))


def test_draws_follow_the_distribution():
    logits = jnp.tile(jnp.array([[1.0, 0.0, -1.0, 2.0]]), (4000, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    knobs = knob_rows([{"temperature": 0.8, "top_k": 3}] * 4000)
    counts = np.bincount(choose(logits, jnp.zeros(logits.shape, bool), knobs, keys), minlength=4) / 4000
    expected = np.exp(np.array([1.0, 0.0, -np.inf, 2.0]) / 0.8)
    np.testing.assert_allclose(counts, expected / expected.sum(), atol=0.03)


def test_rows_have_their_own_knobs():
    logits = jnp.tile(jnp.array([[0.1, 0.0, 0.05]]), (2, 1))
    knobs = knob_rows([{"temperature": 0.0}, {"temperature": 5.0}])
    many = [
        choose(logits, jnp.zeros((2, 3), bool), knobs, jax.random.split(jax.random.key(i), 2)).tolist()
        for i in range(30)
    ]
    assert {greedy for greedy, _ in many} == {0}
    assert {drawn for _, drawn in many} == {0, 1, 2}


# -------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("max_new_tokens", 0),
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 2.0),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
        ("num_beams", 0),
        ("length_penalty", float("inf")),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(UserError, match=field) as error:
        TokenRequest(**{field: value})
    assert str(value) in str(error.value)


def test_beam_search_refuses_what_it_would_ignore():
    beams = TokenRequest(num_beams=3)
    for field, value in (
        ("temperature", 0.5),
        ("top_k", 4),
        ("top_p", 0.5),
        ("min_p", 0.1),
        ("repetition_penalty", 2.0),
    ):
        with pytest.raises(UserError, match=field):
            replace(beams, **{field: value})
    with pytest.raises(UserError, match="num_beams"):
        replace(beams, n=4)
    with pytest.raises(UserError, match="max_new_tokens is 65"):
        sample(num_beams=2, max_new_tokens=65)


def test_prompts_that_do_not_fit():
    with pytest.raises(UserError, match="65 tokens"):
        sample(prompt="a" * 65)
    with pytest.raises(UserError, match="X"):
        sample(prompt="aX")
