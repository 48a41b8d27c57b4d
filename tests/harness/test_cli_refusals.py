"""At the command line every bad input gets one sentence and loses nothing."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_cases import Train, listing
from command_line import call, refused

pytestmark = pytest.mark.xdist_group("command_line")  # whose tests share a trained run


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
