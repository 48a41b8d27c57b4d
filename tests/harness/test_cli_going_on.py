"""Going on with runs, starting over, fine-tuning, and runs that end early or of another family."""

import json
import math
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from cli_cases import Train, listing, records
from command_line import call, refused

from zoo.harness.checkpoint import Checkpoints, has_checkpoints
from zoo.harness.loop import _import_slow_modules, is_finite
from zoo.harness.rundir import RunDir

pytestmark = pytest.mark.xdist_group("command_line")  # whose tests share a trained run


# ------------------------------------------------------------------------------------------- going on


def test_going_on_with_other_settings_is_refused(train: Train, run: Path) -> None:
    before = listing(run)
    result = train(run, "--family.layers", "2", "--seed", "3")
    refused(result, "--family.layers is 2, was 1", "--seed is 3, was 0", "--fresh", "--rundir")
    assert listing(run) == before


@pytest.mark.slow
def test_going_on_with_other_intervals_and_devices(train: Train, run: Path) -> None:
    changed = ("--steps", "9", "--save-every", "1", "--parallel.strategy", "pmap", "--parallel.devices", "4")
    before = records(run)
    result = train(run, *changed)
    assert result.code == 0, result.err
    assert result.out == ""
    saved = RunDir(run).config()
    assert (saved.steps, saved.save_every, saved.parallel.strategy, saved.parallel.devices) == (9, 1, "pmap", 4)
    after = records(run)
    assert after[: len(before)] == before
    assert [record["step"] for record in after if record["split"] == "train"] == list(range(1, 10))


def test_a_finished_run_stays_as_it_is(train: Train, run: Path) -> None:
    kept = {"config.json", "spec.json", "metrics.jsonl"}
    before = listing(run)
    for flags in ((), ("--steps", "4")):
        result = train(run, *flags)
        assert (result.code, result.out) == (0, "")
        assert "at step 6" in result.err
        assert "--steps" in result.err
        after = listing(run)
        for name, written in before.items():
            if name in kept or name.startswith(("checkpoints", "tensorboard")):
                assert after[name] == written, name


def test_fresh_starts_over(train: Train, run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    result = train(run, "--fresh", "--seed", "3", "--steps", "2")
    assert result.code == 0, result.err
    assert RunDir(run).config().seed == 3
    assert [r["step"] for r in records(run) if r["split"] == "train"] == [1, 2]
    assert len((run / "launches.jsonl").read_text().splitlines()) == 1
    assert (run / "notes.txt").read_text() == "mine"


def test_fresh_with_bad_data_deletes_nothing(train: Train, run: Path) -> None:
    before = listing(run)
    refused(train(run, "--fresh", text="latin.txt"), "latin.txt")
    assert listing(run) == before


def test_fresh_gets_past_settings_that_cannot_be_read(train: Train, run: Path) -> None:
    config = run / "config.json"
    config.write_text(config.read_text()[:100])
    refused(train(run), "config.json is not JSON", "--fresh")
    assert train(run, "--fresh", "--steps", "1").code == 0


def test_a_start_that_was_killed_can_be_repeated(train: Train, run: Path) -> None:
    """However far a first start or a --fresh got: before the settings, before the spec, before a checkpoint."""
    half = run.parent / "half"
    half.mkdir()
    (half / "config.json.part").write_text("{")
    assert train(half, "--steps", "1").code == 0
    shutil.rmtree(run / "checkpoints")
    (run / "spec.json").unlink()
    assert train(run, "--steps", "1").code == 0


def test_two_processes_do_not_train_in_one_place(train: Train, run: Path) -> None:
    other = RunDir(run)
    other.claim()
    try:
        refused(train(run, "--steps", "9"), "another process is training", str(run))
        refused(train(run, "--fresh"), "another process is training", str(run))
        assert has_checkpoints(run)
    finally:
        other.close()
    assert train(run, "--steps", "7").code == 0


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_good_checkpoints(train: Train, tmp_path: Path) -> None:
    rundir = tmp_path / "run"
    sgd = ("--optimizer.name", "sgd", "--optimizer.warmup-steps", "0", "--optimizer.clip-norm", "0")
    sgd = (*sgd, "--optimizer.weight-decay", "0")
    seldom = ("--save-every", "1", "--eval-every", "0", "--log-every", "10")
    refused(
        train(rundir, *seldom, *sgd, "--optimizer.learning-rate", "1e38"), "--optimizer.learning-rate", "--init.from"
    )
    checkpoints = Checkpoints(rundir)
    assert checkpoints.steps() in ([1], [1, 2])
    checkpoints.close()


def test_an_import_ahead_that_fails_is_left_to_the_import_that_needs_it(monkeypatch):
    tried = []

    def fail(name: str) -> None:
        tried.append(name)
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr("zoo.harness.loop.importlib.import_module", fail)
    _import_slow_modules()
    assert tried == ["orbax.checkpoint", "tensorboardX"]


def test_a_state_that_is_not_finite_is_not_saved(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"w": jnp.ones(3), "n": jnp.array([1, 2]), "key": jax.random.key(0)}
    assert is_finite(good)
    assert not is_finite(good | {"v": jnp.array([[0.0, jnp.nan]])})
    assert not is_finite(good | {"v": -jnp.array(jnp.inf)})
    monkeypatch.setattr("zoo.harness.loop.is_finite", lambda state: False)
    refused(train(tmp_path / "run"), "state after step 6", "--optimizer.learning-rate")
    assert not has_checkpoints(tmp_path / "run")


# ------------------------------------------------------------------------------------------- fine-tuning


@pytest.mark.slow
def test_fine_tuning_starts_where_the_source_ended(train: Train, run: Path, tmp_path: Path) -> None:
    assert train(run, "--steps", "60", "--eval-every", "0").code == 0
    source = [r["loss"] for r in records(run) if r["split"] == "eval"]
    assert source[0] - source[-1] > 0.05
    flags = ("--init.from", run, "--steps", "1", "--optimizer.learning-rate", "1e-9")
    assert train(tmp_path / "tuned", *flags).code == 0
    assert math.isclose(records(tmp_path / "tuned")[-1]["loss"], source[-1], abs_tol=1e-3)


@pytest.mark.parametrize(
    ("flags", "text", "words"),
    [
        (["--family.width", "32"], "good.txt", ["width is 16 there and 32 here"]),
        (["--family.layers", "2"], "good.txt", ["layers is 1 there and 2 here", "blocks.1"]),
        (["--family.context", "8"], "good.txt", ["context is 16 there and 8 here", "position"]),
        (["--data.tokenizer", "bytes"], "good.txt", ["characters", "bytes", "--data.tokenizer"]),
        ([], "greek.txt", ["U+03B1", "lacks"]),
    ],
    ids=["width", "layers", "context", "tokenizer", "characters"],
)
def test_weights_that_do_not_fit_are_named(
    train: Train, trained: Path, tmp_path: Path, flags: list[str], text: str, words: list[str]
) -> None:
    refused(train(tmp_path / "new", "--init.from", trained, *flags, text=text), *words)
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------- another family


def test_a_run_of_another_family(
    capsys: pytest.CaptureFixture[str], train: Train, run: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = files / "unigram.py", ("--data.path", files / "good.txt")
    refused(call(capsys, "train", config, *data, "--rundir", run), "TransformerLM", "Unigram", "--rundir", "--fresh")

    mine = run.parent / "unigram"
    assert call(capsys, "train", config, *data, "--rundir", mine).code == 0
    refused(train(mine), "Unigram", "TransformerLM", "--fresh")

    module = f"{files.name}.unigram"
    monkeypatch.delitem(sys.modules, module)  # as in a new process
    refused(call(capsys, "evaluate", mine), f"'{module}:Unigram'", "--trust")
    for trust in (("--trust", config), (f"--trust={config}",)):
        monkeypatch.delitem(sys.modules, module, raising=False)
        result = call(capsys, "evaluate", mine, "--json", *trust)
        assert result.code == 0, result.err
        assert json.loads(result.out)["loss"] > 0
