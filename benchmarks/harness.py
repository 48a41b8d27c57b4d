"""Measures the overhead of the harness: a whole run against its compiled step alone.

python -m benchmarks.harness

The step alone is called on one batch that is already on the device, so the difference is the cost of data, logging and
checkpoints. Both are timed in turn in one process, over the same number of steps.
"""

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

import zoo
from zoo.harness.trained import make_setup

CONFIG = Path(__file__).parents[1] / "configs" / "transformer_lm.py"


def step_alone(run: zoo.Run, steps: int) -> float:
    """Seconds per call of the compiled step on one batch."""
    data = run.data.open(length=run.family.length, batch_size=run.batch_size, seed=run.seed)
    strategy, setup = run.parallel.start(run.batch_size), make_setup(run)
    state = strategy.init(lambda key: run.family.init(data.spec, setup, key), jax.random.key(0))
    step = strategy.compile_step(lambda state, batch, n: run.family.step(state, batch, n, jax.random.key(1)))
    batch = strategy.put(data.batch_at(0))
    for n in range(3):
        state, metrics = step(state, batch, np.int32(n))
    jax.block_until_ready(state)
    begun = time.perf_counter()
    for n in range(steps):
        state, metrics = step(state, batch, np.int32(n))
        jax.block_until_ready(metrics)
    return (time.perf_counter() - begun) / steps


def whole_run(run: zoo.Run, steps: int) -> float:
    """Seconds per step of a run with logging and checkpoints, from the first logged step to the last."""
    with tempfile.TemporaryDirectory() as folder:
        zoo.fit(replace(run, steps=steps, rundir=f"{folder}/run"))
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    first, last = train[1], train[-1]
    return (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


def main(steps: int = 500, rounds: int = 4) -> None:
    """Prints one JSON line."""
    run = zoo.load_config(str(CONFIG))
    # Without evaluations and samples, which are not overhead; checkpoints every 250 steps, the default of a run.
    run = replace(run, eval_every=0, score_every=0, sample_every=0, save_every=250, eval_batches=1)
    pairs = [(whole_run(run, steps), step_alone(run, steps)) for _ in range(rounds)]
    line = {
        "task": "harness",
        "step_ms": round(1000 * statistics.median(alone for _, alone in pairs), 3),
        "run_step_ms": round(1000 * statistics.median(whole for whole, _ in pairs), 3),
        "overhead": round(statistics.median(whole / alone for whole, alone in pairs) - 1, 4),
        "rounds": rounds,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
