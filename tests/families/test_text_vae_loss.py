"""The text VAE's loss, and what it does against collapse."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from text_vae_cases import BATCH, LATENT, SGD, TINY, open_texts, start

from zoo.core.family import Setup
from zoo.core.parallel import Parallel
from zoo.core.random import normal
from zoo.harness.checkpoint import flatten
from zoo.nn.aggressive_encoder import Lagging
from zoo.nn.losses import cross_entropy, real_targets


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_texts(tmp_path_factory.mktemp("text_vae"))


# ------------------------------------------------------------------------------------------------ the loss


def test_training_descends_the_bound_that_evaluation_reports(data):
    state, batch = start(TINY, data), data.batch_at(0)
    step, evaluate = jax.jit(TINY.step), jax.jit(TINY.evaluate)
    told = [step(state, batch, jnp.int32(0), jax.random.key(i))[1] for i in range(16)]
    rows = [evaluate(state, batch, jax.random.key(100 + i)) for i in range(16)]
    np.testing.assert_allclose(told[0]["kl_nats"], rows[0]["kl_nats"][0].mean(), rtol=1e-4)
    losses = [np.mean([x["loss"] for x in told]), np.mean([x["loss"][0] for x in rows])]
    np.testing.assert_allclose(*losses, rtol=0.02)  # by other codes


def test_beta_weighs_the_kl_term_as_its_schedule_says(data):
    family = replace(TINY, beta=2.0, kl_warmup_steps=4, kl_cycle_steps=8)
    state, step = start(family, data), jax.jit(family.step)
    for number, weight in ((0, 0.5), (3, 2.0), (7, 2.0), (9, 1.0)):
        _, told = step(state, data.batch_at(0), jnp.int32(number), jax.random.key(0))
        assert told["kl_weight"] == weight
        np.testing.assert_allclose(told["loss"], told["reconstruction_nats"] + weight * told["kl_nats"], rtol=1e-5)


def test_free_bits_charge_each_unit_at_least_so_much(data):
    family = replace(TINY, free_bits=5.0)
    _, told = jax.jit(family.step)(start(family, data), data.batch_at(0), jnp.int32(0), jax.random.key(0))
    np.testing.assert_allclose(told["loss"], told["reconstruction_nats"] + LATENT * 5.0, rtol=1e-5)


def test_with_several_codes_training_descends_the_importance_weighted_bound(data):
    family = replace(TINY, iw_samples=3)
    state, batch, key = start(family, data), data.batch_at(0), jax.random.key(0)
    told = jax.jit(family.step)(state, batch, jnp.int32(0), key)[1]
    net, batch = state.net.net(), jax.tree.map(jnp.asarray, batch)
    mean, log_variance = (np.asarray(x, np.float64) for x in net.encode(batch))
    _, code_key, _ = jax.random.split(key, 3)
    log_w = []
    for i in range(3):
        eps = normal(jax.random.fold_in(code_key, i), batch["row"], (LATENT,))
        z, sigma = mean + np.exp(0.5 * log_variance) * np.asarray(eps), np.exp(0.5 * log_variance)
        logits = net.decoder.embedding.logits(net.decoder(batch["tokens"][:, :-1], jnp.asarray(z, jnp.float32)))
        nats = jnp.where(real_targets(batch), cross_entropy(logits, batch["tokens"][:, 1:]), 0).sum(1)
        log_pdf = scipy.stats.norm.logpdf
        log_w.append(-np.asarray(nats, np.float64) + (log_pdf(z) - log_pdf(z, mean, sigma)).sum(1))
    bound = scipy.special.logsumexp(log_w, axis=0) - math.log(3)
    np.testing.assert_allclose(told["loss"], -bound.mean(), rtol=1e-5)


def test_both_networks_learn_from_several_codes(data):
    family = replace(TINY, iw_samples=2, dropout=0.2, word_dropout=0.3)
    state = start(family, data)
    new = jax.jit(family.step)(state, data.batch_at(0), jnp.int32(0), jax.random.key(0))[0]
    for name in ("encoder", "decoder"):
        pairs = zip(*(jax.tree.leaves(vae.params[name]) for vae in (state.net, new.net)), strict=True)
        assert all(bool((a != b).any()) for a, b in pairs), name


@pytest.mark.slow
def test_noise_of_several_codes_is_a_rows_own_in_any_part_of_a_batch(data):
    family = replace(TINY, iw_samples=2, dropout=0.2, word_dropout=0.3)
    net, batch = start(family, data).net.net(), jax.tree.map(jnp.asarray, data.batch_at(0))
    parts = [jax.tree.map(lambda x, part=part: x[part], batch) for part in (slice(0, 3), slice(3, BATCH))]
    whole, first, rest = (family.loss(net, part, jax.random.key(0))[0] for part in (batch, *parts))
    np.testing.assert_allclose(whole, first + rest, rtol=1e-5)


# ------------------------------------------------------------------------------------------- the lagging encoder


def play(losses, information, window):
    """Which steps were of the encoder alone, by the rule as the paper's algorithm has it."""
    alone, phase, run, before, last, steps = [], True, [], math.inf, 0.0, []
    turn = True
    for loss, info in zip(losses, information, strict=True):
        alone.append(phase and turn)
        if phase and turn:
            run.append(loss)
            if len(run) % 10 == 0:
                mean = np.float32(np.mean(run[-10:]))
                turn, before = mean < before, mean
            turn = turn and len(run) < 100
        else:
            turn, run, before = True, [], math.inf
        steps.append(info)
        if len(steps) == window:
            phase = phase and np.mean(steps) > last
            last, steps = np.mean(steps), []
    return alone


@pytest.mark.parametrize("slope", [0.0, 0.005, 1.0])
def test_the_encoder_is_alone_while_that_helps(slope):
    rng = np.random.default_rng(0)
    losses = (5 - slope * np.arange(400) + rng.normal(size=400) * 0.2).astype(np.float32)
    information = np.where(np.arange(400) < 320, np.arange(400) * 0.01 + 0.1, 3.0).astype(np.float32)
    lagging, alone = Lagging.begin(), []
    advance = jax.jit(lambda lagging, loss, info: lagging.after(loss, info, 40))
    for loss, info in zip(losses, information, strict=True):
        alone.append(bool(lagging.alone))
        lagging = advance(lagging, loss, info)
    assert alone == play(losses, information, 40)
    assert not any(alone[-40:]), "the phase ends where information no longer climbs"
    runs = np.diff(np.flatnonzero(~np.array(alone[:320])), prepend=-1) - 1
    if slope == 1.0:
        assert set(runs) == {100}
    else:
        assert max(runs) < 100
        assert all(length % 10 == 0 for length in runs)


def test_a_collapsed_posterior_ends_the_phase_and_it_does_not_begin_anew():
    lagging = Lagging.begin()
    for information in (0.0, 0.0, 1.0, 2.0):
        lagging = lagging.after(jnp.float32(1.0), jnp.float32(information), 2)
    assert not lagging.aggressive
    assert not lagging.alone


def test_the_decoder_stands_still_while_the_encoder_learns(data):
    family = replace(TINY, aggressive=True)
    state, step = start(family, data), jax.jit(family.step)
    for alone in (True, False):
        state = state._replace(lagging=state.lagging._replace(alone=jnp.array(alone)))
        new, told = step(state, data.batch_at(0), jnp.int32(0), jax.random.key(0))
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), new.net.params, state.net.params)
        assert told["encoder_alone"] == alone
        assert any(flatten(moved["encoder"]).values())
        assert any(flatten(moved["decoder"]).values()) != alone
        assert new.lagging.taken == alone


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [Parallel("pmap", 4), Parallel("jit", 8)], ids=["pmap", "jit"])
def test_the_phase_is_the_same_on_any_number_of_devices(data, parallel):
    family, ends = replace(TINY, aggressive=True, aggressive_window=2), []
    for where in (Parallel(devices=1), parallel):
        strategy, setup = where.start(BATCH), Setup(SGD, 100, BATCH)
        state = strategy.init(lambda key, setup=setup: family.init(data.spec, setup, key), jax.random.key(0))
        step = strategy.compile_step(lambda state, batch, n: family.step(state, batch, n, jax.random.key(1)))
        for n in range(3):
            state, told = step(state, strategy.put(data.batch_at(n)), np.int32(n))
        ends.append(jax.device_get((strategy.gather(state).lagging, told)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *ends)
