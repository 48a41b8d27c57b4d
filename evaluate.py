"""Scores a trained run on its held-out data: python evaluate.py RUN [--json]."""

if __name__ == "__main__":
    from zoo.core.memory import pause_garbage_collection

    pause_garbage_collection()

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from zoo.core.config import parse_flags, split_arguments, trust_named
from zoo.core.errors import run_script
from zoo.core.progress import format_figure
from zoo.core.rundir import RunDir

USAGE = "usage: python evaluate.py RUN [--json]; flags: python evaluate.py RUN --help"


@dataclass(frozen=True)
class Evaluate:
    """Flags of evaluate.py: the family's scoring, and what to print."""

    scoring: Annotated[Any, tyro.conf.arg(name="")]
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Seed of the noise, for objectives that have some."""
    checkpoint: str = "last"
    """Which checkpoint: last, best, or a step."""
    trust: tuple[str, ...] = ()
    """Python files or modules whose classes the run uses."""


def main() -> None:
    """Parses, scores, and prints."""
    path, flags = split_arguments(USAGE, "a run directory")
    rundir = RunDir(path)
    rundir.require()
    trust_named(flags)
    asked = parse_flags(Evaluate, Evaluate(rundir.config().scoring), flags, f"evaluate.py {path}")

    from zoo.core.trained import load_run

    trained = load_run(path, asked.checkpoint)
    metrics = trained.evaluate(asked.seed, **vars(asked.scoring))
    record = {"step": trained.model.step, "split": "eval"} | metrics | {"seed": asked.seed} | trained.setting()
    rundir.write_scores(record)
    if asked.json:
        print(json.dumps(record))
        return
    print(f"{path} at step {trained.model.step}, held-out split, {trained.data.describe()}", file=sys.stderr)
    for name, value in metrics.items():
        print(f"{name.replace('_', ' '):24} {format_figure(value)}")


if __name__ == "__main__":
    run_script(main)
