"""The part of the ladder that is of captioned digits: four ways from a caption to an image, by guidance scale.

A run's rows are its scores on the test split with a reader, one for each setting of the sampler:
`evaluate.py RUN --split test --samples 1000 --reader runs/captioned_digits_reader --guidance G`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ladder_fid import calls

Entry = dict[str, Any]

SHARES = ("read_digit", "read_colour", "read_place", "seen_read_all", "unseen_read_all")
SETTINGS = ("sampler", "steps", "eta", "shift", "guidance", "samples", "extractor", "fid", "fid_is", "reader")
SETTINGS += tuple(f"reader_{name}" for name in (*SHARES[:3], "read_all"))
TOLD = ("seen_caption_right", "unseen_caption_right", "image_given_caption_bits", "caption_given_image_bits")
"""Figures that are not of samples from captions."""
TIMED = 32
"""Samples of a timing."""


@dataclass(frozen=True)
class Way:
    """A model of captioned digits."""

    name: str
    run: str
    tokens: int = 0
    """Calls of the network for a sample without guidance; 0: from the steps of its sampler."""
    codec: bool = True
    """Whether a codec was trained before it."""


CODEC = "captioned_digits_vqvae"
WAYS = (
    Way("flow of pixels", "captioned_digits_flow", codec=False),
    Way("flow of latents", "captioned_digits_latent"),
    Way("Transformer over codes", "captioned_digits_autoregressive", tokens=64),
    Way("masked diffusion of codes", "captioned_digits_masked"),
)


def caption_points(scores: list[dict[str, Any]], last: int) -> list[Entry]:
    """The scores by a reader of a run's samples on the test split, at its last step, one for each guidance scale."""
    found: dict[float, Entry] = {}
    for record in scores:
        if record["split"] == "test" and record["step"] == last and "reader" in record:
            names = [*SETTINGS, *(name for share in SHARES for name in (share, f"{share}_ci95"))]
            found[record.get("guidance", 1.0)] = {name: record[name] for name in names if name in record}
    return [found[guidance] for guidance in sorted(found)]


def seconds_a_sample(path: Path, points: list[Entry]) -> list[float]:
    """Times the sampler of each point, compiled, on prompts in one batch; on a quiet machine only."""
    import zoo

    run = zoo.load_run(path)
    prompt = ("a red 3 left of a blue 7", "a cyan 8", "a yellow 1 above a green 0", "a purple 5 in the middle")
    taken = []
    for point in points:
        names = ("sampler", "steps", "eta", "shift", "guidance")
        settings = {name: point[name] for name in names if name in point}
        for seed in (0, 1):
            begin = time.perf_counter()
            run.sample(n=TIMED, prompt=prompt, seed=seed, **settings)
            seconds = time.perf_counter() - begin
        taken.append(round(seconds / TIMED, 4))
    return taken


def tables(ladder: dict[str, Entry]) -> list[str]:
    """The table of all ways in Markdown, with what else is known of their runs; empty if no run has figures."""
    ways = [way for way in WAYS if ladder.get(way.run, {}).get("caption_points")]
    if not ways:
        return []
    heads = [
        "",
        "guidance",
        "calls",
        "seconds",
        "samples",
        "FID",
        "digit",
        "colour",
        "place",
        "all, seen",
        "all, held out",
    ]
    points = [(way, point) for way in ways for point in ladder[way.run]["caption_points"]]
    judge = points[0][1]
    own = ", ".join(f"{name[5:]} {judge[f'reader_{name}']:.1%}" for name in SHARES[:3])
    return [
        "### Captioned digits, four ways from a caption to an image",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(_line(way, ladder[way.run], point) for way, point in points),
        "",
        "Shares of samples, half of them of combinations that were not trained on, in which a reader "
        f"finds what the caption asks for; on the real scenes of the same captions it finds {own}, all of it "
        f"{judge['reader_read_all']:.1%}. FID is by the reader's "
        + ("features, and biased upwards: the more, the fewer the samples." if "fid_is" in judge else "features.")
        + " Seconds are of a sample in a batch of 32.",
        "",
        *_runs(ways, ladder),
        "",
    ]


def _line(way: Way, entry: Entry, point: Entry) -> str:
    guidance = point.get("guidance", 1.0)
    taken = way.tokens * (1 if guidance == 1 else 2) or calls(point)
    seconds = entry.get("seconds_a_sample", {}).get(str(guidance))
    shares = " | ".join(f"{point[name]:.1%}" for name in SHARES)
    figures = f"{seconds or ''} | {point['samples']:,} | {point['fid']:.2f} | {shares}"
    return f"| {way.name} | {guidance:g} | {taken} | {figures} |"


def _runs(ways: list[Way], ladder: dict[str, Entry]) -> list[str]:
    """A table of the ways' runs: parameters, minutes, bits, captions that they write, and commands."""
    lines = [
        "| | parameters | minutes | bits of an image given its caption | captions right, seen and held out | command |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for way in ways:
        entry = ladder[way.run]
        test, minutes = entry["test"], f"{entry['minutes']:.0f}"
        if way.codec:
            minutes += f" after the codec's {ladder[CODEC]['minutes']:.0f}"
        bits = f"{test[TOLD[2]]:.1f}" if TOLD[2] in test else ""
        told = f"{test[TOLD[0]]:.1%}, {test[TOLD[1]]:.1%}" if TOLD[0] in test else ""
        lines.append(
            f"| {way.name} | {entry['parameters'] / 1e6:.2f} M | {minutes} | {bits} | {told} | `{entry['command']}` |"
        )
    return lines
