"""Overlapping windows, a carried state and the log-probability of given texts, against plain loops over one text."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import ROOT, call, refused
from flax import nnx

from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.specs import BlockSpec
from zoo.data.text import Text
from zoo.data.text.windows import text_windows
from zoo.data.tokenizers import Bytes, Characters
from zoo.harness.config import Run, from_json, to_json
from zoo.harness.flags import load_config, parse_flags
from zoo.harness.loop import fit
from zoo.harness.trained import load_run
from zoo.lstm_lm import LSTMLM, LSTMLMScoring
from zoo.metrics.tokens import TokenScoring
from zoo.metrics.windows import carried_figures
from zoo.nn.losses import counted
from zoo.sampling.tokens.request import TokenRequest
from zoo.transformer_lm import TransformerLM

LETTERS = Characters("abcdefgh ")
CONTEXT = 8
KEY = jax.random.key(0)
FAMILIES = {
    "transformer": TransformerLM(layers=1, heads=2, width=16, context=CONTEXT),
    "lstm": LSTMLM(layers=2, width=16, embedding=8, context=CONTEXT),
}


def make_model(name):
    """A network with larger weights than at the start, whose predictions depend on what it has read."""
    spec = BlockSpec(LETTERS)
    state = FAMILIES[name].init(spec, Setup(Optimizer(), 10, 4), KEY)
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, state.net.params)
    return Model(FAMILIES[name], spec, state._replace(net=replace(state.net, params=params)), 0)


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    return make_model(request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two held-out documents, whose tokens no window divides evenly."""
    folder = tmp_path_factory.mktemp("windows")
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(LETTERS.characters), size)) for size in (200, 23, 14)]
    for name, chosen in (("train", texts[:1]), ("held_out", texts[1:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in chosen))
    held_out = str(folder / "held_out.jsonl")
    settings = Text(path=str(folder / "train.jsonl"), held_out_path=held_out, test_path=held_out)
    return settings.open(length=CONTEXT, batch_size=3, seed=0, spec=BlockSpec(LETTERS))


def log_p(net, context, target):
    """log P of a token after others: a Transformer reads them at once, with padding after them, an LSTM one by one."""
    tokens = np.array(context, np.int32)[None]
    if not hasattr(net, "init_carry"):
        logits = at_once(net, np.pad(tokens, ((0, 0), (0, CONTEXT - len(context)))))[:, len(context) - 1]
    else:
        carry = net.init_carry(1)
        for place in range(len(context)):
            logits, carry = at_once(net, tokens[:, place : place + 1], carry)
        logits = logits[:, 0]
    return float(jax.nn.log_softmax(logits[0])[int(target)])


evaluate = jax.jit(lambda family, state, batch, key: family.evaluate(state, batch, key), static_argnums=0)


@nnx.jit
def at_once(net, tokens, *carry):
    return net(tokens, *carry)


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("size", [2, 9, 10, 40])
def test_every_target_is_scored_once_and_has_its_context(stride, size):
    tokens = np.arange(100, 100 + size)
    windows = text_windows(Bytes(), tokens, CONTEXT, stride)
    scored = []
    for window, first, length in zip(windows["tokens"], windows["first"], windows["length"], strict=True):
        assert window.shape == (CONTEXT + 1,)
        for place in range(first, length - 1):
            target = window[place + 1]
            scored.append(target)
            assert place >= min(CONTEXT - stride, target - 101)
            np.testing.assert_array_equal(window[: place + 2], np.arange(target - place - 1, target + 1))
    assert scored == list(tokens[1:])
    assert windows["bytes"].sum() == size - 1


def test_without_overlap_windows_are_those_of_evaluation(data):
    windows = text_windows(LETTERS, data.held_out, CONTEXT, CONTEXT)
    batches = [data.held_out_at(i) for i in range(data.held_out_batches)]
    valid = np.concatenate([batch["valid"] for batch in batches])
    rows = {name: np.concatenate([batch[name] for batch in batches])[valid] for name in batches[0]}
    # Evaluation has them in the order of a hash.
    ordered, order = (sorted(range(len(some["tokens"])), key=lambda i, some=some: some["tokens"][i].tolist())
                      for some in (windows, rows))  # fmt: skip
    for name in ("tokens", "length", "characters", "bytes"):
        np.testing.assert_array_equal(windows[name][ordered], rows[name][order])
    assert (windows["first"] == 0).all()


def test_a_stride_scores_every_token_after_the_context_that_its_window_has(model, data):
    stride, net, end = 3, model.state.net.eval_net(), LETTERS.end_of_text
    text = np.asarray(data.held_out, np.int32)
    nats = []
    for place in range(1, len(text)):
        window = max(0, -(-(place - CONTEXT) // stride))  # the first that reaches so far
        if not (text[place - 1] == text[place] == end):  # the begin of a document
            nats.append(-log_p(net, text[stride * window : place], text[place]))
    figures = model.family.score(model, {"loss": 1.0}, data, model.family.Scoring(stride=stride), KEY)
    np.testing.assert_allclose(figures["loss_stride_3"], np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(figures["perplexity_stride_3"], math.exp(np.mean(nats)), rtol=1e-5)
    characters = 23 + 14
    np.testing.assert_allclose(figures["bits_per_character_stride_3"], sum(nats) / math.log(2) / characters, rtol=1e-5)


def test_a_carried_state_has_the_log_probability_of_the_whole_text_read_in_one_go(data):
    model = make_model("lstm")
    net, text, end = model.state.net.eval_net(), np.asarray(data.held_out, np.int32), LETTERS.end_of_text
    nats = [-log_p(net, text[:place], text[place]) for place in range(1, len(text))]
    counts = [not (a == b == end) for a, b in pairwise(text)]
    mean = np.mean(np.array(nats)[counts])
    figures = model.family.score(model, {"loss": 1.0}, data, LSTMLMScoring(carry=True), KEY)
    np.testing.assert_allclose(figures["loss_carried"], mean, rtol=1e-5)
    np.testing.assert_allclose(figures["perplexity_carried"], math.exp(mean), rtol=1e-5)
    rows = [evaluate(model.family, model.state, data.held_out_at(i), KEY)["loss"] for i in range(data.held_out_batches)]
    apart = sum(float(nats.sum()) for nats, _ in rows) / sum(float(count.sum()) for _, count in rows)
    assert abs(apart - mean) > 1e-3, "separate windows are something else"


def test_a_given_text_has_the_log_probabilities_of_its_tokens(model):
    text, end, net = "abc gh", LETTERS.end_of_text, model.state.net.eval_net()
    ids = [end, *LETTERS.encode(text), end]
    expected = [log_p(net, ids[:place], ids[place]) for place in range(1, len(ids))]
    (scored,) = model.family.sample(model, TokenRequest(score=text), KEY)
    assert scored.record["tokens"] == [*text, "<end of text>"]
    np.testing.assert_allclose(scored.record["log_probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(scored.record["log_probability"], sum(expected), atol=1e-5)
    lines = scored.text.splitlines()
    assert lines[0].split() == [f"{expected[0]:.4f}", "'a'"]
    assert lines[-1].endswith("nats in all, of 7 tokens")


def test_a_given_text_sums_to_what_evaluation_gives_for_that_document(tmp_path):
    """Longer than the context: the Transformer reads it in evaluation's windows, the LSTM with a carried state."""
    text = "cab bad fed hag " * 3
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.txt").write_text(text)
    held_out = str(tmp_path / "held_out.txt")
    data = Text(path=str(tmp_path / "train.txt"), held_out_path=held_out, test_path=held_out)
    data = data.open(length=CONTEXT, batch_size=3, seed=0, spec=BlockSpec(LETTERS))
    for name in FAMILIES:
        model = make_model(name)
        (scored,) = model.family.sample(model, TokenRequest(score=text), KEY)
        rows = [evaluate(model.family, model.state, data.held_out_at(i), KEY)["loss"]
                for i in range(data.held_out_batches)]  # fmt: skip
        total = sum(float(nats.sum()) for nats, _ in rows)
        if name == "lstm":
            net = model.state.net.eval_net()
            total = carried_figures(net, zoo_read, net.init_carry(1), data)["loss_carried"] * (len(text) + 1)
        np.testing.assert_allclose(scored.record["log_probability"], -total, rtol=1e-5)


def zoo_read(net, tokens, carry):
    return net(tokens, carry)


@pytest.mark.parametrize("score", ["", "a", "abcdefg", "abcdefgh"])
def test_texts_of_any_length_have_as_many_log_probabilities(score):
    model = make_model("transformer")
    (scored,) = model.family.sample(model, TokenRequest(score=score), KEY)
    assert len(scored.record["log_probabilities"]) == len(score) + 1


def test_settings_that_make_no_sense(model, data):
    for stride in (9, 100):
        with pytest.raises(UserError, match=f"stride is {stride}; it must be from 1 to the model's context, 8"):
            model.family.score(model, {"loss": 1.0}, data, model.family.Scoring(stride=stride), KEY)
    with pytest.raises(UserError, match="stride is -1; it must be from 1 to the model's context"):
        TokenScoring(stride=-1)
    for settings in ({"prompt": "a"}, {"prompts": "a.txt"}, {"n": 2}):
        with pytest.raises(UserError, match="with score"):
            TokenRequest(score="a", **settings)
    with pytest.raises(UserError, match="prompts is 'a'; it must be empty where prompt is given"):
        TokenRequest(prompt="a", prompts="a")


def test_a_run_of_an_earlier_version_keeps_its_scoring():
    saved = to_json(Run(family=FAMILIES["lstm"], data=Text(), scoring=LSTMLMScoring(samples=7)))
    old = {"class": "zoo.metrics.tokens:TokenScoring", "samples": 7, "sample_tokens": 300}
    assert from_json(saved | {"scoring": old}, Run, "config.json").scoring == LSTMLMScoring(samples=7)


# -------------------------------------------------------------------------------------------- the scripts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny LSTM's run directory."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("\n".join(f"line {n} of the text, {n * n % 97}" for n in range(60)))
    config = ROOT / "configs" / "lstm_lm.py"
    shape = ("--family.layers", "1", "--family.width", "16", "--family.embedding", "8", "--family.context", "16")
    flags = ("--data.path", folder / "text.txt", "--steps", "1", "--rundir", folder / "run")
    default = load_config(str(config))
    fit(parse_flags(Run, default, [*shape, *map(str, flags)], "train.py"))
    return folder / "run"


def test_evaluate_reports_strides_and_carried_states_beside_the_loss(run, capsys):
    told = call(capsys, "evaluate", run, "--stride", "4", "--carry", "--json")
    figures = json.loads(told.out)
    for name in ("loss", "perplexity", "bits_per_character", "bits_per_byte"):
        assert {name, f"{name}_stride_4", f"{name}_carried"} <= figures.keys()
    refused(call(capsys, "evaluate", run, "--stride", "17"), "stride is 17", "context, 16")


def test_sample_scores_texts_and_answers_files_of_prompts(run, tmp_path, capsys):
    scored = json.loads(call(capsys, "sample", run, "--score", "the text", "--json").out)
    assert len(scored["tokens"]) == len(scored["log_probabilities"]) == 9
    assert call(capsys, "sample", run, "--score", "the text").out.count("\n") == 10
    refused(call(capsys, "sample", run, "--score", "Q"), "'Q'")

    (tmp_path / "prompts.txt").write_text("line\n\nQ\nthe text\n")
    asked = ("--prompts", tmp_path / "prompts.txt", "--max-new-tokens", "5")
    told = call(capsys, "sample", run, *asked, "--json", "--n", "2")
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["prompt"] for line in lines] == ["line", "line", "", "", "Q", "Q", "the text", "the text"]
    assert all(line["text"].startswith(line["prompt"]) for line in lines if line["prompt"] != "Q")
    assert [line["text"] for line in lines if line["prompt"] == "Q"] == ["", ""]
    refused(call(capsys, "sample", run, "--prompts", tmp_path / "none.txt"), "none.txt cannot be read")
    refused(call(capsys, "sample", run, "--json", "--out", tmp_path / "out"), "json prints, and out writes")


@pytest.mark.slow
def test_a_prompt_of_a_file_is_continued_as_it_would_be_alone(run, tmp_path):
    trained, prompts = load_run(run), ["line", "of the"]
    (tmp_path / "two.txt").write_text("\n".join(prompts))
    (tmp_path / "one.txt").write_text(prompts[0])
    for how in ({"temperature": 0.0}, {"num_beams": 3}):
        many = trained.sample(prompts=str(tmp_path / "two.txt"), max_new_tokens=6, **how)
        alone = [trained.sample(prompt=prompt, max_new_tokens=6, **how)[0].text for prompt in prompts]
        assert [text.text for text in many] == alone
    twice = [trained.sample(n=2, max_new_tokens=6, **{name: value})
             for name, value in (("prompts", str(tmp_path / "one.txt")), ("prompt", prompts[0]))]  # fmt: skip
    assert [text.text for text in twice[0]] == [text.text for text in twice[1]]


def test_targets_count_by_hand():
    """End-of-text is 9: the pair of two is a document's boundary; length 5 leaves the last target out; first is 2."""
    batch = {"tokens": jnp.array([[9, 9, 1, 2, 9, 0], [9, 9, 1, 2, 9, 9]]), "length": jnp.array([5, 6])}
    plain = [[False, True, True, True, False], [False, True, True, True, False]]
    assert counted(batch, 9).tolist() == plain
    late = batch | {"first": jnp.array([2, 4])}
    assert counted(late, 9).tolist() == [[False, False, True, True, False], [False] * 5]
    assert counted(late | {"length": jnp.array([4, 6])}, 9).tolist()[0] == [False, False, True, False, False]
