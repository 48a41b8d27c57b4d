"""Scores a trained run on held-out data: python evaluate.py RUN [--split test] [--data.path FILE] [--image FILE]."""

if __name__ == "__main__":
    from zoo.harness.memory import pause_garbage_collection

    pause_garbage_collection()

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from zoo.core.data import Data, Split
from zoo.core.errors import run_script
from zoo.harness.flags import parse_flags, split_arguments, trust_named, typed
from zoo.harness.progress import format_figures
from zoo.harness.rundir import RunDir

USAGE = "usage: python evaluate.py RUN [--split test] [--json]; flags: python evaluate.py RUN --help"


@dataclass(frozen=True)
class Evaluate:
    """Flags of evaluate.py: the family's scoring, the data, the checkpoint and the output."""

    scoring: Annotated[Any, tyro.conf.arg(name="")]
    data: Data
    """The data: the run's, or another source of the same kind, all of which is scored unless `--split` is given."""
    image: str = ""
    """Score this image file instead of the data: its likelihood, or the bound on it, and no samples."""
    split: Split | None = None
    """Rows to score: dev, which selected settings and checkpoints; test, for reported figures; or all. None: dev of the
    run's data, all of another source."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Seed of the noise, for stochastic objectives."""
    draws: int = 1
    """Evaluations of each row with independent noise, for bounds that are estimated by sampling."""
    checkpoint: str = "last"
    """Checkpoint to load: last, best, or a step."""
    trust: tuple[str, ...] = ()
    """Python files or modules whose classes the run uses."""


def main() -> None:
    """Parses the flags, scores the run, and prints the figures."""
    path, flags = split_arguments(USAGE, "a run directory")
    rundir = RunDir(path)
    rundir.require()
    trust_named(flags)
    run = rundir.config()
    asked = parse_flags(Evaluate, Evaluate(run.scoring, run.data), flags, f"evaluate.py {path}")
    scored = asked.data.of_image(asked.image, rundir.spec()) if asked.image else asked.data
    split = asked.split or ("dev" if scored.name == run.data.name else "all")

    from zoo.harness.trained import load_run

    trained = load_run(path, asked.checkpoint)
    data = trained.held_out(split, scored)
    scoring = run.scoring.of_image() if asked.image else {}
    scoring |= {name: getattr(asked.scoring, name) for name in typed(asked.scoring, flags)}
    metrics = trained.evaluate(asked.seed, asked.draws, data=data, **scoring)
    metrics = rundir.keep_images(trained.model.step, metrics)
    of = {"step": trained.model.step, "data": scored.name, "split": split}
    record = of | metrics | {"draws": asked.draws, "seed": asked.seed} | trained.setting()
    rundir.write_scores(record)
    if asked.json:
        print(json.dumps(record))
        return
    print(f"{path} at step {trained.model.step}, split {split} of {data.describe()}", file=sys.stderr)
    for name, text in format_figures(metrics).items():
        print(f"{name.replace('_', ' '):24} {text}")


if __name__ == "__main__":
    run_script(main)
