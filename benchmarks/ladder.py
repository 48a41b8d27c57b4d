"""Tables of all families on the same data, in docs/results.md, from the scores of runs.

    python -m benchmarks.ladder add RUN ... [--machine TEXT]    # their figures, into benchmarks/ladder.json
    python -m benchmarks.ladder time RUN ...                    # seconds a sample of runs that read captions
    python -m benchmarks.ladder                                 # the tables and the plots, from that file

A run's name is that of its directory: `NAME`, or `NAME_1`, `NAME_2` for further seeds. Its figures are those that
`evaluate.py RUN --split test` wrote to the run's scores.jsonl for its last step: of several calls, the last that has a
figure counts. Nothing in the tables is typed: a figure that no run has is left out.
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ladder_captions, ladder_fid
from zoo.harness.rundir import LAUNCHES, METRICS, SCORES, RunDir

LADDER = Path(__file__).with_name("ladder.json")
RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
MARKS = ("<!-- ladder: written by python -m benchmarks.ladder -->\n", "<!-- end of ladder -->\n")

Entry = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of a table: the sum of figures of some runs."""

    model: str
    figures: tuple[tuple[str, str], ...]
    """Pairs (run, name of the figure), which are added."""
    kind: str
    """exact, bound or estimate."""


def one(model: str, run: str, figure: str, kind: str) -> Row:
    """A row with one figure of one run."""
    return Row(model, ((run, figure),), kind)


TABLES = {
    "Binarised MNIST, nats an image": [
        one("Transformer over patches of 2x4 pixels", "mnist_patches_transformer", "nats_per_image", "exact"),
        one("LSTM over the same patches", "mnist_patches_lstm", "nats_per_image", "exact"),
        one("masked diffusion of the same patches", "mnist_patches_masked_diffusion", "nats_per_image", "bound"),
        one("image VAE, 200 importance-weighted samples", "image_vae", "iw_nll_nats", "bound"),
        one("image VAE, ELBO", "image_vae", "loss", "bound"),
        Row(
            "VQ-VAE and a Transformer over its codes",
            (("vqvae", "reconstruction_nats"), ("vqvae_transformer", "nats_per_image")),
            "bound",
        ),
    ],
    "MNIST in 256 grey levels, bits per dimension": [
        one("Transformer over pixels", "mnist_pixels_transformer", "bits_per_dim", "exact"),
        one("DDPM, variational bound", "ddpm", "bound_bits_per_dim", "bound"),
        one("flow matching, by the ODE, dequantised", "flow_matching", "ode_bits_per_dim", "estimate"),
        one("image VAE, logistic likelihood", "image_vae_logistic", "bits_per_dim", "bound"),
    ],
    "Shakespeare, bits a character on Macbeth and Twelfth Night": [
        one("Transformer", "transformer_lm", "bits_per_character", "exact"),
        one("LSTM", "lstm_lm", "bits_per_character", "exact"),
        one("masked diffusion", "masked_diffusion", "bits_per_character", "bound"),
    ],
}
OTHERS = {
    "Binarised MNIST, nats an image": (
        "Reported by others with the same binarisation (pytorch-generative): PixelSNAIL 78.6, ImageGPT 79.2, Gated "
        "PixelCNN 81.5, MADE 84.9, VAE 86.8."
    ),
}
"""What others report, under a table."""
CONDITIONAL = (
    "Some of the figures are of images given their class, at most log2(10) / 784 = 0.004 bits per dimension below "
    "those of images alone."
)

# ------------------------------------------------------------------------------------------- from runs


def read_entry(path: Path, machine: str) -> Entry:
    """The settings and the test figures of a run."""
    launches, metrics, scores = (_lines(path / name) for name in (LAUNCHES, METRICS, SCORES))
    run, last = RunDir(path).config(), metrics[-1]["step"]
    test: dict[str, Any] = {}
    for record in scores:
        if record["split"] == "test" and record["step"] == last:
            # The settings of a sampler belong to the FID that counts.
            kept = {n: v for n, v in test.items() if n not in ladder_fid.SETTINGS} if "fid" in record else test
            test = kept | record
    if not test:
        raise SystemExit(f"{path} has no test figures of step {last}; run python evaluate.py {path} --split test")
    return {
        "seed": run.seed,
        "command": _shown(launches[0]["command"]),
        "minutes": round(max(line.get("seconds", 0.0) for line in metrics) / 60, 1),
        "parameters": _parameters(path),
        "machine": machine or launches[-1]["device_kind"],
        "test": test,
        "fid_points": ladder_fid.fid_points(metrics, scores),
        "caption_points": ladder_captions.caption_points(scores, last),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _shown(command: str) -> str:
    """The command without the place where the run was kept."""
    return re.sub(r" --rundir \S+", "", command)


def _parameters(path: Path) -> int:
    import jax

    import zoo

    learners = jax.tree.leaves(zoo.load_run(path).model.state, is_leaf=lambda node: hasattr(node, "eval_params"))
    return sum(leaf.size for learner in learners for leaf in jax.tree.leaves(learner.eval_params))


def add(paths: Iterable[Path], machine: str) -> None:
    """Writes the figures of runs into the ladder's file."""
    save(load() | {path.name: read_entry(path, machine) for path in paths})


def add_times(paths: Iterable[Path]) -> None:
    """Times the sampling of runs that read captions and are in the ladder's file, and writes it there."""
    ladder = load()
    for path in paths:
        points = ladder[path.name]["caption_points"]
        seconds = ladder_captions.seconds_a_sample(path, points)
        scales = [str(point.get("guidance", 1.0)) for point in points]
        ladder[path.name]["seconds_a_sample"] = dict(zip(scales, seconds, strict=True))
    save(ladder)


def load() -> dict[str, Entry]:
    """The ladder's file; empty if there is none."""
    return json.loads(LADDER.read_text(encoding="utf-8")) if LADDER.is_file() else {}


def save(ladder: dict[str, Entry]) -> None:
    """Writes the ladder's file."""
    LADDER.write_text(json.dumps(dict(sorted(ladder.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------- tables


def runs_of(ladder: dict[str, Entry], name: str) -> list[Entry]:
    """The run of that name and those with further seeds."""
    return [entry for run, entry in ladder.items() if re.fullmatch(rf"{re.escape(name)}(_\d)?", run)]


def spread(values: list[float], digits: int = 2) -> str:
    """The mean of several runs and their range, or one run's value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, high = min(values), max(values)
    return f"{statistics.fmean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, {len(values)} seeds)"


def row_line(row: Row, ladder: dict[str, Entry]) -> str | None:
    """A row of a table in Markdown; None if a figure is missing."""
    parts = [
        [(entry, entry["test"][figure]) for entry in runs_of(ladder, name) if figure in entry["test"]]
        for name, figure in row.figures
    ]
    if not all(parts):
        return None
    sums = [sum(value for _, value in group) for group in zip(*parts, strict=False)]
    entries = [entry for part in parts for entry, _ in part[:1]]
    minutes = sum(statistics.fmean(entry["minutes"] for entry, _ in part) for part in parts)
    fid = _fid(parts[-1])
    commands = "; ".join(f"`{entry['command']}`" for entry in entries)
    millions = sum(entry["parameters"] for entry in entries) / 1e6
    return f"| {row.model} | {spread(sums)} | {row.kind} | {fid} | {millions:.2f} M | {minutes:.0f} | {commands} |"


def _fid(part: list[tuple[Entry, float]]) -> str:
    fids = [entry["test"]["fid"] for entry, _ in part if "fid" in entry["test"]]
    return spread(fids) if fids else ""


def table(title: str, rows: list[Row], ladder: dict[str, Entry]) -> list[str]:
    """A table with its heading and the conditions of its figures; empty if no run has one."""
    lines = [line for row in rows if (line := row_line(row, ladder)) is not None]
    if not lines:
        return []
    heads = ["", "test", "kind", "FID", "parameters", "minutes", "command"]
    head = [f"### {title}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    used = [entry for row in rows for name, _ in row.figures for entry in runs_of(ladder, name)]
    notes = [OTHERS[title]] if title in OTHERS else []
    notes += [CONDITIONAL] * any(entry["test"].get("bits_per_dim_of") == "p(x | y)" for entry in used)
    machines = sorted({entry["machine"] for entry in used})
    sampled = sorted({_fid_conditions(entry) for entry in used if "fid" in entry["test"]})
    notes.append("Minutes are of training, on " + "; ".join(machines) + ". " + " ".join(sampled))
    return [*head, *lines, "", *notes, ""]


def _fid_conditions(entry: Entry) -> str:
    test = entry["test"]
    return f"FID of {test['samples']:,} samples against {test['reference']}, extractor {test['extractor']}."


def main() -> None:
    """Parses the command line; adds runs, or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=["add", "time", "write"], default="write")
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--machine", default="", help="what the minutes are of, with its measured peak")
    asked = parser.parse_args()
    actions: dict[str, Callable[[], None]] = {
        "add": lambda: add(asked.runs, asked.machine),
        "time": lambda: add_times(asked.runs),
        "write": write,
    }
    actions[asked.action]()


def write() -> None:
    """Writes the tables into docs/results.md."""
    ladder = load()
    lines = [line for title, rows in TABLES.items() for line in table(title, rows, ladder)]
    lines += ladder_fid.tables(ladder) + ladder_captions.tables(ladder)
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    RESULTS.write_text(before + MARKS[0] + "\n".join(lines) + "\n" + MARKS[1] + after, encoding="utf-8")


if __name__ == "__main__":
    main()
