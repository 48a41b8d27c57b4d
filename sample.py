"""Draws samples from a trained run: python sample.py RUN [--n 3 --seed 1 --out DIR ...]."""

if __name__ == "__main__":
    from zoo.harness.memory import pause_garbage_collection

    pause_garbage_collection()

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.style import Style

from zoo.core.artifacts import Image, Text, deliver, listing, write_artifacts, write_summary
from zoo.core.errors import UserError, run_script
from zoo.harness.flags import gathered, parse_flags, split_arguments, trust_named
from zoo.harness.rundir import RunDir, make_out

USAGE = "usage: python sample.py RUN [--flag value ...]; flags: python sample.py RUN --help"


@dataclass(frozen=True)
class Sample:
    """Flags of sample.py: the family's request, the checkpoint and the output."""

    request: Annotated[Any, tyro.conf.arg(name="")]
    json: bool = False
    """Print texts as JSON lines, one object each."""
    seed: int = 0
    """Seed of the noise; sample i does not depend on the number of samples."""
    out: str = ""
    """Folder to write the samples to; empty: texts to standard output, images to RUN/samples."""
    checkpoint: str = "last"
    """Checkpoint to load: last, best, or a step."""
    trust: tuple[str, ...] = ()
    """Python files or modules whose classes the run uses."""


def main() -> None:
    """Parses the flags, draws the samples, and prints or writes them."""
    path, flags = split_arguments(USAGE, "a run directory")
    rundir = RunDir(path)
    rundir.require()
    trust_named(flags)
    family = rundir.config().family
    flags = gathered(flags, "--prompt", "--image")
    asked = parse_flags(Sample, Sample(family.Request()), flags, f"sample.py {path}")
    if asked.out and asked.json:
        raise UserError("json prints, and out writes files: give one of them")
    if asked.out:
        make_out(Path(asked.out))

    from zoo.harness.progress import to_console
    from zoo.harness.trained import load_run

    trained = load_run(path, asked.checkpoint)
    streamed: list[str] = []

    def stream(text: str) -> None:
        print(text if streamed else dim(text), end="", flush=True)
        streamed.append(text)

    watched = not asked.out and not asked.json and asked.request.n == 1
    with to_console():
        artifacts = deliver(trained.sample(asked.seed, stream if watched else None, asked.request))
    if asked.out:
        for written in write_artifacts(Path(asked.out), artifacts):
            print(written)
    elif asked.json:
        texts = [artifact.json() for artifact in artifacts if isinstance(artifact, Text)]
        if not texts:
            raise UserError("json is for texts, and this run makes pictures: leave it out")
        print("\n".join(texts))
    elif isinstance(artifacts[0], Image):
        print(write_summary(rundir.next_samples(), artifacts))
    else:
        print("" if streamed else listing(artifacts, dim))


def dim(prompt: str) -> str:
    """Returns the prompt, dimmed if standard output is a terminal, so that the continuation stands out."""
    terminal = sys.stdout.isatty() and not Console().is_dumb_terminal
    return Style(dim=True).render(prompt) if terminal else prompt


if __name__ == "__main__":
    run_script(main)
