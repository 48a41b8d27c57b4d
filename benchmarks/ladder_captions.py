"""The part of the ladder that is of captioned digits: four ways from a caption to an image, by guidance scale.

A run's rows are its scores on the test split with a reader, one for each setting of the sampler:
`evaluate.py RUN --split test --samples 1000 --reader runs/captioned_digits_reader --guidance G`.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks.ladder_fid import SETTINGS, Sampled

Entry = dict[str, Any]

SHARES = ("read_digit", "read_colour", "read_place", "seen_read_all", "unseen_read_all")
OF_READER = tuple(f"reader_{name}" for name in (*SHARES[:3], "read_all"))
"""Shares of the real scenes that the reader reads right."""
KEPT = (*SETTINGS, *SHARES, *OF_READER, "extractor", "fid", "fid_is", "reader")
TIMED = 32
"""Samples of a timing."""
HEAD = "|  | guidance | calls | seconds | samples | FID | digit | colour | place | all, seen | all, held out |"
RUNS_HEAD = (
    "| | parameters | minutes | bits of an image given its caption | captions right, seen and held out | command |"
)

CODEC = "captioned_digits_vqvae"
WAYS = (
    Sampled("flow of pixels", "captioned_digits_flow"),
    Sampled("flow of latents", "captioned_digits_latent", codec=CODEC),
    Sampled("Transformer over codes", "captioned_digits_autoregressive", calls=64, codec=CODEC),
    Sampled("masked diffusion of codes", "captioned_digits_masked", codec=CODEC),
)


def caption_points(scores: list[dict[str, Any]], last: int) -> list[Entry]:
    """The scores by a reader of a run's samples on the test split, at its last step, one for each guidance scale."""
    found: dict[float, Entry] = {}
    for record in scores:
        if record["split"] == "test" and record["step"] == last and "reader" in record:
            found[record.get("guidance", 1.0)] = {name: record[name] for name in KEPT if name in record}
    return [found[guidance] for guidance in sorted(found)]


def seconds_a_sample(path: Path, points: list[Entry]) -> list[float]:
    """Times the sampler of each point, compiled, on prompts in one batch; on a quiet machine only."""
    import zoo

    run = zoo.load_run(path)
    prompt = ("a red 3 left of a blue 7", "a cyan 8", "a yellow 1 above a green 0", "a purple 5 in the middle")
    taken = []
    for point in points:
        settings = {name: point[name] for name in SETTINGS if name in point and name != "samples"}
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
    points = [(way, point) for way in ways for point in ladder[way.run]["caption_points"]]
    most = max((point for _, point in points), key=lambda point: point["samples"])
    own = [f"{most[name]:.1%}" for name in OF_READER]
    return [
        "### Captioned digits, four ways from a caption to an image",
        "",
        HEAD,
        "|" + "---|" * (HEAD.count("|") - 1),
        *(_line(way, ladder[way.run], point) for way, point in points),
        "",
        "Shares of samples, half of them of combinations that were not trained on, in which a reader finds what the "
        f"caption asks for; in the first {most['samples']:,} real scenes of the split it finds digits right in "
        f"{own[0]}, colours in {own[1]}, places in {own[2]} and everything in {own[3]}. FID is by the reader's "
        + ("features, and biased upwards: the more, the fewer the samples." if "fid_is" in most else "features.")
        + " Seconds are of a sample in a batch of 32. Bits of masked diffusion are an upper bound.",
        "",
        *_runs(ways, ladder),
        "",
    ]


def _line(way: Sampled, entry: Entry, point: Entry) -> str:
    guidance = point.get("guidance", 1.0)
    seconds = entry.get("seconds_a_sample", {}).get(str(guidance))
    shares = " | ".join(f"{point[name]:.1%}" for name in SHARES)
    figures = f"{seconds or ''} | {point['samples']:,} | {point['fid']:.2f} | {shares}"
    return f"| {way.model} | {guidance:g} | {way.calls_of(point)} | {figures} |"


def _runs(ways: list[Sampled], ladder: dict[str, Entry]) -> list[str]:
    """A table of the ways' runs: parameters, minutes, bits, captions that they write, and commands."""
    lines = [RUNS_HEAD, "|" + "---|" * (RUNS_HEAD.count("|") - 1)]
    for way in ways:
        entry = ladder[way.run]
        test, size, minutes = entry["test"], f"{entry['parameters'] / 1e6:.2f} M", f"{entry['minutes']:.0f}"
        if way.codec:
            minutes += f" after the codec's {ladder[way.codec]['minutes']:.0f}"
        bits = f"{test['image_given_caption_bits']:.1f}" if "image_given_caption_bits" in test else ""
        told = [f"{test[name]:.1%}" for name in ("seen_caption_right", "unseen_caption_right") if name in test]
        lines.append(f"| {way.model} | {size} | {minutes} | {bits} | {', '.join(told)} | `{entry['command']}` |")
    return lines
