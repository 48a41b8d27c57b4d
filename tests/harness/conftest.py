"""Files, a trained run and a way to train for all tests of the command line, made once."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_cases import UNIGRAM, Train, listing
from command_line import CONFIG, TEXT, TINY, Result, call


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def trained(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a run of 6 steps with checkpoints of its last steps."""
    rundir = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        from zoo import fit, load_config
        from zoo.harness.flags import parse_flags

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
