"""Checks the zoo on a GPU and measures its speed and memory.

    make gpu                                        # creates an environment and runs this
    make gpu PYTHON=python                          # with an existing environment; installs nothing
    python -m benchmarks.gpu [--minutes 10] [--out benchmarks/results] [--only CASE ...] [--smoke]

Each case runs in its own process with a time limit. A case that fails is recorded with its error; cases that remain
after the given minutes are recorded as not run. Checks run four at a time, measurements one at a time. Writes gpu.json
and the table gpu.md, and prints the table. PEER_PYTHON names an interpreter with PyTorch, if this one lacks it. --smoke
runs tiny sizes on any device and writes files only to --out. The exit status is 2 without a GPU, 1 if a case of the zoo
failed, else 0.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu_table import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TEXT = ("transformer_lm", "lstm_lm", "seq2seq_lstm", "seq2seq_transformer", "text_vae", "masked_lm")
IMAGES = ("image_vae", "dcgan", "ddpm")
NEEDED = ("jax", "numpy", "flax", "optax", "einops", "jaxtyping")
FOR_IMAGES = {"PIL": "pillow", "safetensors": "safetensors", "rich": "rich"}
NOT_CHECKED = {
    "grain": "reading data",
    "array_record": "reading prepared data sets",
    "orbax.checkpoint": "checkpoints on disk (states are put back from host memory here)",
    "tensorboardX": "TensorBoard events",
}
CHECKS = (
    *(f"contract:{name}" for name in (*TEXT, *IMAGES)),
    "again:transformer_lm",
    "precision:transformer_lm",
    "precision:ddpm",
)
MEASURED = (
    "gpt2:zoo",
    "gpt2:torch",
    *(f"train:{name}:{dtype}" for name in (*TEXT, *IMAGES) for dtype in ("bfloat16", "float32")),
)
LIMIT = 180
"""Time limit of a case in seconds."""
WORKERS = 4
"""Checks that run at the same time."""


def is_there(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def obstacle() -> str | None:
    """The reason why this interpreter cannot run any case, in one sentence; None if it can."""
    version = ".".join(map(str, sys.version_info[:2]))
    if sys.version_info < (3, 11):  # noqa: UP036 (the interpreter is the user's)
        return f"{sys.executable} is Python {version}; 3.11 or newer is needed"
    if missing := [name for name in NEEDED if not is_there(name)]:
        return f"{sys.executable} has no {', '.join(missing)}; run make gpu without PYTHON to install what is needed"
    jax = importlib.metadata.version("jax")
    if tuple(int(part) for part in jax.split(".")[:2]) < (0, 10):
        return f"{sys.executable} has jax {jax}; 0.10 or newer is needed"
    return None


def left_out(case: str) -> str | None:
    """The reason why a case cannot run in this environment; None if it can."""
    missing = [name for package, name in FOR_IMAGES.items() if not is_there(package)]
    if missing and any(name in case.split(":") for name in IMAGES):
        return f"skipped: the image families need {', '.join(missing)}"
    return None


def command_of(case: str, smoke: bool) -> list[str]:
    """The command line of a case."""
    flags = ["--smoke"] if smoke else []
    if case == "gpt2:torch":
        peer = os.environ.get("PEER_PYTHON") or sys.executable
        return [peer, str(ROOT / "benchmarks" / "peers" / "gpt_gpu.py"), *flags]
    return [sys.executable, "-m", "benchmarks.gpu_cases", case, *flags]


def run(case: str, smoke: bool, limit: float, cache: str) -> dict[str, Any]:
    """Runs a case; returns its figures or its error."""
    if reason := left_out(case):
        return {"error": reason}
    # Without filtering, the last line of a traceback is the error.
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_TRACEBACK_FILTERING": "off"}
    if case in CHECKS:  # several share the device
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command_of(case, smoke), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(limit, 1)
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {limit:.0f} s"}
    except OSError as error:
        return {"error": str(error)}
    took = {"seconds": round(time.perf_counter() - began, 1)}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
    if done.returncode:
        return {"error": lines[-1][:500], "status": done.returncode} | took
    return json.loads(lines[-1]) | took


def run_all(cases: list[str], smoke: bool, end: float) -> dict[str, Any]:
    """Figures or errors of all cases by name; cases after the time `end` are recorded as not run."""

    def within(case: str) -> dict[str, Any]:
        left = end - time.monotonic()
        told = {"error": "not run: the time was over"} if left < 5 else run(case, smoke, min(LIMIT, left), cache)
        print(f"{case}: {told.get('error') or 'done'}", file=sys.stderr, flush=True)
        return told

    with tempfile.TemporaryDirectory() as cache:
        measured = [case for case in cases if case.startswith("gpt2")]
        results = {case: within(case) for case in measured}
        checks = [case for case in cases if case in CHECKS]
        with ThreadPoolExecutor(WORKERS) as pool:
            results |= dict(zip(checks, pool.map(within, checks), strict=True))
        return results | {case: within(case) for case in cases if case not in results}


def failed(case: str, told: dict[str, Any]) -> bool:
    """Whether a case of the zoo failed; PyTorch's case and cases skipped for missing packages do not count."""
    if case == "gpt2:torch" or told.get("error", "").startswith("skipped"):
        return False
    return "error" in told or not told.get("ok", True)


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and runs the cases; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=[*MEASURED, *CHECKS])
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args(arguments)
    end = time.monotonic() + 60 * asked.minutes
    if problem := obstacle():
        print(problem, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as cache:
        found = run("device", asked.smoke, LIMIT, cache)
    if "error" in found:
        print(f"JAX finds no device to run on: {found['error']}", file=sys.stderr)
        return 2
    if found["platform"] != "gpu" and not asked.smoke:
        print(f"JAX runs on {found['platform']} here; make gpu needs a GPU, or --smoke to try it out", file=sys.stderr)
        return 2
    missing = {name: what for name, what in NOT_CHECKED.items() if not is_there(name)}
    record = {
        "device": found,
        "smoke": asked.smoke,
        "not_checked": missing,
        "cases": run_all(list(asked.only or (*MEASURED, *CHECKS)), asked.smoke, end),
    }
    written = table(record)
    out = asked.out or (None if asked.smoke else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (out / "gpu.md").write_text(written, encoding="utf-8")
    print(written)
    return int(any(failed(name, told) for name, told in record["cases"].items()))


if __name__ == "__main__":
    sys.exit(main())
