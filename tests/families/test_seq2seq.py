"""Sequence to sequence: what a loss depends on, decoding that reads on, beams, alignments, scores and bad input."""

import hashlib
import itertools
import json
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, refused
from flax import nnx

from zoo import Optimizer, Run, fit
from zoo.core.errors import UserError
from zoo.core.family import Setup
from zoo.data.pairs import Pairs
from zoo.data.specs import PairSpec
from zoo.data.tokenizers import Characters
from zoo.harness.config import from_json, to_json
from zoo.nets.recurrent_seq2seq import Attend, Memory
from zoo.nn.by_length import at_length
from zoo.sampling.tokens.translation import TranslationRequest, encode_source, pad, translate, translate_lines
from zoo.seq2seq import Scores, Seq2Seq, error_rates

LENGTH = 8
SPEC = PairSpec(Characters("abcdefghij"), Characters("PQRST"))
LUONG = Seq2Seq(layers=2, width=16, embedding=8, context=LENGTH, dropout=0.0)
FAMILIES = {
    "luong": LUONG,
    "bahdanau-gru": replace(LUONG, attention="bahdanau", cell="gru"),
    "none": replace(LUONG, attention="none"),
    "transformer": replace(LUONG, network="transformer", heads=2),
}
NETWORKS = pytest.mark.parametrize("name", FAMILIES)


def make_net(family, spec=SPEC, scale=3.0):
    """A network with weights `scale` times their usual start, so that its targets vary."""
    scale = 8.0 if family.network == "transformer" else scale
    state = family.init(spec, Setup(Optimizer(), total_steps=1, batch_size=1), jax.random.key(0))
    graphdef, params = nnx.split(state.net.net())
    return nnx.merge(graphdef, jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params))


def make_batch(lengths=((3, 5), (8, 2), (4, 8), (1, 3)), length=LENGTH, seed=0):
    """Random pairs: sources of some tokens (end-of-text among them), targets of some predicted ones."""
    draw = np.random.default_rng(seed)
    end = (SPEC.source.end_of_text, SPEC.target.end_of_text)
    source = np.full((len(lengths), length), end[0], np.int32)
    target = np.full((len(lengths), length + 1), end[1], np.int32)
    for row, (s, t) in enumerate(lengths):
        source[row, : s - 1] = draw.integers(0, 10, s - 1)
        target[row, 1:t] = draw.integers(0, 5, t - 1)
    sizes = np.array(lengths, np.int32)
    rows = np.arange(len(lengths), dtype=np.int32)
    batch = {"source": source, "source_length": sizes[:, 0], "target": target, "target_length": sizes[:, 1] + 1}
    return jax.tree.map(jnp.asarray, batch | {"row": rows, "valid": rows >= 0})


def row_nats(family, net, batch):
    return jax.jit(lambda batch: family._losses(net, batch, None)[1])(batch)


@NETWORKS
def test_padding_and_batch_order_never_change_a_loss(name):
    family = FAMILIES[name]
    net, batch = make_net(family), make_batch()
    nats, count = row_nats(family, net, batch)
    np.testing.assert_array_equal(count, [5, 2, 8, 3])
    place = jnp.arange(LENGTH)[None]
    junk = batch | {
        "source": jnp.where(place < batch["source_length"][:, None], batch["source"], 7),
        "target": jnp.where(jnp.arange(LENGTH + 1)[None] < batch["target_length"][:, None], batch["target"], 2),
    }
    order = jnp.array([2, 0, 3, 1])
    for other, moved in ((junk, jnp.arange(4)), (jax.tree.map(lambda x: x[order], batch), order)):
        np.testing.assert_allclose(row_nats(family, net, other)[0], nats[moved], rtol=2e-5)
    total, weight, metrics = family.loss(net, batch, None)
    assert total == pytest.approx(float(nats.sum()), rel=1e-5)
    assert weight == 18
    assert metrics["nats_per_token"][0] == pytest.approx(float(nats.sum()), rel=1e-5)


@NETWORKS
def test_the_loss_is_minus_the_log_probability_of_the_target(name):
    family = FAMILIES[name]
    net, batch = make_net(family), make_batch()
    memory = net.encode(batch["source"], jnp.arange(LENGTH)[None] < batch["source_length"][:, None])
    log_probs = jax.nn.log_softmax(net.decode(batch["target"][:, :-1], memory))
    expected = [-sum(log_probs[0, t, batch["target"][0, t + 1]] for t in range(5))]
    np.testing.assert_allclose(row_nats(family, net, batch)[0][:1], expected, rtol=1e-5)


@NETWORKS
def test_what_a_symbol_depends_on(name):
    """Symbols before it, and every real position of the source: no padding, nothing later."""
    family = FAMILIES[name]
    net, batch = make_net(family), make_batch(((5, 8),))
    graphdef, params = nnx.split(net)

    def logit(of_source, of_target):
        inside = nnx.merge(graphdef, params)
        inside.source, inside.target = Shifted(inside.source, of_source), Shifted(inside.target, of_target)
        memory = inside.encode(batch["source"], jnp.arange(LENGTH)[None] < 5)
        return jax.nn.log_softmax(inside.decode(batch["target"][:, :-1], memory)[0, 3])[2]

    size = net.source.table.shape[1]
    of_source, of_target = jax.jit(jax.grad(logit, argnums=(0, 1)))(*[jnp.zeros((1, LENGTH, size))] * 2)
    moved = [np.linalg.norm(x[0], axis=-1) for x in (of_source, of_target)]
    for norms, last in zip(moved, (5, 4), strict=True):
        assert (norms[:last] > 1e-7).all(), norms
        assert (norms[last:] == 0).all(), norms


class Shifted(nnx.Module):
    """Stands for an embedding and adds something to each vector."""

    def __init__(self, embedding, shift):
        self.embedding, self.shift = embedding, shift

    def __call__(self, symbols):
        return self.embedding(symbols) + self.shift

    def logits(self, x):
        return self.embedding.logits(x)


@NETWORKS
def test_reading_on_equals_reading_at_once(name):
    family = FAMILIES[name]
    net, batch = make_net(family), make_batch()
    memory = net.encode(batch["source"], jnp.arange(LENGTH)[None] < batch["source_length"][:, None])
    whole = net.decode(batch["target"][:, :-1], memory)
    cache = net.init_cache(memory, LENGTH)
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves((memory, cache)))
    extend = jax.jit(lambda target, cache, position: net.extend(target, cache, position, memory))
    logits, cache = extend(batch["target"][:, :3], cache, 0)
    for t in range(3, LENGTH + 1):
        np.testing.assert_allclose(logits, whole[:, t - 1], atol=2e-5, rtol=1e-4)
        if t < LENGTH:
            logits, cache = extend(batch["target"][:, t : t + 1], cache, t)


@pytest.mark.parametrize("name", ["luong", "transformer"])
def test_cutting_batches_changes_neither_losses_nor_gradients(name):
    long = replace(FAMILIES[name], context=20, dropout=0.3, label_smoothing=0.1)
    assert long._lengths == (8, 12, 20)
    net = make_net(long)
    graphdef, params = nnx.split(net)
    batch = make_batch(((9, 4), (3, 10)), length=20)

    def at(lengths):
        class Cut(Seq2Seq):
            _lengths = lengths

        family = Cut(**{field.name: getattr(long, field.name) for field in fields(long)})

        def loss(params):
            total, weight, metrics = family.loss(nnx.merge(graphdef, params), batch, jax.random.key(1))
            return total / weight, metrics

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    whole, cut = at((20,)), at((8, 12, 20))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, cut)


def test_the_shortest_length_that_holds_the_batch_is_taken():
    def taken(length, params):
        return params * length, jnp.int32(length)

    run = jax.jit(jax.value_and_grad(lambda p, n: at_length(taken, (4, 6, 9), n, p), has_aux=True))
    for needed, length in ((1, 4), (4, 4), (5, 6), (6, 6), (7, 9), (9, 9)):
        (total, aux), gradient = run(2.0, jnp.int32(needed))
        assert (float(total), int(aux), float(gradient)) == (2.0 * length, length, length)


def test_label_smoothing_spreads_a_share_over_all_symbols():
    net, batch, e = make_net(LUONG), make_batch(), 0.2
    memory = net.encode(batch["source"], jnp.arange(LENGTH)[None] < batch["source_length"][:, None])
    log_probs = np.asarray(jax.nn.log_softmax(net.decode(batch["target"][:, :-1], memory)))
    total = 0.0
    for row, size in enumerate([5, 2, 8, 3]):
        for t in range(size):
            right = np.eye(6)[batch["target"][row, t + 1]]
            total -= ((1 - e) * right + e / 6) @ log_probs[row, t]
    smoothed = replace(LUONG, label_smoothing=e)
    assert smoothed.loss(net, batch, None)[0] == pytest.approx(total, rel=1e-4)
    np.testing.assert_allclose(row_nats(smoothed, net, batch)[0], row_nats(LUONG, net, batch)[0], rtol=1e-5)


@pytest.mark.parametrize("score", ["bahdanau", "luong"])
def test_attention_is_as_its_paper_has_it(score):
    attend = Attend(score, 4, rngs=nnx.Rngs(0))
    q, values = (jax.random.normal(jax.random.key(n), (1, size, 4)) for n, size in enumerate((2, 3)))
    memory = Memory(values, attend.key(values), jnp.array([[0.0, 0.0, -1e30]]), ())
    seen, weights = attend(q, memory)
    keys = np.asarray(values[0] @ attend.key.kernel[...])
    for t in range(2):
        if score == "luong":
            scores = [q[0, t] @ keys[j] for j in range(2)]
        else:
            asked = q[0, t] @ attend.query.kernel[...] + attend.query.bias[...]
            scores = [attend.v[...] @ np.tanh(asked + keys[j]) for j in range(2)]
        expected = np.append(np.exp(scores) / np.sum(np.exp(scores)), 0.0)
        np.testing.assert_allclose(weights[0, t], expected, atol=1e-6)
        np.testing.assert_allclose(seen[0, t], expected @ np.asarray(values[0]), atol=1e-6)


# ---------------------------------------------------------------------------------------------- search


def sources_of(lengths):
    draw = np.random.default_rng(5)
    end = SPEC.source.end_of_text
    return [np.append(draw.integers(0, 10, n), end).astype(np.int32) for n in lengths]


def log_probability(net, source, target, length=LENGTH, spec=SPEC):
    """log P(target | source), by one look at the whole."""
    tokens, lengths = pad(spec.source, [source], 1, length)
    memory = net.encode(jnp.asarray(tokens), jnp.arange(length)[None] < lengths[:, None])
    read = jnp.asarray([[spec.target.end_of_text, *target[:-1]]], jnp.int32)
    log_probs = np.asarray(jax.nn.log_softmax(net.decode(read, memory)))[0]
    return float(log_probs[np.arange(len(target)), list(target)].sum())


@pytest.mark.parametrize("name", ["luong", "bahdanau-gru", "transformer"])
def test_a_beam_as_wide_as_the_tree_finds_the_optimum(name):
    steps, spec = 3, PairSpec(SPEC.source, Characters("PQ"))
    family = replace(FAMILIES[name], context=steps)
    net, (source,) = make_net(family, spec), sources_of([2])
    end, symbols = spec.target.end_of_text, spec.target.vocab_size
    texts = [
        text
        for n in range(1, steps + 1)
        for text in itertools.product(range(symbols), repeat=n)
        if end not in text[:-1] and (text[-1] == end or n == steps)
    ]
    tokens, lengths = pad(spec.source, [source], 1, steps)
    memory = net.encode(jnp.asarray(tokens), jnp.arange(steps)[None] < lengths[:, None])
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(texts), *x.shape[1:])), memory)
    read = jnp.array([[end, *text[:-1], *[end] * (steps - len(text))] for text in texts], jnp.int32)
    log_probs = np.asarray(jax.nn.log_softmax(net.decode(read, wide)))
    scores = {text: sum(log_probs[i, t, symbol] for t, symbol in enumerate(text)) for i, text in enumerate(texts)}
    best = sorted(texts, key=lambda text: -scores[text])[:8]
    (found,) = translate(net, spec, [source], length=steps, num_beams=symbols**steps)
    assert [tuple(target.tokens.tolist()) for target in found[:8]] == best
    np.testing.assert_allclose([target.score for target in found[:8]], [scores[text] for text in best], rtol=1e-4)


@pytest.mark.parametrize("name", ["luong", "transformer"])
def test_one_beam_is_greedy_and_sources_side_by_side_are_each_alone(name):
    net, sources = make_net(FAMILIES[name]), sources_of((1, 7, 3, 5, 2))
    alone = [translate(net, SPEC, [source], length=LENGTH, num_beams=3)[0] for source in sources]
    together = translate(net, SPEC, sources, length=LENGTH, num_beams=3)
    for one, many in zip(alone, together, strict=True):
        assert [target.text for target in one] == [target.text for target in many]
        np.testing.assert_allclose([t.score for t in one], [t.score for t in many], rtol=1e-4, atol=1e-5)
    for source, found in zip(sources[:2], together, strict=False):
        for target in found:
            expected = log_probability(net, source, target.tokens)
            np.testing.assert_allclose(target.score, expected, rtol=1e-4, atol=1e-5)
    greedy = translate(net, SPEC, sources, length=LENGTH, num_beams=1)
    assert len({found[0].text for found in greedy}) > 1
    tokens, lengths = pad(SPEC.source, sources, len(sources), LENGTH)
    memory = net.encode(jnp.asarray(tokens), jnp.arange(LENGTH)[None] < lengths[:, None])
    decode = jax.jit(net.decode)
    written = np.full((len(sources), LENGTH + 1), SPEC.target.end_of_text, np.int32)
    for t in range(LENGTH):
        written[:, t + 1] = decode(jnp.asarray(written[:, :-1]), memory)[:, t].argmax(-1)
    for row, (found,) in enumerate(greedy):
        assert found.tokens.tolist() == written[row, 1 : len(found.tokens) + 1].tolist()


@NETWORKS
def test_an_alignment_is_a_distribution_over_the_real_source(name):
    net, batch = make_net(FAMILIES[name]), make_batch()
    real = jnp.arange(LENGTH)[None] < batch["source_length"][:, None]
    weights = np.asarray(net.alignment(batch["target"][:, :-1], net.encode(batch["source"], real)))
    assert weights.shape == (4, LENGTH, LENGTH)
    assert (weights[~np.broadcast_to(np.asarray(real)[:, None], weights.shape)] == 0).all()
    np.testing.assert_allclose(weights.sum(-1), name != "none", atol=1e-5)


# ----------------------------------------------------------------------------------- scores and bad input


def test_any_of_several_targets_is_right_and_the_nearest_counts():
    found = error_rates(["A B C", "A B", "X"], [["A B", "A B C"], ["A C D", "A D"], ["A B"]])
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["error_rate"] == pytest.approx(2 / 3)
    assert found["token_error_rate"] == pytest.approx((0 + 1 + 2) / (3 + 2 + 2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps on a file of short words."""
    folder = tmp_path_factory.mktemp("seq2seq")
    words = ["".join(letters) for letters in itertools.product("abc", repeat=3)]
    lines = [f"{word}\t{' '.join(letter.upper() + str(i) for i, letter in enumerate(word))}\n" for word in words]
    (folder / "pairs.tsv").write_text("".join(lines) + "abcabcabca\tA0\n")
    run = Run(
        family=replace(LUONG, dropout=0.1),
        data=Pairs(path=str(folder / "pairs.tsv"), dev=0.2, test=0.2),
        steps=2, batch_size=8, rundir=str(folder / "run"), scoring=Scores(strip="[0-9]", words="none", num_beams=2),
    )  # fmt: skip
    return fit(run)


def test_scores_are_of_the_split_that_is_asked_for(trained):
    figures = trained.evaluate()
    assert figures["scored_sources"] == len(trained.data.references())
    names = ["error_rate", "exact_match", "token_error_rate"]
    for name in (*names, *(f"{name}_unstripped" for name in names), "bleu", "rougeL", "perplexity"):
        assert np.isfinite(figures[name]), name
    other = trained.evaluate(split="test", sources=3, strip="")
    assert other["scored_sources"] == 3
    assert "error_rate_unstripped" not in other


def test_losses_are_of_the_split_that_is_asked_for(trained, capsys):
    """Against the log-probability of each target, which the file and the hash of its source say are in the split."""
    lines = [line.split("\t") for line in Path(trained.run.data.path).read_text().splitlines()]
    ranked = sorted({line[0] for line in lines}, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    spec, sixth = trained.model.spec, round(0.2 * len(ranked))
    losses = {}
    for split, sources in (("test", ranked[:sixth]), ("dev", ranked[sixth : 2 * sixth])):
        pairs = [(s, t) for s, t in lines if s in sources and max(len(s), len(t.split())) < LENGTH]
        targets = [np.append(spec.target.encode(target), spec.target.end_of_text) for _, target in pairs]
        read = [encode_source(spec, source, LENGTH) for source, _ in pairs]
        nats = -sum(map(partial(log_probability, trained.net(), spec=spec), read, targets))
        shown = call(capsys, "evaluate", trained.path, "--json", *(("--split", "test") if split == "test" else ()))
        found = json.loads(shown.out)
        assert found == json.loads((trained.path / "scores.jsonl").read_text().splitlines()[-1])
        assert (found["split"], found["data"]) == (split, trained.run.data.path)
        losses[split] = found["loss"]
        assert found["loss"] == pytest.approx(nats / sum(map(len, targets)), rel=1e-4)
        assert found["nats_per_target"] == pytest.approx(nats / len(pairs), rel=1e-4)
        assert found["perplexity"] == pytest.approx(np.exp(nats / sum(map(len, targets))), rel=1e-4)
    assert abs(losses["dev"] - losses["test"]) > 1e-3


def test_settings_of_an_earlier_run_that_had_a_split_of_its_own_load(trained):
    config = to_json(trained.run)
    config["scoring"]["split"] = "test"
    assert from_json(config, Run, "config.json") == trained.run


def test_stripping_is_done_on_both_sides(trained, monkeypatch):
    """A model that writes the right phones with other digits is right once they are stripped."""
    references = trained.data.references()

    def right_but_for_digits(net, spec, sources, **settings):
        texts = [references[spec.source.decode(source)][0] for source in sources]
        return [[type("Target", (), {"text": text.translate(str.maketrans("012", "345"))})] for text in texts]

    monkeypatch.setattr("zoo.seq2seq.translate", right_but_for_digits)
    figures = trained.evaluate()
    assert figures["exact_match"] + (len(references) - figures["scored_sources"]) == 1.0
    assert figures["token_error_rate"] == 0.0
    assert figures["exact_match_unstripped"] == 0.0
    assert figures["bleu"] == pytest.approx(100.0) or figures["bleu"] == 0.0  # three tokens have no 4-grams


def test_sampling_names_the_source_it_draws(trained):
    drawn = trained.sample(seed=1, n=2)
    assert drawn[0].text.split(":")[0] in trained.model.spec.examples
    asked = trained.sample(source="abc", n=2, num_beams=4)
    assert len(asked) == 2
    assert asked[0].scores["score"] >= asked[1].scores["score"]
    assert ":" not in asked[0].text


def test_the_command_line(trained, capsys, tmp_path):
    picture = tmp_path / "new" / "out.png"
    shown = call(capsys, "sample", trained.path, "--source", "abc", "--n", 3, "--attention", picture)
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert len(lines) == 3
    assert all("score -" in line for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")
    one = call(capsys, "sample", trained.path, "--source", "abc", "--n", 1)
    assert one.out.strip() == lines[0].strip() or one.out.split() == lines[0].split()
    refused(call(capsys, "sample", trained.path, "--source", ""), "source is ''", "not empty")
    refused(call(capsys, "sample", trained.path, "--source", "abx"), "'x'", "lacks")
    refused(call(capsys, "sample", trained.path, "--source", "abcabcabc"), "9 symbols long", "at most 7")
    refused(call(capsys, "sample", trained.path, "--source", "abc", "--num-beams", 0), "num_beams is 0", "at least 1")
    refused(call(capsys, "sample", trained.path, "--source", "abc", "--n", 6), "n is 6", "num_beams, 5")
    refused(call(capsys, "sample", trained.path, "--source", "abc", "--attention", "a.txt"), "a.txt", ".png")
    refused(call(capsys, "evaluate", trained.path, "--num-beams", 0), "num_beams is 0")
    refused(call(capsys, "evaluate", trained.path, "--strip", "("), "no regular expression")


def test_a_target_has_the_log_probabilities_of_its_symbols(trained):
    """Symbol by symbol from what `extend` predicts, and in sum what beam search ranks its targets by."""
    model, source = trained.model, trained.model.spec.examples[0]
    net, spec = model.state.net.eval_net(), model.spec
    best = trained.sample(source=source, n=1)[0]
    (scored,) = trained.sample(source=source, score=best.text)
    record = scored.record
    assert (record["source"], record["text"]) == (source, best.text)
    np.testing.assert_allclose(record["log_probability"], best.scores["score"], rtol=1e-4)
    np.testing.assert_allclose(sum(record["log_probabilities"]), record["log_probability"], rtol=1e-5)

    end = spec.target.end_of_text
    target = [end, *spec.target.encode(best.text), end]
    read, count = jnp.asarray(encode_source(spec, source, model.family.context))[None], len(record["tokens"])
    memory = net.encode(read, jnp.ones(read.shape, bool))
    cache, found = net.init_cache(memory, model.family.context), []
    for place in range(count):
        logits, cache = net.extend(jnp.array([[target[place]]]), cache, place, memory)
        found.append(jax.nn.log_softmax(logits[0])[target[place + 1]])
    np.testing.assert_allclose(record["log_probabilities"], found, rtol=1e-4, atol=1e-5)
    assert record["tokens"][-1] == "<end of text>"
    with pytest.raises(UserError, match="score is 40 symbols long"):
        trained.sample(source=source, score="A0 " * 40)
    with pytest.raises(UserError, match="a target of a source that is given"):
        trained.sample(score="a")


def test_a_file_of_sources_is_answered_line_by_line(trained, capsys, tmp_path, caplog):
    path, known = tmp_path / "sources.txt", trained.model.spec.examples[:2]
    path.write_text("\n".join([known[0], "", "a" * 40, "?", known[1]]) + "\n")
    answered = trained.sample(sources=str(path), n=3)
    alone = [trained.sample(source=source, n=3) for source in known]
    assert [text.text for text in answered] == [alone[0][0].text, "", "", "", alone[1][0].text]
    for number, many in ((0, alone[0]), (4, alone[1])):
        best = answered[number].record["best"]
        assert [target["text"] for target in best] == [text.text for text in many]
        np.testing.assert_allclose([t["score"] for t in best], [t.scores["score"] for t in many], rtol=1e-4)
    assert [text.record["best"] for text in answered[1:4]] == [[], [], []]
    for number, why in ((2, "source is empty"), (3, "source is 40 symbols long"), (4, "'?'")):
        assert f"line {number} of {path} has an empty result: " in caplog.text
        assert why in caplog.text

    told = call(capsys, "sample", trained.path, "--sources", path)
    assert told.code == 0
    assert told.out.split("\n") == [*(text.text for text in answered), ""]
    told = call(capsys, "sample", trained.path, "--sources", path, "--json", "--n", "3")
    assert [json.loads(line) for line in told.out.splitlines()] == [text.record for text in answered]
    refused(call(capsys, "sample", trained.path, "--sources", path, "--source", known[0]), "sources is", "source")
    refused(call(capsys, "sample", trained.path, "--sources", tmp_path / "none"), "none cannot be read")


def test_the_text_of_a_line_is_its_best_target(tmp_path):
    net, path = make_net(LUONG), tmp_path / "sources.txt"
    path.write_text("abc\n\nfghij\n")
    texts = translate_lines(net, SPEC, TranslationRequest(sources=str(path), n=3, num_beams=3), LENGTH)
    sources = [encode_source(SPEC, source, LENGTH) for source in ("abc", "fghij")]
    first, last = (found[0].text for found in translate(net, SPEC, sources, length=LENGTH, num_beams=3))
    assert [text.text for text in texts] == [first, "", last]
    assert first or last


def test_a_network_without_attention_has_none_to_draw(trained):
    model = replace(trained.model, family=replace(trained.model.family, attention="none"))
    with pytest.raises(UserError, match="has none to draw"):
        model.family.sample(model, TranslationRequest(source="abc", attention="a.png"), jax.random.key(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("width", 15), ("context", 1), ("dropout", 1.0), ("label_smoothing", -0.1), ("embedding", 0)],
)
def test_settings_that_make_no_network_are_named(field, value):
    with pytest.raises(UserError, match=str(value)):
        replace(LUONG, **{field: value})
    with pytest.raises(UserError, match="multiple"):
        Seq2Seq(network="transformer", width=30, heads=4)


def test_an_encoded_source_ends_and_fits():
    np.testing.assert_array_equal(encode_source(SPEC, "abcdefg", LENGTH), [0, 1, 2, 3, 4, 5, 6, 10])
    with pytest.raises(UserError, match="8 symbols long"):
        encode_source(SPEC, "abcdefga", LENGTH)
