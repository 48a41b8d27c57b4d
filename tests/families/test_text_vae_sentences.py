"""The text VAE's networks, its scores and its sentences."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, refused
from flax import nnx
from text_vae_cases import BATCH, CONTEXT, LATENT, TEXTS, TINY, open_texts, start

from zoo.core.errors import UserError
from zoo.core.family import Model
from zoo.core.optimizer import Optimizer
from zoo.data.text import Sentences
from zoo.harness.config import Run
from zoo.harness.loop import fit
from zoo.harness.trained import inference_state
from zoo.nets.conditioned_lm import Conditioned, TextDecoder, TextDecoderSettings
from zoo.nn.losses import cross_entropy, real_targets
from zoo.sampling.tokens.sentences import SentenceRequest
from zoo.text_vae import TextVAE, TextVAEScoring


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_texts(tmp_path_factory.mktemp("text_vae"))


@pytest.fixture(scope="module")
def model(data):
    """Trained for a moment without a KL term, so that codes say something."""
    family = replace(TINY, beta=0.0)
    state, step = start(family, data, Optimizer(learning_rate=3e-2)), jax.jit(family.step)
    for n in range(400):
        state, _ = step(state, data.batch_at(n), jnp.int32(n), jax.random.key(n))
    return Model(family, data.spec, inference_state(state), 400, lambda: data)


# -------------------------------------------------------------------------------------------- the networks


def make_decoder(body, **settings):
    sizes = {"vocab_size": 13, "context": CONTEXT, "layers": 2, "width": 16, "heads": 2, "latent": LATENT}
    return TextDecoder(TextDecoderSettings(body=body, **sizes, **settings), nnx.Rngs(0))


@pytest.mark.parametrize("body", ["lstm", "gru", "transformer"])
def test_a_word_depends_on_the_code_and_on_those_before_it(body):
    body = make_decoder(body).body
    x, z = jax.random.normal(jax.random.key(0), (1, CONTEXT, 16)), jnp.ones((1, LATENT))
    gradients = jax.jit(jax.jacrev(lambda x, z: body(x, z)[0][0, :, 0], (0, 1)))
    of_x, of_z = gradients(x, z)
    seen = jnp.abs(of_x[:, 0]).sum(-1) > 0
    np.testing.assert_array_equal(seen, jnp.tri(CONTEXT))
    assert (of_z != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("body", ["lstm", "transformer"])
def test_reading_on_is_the_whole_forward_pass(body):
    decoder = make_decoder(body)
    tokens, z = jax.random.randint(jax.random.key(0), (2, 6), 0, 13), jax.random.normal(jax.random.key(1), (2, LATENT))
    whole = decoder.embedding.logits(decoder(tokens, z))
    net = Conditioned(decoder, z)
    # The second row is a slot shorter, behind padding.
    shifted = jnp.stack([tokens[0], jnp.roll(tokens[1], 1).at[0].set(7)])
    cache, start = net.init_cache(2, 16), jnp.array([0, 1])
    for begin, end in ((0, 3), (3, 4), (4, 6)):
        logits, cache = net.extend(shifted[:, begin:end], cache, begin, start)
        np.testing.assert_allclose(logits[0], whole[0, end - 1], atol=1e-5)
        np.testing.assert_allclose(logits[1], whole[1, end - 2], atol=1e-5)


def test_word_dropout_hides_so_many_words_but_never_the_beginning():
    decoder = make_decoder("lstm", word_dropout=0.3)
    decoder.embedding.table[...] = jnp.ones((13, 16))
    decoder.body = lambda x, z, **_: (x, None)
    tokens, z = jnp.ones((4000, CONTEXT), int), jnp.zeros((4000, LATENT))
    seen = decoder(tokens, z, key=jax.random.key(0), rows=jnp.arange(4000))
    assert set(np.unique(seen)) == {0.0, 1.0}
    assert (seen == seen[:, :, :1]).all(), "a word is hidden whole"
    share = 1 - np.asarray(seen[:, :, 0]).mean(0)
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], 0.3, atol=0.03)
    assert (decoder(tokens[:2], z[:2]) == 1).all(), "nothing is hidden in evaluation"


@pytest.mark.slow
def test_padding_changes_nothing(data, model):
    batch = data.held_out_at(0)
    evaluate = jax.jit(TINY.evaluate)
    expected = evaluate(model.state, batch, jax.random.key(0))
    padding = np.arange(CONTEXT + 1)[None] >= batch["length"][:, None]
    other = batch | {"tokens": np.where(padding, 1, batch["tokens"]).astype(np.int32)}
    found = evaluate(model.state, other, jax.random.key(0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    assert (np.asarray(real_targets(batch)).sum(1) == batch["length"] - 1).all()


# -------------------------------------------------------------------------------------------- figures


@pytest.mark.slow
def test_figures_add_up(data, model):
    rows = jax.jit(TINY.evaluate)(model.state, data.held_out_at(0), jax.random.key(0))
    figures = {name: np.asarray(total).sum() / np.asarray(weight).sum() for name, (total, weight) in rows.items()}
    np.testing.assert_allclose(figures["loss"], -figures["elbo_nats"], rtol=1e-6)
    np.testing.assert_allclose(figures["loss"], figures["reconstruction_nats"] + figures["kl_nats"], rtol=1e-5)
    words = (data.held_out_at(0)["length"] - 1).mean()
    for name in ("elbo", "reconstruction", "kl"):
        np.testing.assert_allclose(figures[f"{name}_nats_per_token"] * words, figures[f"{name}_nats"], rtol=1e-5)


def test_without_codes_it_is_a_language_model(data):
    family = replace(TINY, latent=0)
    state = start(family, data)
    assert set(state.net.params) == {"decoder"}
    rows = jax.jit(family.evaluate)(state, data.held_out_at(0), jax.random.key(0))
    np.testing.assert_array_equal(rows["kl_nats"][0], 0)
    net, batch = state.net.net(), data.held_out_at(0)
    logits = net.decoder.embedding.logits(net.decoder(jnp.asarray(batch["tokens"][:, :-1]), jnp.zeros((BATCH, 0))))
    nats = jnp.where(real_targets(batch), cross_entropy(logits, jnp.asarray(batch["tokens"][:, 1:])), 0).sum(1)
    np.testing.assert_allclose(rows["loss"][0], nats, rtol=1e-4)
    model = Model(family, data.spec, state, 0)
    with pytest.raises(UserError, match="plain language model has no codes"):
        family.sample(model, SentenceRequest(around="a dog"), jax.random.key(0))


# ------------------------------------------------------------------------------------------------ scores


def test_scores_say_whether_the_posterior_is_in_use(data, model):
    rows = jax.jit(TINY.evaluate)(model.state, data.held_out_at(0), jax.random.key(0))
    valid = data.held_out_at(0)["valid"]
    means = {name: float(np.asarray(a)[valid].sum() / np.asarray(b)[valid].sum()) for name, (a, b) in rows.items()}
    scores = TINY.score(model, means, data, TextVAEScoring(iw_samples=200), jax.random.key(0))
    assert scores["active_units"] == LATENT
    assert 0.7 < scores["mutual_information_nats"] <= math.log(7) + 1e-4
    assert scores["posterior"].startswith("in use")
    assert scores["iw_nll_nats"] < means["loss"]
    np.testing.assert_allclose(scores["perplexity_bound"], math.exp(-means["elbo_nats_per_token"]), rtol=1e-6)


def test_the_verdict_names_what_is_left_to_try():
    told = TINY.verdict(0.01, 0.002, 0)
    assert told.startswith("collapsed")
    assert "KL 0.01 and mutual information 0.00 nats, 0 of 3 units active" in told
    for flag in ("free-bits", "kl-warmup-steps", "aggressive", "word-dropout", "beta 0.5"):
        assert f"--family.{flag}" in told
    tried = replace(TINY, free_bits=0.1, kl_warmup_steps=10, aggressive=True, word_dropout=0.1)
    assert tried.verdict(0.01, 0.002, 0).endswith("start over with --family.beta 0.5")
    weighted = replace(TINY, iw_samples=5).verdict(0.01, 0.002, 0)
    assert weighted.endswith("start over with --family.iw-samples 1 or --family.word-dropout 0.3")
    weighted = replace(TINY, iw_samples=5).verdict(0.01, 0.002, 0)
    assert weighted.endswith("start over with --family.iw-samples 1 or --family.word-dropout 0.3")
    assert TINY.verdict(6.0, 3.0, 3).startswith("in use")
    assert TINY.verdict(6.0, 0.1, 3).startswith("collapsed"), "a KL that tells nothing apart"


# ---------------------------------------------------------------------------------------------- sentences


def test_codes_of_sentences_give_them_back_and_lines_join_them(data, model, tmp_path):
    sentences = [text for text in TEXTS if model.spec.tokenizer.unknown not in model.spec.tokenizer.encode(text)]
    path = tmp_path / "some.txt"
    path.write_text("\n".join(sentences))
    sample = partial(model.family.sample, model, key=jax.random.key(0))
    (told,) = sample(SentenceRequest(reconstruct=str(path)))
    lines = told.text.split("\n")
    assert lines[::2] == sentences
    made = [line.removeprefix("    ") for line in lines[1::2]]
    right = np.mean([a == b for a, b in zip(sentences, made, strict=True)])
    assert right > 0.4, made
    ends = sentences[0], sentences[-1]
    (line,) = sample(SentenceRequest(between=ends, steps=5))
    walked = line.text.split("\n")
    assert len(walked) == 5
    assert (walked[0], walked[-1]) == (made[0], made[-1])
    near = sample(SentenceRequest(around=ends[0], n=4, temperature=0.0))
    assert len(near) == 4
    assert np.mean([text.text == made[0] for text in near]) >= 0.5


def test_sample_i_does_not_depend_on_how_many_there_are(model):
    few, many = (model.family.sample(model, SentenceRequest(n=n), jax.random.key(0)) for n in (2, 5))
    assert few == many[:2]
    assert len({text.text for text in many}) > 1
    lengths = [len(text.text.split()) for text in model.family.sample(model, SentenceRequest(n=40), jax.random.key(1))]
    assert max(lengths) <= CONTEXT  # as many words as there are positions, end-of-text not among them
    assert SentenceRequest().drawing(400).max_new_tokens == 400, "a sentence may fill any context"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"between": ("one",)}, "between is .*two sentences"),
        ({"between": ("one", "two", "three")}, "between is .*two sentences"),
        ({"between": ("a", "b"), "steps": 1}, "steps is 1; it must be at least 2"),
        ({"between": ("a", "b"), "n": 2}, "n is 2; it must be 1 with between"),
        ({"between": ("a", "b"), "around": "c"}, "between and around ask for different codes"),
        ({"n": 0}, "n is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_requests_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        SentenceRequest(**settings)


def test_sentences_that_cannot_be_encoded(model):
    for sentence, message in (("a " * CONTEXT, "is 8 tokens long; .* at most 7"), ("  ", "is empty")):
        with pytest.raises(UserError, match=message):
            model.family.sample(model, SentenceRequest(between=("a dog", sentence)), jax.random.key(0))
    with pytest.raises(UserError, match="there is no file"):
        model.family.sample(model, SentenceRequest(reconstruct="nowhere.txt"), jax.random.key(0))


@pytest.mark.slow
def test_the_command_line_refuses_in_one_sentence(data, tmp_path, capsys):
    rundir = str(tmp_path / "run")
    sentences = Sentences(path=data.name, held_out=0.3)
    fit(Run(family=TINY, data=sentences, steps=1, batch_size=BATCH, rundir=rundir, score_every=1))
    for flags, word in (
        (("--between", "one"), "two sentences"),
        (("--around", "a " * CONTEXT), "8 tokens long"),
        (("--around", ""), "a sentence that is not empty"),
        (("--reconstruct", ""), "the name of a file"),
        (("--reconstruct", str(tmp_path / "nowhere.txt")), "there is no file"),
        (("--around", "a dog", "--n", "0"), "n is 0"),
    ):
        refused(call(capsys, "sample", rundir, *flags), word)
    told = call(capsys, "sample", rundir, "--between", "a dog", "the red cat", "--steps", "3")
    assert (told.code, told.out.count("\n")) == (0, 3)
    scored = call(capsys, "evaluate", rundir, "--iw-samples", "2")
    assert "posterior                collapsed" in scored.out
    assert "iw nll nats" in scored.out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 1}, "family.context is 1"),
        ({"latent": -1}, "family.latent is -1"),
        ({"word_dropout": 1.0}, "family.word_dropout is 1.0"),
        ({"kl_cycle_steps": 5, "kl_warmup_steps": 9}, "family.kl_cycle_steps is 5; .* at least family.kl_warmup_steps"),
        ({"kl_cycle_steps": 5}, "family.kl_cycle_steps is 5; .* nothing rises"),
        ({"decoder": "transformer", "width": 9, "heads": 2}, "family.width is 9; it must be a multiple"),
        ({"iw_samples": 5, "aggressive": True}, "family.iw_samples is 5; it must be 1 with .* aggressive"),
        ({"iw_samples": 5, "free_bits": 0.1}, "importance-weighted bound has none"),
        ({"iw_samples": 5, "latent": 0}, "family.iw_samples is 5; it must be 1 with family.latent 0"),
        ({"aggressive": True, "latent": 0}, "family.aggressive trains an encoder"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        TextVAE(**settings)
