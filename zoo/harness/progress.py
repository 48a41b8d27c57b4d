"""Progress of a run: a bar in a terminal or a notebook, lines elsewhere; messages on the console and in a file."""

import base64
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zoo.core.artifacts import Artifacts, Image, together
from zoo.core.estimates import DRAWS_STDERR, STDERR
from zoo.core.family import Metrics
from zoo.harness.config import Run

log = logging.getLogger("zoo")


class _ToConsole(logging.Handler):
    """Prints messages unchanged, in a terminal above the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def to_console() -> Iterator[Console]:
    """Prints the zoo's log messages on standard error, or in the notebook; yields the console."""
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
    """Appends the zoo's log messages to a file, with the time."""
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
    """Shows step, loss, throughput and remaining time: as one bar in a notebook or a terminal, elsewhere as lines."""

    def __init__(self, console: Console, start: int, steps: int, unit: str, units_per_step: int) -> None:
        """Shows the start.

        Args:
            console: where to show it.
            start: steps already done.
            steps: steps in all.
            unit: the unit of throughput.
            units_per_step: units in a step.
        """
        self._steps, self._unit, self._units_per_step = steps, unit, units_per_step
        self._view: _NotebookBar | _TerminalBar | _Lines
        if console.is_jupyter:
            self._view = _NotebookBar(start, steps)
        elif console.is_terminal:
            self._view = _TerminalBar(console, start, steps)
        else:
            self._view = _Lines(start, steps)

    def update(self, step: int, loss: float, rate: float) -> None:
        """Shows a step's loss and the throughput in units a second."""
        left = timedelta(seconds=round((self._steps - step) * self._units_per_step / rate)) if rate else "-"
        self._view.show(step, f"loss {loss:.4f}  {_short(rate)} {self._unit}/s", f"ETA {left}")

    def close(self) -> None:
        """Shows the last step; a terminal's bar is removed."""
        self._view.close()


class _NotebookBar:
    """One output of a notebook cell, which is replaced at each update."""

    def __init__(self, start: int, steps: int) -> None:
        from IPython.display import display

        self._start, self._steps, self._shown = start, steps, time.perf_counter()
        self._line, self._stale = (start, "compiling"), False
        self._handle = display(self._rendered(), raw=True, display_id=True)

    def show(self, step: int, text: str, left: str) -> None:
        # The first step compiles, and does not show how long the others take.
        self._line, self._stale = (step, text if step == self._start + 1 else f"{text}  {left}"), True
        # A browser need not draw each of a thousand steps a second.
        if time.perf_counter() - self._shown >= 0.5 or step == self._start + 1:
            self._draw()

    def close(self) -> None:
        if self._stale:
            self._draw()

    def _draw(self) -> None:
        self._shown, self._stale = time.perf_counter(), False
        self._handle.update(self._rendered(), raw=True)

    def _rendered(self) -> dict[str, str]:
        step, text = self._line
        line = f"step {step}/{self._steps}  {text}"
        bar = f'<progress value="{step}" max="{self._steps}" style="width: 20em"></progress>'
        return {"text/plain": line, "text/html": f'<div style="white-space: pre-wrap">{bar} {line}</div>'}


class _TerminalBar:
    """The last line of a terminal; messages scroll above it."""

    def __init__(self, console: Console, start: int, steps: int) -> None:
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task("compiling", total=steps, completed=start)
        self._bar.start()

    def show(self, step: int, text: str, _left: str) -> None:
        self._bar.update(self._task, completed=step, description=text)

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """Prints the first and the last step and, between them, at most one line every two seconds, to keep logs short."""

    def __init__(self, start: int, steps: int) -> None:
        self._start, self._steps, self._shown = start, steps, time.perf_counter()

    def show(self, step: int, text: str, left: str) -> None:
        now, first = time.perf_counter(), step == self._start + 1
        if now - self._shown >= 2 or first or step == self._steps:
            self._shown = now
            # The first step compiles, and does not show how long the others take.
            log.info("step %d/%d  %s", step, self._steps, text if first else f"{text}  {left}")

    def close(self) -> None:
        pass


def show_images(console: Console, artifacts: Artifacts) -> None:
    """Shows images in a notebook's output, several of one size as a grid; elsewhere they are files only."""
    if not console.is_jupyter:
        return
    from IPython.display import display

    whole = together(artifacts)
    for artifact in artifacts if whole is None else [whole]:
        if isinstance(artifact, Image):
            png = base64.b64encode(artifact._repr_png_()).decode()
            display({"image/png": png, "text/plain": artifact.name or "sample"}, raw=True)


@dataclass(frozen=True)
class Due:
    """Actions due after a step."""

    log: bool
    evaluate: bool
    score: bool
    sample: bool
    save: bool

    @classmethod
    def at(cls, run: Run, done: int) -> "Due":
        """The actions due when `done` steps are done; at the last step all but samples, and scores if they are on."""
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
        """Whether the loop has to wait for the step."""
        return self.evaluate or self.sample or self.save


class Pace:
    """Steps a second since the last call of `at`, without the time of evaluations, samples and checkpoints.

    Attributes:
        seconds: the time of all steps, including those before the run was resumed.
    """

    def __init__(self, step: int, seconds: float) -> None:
        self.step, self.since, self.last, self.seconds = step, time.perf_counter(), 0.0, seconds

    def at(self, step: int) -> float:
        """Steps a second from the last call until `step`."""
        now = time.perf_counter()
        if step > self.step:
            self.last = (step - self.step) / (now - self.since)
        self.seconds += now - self.since
        self.step, self.since = step, now
        return self.last

    def skip(self) -> None:
        """Excludes the time since the last step."""
        self.since = time.perf_counter()


def format_figures(metrics: Metrics, errors: bool = True) -> dict[str, str]:
    """Metrics as text, by name: floats with four decimals, everything else unchanged.

    Args:
        metrics: the metrics, some with standard errors.
        errors: append `+-` and the standard error, and include the number of rows.
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
