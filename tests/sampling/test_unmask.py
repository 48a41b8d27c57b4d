"""Masked diffusion's samplers against enumeration of what they draw, and requests to them."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from compilation import no_compilation
from flax import nnx
from masked_diffusion_cases import BLOCKS, LETTERS, LINES, make_model, make_net

from zoo.core.artifacts import Image
from zoo.core.errors import UserError
from zoo.core.family import Model
from zoo.data.specs import TokenSpec
from zoo.data.tokenizers import BPE
from zoo.sampling.tokens.logits import Knobs
from zoo.sampling.tokens.unmask import Unmasking, unmask
from zoo.sampling.tokens.unmask_request import UnmaskRequest, fill, write_texts

# --------------------------------------------------------------------------------------- the samplers

PLACES, SYMBOLS = 3, 2
MASK = SYMBOLS
JOINT = np.random.default_rng(5).dirichlet(np.full(SYMBOLS**PLACES, 0.6)).reshape((SYMBOLS,) * PLACES)
STATES = list(itertools.product(range(SYMBOLS + 1), repeat=PLACES))
"""Every partly masked row of 3 tokens."""


def conditionals():
    """p(x_i | known tokens) under the joint distribution, for each state: [3 3 3 place symbol]."""
    table = np.zeros((SYMBOLS + 1,) * PLACES + (PLACES, SYMBOLS))
    for state in STATES:
        fits = np.zeros_like(JOINT)
        where = tuple(slice(None) if symbol == MASK else symbol for symbol in state)
        fits[where] = JOINT[where]
        for i in range(PLACES):
            table[(*state, i)] = fits.sum(tuple(j for j in range(PLACES) if j != i)) / fits.sum()
    return table


TABLE = conditionals()


def look_up(tokens, unknown):
    """The exact denoiser of the joint distribution."""
    x_t = jnp.where(unknown, MASK, tokens)
    return jnp.log(jnp.asarray(TABLE, jnp.float32) + 1e-30)[tuple(x_t[:, i] for i in range(PLACES))]


def enumerated(steps, remask, first):
    """P of each final row by the reverse process, from the papers' formulas, state by state."""
    now = {first: 1.0}
    for k in range(steps):
        alpha_t, alpha_s = k / steps, (k + 1) / steps
        sigma = remask * (min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0)
        known = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        then: dict[tuple, float] = {}
        for state, probability in now.items():
            options = []
            for i, symbol in enumerate(state):
                if symbol == MASK:
                    options.append([(MASK, 1 - known), *((v, known * TABLE[(*state, i, v)]) for v in range(SYMBOLS))])
                elif first[i] != MASK:
                    options.append([(symbol, 1.0)])
                else:
                    options.append([(symbol, 1 - sigma), (MASK, sigma)])
            for each in itertools.product(*options):
                to = tuple(symbol for symbol, _ in each)
                then[to] = then.get(to, 0.0) + probability * np.prod([p for _, p in each])
        now = then
    return np.array([now.get(x, 0.0) for x in itertools.product(range(SYMBOLS), repeat=PLACES)])


def knobs(rows, temperature=1.0):
    return Knobs(*(jnp.full(rows, value) for value in (temperature, 0, 1.0, 0.0, 1.0)))


def drawn(n, first=(MASK,) * PLACES, sampler="ancestral", **settings):
    """How often each row was drawn, of n."""
    tokens, keys = jnp.tile(jnp.array([first]), (n, 1)), jax.random.split(jax.random.key(1), n)
    settings = Unmasking(**({"remask": 0.0, "choice_temperature": 0.0} | settings))
    sample = jax.jit(
        lambda: unmask(look_up, tokens, tokens != MASK, sampler=sampler, settings=settings, knobs=knobs(n), keys=keys)
    )
    found = np.asarray(sample())
    assert found.max() < SYMBOLS
    return np.bincount(found @ np.array([4, 2, 1]), minlength=SYMBOLS**PLACES)


@pytest.mark.parametrize(
    ("steps", "remask", "first"),
    [(1, 0.0, (MASK,) * 3), (2, 0.0, (MASK,) * 3), (3, 0.7, (MASK,) * 3), (2, 0.0, (MASK, 1, MASK))],
)
def test_ancestral_samples_have_the_distribution_of_the_reverse_process(steps, remask, first):
    n = 6000
    expected = enumerated(steps, remask, first)
    assert expected.sum() == pytest.approx(1.0)
    counts, possible = drawn(n, first, steps=steps, remask=remask), expected > 0
    assert counts[~possible].sum() == 0
    assert scipy.stats.chisquare(counts[possible], n * expected[possible]).pvalue > 1e-3


def test_with_many_steps_samples_have_the_joint_distribution():
    """Tokens then become known one at a time; with one step they are independent, which this sample size shows."""
    n, expected = 6000, JOINT.ravel()
    assert scipy.stats.chisquare(drawn(n, steps=200), n * expected).pvalue > 1e-3
    assert scipy.stats.chisquare(drawn(n, steps=1), n * expected).pvalue < 1e-6


def test_by_confidence_in_a_random_order_samples_have_the_joint_distribution():
    """By the cosine of 3 steps one token becomes known in each, and noise without bound makes their order random."""
    n = 6000
    counts = drawn(n, sampler="confidence", steps=3, choice_temperature=1e6)
    assert scipy.stats.chisquare(counts, n * JOINT.ravel()).pvalue > 1e-3


def test_by_confidence_the_surest_become_known_first_by_the_cosine():
    """Of 8 tokens, 8 cos(pi k / 8) are unknown after step k of 4: 7, 5, 3 and none. The higher i, the surer token i."""
    seen = []

    def predict(tokens, unknown):
        jax.debug.callback(lambda u: seen.append(np.asarray(u)), unknown)
        return jnp.arange(1.0, 9.0)[None, :, None] * jnp.array([1.0, 0.0, 0.0])[None, None] + 0.0 * tokens[:, :, None]

    tokens, given = jnp.full((2, 8), 2), jnp.zeros((2, 8), bool).at[1, 7].set(True)
    settings = Unmasking(4, 0.0, 0.0)
    keys = jax.random.split(jax.random.key(0), 2)
    found = unmask(
        predict, tokens, given, sampler="confidence", settings=settings, knobs=knobs(2, 0.0), keys=keys
    )  # fmt: skip
    jax.effects_barrier()
    unknown = [np.flatnonzero(mask[0]).tolist() for mask in seen]
    assert unknown == [[*range(8)], [*range(7)], [*range(5)], [*range(3)]]
    # Of 7 tokens: floor(6.47), floor(4.95), floor(2.68).
    assert [int(mask[1].sum()) for mask in seen] == [7, 6, 4, 2]
    assert found.tolist() == [[0] * 8, [0] * 7 + [2]]


# ------------------------------------------------------------------------------------------- any tokens

SETTINGS = [
    {"steps": 3},
    {"steps": 12, "remask": 1.0},
    {"sampler": "confidence", "steps": 5},
    {"sampler": "confidence", "steps": 40, "temperature": 0.0},
]


def fill_rows(request, net=None, key=0, n=5, given=0.4):
    draw = np.random.default_rng(2)
    tokens = draw.integers(0, 9, (n, 13)).astype(np.int32)
    mask = draw.random((n, 13)) < given
    mask[:, 0] = True
    return tokens, mask, fill(net or make_net(), BLOCKS, tokens, mask, request, jax.random.key(key))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_given_tokens_stay_and_no_mask_is_left(settings):
    """Even of a network that would rather predict the mask than anything else."""
    net = nnx.clone(make_net())
    net.output_bias[...] = jnp.zeros(BLOCKS.vocab_size + 1).at[BLOCKS.vocab_size].set(1e4)
    assert net.predict(jnp.zeros((1, 13), jnp.int32), jnp.ones((1, 13), bool)).shape[-1] == BLOCKS.vocab_size
    tokens, given, found = fill_rows(UnmaskRequest(**settings), net)
    np.testing.assert_array_equal(found[given], tokens[given])
    assert found.max() < BLOCKS.vocab_size
    assert (found != tokens)[~given].any()


def test_rows_that_are_not_given_are_not_read_and_depend_on_no_other_row():
    request = UnmaskRequest(steps=4)
    tokens, given, found = fill_rows(request)
    other = np.where(given, tokens, 0)
    again = fill(make_net(), BLOCKS, other[:2], given[:2], request, jax.random.key(0))
    np.testing.assert_array_equal(found[:2], again)
    assert (fill_rows(request, key=1)[2] != found).any()


def test_positions_take_the_symbols_that_they_are_allowed():
    tokens, given = np.zeros((40, 13), np.int32), np.zeros((40, 13), bool)
    given[:, 0] = True
    allowed = np.zeros((13, BLOCKS.vocab_size), bool)
    allowed[np.arange(13), np.arange(13) % 9] = True
    allowed[5] = [i in (2, 4) for i in range(BLOCKS.vocab_size)]
    found = fill(make_net(), BLOCKS, tokens, given, UnmaskRequest(steps=4), jax.random.key(0), allowed)
    assert (found[:, 1:5] == np.arange(1, 5)).all()
    assert set(found[:, 5].tolist()) == {2, 4}


def test_other_settings_prompts_masks_and_keys_compile_nothing():
    for sampler, changed in (("ancestral", {"remask": 0.5}), ("confidence", {"choice_temperature": 1.0})):
        ask(sampler=sampler, n=5)
        fill_rows(UnmaskRequest(sampler=sampler))
        with no_compilation():
            fill_rows(UnmaskRequest(sampler=sampler, steps=7, temperature=0.5, top_k=3, top_p=0.9, **changed), key=9)
            fill_rows(UnmaskRequest(sampler=sampler), given=0.9)
            ask(sampler=sampler, n=5, prompt="abc", steps=2)
            ask(sampler=sampler, n=5, fill="ab[MASK]d", temperature=0.1)


@dataclass(frozen=True)
class Squares(TokenSpec):
    """Images of 2 x 2 pixels in four greys."""

    vocab_size = 5
    end = 4
    longest = 4

    def decode(self, samples, codec) -> list[Image]:
        return [Image((60 * np.asarray(ids)).astype(np.uint8).reshape(2, 2, 1)) for ids in samples]


def test_tokens_of_images_are_decoded_by_their_spec():
    spec = Squares()
    model = make_model(spec)
    learner = model.state.net
    never_end = learner.params | {"output_bias": jnp.zeros(6).at[spec.end].set(-1e4)}
    state = model.state._replace(net=learner.with_params(never_end))
    images = model.family.sample(Model(model.family, spec, state, 0), UnmaskRequest(n=3, steps=4), jax.random.key(0))
    assert [image.pixels.shape for image in images] == [(2, 2, 1)] * 3
    for asked in ({"prompt": "a"}, {"fill": "a[MASK]"}):
        with pytest.raises(UserError, match=rf"{next(iter(asked))} is .* the model's tokens are of none"):
            model.family.sample(model, UnmaskRequest(**asked), jax.random.key(0))


# ------------------------------------------------------------------------------------------------ texts


def ask(spec=BLOCKS, key=0, **request):
    request = UnmaskRequest(**({"steps": 4, "max_new_tokens": 12} | request))
    model = make_model(spec)
    return [text.text for text in model.family.sample(model, request, jax.random.key(key))]


def test_texts_continue_the_prompt_and_differ():
    texts = ask(n=4, prompt="abc")
    assert all(text.startswith("abc") and len(text) <= 15 for text in texts)
    assert len(set(texts)) > 1
    assert ask(n=1, prompt="abc") == texts[:1]
    assert ask(n=4, prompt="abc", key=1) != texts


def test_long_texts_are_written_in_windows_whose_first_half_is_given(monkeypatch):
    """Of a context of 12: after 3 + 10 tokens, each window has the last 6 and writes 7 more."""
    seen = []

    def record(net, spec, tokens, given, request, key, allowed=None):
        seen.append((np.where(given, tokens, -1), key))
        return np.where(given, tokens, 10 * len(seen) % 9)

    monkeypatch.setattr("zoo.sampling.tokens.unmask_request.fill", record)
    (text,) = write_texts(
        make_net(), BLOCKS, UnmaskRequest(prompt="abc", max_new_tokens=20), jax.random.key(0), context=12
    )
    new = LETTERS.decode([1] * 10 + [2] * 7 + [3] * 3)
    assert text.text == "abc" + new
    assert text.prompt == "abc"
    unknown = [(tokens == -1).sum() for tokens, _ in seen]
    assert unknown == [10, 7, 7]
    assert seen[1][0][0, :6].tolist() == [1] * 6
    assert len({key.tobytes() for _, key in ((t, np.asarray(jax.random.key_data(k))) for t, k in seen)}) == 3


def test_lines_end_and_are_one_window():
    lines = ask(LINES, n=30, max_new_tokens=300)
    assert all(len(line) <= 12 for line in lines)
    assert any(len(line) < 12 for line in lines)
    assert all(len(line) <= 5 for line in ask(LINES, n=10, prompt="ab", max_new_tokens=3))


@pytest.mark.parametrize("spec", [BLOCKS, LINES], ids=["blocks", "lines"])
def test_fills_keep_the_text_and_never_end_it(spec):
    for text in ("ab[MASK]d[MASK][MASK]", "[MASK]bc"):
        fills = ask(spec, n=20, fill=text)
        pattern = text.replace("[MASK]", "?")
        for found in fills:
            assert len(found) == len(pattern)
            assert all(a in ("?", b) for a, b in zip(pattern, found, strict=True))
        assert len(set(fills)) > 1


def test_what_follows_a_line_is_given_and_what_follows_a_block_is_not(monkeypatch):
    seen = {}

    def record(net, spec, tokens, given, request, key, allowed=None):
        seen[spec] = [tokens[0].tolist(), given[0].tolist(), allowed[:, spec.end].tolist()]
        return tokens

    monkeypatch.setattr("zoo.sampling.tokens.unmask_request.fill", record)
    for spec in (BLOCKS, LINES):
        ask(spec, fill="b[MASK]c")
    b, c, end = *LETTERS.encode("bc").tolist(), BLOCKS.end
    tokens, given, may_end = seen[BLOCKS]
    assert [token for token, known in zip(tokens, given, strict=True) if known] == [b, c]
    assert given == [True, False, True] + [False] * 10
    assert may_end == [False] * 3 + [True] * 10
    tokens, given, may_end = seen[LINES]
    assert [token for token, known in zip(tokens, given, strict=True) if known] == [end, b, c] + [end] * 9
    assert given == [True, True, False] + [True] * 10
    assert may_end == [True] + [False] * 3 + [True] * 9


def test_a_mask_of_byte_pairs_takes_the_space_before_it():
    spec = type(BLOCKS)(BPE.train(["the cat the cat the dog dogs"], 270))
    texts = set(ask(spec, n=10, fill="the [MASK] dog"))
    assert all(text.startswith("the") and text.endswith(" dog") for text in texts)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"n": 0}, "n is 0"),
        ({"remask": 1.5}, "remask is 1.5"),
        ({"remask": 0.5, "sampler": "confidence"}, "remask is 0.5, which is a setting of the sampler ancestral"),
        ({"choice_temperature": 1.0}, "choice_temperature is 1.0, which is a setting of the sampler confidence"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"fill": "to be"}, r"\[MASK\] where"),
        ({"fill": "a[MASK]", "prompt": "b"}, "prompt is 'b'"),
        ({"fill": "Q[MASK]"}, "'Q'"),
        ({"fill": "a" * 13 + "[MASK]"}, "14 tokens long, but the model sees 13"),
        ({"fill": "a" * 10 + "[MASK]", "spec": LINES}, None),
        ({"fill": "a" * 11 + "[MASK]", "spec": LINES}, "12 tokens long, but the model sees 11"),
        ({"prompt": "a" * 13}, "13 tokens"),
        ({"prompt": "a" * 12, "spec": LINES}, "12 tokens"),
    ],
)
def test_what_cannot_be_sampled_is_named(request_, named):
    if named is None:
        ask(**request_)
        return
    with pytest.raises(UserError, match=named):
        ask(**request_)
