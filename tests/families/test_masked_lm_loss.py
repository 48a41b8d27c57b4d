"""The masked language model's masks, what sees what, its losses and what evaluation masks."""

import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from masked_lm_cases import BERT, OBJECTIVES, SPEC, XLNET, make_batch, make_net

from zoo.data.text.masking import choose_targets, corrupt, order_of
from zoo.masked_lm import Encoder, State

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


@pytest.mark.slow
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
