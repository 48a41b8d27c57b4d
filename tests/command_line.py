"""Calling the scripts: in this process, with their exit status and what they print, or as real processes."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from paths import ROOT

from zoo.core.errors import run_script

CONFIG = str(ROOT / "configs" / "transformer_lm.py")
TEXT = "\n".join(f"Line {n} of the text says {n * n % 97} and {n**3 % 89}, then it ends." for n in range(60))
SHAPE = ("--family.layers", "1", "--family.heads", "2", "--family.width", "16", "--family.context", "16")
TINY = (*SHAPE, "--batch-size", "8", "--sample-every", "0", "--score-every", "0", "--log-every", "1")


@dataclass(frozen=True)
class Result:
    """How a script ended."""

    code: int
    out: str
    err: str


def load_script(script: str, patch: pytest.MonkeyPatch) -> Any:
    """A script as a module, under its name for as long as the patch lasts."""
    spec = importlib.util.spec_from_file_location(script, ROOT / f"{script}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, script, module)
    spec.loader.exec_module(module)
    return module


def call(capsys: pytest.CaptureFixture[str], script: str, *arguments: object) -> Result:
    """Runs a script's `main` here."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        module = load_script(script, patch)
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_script(module.main)
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Result(ended.value.code, printed.out, printed.err)


def start(script: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Starts a script as a process of its own, on one device, with the tests' compile cache."""
    cache = ROOT / ".pytest_cache" / "jax_processes"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu", "TERM": "dumb"}
    command = [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe, **options)


def finish(process: subprocess.Popen[str], seconds: float = 120) -> Result:
    """Waits for a process."""
    out, err = process.communicate(timeout=seconds)
    return Result(process.returncode, out, err)


def refused(result: Result, *words: str) -> None:
    """Asserts what every refusal has: status 2, nothing on standard output, one sentence with these words."""
    assert result.code == 2, result
    assert result.out == ""
    assert "Traceback" not in result.err
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: "), result.err
    for word in words:
        assert word in last, (word, last)
