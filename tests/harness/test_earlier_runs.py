"""Runs that an earlier version wrote still load, sample and start others; see tests/runs/README.md."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT, RUNS

from zoo import Optimizer, Run
from zoo.core.artifacts import Image, Text
from zoo.core.errors import UserError
from zoo.core.parallel import Parallel
from zoo.data.text import Text as Plays
from zoo.ddpm import DDPMScoring
from zoo.harness.checkpoint import Checkpoints, DamagedCheckpointError
from zoo.harness.config import Init, read_json, to_json
from zoo.harness.flags import load_config
from zoo.harness.formats import paths_in
from zoo.harness.loop import fit
from zoo.harness.trained import load_run
from zoo.lstm_lm import LSTMLM

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


@pytest.mark.slow
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


# ------------------------------------------------------------------- networks that had another name in the state


def arrays_of(checkpoints, step):
    """Every array of a checkpoint by its path there."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        path: jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]), sharding=device)
        for path, leaf in checkpoints._about(step)["leaves"].items()
    }
    return checkpoints.restore(step, like)


def save_under(rundir, old, new):
    """Replaces a run's checkpoints by ones of format 3, in which the network `new` has the name `old`."""
    (rundir / "aside").mkdir()
    before, after = Checkpoints(rundir), Checkpoints(rundir / "aside", keep=9)
    for step in before.steps():
        arrays = arrays_of(before, step)
        renamed = {path.replace(f"{new}.", f"{old}.", 1) if path.startswith(f"{new}.") else path: leaf
                   for path, leaf in arrays.items()}  # fmt: skip
        assert renamed.keys() != arrays.keys()
        after.save(step, renamed, before._about(step)["config"], before._about(step)["score"])
    before.close()
    after.close()
    shutil.rmtree(rundir / "checkpoints")
    (rundir / "aside" / "checkpoints").rename(rundir / "checkpoints")
    (rundir / "aside").rmdir()
    config = json.loads((rundir / "config.json").read_text())
    (rundir / "config.json").write_text(json.dumps(config | {"format": 3}))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of six steps with a checkpoint after the third; its state has a carry beside the network."""
    path = tmp_path_factory.mktemp("unbroken")
    (path / "text.txt").write_text("To be, or not to be. " * 40)
    run = Run(
        family=LSTMLM(layers=1, width=8, context=8), data=Plays(path=str(path / "text.txt"), order="stream"), steps=6,
        parallel=Parallel(devices=1), optimizer=Optimizer(ema_decay=0.9), batch_size=4, eval_batches=1, save_every=3,
        rundir=str(path / "run"),
    )  # fmt: skip
    return fit(run)


@pytest.fixture
def renamed(unbroken, tmp_path):
    """A copy of that run, stopped after the third step, as format 3 would have it."""
    folder = tmp_path / "run"
    shutil.copytree(unbroken.path, folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000006")
    save_under(folder, "lm", "net")
    return folder


def test_a_run_of_format_3_goes_on_bit_for_bit(unbroken, renamed):
    assert fit(replace(unbroken.run, rundir=str(renamed))).model.step == 6
    whole, resumed = (Checkpoints(path) for path in (unbroken.path, renamed))
    jax.tree.map(np.testing.assert_array_equal, arrays_of(resumed, 6), arrays_of(whole, 6))
    assert any(path.startswith("lm.opt_state.") for path in arrays_of(resumed, 3))
    assert any(path.startswith("net.opt_state.") for path in arrays_of(resumed, 6))
    whole.close()
    resumed.close()


def test_a_run_of_format_3_samples_and_starts_another(unbroken, renamed, tmp_path):
    source = load_run(renamed)
    assert source.model.step == 3
    weights = jax.tree.leaves(source.model.state.net.eval_params)
    assert source.sample(n=1, max_new_tokens=5)[0].text
    still = replace(unbroken.run.optimizer, learning_rate=0.0, ema_decay=0.0)
    run = replace(
        unbroken.run, init=Init(str(renamed)), optimizer=still, steps=1, save_every=0, rundir=str(tmp_path / "new")
    )
    started = jax.tree.leaves(fit(run).model.state.net.eval_params)
    assert len(weights) == len(started) >= 5
    for old, new in zip(weights, started, strict=True):
        np.testing.assert_array_equal(old, new)


def test_check_sums_are_compared_under_the_old_names_too(renamed):
    checkpoints = Checkpoints(renamed)
    about = checkpoints._about(3)
    about["leaves"]["lm.updates"]["sum"] += 1
    checkpoints._about = lambda step: about
    updates = jax.ShapeDtypeStruct((), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with pytest.raises(DamagedCheckpointError, match=r"lm\.updates is not what was saved"):
        checkpoints.restore(3, {"net.updates": updates})
    checkpoints.close()


def test_paths_of_earlier_formats_are_found_and_present_ones_take_precedence():
    old = {"gen.params.a", "disc.params.a", "carry.value"}
    assert paths_in(old, ["generator.params.a", "discriminator.params.a", "carry.value"]) == {
        "generator.params.a": "gen.params.a",
        "discriminator.params.a": "disc.params.a",
        "carry.value": "carry.value",
    }
    assert paths_in({"net.a", "lm.a"}, ["net.a", "lm.a", "net.b"]) == {
        "net.a": "net.a",
        "lm.a": "lm.a",
        "net.b": "net.b",
    }


def test_scoring_of_format_3_is_read(tmp_path):
    saved = to_json(DDPMScoring(bound_images=3, steps=20)) | {"format": 3}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved | {"class": "zoo.metrics.diffusion_scoring:DiffusionScoring"}))
    assert read_json(path, DDPMScoring) == DDPMScoring(bound_images=3, steps=20)
