"""Masked diffusion's bound against enumeration, what is modelled in a row, and its figures."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from masked_diffusion_cases import (
    BLOCKS,
    LINES,
    POSITIONS,
    SMALL,
    SYMBOLS,
    UNKNOWN,
    Table,
    make_batch,
    make_model,
    state_of,
)
from masked_diffusion_cases import make_net as make_denoiser

from zoo import masked_diffusion
from zoo.core.errors import UserError
from zoo.core.random import spread
from zoo.data.splits import Parts
from zoo.data.text.blocks import TextBlocks, make_stream
from zoo.masked_diffusion import MaskedDiffusion
from zoo.metrics.tokens import UnmaskScoring

FAMILY = MaskedDiffusion(layers=1, heads=1, width=4, context=POSITIONS, eval_times=POSITIONS)
ORDERS = list(itertools.permutations(range(POSITIONS)))


def rows_of(x, n):
    """n equal rows of a table's tokens."""
    return {
        "tokens": jnp.tile(jnp.array([[0, *x]]), (n, 1)),
        "length": jnp.full(n, 1 + POSITIONS),
        "row": jnp.arange(n),
    }


@pytest.fixture
def every_order(monkeypatch):
    """Has the noise that selects masks run through all orders, in turn."""
    noise = jnp.array(ORDERS, jnp.float32)
    monkeypatch.setattr(masked_diffusion, "uniform", lambda key, rows, shape: noise[rows % len(ORDERS)])


def enumerated(net, x):
    """The mean estimate over all orders and all numbers of masked tokens, each once."""
    n = POSITIONS * len(ORDERS)
    t = (jnp.arange(n) // len(ORDERS) + 0.5) / POSITIONS
    return FAMILY.nelbo(net, rows_of(x, n), t, jax.random.key(0)).mean()


# ---------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("x", [(0, 1, 2, 0), (2, 2, 1, 0), (1, 0, 0, 0)], ids=str)
def test_the_estimates_mean_is_the_bound_and_the_mean_over_orders_of_autoregressive_losses(every_order, x):
    net = Table()
    exact = net.exact_bound(x)
    assert net.mean_over_orders(x) == pytest.approx(exact, rel=1e-10)
    assert enumerated(net, x) == pytest.approx(exact, rel=1e-5)


def test_the_bound_is_a_bound_of_what_the_reverse_process_samples():
    """-log of the mean probability over orders, by which a sampler draws x, is at most the mean of -log."""
    net = Table()
    total = 0.0
    for x in itertools.product(range(SYMBOLS), repeat=POSITIONS):
        losses = [-sum(net.log_p(x, order[k:])[i] for k, i in enumerate(order)) for order in ORDERS]
        probability = np.mean(np.exp(-np.array(losses)))
        assert -math.log(probability) < net.exact_bound(x)
        total += probability
    assert total == pytest.approx(1.0)


def test_random_masks_and_times_have_that_mean():
    net, x, n = Table(), (0, 1, 2, 0), 20000
    batch = rows_of(x, n)
    t = spread(jax.random.key(1), batch["row"])
    estimates = np.asarray(FAMILY.nelbo(net, batch, t, jax.random.key(2)), np.float64)
    assert abs(estimates.mean() - net.exact_bound(x)) < 4 * estimates.std() / math.sqrt(n)
    total, tokens, _ = FAMILY.loss(net, batch, jax.random.key(3))
    assert tokens == (POSITIONS - 1) * n  # the first is an end after an end
    assert abs(float(total) / n - net.exact_bound(x)) < 4 * estimates.std() / math.sqrt(n)


def test_its_gradient_is_the_exact_bounds(every_order):
    """By central differences of the definition, in float64."""
    x, net = (0, 1, 2, 0), Table()
    start = net.held.logits.copy()

    def value(logits):
        net.held.logits = logits
        return enumerated(net, x)

    gradient = np.asarray(jax.grad(value)(jnp.asarray(start, jnp.float32)))
    masked_rows = [(UNKNOWN, 1, 2, 0), (0, UNKNOWN, UNKNOWN, 0), (UNKNOWN,) * 4, (0, 1, 2, UNKNOWN)]
    for x_t in masked_rows:
        for i, symbol in itertools.product(range(POSITIONS), range(SYMBOLS)):
            moved = []
            for by in (1e-5, -1e-5):
                logits = start.copy()
                logits[(*x_t, i, symbol)] += by
                row = logits[(*x_t, i)]
                logits[(*x_t, i)] = row - np.log(np.exp(row).sum())
                net.held.logits = logits
                moved.append(net.exact_bound(x))
            # Table gives log-probabilities, so the loss's own softmax changes nothing.
            assert gradient[(*x_t, i, symbol)] == pytest.approx((moved[0] - moved[1]) / 2e-5, abs=1e-5)
    assert np.count_nonzero(gradient) == sum(
        SYMBOLS * size for size in range(1, 5) for _ in itertools.combinations(range(4), size)
    )


def test_masks_of_one_number_are_equally_likely(monkeypatch):
    seen = []
    monkeypatch.setattr(Table, "__call__", lambda self, x_t, *_, **__: seen.append(x_t) or jnp.zeros((*x_t.shape, 3)))
    n = 12000
    FAMILY.nelbo(Table(), rows_of((0, 1, 2, 0), n), jnp.full(n, 0.3), jax.random.key(0))
    masked = np.asarray(seen[0])[:, 1:] == UNKNOWN
    assert not (np.asarray(seen[0])[:, 0] == UNKNOWN).any()
    assert (masked.sum(1) == 2).all()  # floor(0.3 x 4) + 1
    _, counts = np.unique(masked, axis=0, return_counts=True)
    assert len(counts) == 6
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_evaluation_takes_one_time_in_each_part(every_order):
    """With as many times as positions every number of masked tokens occurs once, so 24 rows enumerate the bound."""
    net, x = Table(), (1, 0, 2, 2)
    rows = rows_of(x, len(ORDERS)) | {"characters": jnp.full(len(ORDERS), 2)}
    figures = FAMILY.evaluate(state_of(net), rows, jax.random.key(0))
    nats, count = figures["loss"]
    assert nats.mean() == pytest.approx(net.exact_bound(x), rel=1e-5)
    assert count.tolist() == [4.0] * len(ORDERS)
    bits, characters = figures["bits_per_character"]
    np.testing.assert_allclose(bits, nats / math.log(2), rtol=1e-6)
    assert characters.tolist() == [2.0] * len(ORDERS)


def test_masks_of_different_times_are_drawn_independently(monkeypatch):
    """With 1, 2, 3 and 4 of 4 tokens masked, the one is among the two with probability 1/2 and among the three 3/4."""
    seen, n = [], 400

    def record(self, x_t, *_, **__):
        jax.debug.callback(lambda x: seen.append(np.asarray(x[:, 1:]) == UNKNOWN), x_t)
        return jnp.zeros((*x_t.shape, SYMBOLS))

    monkeypatch.setattr(Table, "__call__", record)
    FAMILY.evaluate(state_of(Table()), rows_of((0, 1, 2, 0), n), jax.random.key(0))
    jax.effects_barrier()
    # All of a row's times lie at one place of their parts, so that the k-th has k tokens.
    one, two, three, four = sorted(seen, key=np.sum)
    assert [int(masked.sum()) for masked in (one, two, three, four)] == [n, 2 * n, 3 * n, 4 * n]
    among = [(one <= others).all(1).sum() for others in (two, three)]
    np.testing.assert_allclose(among, [n / 2, 3 * n / 4], atol=4 * math.sqrt(n) / 2)


def test_dropout_is_of_training_alone():
    net, batch = make_denoiser(BLOCKS, replace(SMALL, dropout=0.5)), make_batch()
    dropped, whole = (jax.jit(SMALL.loss)(each, batch, jax.random.key(4))[0] for each in (net, make_denoiser()))
    assert abs(dropped - whole) > 1
    assert estimate(net, batch).tolist() == estimate(make_denoiser(), batch).tolist()


def test_the_loss_sums_over_rows_and_counts_tokens():
    net, batch, key = make_denoiser(), make_batch(), jax.random.key(4)
    total, weight, _ = jax.jit(SMALL.loss)(net, batch, key)
    assert weight == 12 + 12 + 8
    alone = jax.jit(lambda row: SMALL.loss(net, row, key)[0])
    parts = [alone({name: value[i : i + 1] for name, value in batch.items()}) for i in range(3)]
    assert total == pytest.approx(float(sum(parts)), rel=1e-5)


# ------------------------------------------------------------------------------------ what is modelled


def estimate(net, batch):
    rows = len(batch["row"])
    return jax.jit(lambda b: SMALL.nelbo(net, b, jnp.full(rows, 0.6), jax.random.key(0)))(batch)


def test_padding_of_blocks_does_not_change_the_bound():
    net, batch = make_denoiser(), make_batch()
    other = batch | {"tokens": batch["tokens"].at[2, 9:].set(3)}
    np.testing.assert_array_equal(estimate(net, batch), estimate(net, other))
    seen = batch | {"tokens": batch["tokens"].at[2, 8].set(batch["tokens"][2, 8] - 1)}
    assert estimate(net, batch)[2] != estimate(net, seen)[2]


def test_a_short_block_is_bounded_as_if_it_stood_alone():
    """All masked, so that no noise matters: the mean -log p of its 8 tokens, each position seen among 9 alone."""
    net, batch = make_denoiser(), make_batch()
    whole = jax.jit(lambda: SMALL.nelbo(net, batch, jnp.full(3, 0.999), jax.random.key(0)))()
    short = jnp.concatenate([batch["tokens"][2:, :1], jnp.full((1, 8), BLOCKS.vocab_size)], axis=1)
    log_p = jax.nn.log_softmax(net(short, jnp.array([9])))[0, 1:]
    expected = -sum(float(log_p[i, batch["tokens"][2, 1 + i]]) for i in range(8))
    assert whole[2] == pytest.approx(expected, rel=1e-4)


def test_after_a_text_its_end_is_modelled_up_to_the_context():
    net = make_denoiser(LINES)
    batch = make_batch(spec=LINES)
    x, modelled = net.row(batch)
    assert modelled.all()
    assert (x[2, 7:] == LINES.end).all()
    np.testing.assert_array_equal(x[2, :7], batch["tokens"][2, 1:8])
    other = batch | {"tokens": batch["tokens"].at[2, 9:].set(3)}  # the padding's ids have no meaning
    np.testing.assert_array_equal(estimate(net, batch), estimate(net, other))
    masked = jnp.full((1, 13), LINES.vocab_size).at[0, 0].set(LINES.end)
    log_p = jax.nn.log_softmax(net(masked, jnp.array([13])))[0, 1:]
    expected = -sum(float(log_p[i, x[2, i]]) for i in range(12))
    whole = jax.jit(lambda: SMALL.nelbo(net, batch, jnp.full(3, 0.999), jax.random.key(0)))()
    assert whole[2] == pytest.approx(expected, rel=1e-4)
    _, weight, _ = jax.jit(SMALL.loss)(net, batch, jax.random.key(0))
    assert weight == 12 + 12 + 8  # with the end after each text, as a language model counts


def test_tokens_before_the_first_scored_one_are_given():
    net, batch = make_denoiser(), make_batch() | {"first": jnp.array([0, 8, 3])}
    _, modelled = net.row(batch)
    assert modelled.sum(1).tolist() == [12, 4, 5]
    assert [int(row.argmax()) for row in modelled] == [0, 8, 3]


def test_the_end_before_a_document_is_masked_and_not_counted():
    batch = make_batch((13,))
    batch["tokens"] = batch["tokens"].at[0, 5:7].set(BLOCKS.end)
    net = make_denoiser()
    assert net.row(batch)[1].all()
    assert jax.jit(SMALL.loss)(net, batch, jax.random.key(0))[1] == 11


# --------------------------------------------------------------------------------------------- figures


def make_text(text="abc abba had a cab "):
    stream = make_stream(BLOCKS.tokenizer, [text * 3])
    parts = Parts(stream, {"dev": stream, "test": stream})
    return TextBlocks(BLOCKS, parts, 12, 4, 0, "shuffled", "text")


def test_figures_are_named_as_a_bounds():
    figures = SMALL.score(make_model(), {"loss": math.log(3)}, make_text(), UnmaskScoring(stride=4), jax.random.key(0))
    assert figures["perplexity_bound"] == pytest.approx(3.0)
    assert "perplexity" not in figures
    assert figures["likelihood"] == "upper bound, 16 times t a row"
    assert figures["bits_per_character_stride_4"] > 0
    figures = SMALL.score(
        make_model(), {"loss": 1.0}, make_text(), UnmaskScoring(samples=2, sample_tokens=20), jax.random.key(0)
    )
    assert figures["samples"] == 2
    assert 0 < figures["distinct_1"] <= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("heads", 3), ("heads", 16), ("context", 0), ("dropout", 1.0), ("eval_times", 0)],
)
def test_settings_that_make_no_network_are_named(field, value):
    with pytest.raises(UserError, match=str(value)):
        replace(SMALL, **{field: value})
