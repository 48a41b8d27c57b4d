"""What a person sees while a run trains: a bar in a terminal or a notebook, plain lines elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zoo.core.estimates import DRAWS_STDERR, STDERR
from zoo.core.family import Metrics
from zoo.harness.config import Run

log = logging.getLogger("zoo")


class _ToConsole(logging.Handler):
    """Prints messages above the bar, as they are."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def to_console() -> Iterator[Console]:
    """Shows the zoo's messages on standard error, or in the notebook."""
    shown = [handler for handler in log.handlers if isinstance(handler, _ToConsole)]
    if shown:
        yield shown[0].console
        return
    console = Console(stderr=True)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with _handled_by(_ToConsole(console)):
            yield console
    finally:
        log.setLevel(level)
        log.propagate = propagate


@contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Appends the zoo's messages to a file, with the time."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    with _handled_by(handler):
        yield


@contextmanager
def _handled_by(handler: logging.Handler) -> Iterator[None]:
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class Meter:
    """Shows steps, loss, throughput and the time left."""

    def __init__(self, console: Console, start: int, steps: int, unit: str, units_per_step: int) -> None:
        """Starts counting.

        Args:
            console: where to show it.
            start: steps done already.
            steps: steps in all.
            unit: what throughput is counted in.
            units_per_step: how many a step has.
        """
        self.start, self.steps, self.unit, self.units_per_step = start, steps, unit, units_per_step
        self.begun = self.shown = time.perf_counter()
        self.bar: Progress | None = None
        # In a notebook the bar is a widget; without the package for it, lines do.
        if console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self.bar = Progress(
                *columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=console
            )
            self.task = self.bar.add_task("compiling", total=steps, completed=start)
            self.bar.start()

    def update(self, step: int, loss: float, rate: float) -> None:
        """Shows a step's loss and the throughput in units a second."""
        text = f"loss {loss:.4f}  {_short(rate)} {self.unit}/s"
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
            return
        now = time.perf_counter()
        # A line a step would drown everything else in a log file.
        if now - self.shown >= 2 or step in (self.start + 1, self.steps):
            self.shown = now
            left = timedelta(seconds=round((self.steps - step) * self.units_per_step / rate)) if rate else "-"
            # The first step compiles, and says nothing about the next ones.
            log.info("step %d/%d  %s", step, self.steps, text if step == self.start + 1 else f"{text}  ETA {left}")

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar:
            self.bar.stop()
            self.bar = None


@dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    log: bool
    evaluate: bool
    score: bool
    sample: bool
    save: bool

    @classmethod
    def at(cls, run: Run, done: int) -> "Due":
        """What the settings ask for when `done` steps are done; the end asks for everything but samples and scores."""
        last = done == run.steps

        def every(steps: int) -> bool:
            return steps > 0 and done % steps == 0

        scored = every(run.score_every)
        return cls(
            log=every(run.log_every) or last,
            evaluate=every(run.eval_every) or scored or last,
            score=scored or (last and run.score_every > 0),
            sample=every(run.sample_every),
            save=every(run.save_every) or last,
        )

    @property
    def anything(self) -> bool:
        """Whether the loop has to stop for it."""
        return self.evaluate or self.sample or self.save


class Pace:
    """Steps a second since it was last asked, without the time that evaluating, sampling and saving took.

    Attributes:
        seconds: what all steps took, those before a run was stopped too.
    """

    def __init__(self, step: int, seconds: float) -> None:
        self.step, self.since, self.last, self.seconds = step, time.perf_counter(), 0.0, seconds

    def at(self, step: int) -> float:
        """The pace up to `step`."""
        now = time.perf_counter()
        if step > self.step:
            self.last = (step - self.step) / (now - self.since)
        self.seconds += now - self.since
        self.step, self.since = step, now
        return self.last

    def skip(self) -> None:
        """Leaves out the time since the last step."""
        self.since = time.perf_counter()


def format_figures(metrics: Metrics, errors: bool = True) -> dict[str, str]:
    """Figures as people read them: numbers to four decimals, counts and words as they are.

    Args:
        metrics: the figures, and standard errors of some.
        errors: whether to add `+-` and the standard error to a figure, and to give the number of rows.
    """
    texts = {}
    for name, value in metrics.items():
        if name.endswith(STDERR) or (name == "rows" and not errors):
            continue
        texts[name] = f"{value:.4f}" if isinstance(value, float) else str(value)
        if errors and name + STDERR in metrics:
            texts[name] += f" +- {metrics[name + STDERR]:.2g}"
        if errors and name + DRAWS_STDERR in metrics:
            texts[name] += f" ({metrics[name + DRAWS_STDERR]:.2g} of that by the draw)"
    return texts


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.1f}"
