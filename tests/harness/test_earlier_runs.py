"""Runs that an earlier version wrote still load, sample and start others; see tests/runs/README.md."""

import tarfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT, RUNS

from zoo.core.artifacts import Image, Text
from zoo.core.errors import UserError
from zoo.core.parallel import Parallel
from zoo.harness.config import Init
from zoo.harness.flags import load_config
from zoo.harness.loop import fit
from zoo.harness.trained import load_run

EXPECTED = dict(np.load(RUNS / "expected.npz"))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A folder with both runs."""
    folder = tmp_path_factory.mktemp("earlier")
    for name in ("transformer_lm", "ddpm"):
        with tarfile.open(RUNS / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return folder


def test_an_earlier_language_model_computes_and_writes_what_it_did(earlier):
    trained = load_run(earlier / "transformer_lm")
    assert trained.model.step == 300
    logits = trained.net()(jnp.arange(16)[None] % 60)
    np.testing.assert_allclose(logits, EXPECTED["logits"], rtol=1e-4, atol=1e-4)
    (text,) = trained.sample(n=1, prompt="ROMEO:", temperature=0.0, max_new_tokens=40)
    assert isinstance(text, Text)
    assert text.text == str(EXPECTED["text"])


def test_an_earlier_diffusion_model_computes_and_draws_what_it_did(earlier):
    trained = load_run(earlier / "ddpm")
    x = jnp.linspace(-1, 1, 28 * 28).reshape(1, 28, 28, 1)
    noise = trained.net()(x, jnp.array([300.0]), jnp.array([7]))
    np.testing.assert_allclose(noise, EXPECTED["noise"], rtol=1e-3, atol=1e-4)
    images = trained.sample(seed=3, n=2, sampler="ddim", steps=5, label="4")
    pixels = np.stack([image.pixels for image in images if isinstance(image, Image)])
    np.testing.assert_allclose(pixels.astype(int), EXPECTED["images"].astype(int), atol=1)


@pytest.mark.parametrize("name", ["transformer_lm", pytest.param("ddpm", marks=pytest.mark.slow)])
def test_a_new_run_starts_from_an_earlier_ones_weights(earlier, tmp_path, name):
    source = load_run(earlier / name)
    config = load_config(str(ROOT / "configs" / f"{name}.py"))
    run = replace(
        config, family=source.run.family, init=Init(str(earlier / name)), rundir=str(tmp_path / "new"), steps=1,
        eval_batches=1, score_every=0, sample_every=0, parallel=Parallel(devices=1),
        optimizer=replace(config.optimizer, learning_rate=0.0, ema_decay=0.0),
    )  # fmt: skip
    started = fit(run)
    of_source, of_started = (jax.tree.leaves(trained.model.state[0].eval_params) for trained in (source, started))
    assert len(of_source) == len(of_started) >= 9
    for old, new in zip(of_source, of_started, strict=True):
        np.testing.assert_array_equal(old, new)


def test_going_on_with_an_earlier_run_works_or_is_refused_in_a_sentence(earlier):
    path = earlier / "transformer_lm"
    longer = replace(load_run(path).run, rundir=str(path), steps=301, parallel=Parallel(devices=1))
    try:
        refused, step = "", fit(longer).model.step
    except UserError as error:
        refused, step = str(error), 301
    assert step == 301
    assert len(refused.splitlines()) <= 1
