"""Plots the FID of several runs against training time.

    python -m benchmarks.fid_by_time runs/ddpm_plain:eta=0 runs/ddpm_plain:eta=1,shift=3 runs/dcgan [--samples 10000]
                                     [--minutes 5 15 30 60] [--out fid.png]

Every run must have kept its checkpoints (`train.py --keep 1000`). For each run, the checkpoints nearest to the given
minutes are scored as by `evaluate.py`, with the settings after the run's name, and the figures are added to the run's
scores.jsonl. A checkpoint that was already scored with the same settings is not scored again. The time is that of the
training steps only, as the run logged it; for a run that shared its machine, `RUN:seconds=0.09,eta=0` gives the seconds
of a step on a quiet machine. Prints one JSON line for each checkpoint.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import zoo
from zoo.harness.checkpoint import Checkpoints
from zoo.harness.rundir import METRICS, SCORES, RunDir


def seconds_at(path: Path, per_step: float | None) -> dict[int, float]:
    """Seconds of training by step: as the run logged them, or from the given seconds per step."""
    lines = [json.loads(line) for line in (path / METRICS).read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["seconds"] if per_step is None else line["step"] * per_step for line in lines}


def kept_steps(path: Path, seconds: dict[int, float], minutes: list[float]) -> list[int]:
    """The steps of the checkpoints nearest to the given training times."""
    checkpoints = Checkpoints(path)
    steps = [step for step in checkpoints.steps() if step in seconds]
    checkpoints.close()
    return sorted({min(steps, key=lambda step: abs(seconds[step] - 60 * at)) for at in minutes})


def score(path: Path, step: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of one checkpoint, from scores.jsonl if present; else they are computed and added to it."""
    asked = settings | {"step": step, "split": "test", "seed": 0}
    lines = (path / SCORES).read_text(encoding="utf-8").splitlines() if (path / SCORES).is_file() else []
    for record in map(json.loads, lines):
        if asked.items() <= record.items():
            return record
    trained = zoo.load_run(path, str(step))
    found = trained.evaluate(split="test", **settings)
    record = {"step": step, "split": "test"} | found | {"seed": 0} | trained.setting()
    RunDir(path).write_scores(record)
    return record


def read_curve(argument: str) -> tuple[Path, dict[str, Any]]:
    """Parses RUN or RUN:name=number,... to the run directory and the settings of its scoring, including `seconds`."""
    path, _, settings = argument.partition(":")
    pairs = (setting.split("=") for setting in settings.split(",") if setting)
    return Path(path), {name: float(value) for name, value in pairs}


def draw(curves: dict[str, list[tuple[float, float]]], minutes: list[float], out: Path, samples: int) -> None:
    """Plots curves of (minutes, FID) by name, both axes logarithmic, to a file."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="minutes of training", ylabel=f"FID ({samples:,} samples)", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.set_xticks(minutes)
    axes.set_xticks([], minor=True)
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    """Parses the command line, scores the checkpoints, and plots after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN[:name=number,...]")
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--minutes", nargs="+", type=float, default=[2, 5, 15, 30, 60])
    parser.add_argument("--out", type=Path, default=Path("fid_by_time.png"))
    asked = parser.parse_args()
    curves: dict[str, list[tuple[float, float]]] = {}
    for argument in asked.runs:
        path, settings = read_curve(argument)
        seconds = seconds_at(path, settings.pop("seconds", None))
        for step in kept_steps(path, seconds, asked.minutes):
            record = score(path, step, {"samples": asked.samples} | settings)
            minutes = seconds[step] / 60
            print(json.dumps({"run": path.name, "minutes": round(minutes, 2)} | record), flush=True)
            curves.setdefault(argument.removeprefix(f"{path.parent}/"), []).append((minutes, record["fid"]))
            draw(curves, asked.minutes, asked.out, asked.samples)


if __name__ == "__main__":
    main()
