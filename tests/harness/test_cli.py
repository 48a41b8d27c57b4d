"""What a user meets at the command line: every bad input gets one sentence and loses nothing, and outputs are clean."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from command_line import CONFIG, TEXT, TINY, Result, call, refused, start

from zoo.harness.checkpoint import Checkpoints, has_checkpoints
from zoo.harness.loop import _import_slow_modules, is_finite
from zoo.harness.rundir import RunDir

Train = Callable[..., Result]

UNIGRAM = '''
"""Tokens drawn independently: one logit each."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import Run
from zoo.core.family import Family
from zoo.core.learner import Learner
from zoo.data.specs import BlockSpec
from zoo.data.text import Text


class Logits(nnx.Module):
    def __init__(self, vocab_size):
        self.logits = nnx.Param(jnp.zeros(vocab_size))


class State(NamedTuple):
    lm: Learner


def row_nats(net, batch):
    nats = -jax.nn.log_softmax(net.logits[...])[batch["tokens"][:, 1:]]
    real = jnp.arange(1, batch["tokens"].shape[1])[None, :] < batch["length"][:, None]
    return (nats * real).sum(1), real.sum(1).astype(jnp.float32)


@dataclass(frozen=True)
class Unigram(Family):
    accepts = BlockSpec
    length = 16

    def init(self, spec, setup, key):
        return State(Learner.create(Logits(spec.tokenizer.vocab_size), setup))

    def step(self, state, batch, step, key):
        def loss(net, batch, key):
            nats, count = row_nats(net, batch)
            return nats.sum(), count.sum(), {}

        lm, metrics = state.lm.descend(loss, batch, step, key)
        return State(lm), metrics

    def evaluate(self, state, batch, key):
        return {"loss": row_nats(state.lm.eval_net(), batch)}

    def sample(self, model, request, key):
        return []


run = Run(family=Unigram(), data=Text(), steps=3, batch_size=8)
'''


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, configs, and folders that are no run's."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "good.txt").write_text(TEXT)
    (folder / "short.txt").write_text("To be")
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes("caf\u00e9 au lait ".encode("latin-1") * 100)
    (folder / "greek.txt").write_text("\u03b1\u03b2\u03b3 " * 200, encoding="utf-8")
    (folder / "no_run.py").write_text("value = 1\n")
    (folder / "raises.py").write_text("import math\nrun = math.no_such_function()\n")
    (folder / "not_python.py").write_text("run = (\n")
    (folder / "bad_value.py").write_text(
        "from zoo import Run\nfrom zoo.data.text.blocks import Text\nfrom zoo.transformer_lm import TransformerLM\n"
        "run = Run(family=TransformerLM(heads=3, width=16), data=Text())\n"
    )
    (folder / "unigram.py").write_text(UNIGRAM)
    (folder / "papers").mkdir()
    (folder / "papers" / "thesis.tex").write_text("years of work")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "foreign" / "samples").mkdir()
    (folder / "foreign" / "samples" / "best.txt").write_text("years of work")
    return folder


@pytest.fixture(scope="module")
def trained(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a run of 6 steps with checkpoints of its last steps."""
    rundir = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        from zoo import fit, load_config
        from zoo.harness.config import parse_flags

        flags = [*TINY, "--data.path", str(files / "good.txt"), "--rundir", str(rundir), "--steps", "6"]
        run = load_config(CONFIG)
        fit(parse_flags(type(run), run, [*flags, "--save-every", "2", "--eval-every", "3"], "test"))
    before = listing(rundir)
    yield rundir
    after = listing(rundir)
    after.pop("scores.jsonl", None)  # what evaluate.py leaves
    assert after == before


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str], files: Path) -> Train:
    """Calls train.py on the tiny settings."""

    def run_train(rundir: Path, *flags: object, text: str = "good.txt") -> Result:
        data = ("--data.path", files / text)
        return call(capsys, "train", CONFIG, *TINY, *data, "--rundir", rundir, "--steps", "6", *flags)

    return run_train


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def records(rundir: Path) -> list[dict]:
    return [json.loads(line) for line in (rundir / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.path", "{files}/none.txt"], ["{files}/none.txt", "UTF-8 text file"]),
        (["--data.path", "{files}/*.none"], ["{files}/*.none", "glob"]),
        (["--data.path", "{files}/papers"], ["{files}/papers", "folder", "give a file"]),
        (["--data.path", "{files}/empty.txt"], ["{files}/empty.txt", "empty", "give a file"]),
        (["--data.path", "{files}/short.txt"], ["{files}/short.txt", "17", "shorter context"]),
        (["--data.path", "{files}/latin.txt"], ["{files}/latin.txt", "UTF-8", "0xe9", "offset 3"]),
        (["--data.held-out", "1.5"], ["1.5", "between 0 and 1"]),
        (["--batch-size", "12"], ["batch_size is 12", "multiple of 8", "8 devices"]),
        (["--batch-size", "8", "--optimizer.microbatches", "2"], ["batch_size is 8", "multiple of 16"]),
        (["--batch-size", "0"], ["batch_size is 0", "at least 1"]),
        (["--parallel.devices", "9"], ["parallel.devices is 9", "8"]),
        (["--parallel.fsdp", "3"], ["parallel.fsdp is 3", "divide", "8"]),
        (["--parallel.strategy", "pmap", "--parallel.fsdp", "2"], ["fsdp is 2", "--parallel.strategy jit"]),
        (["--steps", "0"], ["steps is 0", "at least 1"]),
        (["--seed", "-1"], ["seed is -1", "at least 0"]),
        (["--seed", "4294967296"], ["seed is 4294967296", "4294967295"]),
        (["--family.heads", "3"], ["16", "family.heads, 3"]),
        (["--optimizer.learning-rate", "-1"], ["optimizer.learning_rate is -1", "at least 0"]),
        (["--init.from", "{files}/none"], ["{files}/none", "no run directory"]),
        (["--init.from", "{files}/papers"], ["{files}/papers", "not a run directory"]),
        (["--trust", "no_such_module"], ["no_such_module", "Python file"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_values_are_refused(train: Train, files: Path, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    result = train(tmp_path / "new", *(flag.format(files=files) for flag in flags))
    refused(result, *(word.format(files=files) for word in words))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stpes", "5"], ["--stpes", "--steps"]),
        (["--family.layer", "5"], ["--family.layer", "--family.layers"]),
        (["--steps", "many"], ["--steps", "many", "int"]),
        (["--steps"], ["--steps"]),
        (["--precision", "float8"], ["float8", "float32", "bfloat16"]),
        (["surplus"], ["surplus"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_flags_that_cannot_be_parsed(train: Train, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    result = train(tmp_path / "new", *flags)
    assert (result.code, result.out) == (2, "")
    assert all(word in result.err for word in words), result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("none.py", ["no file", "none.py", "unigram.py"]),
        ("good.txt", ["good.txt", "Python file"]),
        ("no_run.py", ["no_run.py", "run = Run(...)"]),
        ("raises.py", ["raises.py, line 2", "AttributeError", "no_such_function"]),
        ("not_python.py", ["not_python.py, line 1", "never closed"]),
        ("bad_value.py", ["bad_value.py, line 4", "family.width is 16", "family.heads, 3"]),
    ],
)
def test_configs_that_are_none(capsys: pytest.CaptureFixture[str], files: Path, config: str, words: list[str]) -> None:
    refused(call(capsys, "train", files / config), *words)


@pytest.mark.parametrize("script", ["train", "sample", "evaluate"])
def test_no_first_argument(capsys: pytest.CaptureFixture[str], script: str) -> None:
    for arguments in ([], ["--seed", "1"]):
        result = call(capsys, script, *arguments)
        assert (result.code, result.out) == (2, "")
        assert f"usage: python {script}.py" in result.err
    result = call(capsys, script, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"usage: python {script}.py" in result.out


@pytest.mark.parametrize(
    ("folder", "words"),
    [("good.txt", ["is a file"]), ("papers", ["has files", "--rundir"]), ("foreign", ["has files", "--rundir"])],
)
@pytest.mark.parametrize("fresh", [(), ("--fresh",)], ids=["", "fresh"])
def test_a_place_that_is_not_a_runs_is_left_alone(
    train: Train, files: Path, folder: str, words: list[str], fresh: tuple[str, ...]
) -> None:
    before = listing(files)
    refused(train(files / folder, *fresh), str(files / folder), *words)
    assert listing(files) == before


def test_a_place_that_cannot_be_made(train: Train, files: Path) -> None:
    refused(train(files / "good.txt" / "run"), "good.txt/run cannot be made", "--rundir")


@pytest.mark.parametrize("script", ["sample", "evaluate"])
def test_a_run_directory_that_is_none(capsys: pytest.CaptureFixture[str], files: Path, script: str) -> None:
    refused(call(capsys, script, files / "none"), f"{files}/none", "train.py")
    refused(call(capsys, script, files / "papers"), f"{files}/papers", "not a run directory")
    refused(call(capsys, script, files / "good.txt"), f"{files}/good.txt", "directory")
    refused(call(capsys, script, files / "foreign"), f"{files}/foreign", "not a run directory")


@pytest.mark.parametrize("script", ["sample", "evaluate"])
def test_a_run_directory_that_is_not_whole(capsys: pytest.CaptureFixture[str], run: Path, script: str) -> None:
    spec = run / "spec.json"
    spec.rename(run / "kept.json")
    refused(call(capsys, script, run), "spec.json")
    (run / "kept.json").rename(spec)
    shutil.rmtree(run / "checkpoints")
    refused(call(capsys, script, run), str(run), "no checkpoint", "train.py")


@pytest.mark.parametrize("script", ["sample", "evaluate"])
def test_a_checkpoint_that_is_not_there(capsys: pytest.CaptureFixture[str], trained: Path, script: str) -> None:
    for name in ("5", "latest", "-1"):
        refused(call(capsys, script, trained, f"--checkpoint={name}"), repr(name), "last, best", "4, 6")


@pytest.mark.parametrize("script", ["sample", "evaluate"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:40], ["config.json is not JSON"]),
        (lambda text: text.replace('"batch_size"', '"batch_sise"'), ["'batch_sise'", "batch_size"]),
        (lambda text: text.replace('"batch_size": 8', '"batch_size": "8"'), ["batch_size", "'8'", "int"]),
        (lambda text: text.replace("transformer_lm:TransformerLM", "nowhere:LM"), ["'zoo.nowhere:LM'", "--trust"]),
        (lambda text: text.replace("zoo.transformer_lm:TransformerLM", "this:LM"), ["'this:LM'", "--trust"]),
    ],
    ids=["truncated", "unknown key", "wrong type", "unknown class", "stranger"],
)
def test_a_config_edited_by_hand(
    capsys: pytest.CaptureFixture[str], run: Path, script: str, change: Callable[[str], str], words: list[str]
) -> None:
    config = run / "config.json"
    config.write_text(change(config.read_text()))
    refused(call(capsys, script, run), *words)
    assert "this" not in sys.modules  # it would print


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--top-p", "0"], ["top_p is 0", "above 0 and at most 1"]),
        (["--top-p", "2"], ["top_p is 2", "above 0 and at most 1"]),
        (["--temperature", "-0.5"], ["temperature is -0.5", "0"]),
        (["--temperature", "nan"], ["temperature is nan", "0"]),
        (["--top-k", "-1"], ["top_k is -1", "0"]),
        (["--n", "0"], ["n is 0", "at least 1"]),
        (["--seed", "-1"], ["seed is -1", "from 0"]),
        (["--max-new-tokens", "0"], ["max_new_tokens is 0", "at least 1"]),
        (["--num-beams", "2", "--top-p", "0.5"], ["top_p is 0.5", "beam"]),
        (["--prompt", "Line \u03b1"], ["'\u03b1' (U+03B1)", "lacks", "Ladefhinostxy"]),
        (["--prompt", "Line 1 of the text says"], ["prompt is 23 tokens long", "16"]),
        (["--out", "{files}/good.txt"], ["good.txt is a file", "--out"]),
        (["--out", "{files}/foreign/samples/best.txt/x"], ["best.txt/x cannot be made", "--out"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_samples_that_cannot_be_made(
    capsys: pytest.CaptureFixture[str], trained: Path, files: Path, flags: list[str], words: list[str]
) -> None:
    before = listing(files)
    refused(call(capsys, "sample", trained, *(flag.format(files=files) for flag in flags)), *words)
    assert listing(files) == before


# ------------------------------------------------------------------------------------------- going on


def test_going_on_with_other_settings_is_refused(train: Train, run: Path) -> None:
    before = listing(run)
    result = train(run, "--family.layers", "2", "--seed", "3")
    refused(result, "--family.layers is 2, was 1", "--seed is 3, was 0", "--fresh", "--rundir")
    assert listing(run) == before


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


# ------------------------------------------------------------------------------------------- what comes out


def test_training_says_nothing_on_standard_output(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "--eval-every", "3")
    assert (result.code, result.out) == (0, "")
    assert "step 6/6" in result.err
    assert "held-out" in result.err
    assert f"python sample.py {tmp_path}/run" in result.err
    assert "\x1b" not in result.err


def test_evaluate_prints_one_json_object(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    result = call(capsys, "evaluate", trained, "--json")
    assert (result.code, result.err) == (0, "")
    scores = json.loads(result.out)
    assert {"step", "loss", "perplexity", "bits_per_character", "bits_per_byte"} <= scores.keys()
    assert math.isclose(scores["perplexity"], math.exp(scores["loss"]), rel_tol=1e-6)
    last = [record for record in records(trained) if record["split"] == "eval"][-1]
    assert math.isclose(scores["loss"], last["loss"], rel_tol=1e-6)
    assert json.loads((trained / "scores.jsonl").read_text().splitlines()[-1]) == scores
    assert scores["seed"] == 0


def test_evaluate_takes_the_checkpoint_that_is_asked_for(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    def step(name: str) -> int:
        return json.loads(call(capsys, "evaluate", trained, "--json", "--checkpoint", name).out)["step"]

    assert (step("last"), step("6"), step("4")) == (6, 6, 4)
    scored = [record for record in records(trained) if record["split"] == "eval"]
    assert step("best") == min(scored, key=lambda record: record["loss"])["step"]


def test_a_run_directory_holds_what_it_promises(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {"scores.jsonl"}  # other tests have evaluated this run
    expected = {"config.json", "spec.json", "metrics.jsonl", "launches.jsonl", "log.txt", "tensorboard", "checkpoints"}
    assert names == expected
    lines = records(trained)
    for line in lines:
        assert list(line)[:3] == ["step", "split", "loss"]
        assert line["split"] in ("train", "eval")
        assert all(isinstance(value, int | float | str) for value in line.values())
        assert line["seconds"] >= 0
    training = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert all(line["tokens_per_second"] > 0 for line in training)
    assert [line["step"] for line in lines if line["split"] == "eval"] == [3, 6]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    launch = json.loads((trained / "launches.jsonl").read_text())
    assert launch["from_step"] == 0
    assert {"jax", "flax", "optax"} <= launch["versions"].keys()
    assert "held-out" in (trained / "log.txt").read_text()
    assert [path.stat().st_size > 0 for path in (trained / "tensorboard").iterdir()] == [True]


def test_samples_are_all_that_standard_output_holds(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    asked = ("--max-new-tokens", "12", "--prompt", "Line ")
    one = call(capsys, "sample", trained, *asked)
    assert (one.code, one.err) == (0, "")
    assert one.out.startswith("Line ")
    assert one.out.endswith("\n")
    three = call(capsys, "sample", trained, *asked, "--n", "3")
    assert (three.code, three.err) == (0, "")
    texts = three.out.removesuffix("\n").split("\n\n----\n\n")
    assert len(texts) == 3
    assert texts[0] == one.out.removesuffix("\n")
    assert call(capsys, "sample", trained, *asked, "--seed", "1").out != one.out


def test_in_a_terminal_the_prompt_is_dim(
    capsys: pytest.CaptureFixture[str], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--prompt", "Line", "--max-new-tokens", "5")
    plain = [call(capsys, "sample", trained, *asked, *n).out for n in ((), ("--n", "2"))]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = [call(capsys, "sample", trained, *asked, *n).out for n in ((), ("--n", "2"))]
    for before, after in zip(plain, shown, strict=True):
        texts = [text.removeprefix("Line") for text in before.split("\n\n----\n\n")]
        assert after == "\n\n----\n\n".join(f"\x1b[2mLine\x1b[0m{text}" for text in texts)
    assert "\x1b" not in call(capsys, "sample", trained, *asked, "--json").out


def test_samples_in_a_folder_overwrite_none(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    asked, folder = ("--max-new-tokens", "12", "--n", "2"), tmp_path / "a" / "b"
    printed = call(capsys, "sample", trained, *asked).out
    result = call(capsys, "sample", trained, *asked, "--out", folder)
    assert (result.code, result.err) == (0, "")
    paths = [Path(line) for line in result.out.splitlines()]
    assert paths == [folder / "sample_0000.txt", folder / "sample_0001.txt"]
    assert "\n\n----\n\n".join(path.read_text() for path in paths) == printed.removesuffix("\n")
    before = listing(folder)
    refused(call(capsys, "sample", trained, *asked, "--out", folder), str(folder), "--out")
    assert listing(folder) == before


def test_a_reader_that_leaves_early(trained: Path) -> None:
    """A real pipe, closed after ten bytes, as `| head -c 10` does."""
    with start("sample", trained, "--max-new-tokens", "400") as process:
        assert process.stdout
        assert process.stderr
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1
    assert told == ""


def test_a_text_that_changed_since_the_run_began_is_told(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    flags = ("--data.path", text, "--rundir", tmp_path / "run", "--eval-batches", 1, "--parallel.devices", 1)
    first = call(capsys, "train", CONFIG, *TINY, *flags, "--steps", 2)
    assert first.code == 0
    assert "is not what it was" not in call(capsys, "train", CONFIG, "--steps", 3, *flags).err
    text.write_text(TEXT.replace("7", "8"))
    assert "the data is not what it was" in call(capsys, "train", CONFIG, "--steps", 4, *flags).err
