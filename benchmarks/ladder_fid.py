"""The part of the ladder that is of samples: FID by calls of the network, and by minutes of training.

Of a run's test figures, those of its last step with several settings of the sampler make the first table, and those of
its earlier checkpoints (`train.py --keep 1000`, scored by `benchmarks.fid_by_time`) the second.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

FIGURE = Path(__file__).with_name("figures") / "ladder_fid.png"
SETTINGS = ("sampler", "steps", "eta", "shift", "guidance", "samples")
"""What makes two scores of one checkpoint different."""
MINUTES = (5, 15, 30, 60)
NEAR = 0.25
"""A checkpoint stands for a time if its own is at most this share away."""


@dataclass(frozen=True)
class Sampled:
    """A model of the tables of samples."""

    model: str
    run: str
    calls: int = 0
    """Calls of the network for a sample without guidance; 0: from the steps of its sampler."""
    codec: str = ""
    """The run of the codec that was trained before it; empty: none."""

    def calls_of(self, point: Entry) -> int:
        """Calls of the network for a sample: two in a step of midpoint, and of Heun's but the last; twice if guided."""
        steps: int = point.get("steps", 0)
        once = self.calls or {"heun": 2 * steps - 1, "midpoint": 2 * steps}.get(point.get("sampler", ""), steps)
        return once if point.get("guidance", 1) == 1 else 2 * once


ROWS = (
    Sampled("DDPM", "ddpm"),
    Sampled("flow matching", "flow_matching"),
    Sampled("MeanFlow", "mean_flow"),
    Sampled("DCGAN", "dcgan", calls=1),
    Sampled("VQ-VAE and a Transformer over its codes", "vqvae_transformer", calls=49),
    Sampled("VQ-VAE and masked diffusion of its codes", "vqvae_masked_diffusion"),
)


def fid_points(metrics: list[dict[str, Any]], scores: list[dict[str, Any]]) -> list[Entry]:
    """Every FID of a run on the test split, with its settings and the minutes of training before it."""
    minutes = {line["step"]: line["seconds"] / 60 for line in metrics if "seconds" in line}
    return [
        {name: record[name] for name in SETTINGS if name in record}
        | {"step": record["step"], "minutes": round(minutes[record["step"]], 2), "fid": record["fid"]}
        for record in scores
        if record["split"] == "test" and "fid" in record and record["step"] in minutes
    ]


def by_calls(row: Sampled, entry: Entry) -> dict[int, float]:
    """FID of the last checkpoint by calls of the network; of several settings with as many calls, the last scored."""
    points = entry.get("fid_points", [])
    last = max((point["step"] for point in points), default=0)
    return {
        row.calls_of(point): point["fid"]
        for point in points
        if point["step"] == last and (row.calls or "steps" in point)
    }


def by_minutes(entry: Entry) -> dict[float, float]:
    """FID by minutes of training, of the sampler settings with which most checkpoints were scored."""
    groups: dict[tuple[Any, ...], dict[float, float]] = {}
    for point in entry.get("fid_points", []):
        groups.setdefault(tuple(point.get(name) for name in SETTINGS), {})[point["minutes"]] = point["fid"]
    return dict(sorted(max(groups.values(), key=len, default={}).items()))


def nearest(curve: dict[float, float], minutes: float) -> float | None:
    """The figure of the checkpoint nearest to a time; None if it is not near."""
    found = min(curve, key=lambda at: abs(at - minutes), default=None)
    return None if found is None or abs(found - minutes) > NEAR * minutes else curve[found]


def tables(ladder: dict[str, Entry]) -> list[str]:
    """Both tables in Markdown, with the plot; empty if no run has figures."""
    rows = [row for row in ROWS if row.run in ladder and ladder[row.run].get("fid_points")]
    if not rows:
        return []
    calls = {row: by_calls(row, ladder[row.run]) for row in rows}
    curves = {row: by_minutes(ladder[row.run]) for row in rows}
    columns = sorted(set().union(*calls.values()))
    draw(calls, curves)
    return [
        "### FID by calls of the network and by minutes of training, MNIST",
        "",
        *_markdown("calls of the network for a sample", columns, {row: calls[row].get for row in rows}),
        "",
        *_markdown("minutes of training", MINUTES, {row: lambda at, row=row: nearest(curves[row], at) for row in rows}),
        "",
        "Minutes of a model over codes are those after the training of its VQ-VAE.",
        "",
        f"![FID by calls of the network and by minutes of training](../benchmarks/figures/{FIGURE.name})",
        "",
    ]


def _markdown(head: str, columns: Any, cells: dict[Sampled, Any]) -> list[str]:
    lines = [f"| {head} | {' | '.join(map(str, columns))} |", "|---|" + "---|" * len(columns)]
    for row, cell in cells.items():
        values = ["" if (value := cell(column)) is None else f"{value:.2f}" for column in columns]
        if any(values):
            lines.append(f"| {row.model} | {' | '.join(values)} |")
    return lines


def draw(calls: dict[Sampled, dict[int, float]], curves: dict[Sampled, dict[float, float]]) -> None:
    """Plots both tables with logarithmic axes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, found, label in zip(axes, (calls, curves), ("calls of the network", "minutes of training"), strict=True):
        for row, points in found.items():
            axis.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=row.model)
        axis.set(xlabel=label, xscale="log", yscale="log")
        axis.grid(which="both", alpha=0.3)
    axes[0].set(ylabel="FID")
    axes[0].legend(fontsize="small")
    figure.savefig(FIGURE, dpi=120)
