"""Every command in README, CONTRIBUTING and docs/ exists, and takes the flags it is given; the slow test runs them.

A command is a line of a fenced block without a language. Training, sampling and evaluation run here on tiny settings;
other commands take hours, a GPU, a download or other libraries: of those the name and the arguments are checked.
"""

import argparse
import ast
import dataclasses
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from command_line import call, load_script
from paths import ROOT

from zoo.data.captions import CaptionedImages, CaptionedTokens
from zoo.data.images import Images, ImageTokens
from zoo.data.pairs import Pairs
from zoo.data.text import Sentences
from zoo.harness.config import Run
from zoo.harness.flags import load_config, parse_flags

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SCRIPTS = ("train.py", "sample.py", "evaluate.py")
NO_PARSER = ("benchmarks.start", "benchmarks.harness", "benchmarks.text_vae")
"""Modules that take no arguments; the others with none of argparse take the names of runs or cases."""
NAMES_ONLY = ("benchmarks.translate", "benchmarks/peers/lm_decode.py")

SMALL: dict[str, Any] = {
    "layers": 1, "heads": 2, "kv_heads": 1, "width": 16, "mlp_width": 32, "embedding": 8, "context": 16,
    "channels": (8, 16), "latent": 4, "hidden": 16,
}  # fmt: skip
TINY = (
    "--steps", "2", "--batch-size", "8", "--optimizer.warmup-steps", "0", "--eval-batches", "1", "--eval-every", "0",
    "--save-every", "1", "--sample-every", "0", "--score-every", "0", "--parallel.devices", "1",
)  # fmt: skip
PLAY = "ROMEO:\nThe Prince of Denmark, to be, or not to be. What light?\nAnd never; so it refers.\n"


# ------------------------------------------------------------------------------------------- reading the pages


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of a page with a language; "": without one."""
    for found in re.finditer(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S):
        if found[1] == language:
            yield found[2]


def commands(page: Path) -> list[list[str]]:
    """The words of each command line, without its comment."""
    lines = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in line.split(" && ")]
    known = ("python ", "make ", "pip ", "source ")
    return [shlex.split(part, comments=True) for part in parts if part.strip().startswith(known)]


def every(script: str) -> list[list[str]]:
    """The arguments of a script in all pages, each list once."""
    found = [words[2:] for page in PAGES for words in commands(page) if words[:2] == ["python", script]]
    return [list(arguments) for arguments in dict.fromkeys(map(tuple, found))]


def default_run(config: str) -> Run:
    """A config's run with the directory that train.py gives it."""
    run = load_config(config)
    return replace(run, rundir=run.rundir or f"runs/{Path(config).stem}")


def asked(config: str, flags: list[str]) -> Any:
    """What train.py reads from its command line."""
    with pytest.MonkeyPatch.context() as patch:
        kind = load_script("train", patch).Train
        return parse_flags(kind, kind(default_run(config)), flags, "train.py")


# ------------------------------------------------------------------------------------------- where they run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the configs and all the files that commands name; the current one while tests here run."""
    folder = tmp_path_factory.mktemp("workplace")
    fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def trained(workplace: Path) -> dict[str, Run]:
    """Every run that a command trains, by directory."""
    found = [asked(config, flags).run for config, *flags in every("train.py") if "--help" not in flags]
    return {run.rundir: run for run in found}


def fill(folder: Path) -> None:
    """Writes those files."""
    (folder / "configs").symlink_to(ROOT / "configs")
    notebook = json.loads((ROOT / "notebooks" / "your_own_family.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    (family,) = [source for source in sources if source.startswith("%%writefile my_family.py\n")]
    texts = {
        "my_family.py": family.partition("\n")[2],
        "my_corpus.txt": PLAY * 60,
        "other.txt": "To be, or not to be. " * 60,
        "my_texts/one.txt": PLAY * 30,
        "my_texts/two.txt": PLAY.replace("never", "to be")[5:] * 40,
        "my_texts/three.txt": PLAY.replace("not", "the")[9:] * 40,
        "my_corpus.jsonl": "".join(json.dumps({"text": f"{n} is {n * n}. {PLAY}"}) + "\n" for n in range(40)),
        "my_sentences.txt": "".join(f"a {a} {b}\n" for a in ("small", "large", "red") for b in _words()),
        "my_pairs.tsv": "".join(f"hello{word}\tHH AH {word.upper()}\n" for word in _words()),
        "my_pairs.jsonl": "".join(json.dumps({"en": word, "de": word[::-1]}) + "\n" for word in _words()),
        "prompts.txt": "ROMEO:\nThe\n",
        "words.txt": "hello\nhell\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (96, 28, 28, 1), np.uint8)
    np.savez(folder / "my_images.npz", images=pixels, labels=np.arange(96) % 10)
    PIL.Image.fromarray(pixels[0, ..., 0]).save(folder / "digit.png")
    PIL.Image.new("RGB", (16, 16), "red").save(folder / "scene.png")
    for n, image in enumerate(np.random.default_rng(1).integers(0, 256, (24, 70, 80, 3), np.uint8)):
        path = folder / "photos" / ("cats", "dogs")[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    (folder / "captioned").mkdir()
    for n, image in enumerate(np.random.default_rng(2).integers(0, 256, (60, 16, 16, 3), np.uint8)):
        PIL.Image.fromarray(image).save(folder / "captioned" / f"{n}.png")
        (folder / "captioned" / f"{n}.txt").write_text(f"a {('red', 'blue')[n % 2]} {n % 7}\n")


def _words() -> list[str]:
    """Some forty words, two of which the commands use."""
    return [
        "bird",
        "building",
        *(a + b for a in ("ba", "de", "li", "mo", "su") for b in ("t", "n", "ng", "st", "ck", "m")),
    ]


# ------------------------------------------------------------------------------------------- all are right


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_known_and_take_their_flags(page, trained, monkeypatch):
    for words in commands(page):
        if words[0] == "python":
            check_python(words[1:], trained, monkeypatch)
        elif words[0] == "make":
            makefile = (ROOT / "Makefile").read_text()
            targets = [word for word in words[1:] if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets), words
        elif words[0] == "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert words[:3] == ["pip", "install", "-e"]
            assert set(re.findall(r"\[(\w+)\]", words[3])) <= extras.keys(), words
        else:
            assert words == ["source", ".venv/bin/activate"]


def check_python(words: list[str], trained: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asserts that a Python command has such a script and that the script takes its arguments."""
    program, first, *flags = [*words, ""]
    flags = flags[:-1]
    if program == "train.py":
        if "--help" in flags:
            with pytest.raises(SystemExit) as ended:
                asked(first, flags)
            assert ended.value.code == 0
        else:
            asked(first, flags)
    elif program in SCRIPTS:
        assert first in trained, f"{first} is trained by no command: {words}"
        run = trained[first]
        with pytest.MonkeyPatch.context() as patch:
            module = load_script(program.removesuffix(".py"), patch)
            if program == "sample.py":
                default = module.Sample(run.family.Request())
            else:
                default = module.Evaluate(run.scoring, run.data)
            parse_flags(type(default), default, flags, program)
    else:
        check_other(words, monkeypatch)


class _ParsedError(Exception):
    """Ends a program once its arguments are parsed."""


def check_other(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asserts that there is such a module or file; one with an argument parser runs up to the parsed arguments."""
    module = words[0] == "-m"
    name, arguments = (words[1], words[2:]) if module else (words[0], words[1:])
    if name == "pytest":
        assert all((ROOT / argument).is_file() for argument in arguments if argument.endswith(".py")), words
        return
    place = ROOT.joinpath(*name.split(".")) if module else ROOT / name
    assert place.is_dir() or place.with_suffix(".py").is_file(), words
    if name in NO_PARSER:
        assert not arguments, words
    elif name not in NAMES_ONLY:
        parse = argparse.ArgumentParser.parse_args

        def stop(self: argparse.ArgumentParser, given: Any = None, namespace: Any = None) -> None:
            parse(self, given, namespace)
            raise _ParsedError

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(str(ROOT))
        monkeypatch.syspath_prepend(str(place.parent))
        with pytest.raises((_ParsedError, SystemExit)) as ended:
            runpy.run_module(name, run_name="__main__") if module else runpy.run_path(str(place), run_name="__main__")
        assert ended.type is _ParsedError or ended.value.code == 0, words


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_on_a_page_is_valid(page):
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), target
    for named in re.findall(r"`((?:zoo|tests|tools|benchmarks|configs|docs)/[\w/.]+)`", text):
        assert (ROOT / named).exists() or "results/gpu" in named, named


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


# ------------------------------------------------------------------------------------------- all run


def tiny_training(config: str, flags: list[str]) -> list[str]:
    """The flags that make a training command small, which come after its own."""
    run = asked(config, flags).run
    small: list[str] = []
    kept = ("context",) if isinstance(run.data, ImageTokens | CaptionedTokens) else ()  # as many tokens as a row has
    for field in dataclasses.fields(run.family):
        if field.name in SMALL and field.name not in kept:
            size = min(getattr(run.family, field.name), SMALL[field.name])
            values = [str(value) for value in (size if isinstance(size, tuple) else (size,))]
            small += [f"--family.{field.name.replace('_', '-')}", *values]
    images = dict.fromkeys((Images, ImageTokens), "my_images.npz")
    if isinstance(run.data, CaptionedImages | CaptionedTokens) and run.data.draws_scenes:
        return [*small, "--data.size", "16", "--data.digit-size", "7", "--data.held-out-scenes", "32", *TINY]
    source = images | {CaptionedImages: "captioned", Pairs: "my_pairs.tsv", Sentences: "my_sentences.txt"}
    if "--data.path" not in flags:
        small += ["--data.path", source.get(type(run.data), "my_corpus.txt")]
    return [*small, *TINY]


def tiny_use(program: str, flags: list[str]) -> list[str]:
    """The flags that make a sampling or evaluation command small."""
    sizes = {
        "sample": {"--n": "2", "--max-new-tokens": "4"},
        "evaluate": {"--samples": "12", "--iw-samples": "2", "--draws": "2"},
    }
    return [word for name, value in sizes[program].items() if name in flags for word in (name, value)]


@pytest.mark.slow
def test_commands_run(workplace, capsys, monkeypatch):
    for config, *flags in every("train.py"):
        small = [] if "--help" in flags else tiny_training(config, flags)
        result = call(capsys, "train", config, *flags, *small)
        assert result.code == 0, (config, flags, result.err)
    for program in ("sample", "evaluate"):
        for rundir, *flags in every(f"{program}.py"):
            result = call(capsys, program, rundir, *flags, *tiny_use(program, flags))
            assert result.code == 0, (program, rundir, flags, result.err)
            assert result.out, (program, rundir, flags)
    monkeypatch.setattr("zoo.load_config", lambda config: asked(config, tiny_training(config, [])).run, raising=False)
    for block in (block for page in PAGES for block in blocks(page, "python") if "import zoo" in block):
        exec(compile(block, "page", "exec"), {})
