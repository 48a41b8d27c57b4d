"""The training loop of every family.

The loop never differentiates, computes no loss and names no family. Step n takes `data.batch_at(n)` and the key
`fold_in(root, n)`; everything else that it depends on is in the state. A resumed run is therefore equal to a run that
was never stopped.
"""

import importlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from zoo.core.artifacts import Text
from zoo.core.errors import Interrupted, UserError
from zoo.core.family import Metrics, State
from zoo.harness.config import Run, to_json
from zoo.harness.evaluation import evaluate_split
from zoo.harness.platform import exact_float32, prepare
from zoo.harness.progress import Due, Meter, Pace, format_figures, show_images, to_console, to_file
from zoo.harness.rundir import LOG, RunDir
from zoo.harness.session import Position, Session, resume, start
from zoo.harness.signals import Stop
from zoo.harness.trained import Trained, compute_dtype

log = logging.getLogger("zoo")


def fit(run: Run, *, fresh: bool = False) -> Trained:
    """Trains a run, or resumes the run in its directory from the last checkpoint.

    Args:
        run: the settings.
        fresh: delete the run in the directory and start over.

    Returns:
        The trained run, equal to the result of `load_run`.

    Raises:
        UserError: the settings or the data cannot be used, or differ from those of the run in the directory.
        Interrupted: Ctrl-C or SIGTERM stopped the run, after it was saved.
    """
    prepare()
    # Orbax and TensorBoard take seconds to import; meanwhile the first step compiles.
    threading.Thread(target=_import_slow_modules, daemon=True).start()
    family: Any = run.family
    run = replace(
        run,
        rundir=run.rundir or f"runs/{type(family).__module__.rpartition('.')[2]}",
        # Constructed again, to reject settings that are accepted only in saved runs.
        family=replace(family),
        optimizer=replace(run.optimizer),
    )
    rundir = RunDir(run.rundir)
    with to_console() as console, Stop.on_signals(console) as stop, closing(rundir), exact_float32():
        saved = rundir.config() if rundir.has_checkpoints() and not fresh else None
        session, begin = resume(saved, run, rundir, stop) if saved else start(run, rundir, fresh, stop)
        with to_file(rundir.path / LOG), closing(session.checkpoints):
            rundir.launched(begin.step, session.data.fingerprint(), compute_dtype(run))
            log.info("data: %s", session.data.describe())
            warn(saved or run, run, begin.step)
            stop.training = True
            state, done = _train(session, begin, console)
            session.checkpoints.close()
            if stop.signum and done < run.steps:
                name = signal.Signals(stop.signum).name
                log.info("stopped by %s at step %d and saved; the same command goes on from there", name, done)
                raise Interrupted(stop.signum)
    return Trained(run, session.model(state, done), rundir.path)


def warn(saved: Run, run: Run, start: int) -> None:
    """Warns if a new --steps moves the learning rate at step `start`, and if microbatches change the result."""
    before, after = (float(run.optimizer.learning_rate_at(steps)(start)) for steps in (saved.steps, run.steps))
    if start < run.steps and not math.isclose(before, after, rel_tol=1e-6):
        log.warning(
            "--steps is %d and was %d: this moves the learning rate at step %d from %g to %g, as the schedule is %s; "
            "that of --optimizer.schedule wsd depends on --steps only in its decay",
            run.steps, saved.steps, start, before, after, run.optimizer.schedule,
        )  # fmt: skip
    if run.optimizer.microbatches > 1 and run.family.couples_rows:
        log.warning("--optimizer.microbatches changes what is learned: %s", run.family.couples_rows)


def _train(session: Session, begin: Position, console: Console) -> tuple[State, int]:
    """Runs the remaining steps; returns the state and the number of steps done."""
    run, state, done = session.run, begin.state, begin.step
    best = session.checkpoints.best()
    if done >= run.steps:
        log.info("%s is at step %d of %d already; give a larger --steps to go on", run.rundir, done, run.steps)
        return state, done
    log.info("%s from step %d to %d", run.rundir, done, run.steps)
    report = _Report(session, begin, console)
    try:
        for batch in _batches(session, done):
            if session.stop.signum:
                break
            state, metrics = session.train_step(state, batch, np.int32(done))
            done += 1
            report.write()  # of the step before, while this one runs
            due = Due.at(run, done)
            report.add(done, metrics, logged=due.log or done == begin.step + 1)
            if not due.anything:
                continue
            report.write()
            jax.block_until_ready(metrics)
            report.pace.at(done)
            best = _inspect(session, report, state, done, due, best)
            report.pace.skip()
        report.write()
        if session.stop.signum and done not in session.checkpoints.steps():
            _save(session, state, done, None)
    finally:
        report.meter.close()
    return state, done


class _Report:
    """Logs the metrics of steps, each after the next step is dispatched, so that the devices never wait."""

    def __init__(self, session: Session, begin: Position, console: Console) -> None:
        self.console, run = console, session.run
        self._rundir, self._unit = session.rundir, run.family.unit
        self._units = run.batch_size * (run.family.length or 1)
        self.meter = Meter(console, begin.step, run.steps, self._unit, self._units)
        self.pace = Pace(begin.step, begin.seconds)
        self._pending: tuple[int, Metrics, list[Any]] | None = None
        self._skipped: list[Any] = []

    def add(self, step: int, metrics: Metrics, logged: bool) -> None:
        """Takes the metrics of a step, which may still be running; `logged` ones are written by the next `write`."""
        self._skipped.append(metrics.get("skipped", 0.0))
        if logged:
            self._pending, self._skipped = (step, metrics, self._skipped), []

    def write(self) -> None:
        """Writes the pending metrics, if there are any; waits for their step.

        Raises:
            UserError: the loss is not finite.
        """
        if self._pending is None:
            return
        step, metrics, skips = jax.device_get(self._pending)
        self._pending, rate = None, self._units * self.pace.at(step)
        if count := int(sum(skips)):
            log.warning(
                "step %d: %d of the last %d steps changed nothing, as nothing in their batches was to be predicted",
                step, count, len(skips),
            )  # fmt: skip
        loss = float(metrics["loss"])
        if metrics.get("skipped"):
            del metrics["loss"]  # a mean over nothing
        if not math.isfinite(loss):
            raise UserError(f"the loss at step {step} is {loss}; {DIVERGED}")
        metrics |= {f"{self._unit}_per_second": rate}
        self._rundir.write_metrics(step, "train", metrics, self.pace.seconds)
        self.meter.update(step, loss, rate)


Best = tuple[int, float] | None
"""The step and the held-out metric of the best checkpoint."""


def _inspect(session: Session, report: _Report, state: State, done: int, due: Due, best: Best) -> Best:
    """Evaluates, saves and samples after `done` steps, as far as due; returns the best checkpoint until then."""
    score = _evaluate(session, state, done, due.score, report.pace.seconds) if due.evaluate else None
    if score is not None and (best is None or _improves(score, best[1], session.run.family.monitor[1])):
        best = (done, score)
    if due.save or best == (done, score):
        _save(session, state, done, score)
    if due.sample:
        _sample(session, report.console, state, done)
    return best


def _batches(session: Session, start: int) -> Iterator[Any]:
    """The batches from step `start` on; each is read while the previous step runs."""

    def read(step: int) -> Any:
        rows = session.strategy.rows(session.run.batch_size)
        return session.strategy.put(session.data.batch_at(step, rows))

    with ThreadPoolExecutor(1, thread_name_prefix="data") as reader:
        ahead = reader.submit(read, start)
        for step in range(start, session.run.steps):
            batch = ahead.result()
            if step + 1 < session.run.steps:
                ahead = reader.submit(read, step + 1)
            yield batch


def _evaluate(session: Session, state: State, done: int, with_scores: bool, seconds: float) -> float | None:
    """Evaluates held-out data and logs the means; returns the metric that selects the best checkpoint, if known."""
    run, family = session.run, session.run.family
    started = time.perf_counter()
    means = evaluate_split(session.strategy, session.evaluation, state, session.data, run.eval_batches)
    if with_scores:
        means |= session.rundir.keep_images(done, _score(session, state, done, means))
    took = time.perf_counter() - started
    session.rundir.write_metrics(done, "eval", means, seconds)
    line = "  ".join(f"{name} {text}" for name, text in format_figures(means, errors=False).items())
    log.info("step %d held-out: %s  (%.1f s)", done, line, took)
    return means.get(family.monitor[0])


def _score(session: Session, state: State, done: int, means: Metrics) -> Metrics:
    """The family's scores; if they cannot be computed, none, with a warning the first time, and training continues."""
    model = session.model(state, done)
    try:
        return session.run.family.score(model, means, session.data, session.scoring, session.keys.evaluation)
    except UserError as error:
        if str(error) not in session.warned:
            log.warning("step %d is not scored: %s", done, error)
        session.warned.add(str(error))
        return {}


def _sample(session: Session, console: Console, state: State, done: int) -> None:
    model = session.model(state, done)
    # The same noise each time, so that samples show what training changed.
    artifacts = model.family.sample(model, model.family.Request(), session.keys.evaluation)
    path = session.rundir.write_samples(done, artifacts)
    texts = "\n\n".join(artifact.text for artifact in artifacts if isinstance(artifact, Text))
    log.info("step %d sample, in %s%s", done, path, f":\n{texts}\n" if texts else "")
    show_images(console, artifacts)


def _save(session: Session, state: State, done: int, score: float | None) -> None:
    whole = session.strategy.gather(state)
    # Such a state cannot recover, and must not replace good checkpoints.
    if not is_finite(whole):
        raise UserError(f"the state after step {done} holds values that are not finite; {DIVERGED}")
    session.checkpoints.save(done, whole, to_json(session.run), score)


@jax.jit
def is_finite(state: State) -> jax.Array:
    """Whether all floating-point numbers of a state are finite."""
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats] or [jnp.array(True)]).all()


def _improves(score: float, best: float, mode: str) -> bool:
    return score < best if mode == "min" else score > best


DIVERGED = (
    "the checkpoints before it are kept; a new run with a lower --optimizer.learning-rate or with "
    "--optimizer.clip-norm 1 can start from them by --init.from"
)


def _import_slow_modules() -> None:
    for name in ("orbax.checkpoint", "tensorboardX"):
        # An error repeats where the module is used, and is reported there, unless it came from Python 3.11, which can
        # fail to parse in two threads at once.
        with suppress(Exception):
            importlib.import_module(name)
