"""The masked language model: masks, what sees what, parity with transformers' BERT, filling and writing."""

import json
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from paths import REFERENCES
from safetensors.numpy import load_file, save_file

from zoo import Optimizer
from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.data.text.masking import choose_targets, corrupt, order_of
from zoo.data.text.sentence_pairs import SentencePairs, make_spec
from zoo.data.tokenizers import BPE, Characters
from zoo.harness.trained import load_run
from zoo.interop.tokenizer_json import read_tokenizer
from zoo.interop.transformers import export_run, import_run, read_transformers, write_transformers
from zoo.masked_lm import HELD_OUT_MASKS, Encoder, MaskedLM, State, ranks
from zoo.metrics.intervals import wilson_interval
from zoo.sampling.tokens.infill import FillRequest
from zoo.sampling.tokens.logits import Knobs
from zoo.sampling.tokens.mask_predict import mask_predict

REFERENCE = REFERENCES / "bert"
SPEC = make_spec(Characters("abcdefgh "))
BERT = MaskedLM(layers=2, heads=2, width=16, context=12, dropout=0.0)
XLNET = replace(BERT, objective="permutation")
OBJECTIVES = pytest.mark.parametrize("family", [BERT, XLNET], ids=["masked", "permutation"])


@cache
def make_net(family):
    """A network with weights far from their usual start, so that every path matters."""
    graphdef, params = nnx.split(Encoder(family, SPEC, nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params))


def make_batch(rows=3, length=(12, 9, 7)):
    """Rows [CLS] a [SEP] b [SEP] of random text, padded."""
    tokens = np.random.default_rng(0).integers(0, 9, (rows, 12)).astype(np.int32)
    tokens[:, 0], tokens[:, 4] = SPEC.classify, SPEC.separate
    for row, n in enumerate(length):
        tokens[row, n - 1], tokens[row, n:] = SPEC.separate, SPEC.padding
    place, length = np.arange(12)[None], np.array(length, np.int32)
    return {
        "tokens": jnp.asarray(tokens),
        "segment": jnp.asarray(((place > 4) & (place < length[:, None])).astype(np.int32)),
        "length": jnp.asarray(length),
        "follows": jnp.arange(rows) % 2,
        "row": jnp.arange(rows),
        "valid": jnp.ones(rows, bool),
    }


# --------------------------------------------------------------------------------------------- masks


def test_targets_are_the_share_of_a_rows_text_and_never_special():
    tokens = jax.random.randint(jax.random.key(0), (200, 12), 0, 9).at[:, 0].set(SPEC.classify)
    tokens = tokens.at[:100, 6:].set(SPEC.padding).at[0].set(SPEC.padding)
    targets = choose_targets(tokens, SPEC.special, 0.5, jax.random.key(1), jnp.arange(200))
    counts = targets.counted.sum(1)
    assert counts.tolist() == [0] + [2] * 99 + [6] * 100  # halves of 0, 5 (rounded to even) and 11 (5.5, likewise)
    assert not np.isin(targets.labels[targets.counted], SPEC.special).any()
    np.testing.assert_array_equal(targets.labels, jnp.take_along_axis(tokens, targets.positions, 1))
    assert all(len(set(row)) == len(row) for row in targets.positions.tolist())
    drawn = np.bincount(np.asarray(targets.positions[100:])[np.asarray(targets.counted[100:])], minlength=12)
    assert drawn[0] == 0
    assert scipy.stats.chisquare(drawn[1:]).pvalue > 1e-3


def test_a_short_row_has_one_target():
    """0.15 of three tokens rounds to none."""
    targets = choose_targets(jnp.array([[1, 2, 3]]), SPEC.special, 0.15, jax.random.key(0), jnp.arange(1))
    assert targets.counted.tolist() == [[True]]


def test_eight_of_ten_are_masked_one_is_another_and_one_stays():
    tokens = jnp.full((400, 101), 3)
    rows, key = jnp.arange(400), jax.random.key(2)
    targets = choose_targets(tokens, (99,), 0.15, key, rows)
    seen = corrupt(tokens, targets, 98, 50, jax.random.key(3), rows)
    at = np.asarray(jnp.take_along_axis(seen, targets.positions, 1))
    n = at.size
    stays = 0.1 + 0.1 / 50  # as itself, or drawn
    for share, found in ((0.8, at == 98), (stays, at == 3), (1 - 0.8 - stays, (at != 98) & (at != 3))):
        assert abs(found.mean() - share) < 4 * math.sqrt(share * (1 - share) / n)
    assert len(np.unique(at[(at != 98) & (at != 3)])) == 49
    changed = seen != tokens
    assert not changed.at[rows[:, None], targets.positions].set(False).any()


def test_a_rows_masks_are_its_own_and_new_in_every_step():
    tokens = jnp.broadcast_to(jnp.arange(9)[None], (6, 9))
    rows = jnp.arange(6)

    def draw(key, rows):
        return choose_targets(tokens[rows], SPEC.special, 0.4, jax.random.key(key), rows).positions

    whole = draw(0, rows)
    np.testing.assert_array_equal(draw(0, rows[::-1])[::-1], whole)
    assert (draw(1, rows) != whole).any()
    assert (whole[0] != whole[1]).any()


def test_the_order_is_that_in_which_targets_were_drawn():
    batch = make_batch()
    targets = choose_targets(batch["tokens"], SPEC.special, 0.4, jax.random.key(0), batch["row"])
    rank = np.asarray(order_of(targets, 12))
    for row in range(3):
        count = int(targets.counted[row].sum())
        assert rank[row, targets.positions[row, :count]].tolist() == list(range(1, count + 1))
        assert (rank[row] > 0).sum() == count


# ------------------------------------------------------------------------------------ what sees what


def influence(net, batch, positions, rank, read):
    """How much each position's token embedding moves what is read: gradient norms [t] of row 1."""
    tokens = batch["tokens"]
    graphdef, params = nnx.split(net)

    class Moved(nnx.Module):
        def __init__(self, inner, by):
            self.inner, self.by = inner, by

        def __call__(self, symbols):
            x = self.inner(symbols)
            return x + self.by if symbols is tokens else x

        def logits(self, x):
            return self.inner.logits(x)

    def value(by):
        inside = nnx.merge(graphdef, params)
        inside.embedding = Moved(inside.embedding, by)
        return read(inside(tokens, batch["segment"], batch["length"], positions, rank))

    gradient = jax.grad(value)(jnp.zeros((*tokens.shape, 16)))
    assert not np.asarray(gradient[0]).any()
    return np.asarray(jnp.linalg.norm(gradient[1], axis=-1))


def test_with_masks_every_position_sees_every_other_and_no_padding():
    net, batch = make_net(BERT), make_batch()
    positions = jnp.array([[1], [2], [3]])
    moved = influence(net, batch, positions, None, lambda out: jax.nn.log_softmax(net.token_logits(out[1]))[1, 0, 3])
    assert (moved[:9] > 1e-7).all()
    assert (moved[9:] == 0).all()


def test_with_permutation_a_target_sees_what_comes_before_it_in_the_order_and_not_itself():
    net, batch = make_net(XLNET), make_batch()
    order = [5, 2, 7]
    rank = jnp.zeros((3, 12), jnp.int32).at[:, jnp.array(order)].set(jnp.arange(1, 4)[None, :])
    positions = jnp.broadcast_to(jnp.array(order)[None], (3, 3))
    for turn, place in enumerate(order):
        moved = influence(
            net, batch, positions, rank, lambda out, turn=turn: jax.nn.log_softmax(net.token_logits(out[1]))[1, turn, 3]
        )
        unseen = {*order[turn:], 9, 10, 11}
        assert [i for i in range(12) if moved[i] == 0] == sorted(unseen), place
        assert (moved[[i for i in range(12) if i not in unseen]] > 1e-7).all()
        # The content stream sees its own token too.
        moved = influence(net, batch, positions, rank, lambda out, place=place: out[0][1, place, 0])
        assert [i for i in range(12) if moved[i] == 0] == sorted(unseen - {place}), place


@OBJECTIVES
def test_unknown_tokens_are_not_looked_at(family):
    net, batch = make_net(family), make_batch()
    unknown = jnp.zeros((3, 12), bool).at[:, jnp.array([2, 6])].set(True)
    positions = jnp.broadcast_to(jnp.array([[2, 6]]), (3, 2))
    ask = jax.jit(lambda x: net.predict(x, batch["segment"], batch["length"], unknown, positions))
    logits = ask(batch["tokens"])
    np.testing.assert_array_equal(logits, ask(jnp.where(unknown, 1, batch["tokens"])))
    assert not np.allclose(logits, ask(batch["tokens"].at[:, 3].set(2)), atol=1e-3)


@OBJECTIVES
def test_neither_padding_nor_the_rest_of_the_batch_changes_a_row(family):
    net, batch = make_net(family), make_batch()
    figures = jax.jit(lambda batch: family._figures(net, batch, targets(batch), None))

    def targets(batch):
        return choose_targets(batch["tokens"], SPEC.special, 0.3, jax.random.key(0), batch["row"])

    whole = figures(batch)
    order = jnp.array([2, 0, 1])
    moved = figures({name: value[order] for name, value in batch.items()})
    other = figures(batch | {"tokens": batch["tokens"], "segment": batch["segment"].at[1, 9:].set(1)})
    for name, pair in whole.items():
        for value, there, padded in zip(pair, moved[name], other[name], strict=True):
            np.testing.assert_allclose(value[order], there, rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(value, padded, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_loss_is_both_tasks_log_probabilities():
    net, batch = make_net(BERT), make_batch()
    total, weight, pairs = BERT.loss(net, batch, jax.random.key(5))
    assert weight == 3
    target_key, noise_key, _ = jax.random.split(jax.random.key(5), 3)
    targets = choose_targets(batch["tokens"], SPEC.special, BERT.mask_share, target_key, batch["row"])
    seen = corrupt(batch["tokens"], targets, SPEC.mask, SPEC.vocab_size, noise_key, batch["row"])
    x, asked = net(seen, batch["segment"], batch["length"], targets.positions)
    log_p, log_next = (np.asarray(jax.nn.log_softmax(z)) for z in (net.token_logits(asked), net.next_logits(x)))
    by_hand = 0.0
    for row in range(3):
        count = int(targets.counted[row].sum())
        by_hand -= np.mean([log_p[row, i, targets.labels[row, i]] for i in range(count)])
        by_hand -= log_next[row, 0, 0 if row % 2 else 1]
    assert total == pytest.approx(float(by_hand), rel=1e-4)
    assert pairs["masked_nats"][1] == targets.counted.sum()


@pytest.fixture
def copies(monkeypatch):
    """Has networks answer each position with the token that they see there, 10 nats above all others."""
    asked = []

    def hidden(self, tokens, segment, length, positions, rank=None, *, key=None, rows=None):
        asked.append(SimpleNamespace(tokens=np.asarray(tokens), positions=np.asarray(positions), rank=rank, key=key))
        seen = 10.0 * jax.nn.one_hot(tokens, SPEC.vocab_size)
        return seen, jnp.take_along_axis(seen, positions[:, :, None], 1)

    monkeypatch.setattr(Encoder, "__call__", hidden)
    monkeypatch.setattr(Encoder, "token_logits", lambda self, x: x)
    monkeypatch.setattr(Encoder, "next_logits", lambda self, x: jnp.full((len(x), 1, 2), jnp.array([3.0, 1.0])))
    return asked


def held_out_figures(family, batch, seed=0):
    net = nnx.eval_shape(lambda: Encoder(family, SPEC, nnx.Rngs(0)))
    return family.evaluate(State(SimpleNamespace(eval_net=lambda: net)), batch, jax.random.key(seed))


def test_evaluation_masks_every_target_and_no_other_token(copies):
    """The network copies what it sees: with the answers in sight its loss would be near 0 and all its answers right."""
    batch = make_batch()
    figures = held_out_figures(replace(BERT, mask_share=0.3), batch)
    (asked,) = copies
    masked = asked.tokens == SPEC.mask
    assert masked.sum(1).tolist() == [3, 2, 1]  # 0.3 of the 9, 6 and 4 tokens that are not special, rounded
    tokens = np.asarray(batch["tokens"])
    np.testing.assert_array_equal(asked.tokens[~masked], tokens[~masked])
    assert not np.isin(tokens[masked], SPEC.special).any()
    nats, count = figures["masked_nats"]
    assert count.tolist() == [3, 2, 1]
    wrong = math.log(math.exp(10) + SPEC.vocab_size - 1)  # [MASK] has 10 where the answer has 0
    np.testing.assert_allclose(nats, wrong * count, rtol=1e-5)
    assert figures["masked_top1"][0].tolist() == [0, 0, 0]
    next_nats, right = figures["next_sentence_nats"][0], figures["next_sentence_accuracy"][0]
    follows = [-math.log(math.exp(z) / (math.exp(3) + math.exp(1))) for z in (1, 3, 1)]  # rows 0 and 2 do not follow
    np.testing.assert_allclose(next_nats, follows, rtol=1e-5)
    assert right.tolist() == [0, 1, 0]
    np.testing.assert_allclose(figures["loss"][0], wrong + np.array(follows), rtol=1e-5)


def test_held_out_masks_are_the_same_in_every_evaluation(copies):
    batch = make_batch()
    for seed in (0, 1):
        held_out_figures(replace(BERT, mask_share=0.3), batch, seed)
    np.testing.assert_array_equal(copies[0].tokens, copies[1].tokens)
    assert copies[0].key is None


def test_evaluation_by_permutation_ranks_the_targets_it_asks_for(copies):
    figures = held_out_figures(replace(XLNET, mask_share=0.3), make_batch())
    (asked,) = copies
    for row, count in enumerate([3, 2, 1]):
        assert asked.rank[row, asked.positions[row, :count]].tolist() == [1, 2, 3][:count]
        assert (asked.rank[row] > 0).sum() == count
    assert figures["masked_nats"][1].tolist() == [3, 2, 1]


def test_training_masks_are_new_at_every_step_and_drop_out(copies):
    family, batch = replace(BERT, mask_share=0.3), make_batch()
    net = nnx.eval_shape(lambda: Encoder(family, SPEC, nnx.Rngs(0)))
    for seed in range(3):
        family.loss(net, batch, jax.random.key(seed))
    assert all((copies[0].positions != other.positions).any() for other in copies[1:])
    assert all(asked.key is not None for asked in copies)


# ------------------------------------------------------------------------------- transformers' BERT


@cache
def load_bert(folder):
    family, params = read_transformers(folder)
    spec = make_spec(read_tokenizer(folder, None))
    abstract = nnx.eval_shape(lambda: Encoder(family, spec, nnx.Rngs(0)))
    graphdef, _, rest = nnx.split(abstract, nnx.Param, ...)
    return family, spec, params, nnx.merge(graphdef, params, nnx.to_pure_dict(rest))


def check_bert(folder):
    """Hidden states and logits of both heads are transformers'."""
    _, _, _, net = load_bert(folder)
    arrays = load_file(folder / "expected.safetensors")
    tokens, segment, length = (jnp.asarray(arrays[name]) for name in ("tokens", "segment", "length"))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    hidden, asked = jax.jit(lambda: net(tokens, segment, length, positions))()
    real = np.arange(tokens.shape[1])[None] < np.asarray(length)[:, None]
    np.testing.assert_allclose(hidden[real], arrays["hidden"][real], atol=2e-5)
    np.testing.assert_allclose(net.token_logits(asked)[real], arrays["token_logits"][real], atol=1e-4)
    np.testing.assert_allclose(net.next_logits(hidden)[:, 0], arrays["next_logits"], atol=2e-5)


def test_bert_is_transformers():
    check_bert(REFERENCE)


def test_bert_is_written_as_it_was_read(tmp_path):
    family, spec, params, _ = load_bert(REFERENCE)
    write_transformers(tmp_path / "out", family, spec, params)
    original, written = (load_file(folder / "model.safetensors") for folder in (REFERENCE, tmp_path / "out"))
    assert original.keys() == written.keys()
    assert all(np.array_equal(original[name], written[name]) for name in original)
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (REFERENCE, tmp_path / "out"))
    assert {name: theirs[name] for name in ours} == ours | {"eos_token_id": None}
    again, _ = read_transformers(tmp_path / "out")
    assert again == family
    assert make_spec(read_tokenizer(tmp_path / "out", None)).special == spec.special


def changed(folder, config=None, change=lambda tensors: tensors):
    folder.mkdir()
    values = json.loads((REFERENCE / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(values))
    save_file(change(load_file(REFERENCE / "model.safetensors")), folder / "model.safetensors")
    return folder


def test_names_of_2018_and_tensors_saved_twice(tmp_path):
    def as_in_2018(tensors):
        words, bias = (tensors[n] for n in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"))
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            tensors = {n.replace(new, name): value for n, value in tensors.items()}
        return tensors | {
            "cls.predictions.decoder.weight": words,
            "cls.predictions.decoder.bias": bias,
            "bert.embeddings.position_ids": np.arange(48)[None],
        }

    family, params = read_transformers(changed(tmp_path / "old", change=as_in_2018))
    assert family == load_bert(REFERENCE)[0]
    jax.tree.map(np.testing.assert_array_equal, params, load_bert(REFERENCE)[2])


def test_a_bert_without_the_second_head(tmp_path):
    def bare(tensors):
        return {n: value for n, value in tensors.items() if "pooler" not in n and "seq_relationship" not in n}

    family, params = read_transformers(changed(tmp_path / "mlm", {"architectures": ["BertForMaskedLM"]}, bare))
    assert not family.next_sentence
    assert "pooler" not in params


@pytest.mark.parametrize(
    ("config", "change", "named"),
    [
        ({"hidden_act": "relu"}, dict, "hidden_act = 'relu'"),
        ({"type_vocab_size": 3}, dict, "type_vocab_size = 3"),
        ({"position_embedding_type": "relative_key"}, dict, "relative_key"),
        ({"is_decoder": True}, dict, "is_decoder = True"),
        ({"num_hidden_layers": 3}, dict, r"lacks the tensors bert\.encoder\.layer\.2"),
        (
            {},
            lambda t: t | {"cls.predictions.decoder.bias": t["cls.predictions.bias"] + 1},
            r"decoder\.bias is not cls\.predictions\.bias",
        ),
    ],
)
def test_a_bert_that_cannot_be_read_is_named(tmp_path, config, change, named):
    with pytest.raises(UserError, match=named):
        read_transformers(changed(tmp_path / "bert", config, change))


def test_what_transformers_lacks_is_not_written(tmp_path):
    with pytest.raises(UserError, match="objective 'permutation'"):
        write_transformers(tmp_path, XLNET, SPEC, {})


def test_an_imported_bert_fills_and_is_exported(tmp_path):
    import_run(REFERENCE, tmp_path / "run")
    trained = load_run(tmp_path / "run")
    fills = trained.sample(fill="the quick [MASK] jumps", n=3)
    (_, _, _, net), tokenizer = load_bert(REFERENCE), trained.model.spec.tokenizer
    ids = jnp.array([[2, *tokenizer.encode("the quick"), 4, *tokenizer.encode("jumps"), 3]])
    place = ids[0].tolist().index(4)
    x, _ = net(ids, jnp.zeros_like(ids), jnp.array([ids.shape[1]]), jnp.array([[place]]))
    logits = np.asarray(net.token_logits(x))[0, place].astype(np.float64)
    logits[[0, 2, 3, 4]] = -np.inf
    best = np.argsort(-logits)[:3]
    for fill, token in zip(fills, best, strict=True):
        assert fill.text == tokenizer.decode([*tokenizer.encode("the quick"), token, *tokenizer.encode("jumps")])
        assert fill.scores["probability"] == pytest.approx(np.exp(logits[token]) / np.exp(logits).sum(), rel=1e-4)
    export_run(tmp_path / "run", tmp_path / "out")
    original, written = (load_file(folder / "model.safetensors") for folder in (REFERENCE, tmp_path / "out"))
    assert all(np.array_equal(original[name], written[name]) for name in original)


def test_byte_pairs_are_exported_with_their_special_tokens(tmp_path):
    spec = make_spec(BPE.train(["abc abc dab fade cab"], 270))
    net = Encoder(BERT, spec, nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[1])
    write_transformers(tmp_path / "out", BERT, spec, params)
    again = make_spec(
        read_tokenizer(tmp_path / "out", json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"])
    )
    assert again.special == spec.special
    assert again.vocab_size == spec.vocab_size
    assert again.tokenizer.encode("dab fade").tolist() == spec.tokenizer.encode("dab fade").tolist()


# ---------------------------------------------------------------------------------------- what is made


@cache
def make_model(family, tokenizer):
    spec = make_spec(tokenizer)
    setup = Setup(optimizer=Optimizer(), total_steps=1, batch_size=4)
    return Model(family, spec, family.init(spec, setup, jax.random.key(0)), 0)


def ask(model, **request):
    return model.family.sample(model, FillRequest(**request), jax.random.key(0))


@OBJECTIVES
def test_fills_are_ranked_and_their_probabilities_sum_to_one(family):
    model = make_model(family, SPEC.tokenizer)
    fills = ask(model, fill="ab[MASK]d", n=9)
    assert sorted(fill.text for fill in fills) == sorted(f"ab{c}d" for c in "abcdefgh ")
    found = [fill.scores["probability"] for fill in fills]
    assert found == sorted(found, reverse=True)
    assert sum(found) == pytest.approx(1.0, abs=1e-5)


def test_several_masks_are_filled_one_at_a_time():
    model = make_model(BERT, SPEC.tokenizer)
    fills = [fill.text for fill in ask(model, fill="[MASK]b[MASK]", n=2)]
    assert all(text.endswith("b[MASK]") and len(text) == len("ab[MASK]") for text in fills[:2])
    assert all(text.startswith("[MASK]b") and len(text) == len("[MASK]ba") for text in fills[2:])


def test_a_mask_takes_the_space_before_it_where_words_begin_with_one():
    model = make_model(BERT, BPE.train(["the cat the cat the dog dogs"], 270))
    pieces = model.spec.tokenizer.pieces
    texts = {fill.text for fill in ask(model, fill="the [MASK] dog", n=len(pieces) - 1)}
    assert "the cat dog" in texts
    assert not any(text.startswith("the  cat") for text in texts)
    assert all(text.endswith(" dog") for text in texts)


@OBJECTIVES
def test_lines_have_their_length_and_their_prompt(family):
    model = make_model(family, SPEC.tokenizer)
    lines = [text.text for text in ask(model, n=3, tokens=5, prompt="abc")]
    assert len(set(lines)) > 1
    assert all(line.startswith("abc\n") and len(line) <= 4 + 5 for line in lines)
    assert not any("[" in line for line in lines)
    alone = ask(model, n=1, tokens=5, prompt="abc")
    assert alone[0].text == lines[0]


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"fill": "The Prince of Denmark"}, r"no.* \[MASK\]|\[MASK\] where"),
        ({"fill": ""}, r"\[MASK\] where"),
        ({"fill": "a[MASK]", "prompt": "b"}, "prompt"),
        ({"fill": "a" * 20 + "[MASK]"}, "23 tokens"),
        ({"tokens": 20}, "22 tokens"),
        ({"fill": "[MASK]", "n": 10}, "n is 10"),
        ({"fill": "Q[MASK]"}, "'Q'"),
        ({"iterations": 0}, "iterations is 0"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_cannot_be_made_is_named(request_, named):
    with pytest.raises(UserError, match=named):
        ask(make_model(BERT, SPEC.tokenizer), **request_)


def knobs(temperature, rows):
    return Knobs(*(jnp.full(rows, value) for value in (temperature, 0, 1.0, 0.0, 1.0)))


def test_mask_predict_keeps_the_probable_and_finds_the_others_anew():
    """Position i's best token is i plus how many are known, and the surer the higher i is."""
    seen = []

    def predict(tokens, unknown):
        jax.debug.callback(lambda u: seen.append(np.asarray(u)), unknown)
        known = (~unknown).sum(1, keepdims=True)
        best = (jnp.arange(4)[None, :] + known) % 6
        return (1.0 + jnp.arange(4.0))[None, :, None] * jax.nn.one_hot(best, 6)

    tokens, _ = mask_predict(predict, 4, iterations=4, knobs=knobs(0.0, 2), keys=jax.random.split(jax.random.key(0), 2))
    jax.effects_barrier()
    unknown = [mask[0].tolist() for mask in seen]
    assert [sum(mask) for mask in unknown] == [4, 3, 2, 1]
    assert unknown[1] == [True, True, True, False]
    assert unknown[3] == [True, False, False, False]
    assert tokens[0].tolist() == [3, 3, 3, 3]  # position i is chosen last when i of the others are known: 3 - i of them


def test_mask_predict_in_one_iteration_draws_from_the_distribution():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    n = 4000
    tokens, log_probability = mask_predict(
        lambda tokens, unknown: jnp.broadcast_to(logits, (*tokens.shape, 3)), 2, iterations=1, knobs=knobs(1.0, n),
        keys=jax.random.split(jax.random.key(0), n),
    )  # fmt: skip
    np.testing.assert_allclose(log_probability, logits[tokens], atol=1e-5)
    joint = np.bincount(np.asarray(tokens[:, 0] * 3 + tokens[:, 1]), minlength=9)
    expected = n * np.outer([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]).ravel()
    assert scipy.stats.chisquare(joint, expected).pvalue > 1e-3


# -------------------------------------------------------------------------------------------- figures


def test_wilson_interval_is_scipy_s():
    for hits, count in ((50, 100), (0, 7), (7, 7), (403, 576)):
        theirs = scipy.stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
        np.testing.assert_allclose(wilson_interval(hits / count, count, 1.959964), theirs, atol=1e-6)


def scored_with_labels(data):
    """The scores of a fresh model that is given some means, and the tokens that it has to guess."""
    family = replace(BERT, mask_share=0.5)
    setup = Setup(optimizer=Optimizer(), total_steps=1, batch_size=8)
    model = Model(family, data.spec, family.init(data.spec, setup, jax.random.key(0)), 0)
    rows = {"masked_nats": 1.5, "next_sentence_accuracy": 0.75}
    figures = family.score(model, rows, data, family.Scoring(), jax.random.key(0))
    labels = []
    for batch in map(data.held_out_at, range(data.held_out_batches)):
        tokens, rows_ = jnp.asarray(batch["tokens"]), jnp.asarray(batch["row"])
        chosen = choose_targets(tokens, data.spec.special, 0.5, jax.random.key(HELD_OUT_MASKS), rows_)
        labels.extend(np.asarray(chosen.labels)[batch["valid"]][np.asarray(chosen.counted)[batch["valid"]]])
    return figures, np.array(labels)


def test_scores_stand_beside_the_unigram_model_s(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["aaa b", "aa bb a", "aaaa c"] * 60))
    data = SentencePairs(path=str(tmp_path / "a.txt"), tokenizer="characters").open(length=12, batch_size=8, seed=0)
    figures, labels = scored_with_labels(data)
    assert figures["masked_perplexity"] == pytest.approx(math.exp(1.5))
    assert data.frequencies.argmax() == data.spec.tokenizer.encode("a")[0]
    hits = labels == data.frequencies.argmax()
    assert figures["unigram_top1"] == pytest.approx(np.mean(hits))
    assert figures["masked_tokens"] == len(hits)
    assert figures["unigram_top5"] == 1.0
    assert figures["next_sentence_low"] < 0.75 < figures["next_sentence_high"]
    assert figures["next_sentence_pairs"] == sum(
        data.held_out_at(i)["valid"].sum() for i in range(data.held_out_batches)
    )


def test_of_equally_frequent_tokens_the_first_are_the_unigram_models(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["aabcdefghiii jklm", "nopqr stuvwx", "yza iiii"] * 60))
    data = SentencePairs(path=str(tmp_path / "a.txt"), tokenizer="characters").open(length=12, batch_size=8, seed=0)
    frequencies = np.random.default_rng(1).integers(0, 3, data.spec.vocab_size)  # an unstable sort ranks others first
    data.__dict__["frequencies"] = frequencies
    ranked = sorted(range(len(frequencies)), key=lambda i: (-frequencies[i], i))
    figures, labels = scored_with_labels(data)
    for n in (1, 5):
        assert figures[f"unigram_top{n}"] == pytest.approx(np.isin(labels, ranked[:n]).mean())
    assert 0 < figures["unigram_top5"] < 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("heads", 3), ("context", 4), ("mask_share", 0.0), ("mask_share", 1.5), ("dropout", 1.0),
     ("attention_dropout", -0.1), ("mlp_width", -1), ("norm_epsilon", 0.0)],
)  # fmt: skip
def test_settings_that_make_no_network_are_named(field, value):
    with pytest.raises(UserError, match=str(value)):
        replace(BERT, **{field: value})


def test_ties_before_the_label_count_against_it():
    logits = jnp.array([[[2.0, 1.0, 2.0, 2.0, 3.0]] * 4]).reshape(1, 4, 5)
    # Best first: 4, then the ties 0, 2, 3 in their order, then 1.
    np.testing.assert_array_equal(ranks(logits, jnp.array([[0, 1, 3, 4]])), [[1, 4, 3, 0]])
