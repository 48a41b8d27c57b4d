"""Times the start of the scripts: to the help, to the first training step, and to the first sampled token.

python -m benchmarks.start

Every case is a new process. `help` is paired with a process that only imports the libraries of the scripts;
`first_step` is timed from the command to the first line of metrics, with an empty compilation cache and with the cache
that this fills; `first_token` likewise, to the first characters after the prompt.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = "configs/transformer_lm.py"
PROMPT = "ROMEO:"


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of a whole process."""
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.perf_counter() - begun


def first_step(rundir: str, environment: dict[str, str]) -> float:
    """Seconds from the command to the first metrics on disk."""
    command = [sys.executable, "train.py", CONFIG, "--rundir", rundir, "--steps", "20"]
    begun = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        metrics = Path(rundir) / "metrics.jsonl"
        while not (metrics.is_file() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        seconds = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"train.py ended with status {process.returncode}")
    return seconds


def first_token(rundir: str, environment: dict[str, str]) -> float:
    """Seconds from the command to the first characters after the prompt."""
    command = [sys.executable, "sample.py", rundir, "--prompt", PROMPT, "--max-new-tokens", "64"]
    begun = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(len(PROMPT) + 1)
        seconds = time.perf_counter() - begun
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"sample.py ended with status {process.returncode}")
    return seconds


def main(rounds: int = 5) -> None:
    """Runs all cases and prints one JSON line each."""
    imports = [sys.executable, "-c", "import jax, flax, optax, tyro"]
    usage = [sys.executable, "train.py", CONFIG, "--help"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache", "PYTHONPATH": str(ROOT)}
        timed(imports, environment), timed(usage, environment)
        pairs = [(timed(usage, environment), timed(imports, environment)) for _ in range(rounds)]
        emit("help", statistics.median(a for a, _ in pairs), ratio=statistics.median(a / b for a, b in pairs))
        rundir = f"{folder}/run"
        emit("first_step_cold", first_step(rundir, environment))
        warm = [first_step(f"{rundir}-{i}", environment) for i in range(rounds)]
        emit("first_step_warm", statistics.median(warm))
        emit("first_token_cold", first_token(rundir, environment))
        emit("first_token_warm", statistics.median(first_token(rundir, environment) for _ in range(rounds)))


def emit(case: str, seconds: float, **more: float) -> None:
    """Prints the JSON line of a case."""
    line = {"task": "start", "case": case, "seconds": round(seconds, 2)}
    print(json.dumps(line | {name: round(value, 3) for name, value in more.items()}), flush=True)


if __name__ == "__main__":
    main()
