"""Training: the one loop that every family runs in.

It never differentiates, never knows a loss and never names a family. Batch number `step` is `data.batch_at(step)`, its
key is `fold_in(root, step)`, and everything else that a step depends on is in the state, so a run that goes on from a
checkpoint is the run that was never stopped.
"""

import importlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core.artifacts import Text
from zoo.core.data import DataSet
from zoo.core.errors import Interrupted, UserError
from zoo.core.family import Metrics, Model, Scoring, State
from zoo.core.parallel import Strategy
from zoo.harness.checkpoint import Checkpoints
from zoo.harness.config import Run, check_may_go_on, to_json
from zoo.harness.platform import exact_float32, prepare
from zoo.harness.progress import Due, Meter, Pace, format_figures, to_console, to_file
from zoo.harness.rundir import LOG, RunDir
from zoo.harness.signals import Stop
from zoo.harness.trained import (
    Trained,
    attainable,
    compile_evaluation,
    compute_dtype,
    evaluate_split,
    inference_state,
    key_of,
    load_extractor,
    load_run,
    make_setup,
    start_from,
)

log = logging.getLogger("zoo")

AUGMENTATION = 2**32 - 1
"""What is folded into a step's key for the noise of augmentation, so that no family draws the same."""


@dataclass(frozen=True)
class Session:
    """What the loop works with, fixed from its first step to its last."""

    run: Run
    rundir: RunDir
    strategy: Strategy
    data: DataSet
    checkpoints: Checkpoints
    train_step: Callable[..., tuple[State, Metrics]]
    evaluation: Callable[..., Any]
    key: jax.Array
    stop: Stop
    scoring: Scoring
    """The run's, without figures that cannot be had."""
    warned: set[str] = field(default_factory=set)
    """Why figures could not be had."""

    def model(self, state: State, done: int) -> Model:
        """What the family samples and scores with, after `done` steps."""
        lean = inference_state(self.strategy.gather(state))
        return Model(self.run.family, self.data.spec, lean, done, lambda: self.data, load_extractor)


def fit(run: Run, *, fresh: bool = False) -> Trained:
    """Trains a run, or goes on with the one in its directory from its last checkpoint.

    Args:
        run: the settings.
        fresh: delete what the directory holds and start over.

    Returns:
        The trained run, as `load_run` would give it.

    Raises:
        UserError: settings or data that cannot be used, or that differ from those of the run in the directory.
        Interrupted: Ctrl-C or SIGTERM came; the run was saved.
    """
    prepare()
    # Orbax and TensorBoard take seconds to import; the first step compiles meanwhile.
    threading.Thread(target=_import_slow_modules, daemon=True).start()
    if not run.rundir:
        run = replace(run, rundir=f"runs/{type(run.family).__module__.rpartition('.')[2]}")
    rundir = RunDir(run.rundir)
    resuming = rundir.has_checkpoints() and not fresh
    family: Any = run.family
    # Made anew, since a saved run may have been read with settings that are refused by now.
    run = saved = replace(run, family=replace(family), optimizer=replace(run.optimizer))
    if resuming:
        saved = rundir.config()
        check_may_go_on(saved, run)
    else:
        rundir.check_free(fresh)
    with to_console() as console, Stop.on_signals(console) as stop, closing(rundir), exact_float32():
        session, state, start, seconds = _prepare(run, rundir, resuming, fresh, stop)
        with to_file(rundir.path / LOG), closing(session.checkpoints):
            rundir.launched(start, session.data.fingerprint(), compute_dtype(run))
            log.info("data: %s", session.data.describe())
            warn(saved, run, start)
            stop.training = True
            state, done = _loop(session, state, start, seconds, console)
            session.checkpoints.close()
            if stop.signum and done < run.steps:
                name = signal.Signals(stop.signum).name
                log.info("stopped by %s at step %d and saved; the same command goes on from there", name, done)
                raise Interrupted(stop.signum)
    model = session.model(state, done)
    return Trained(run, model, rundir.path)


def warn(saved: Run, run: Run, start: int) -> None:
    """Warns where another --steps moves the learning rate from `start` on, and where microbatches change the result."""
    before, after = (float(run.optimizer.learning_rate_at(steps)(start)) for steps in (saved.steps, run.steps))
    if start < run.steps and not math.isclose(before, after, rel_tol=1e-6):
        log.warning(
            "--steps is %d and was %d: this moves the learning rate at step %d from %g to %g, as the schedule is %s; "
            "that of --optimizer.schedule wsd depends on --steps only in its decay",
            run.steps, saved.steps, start, before, after, run.optimizer.schedule,
        )  # fmt: skip
    if run.optimizer.microbatches > 1 and run.family.couples_rows:
        log.warning("--optimizer.microbatches changes what is learned: %s", run.family.couples_rows)


def first_state(run: Run, spec: Any, strategy: Strategy, source: Trained | None) -> State:
    """The state before the first step: fresh, or that of the run to start from, on its devices."""
    state = strategy.init(*_initial(run, spec))
    return strategy.place(start_from(source, strategy.gather(state), run.family)) if source else state


def _initial(run: Run, spec: Any) -> tuple[Callable[[jax.Array], State], jax.Array]:
    """What makes a fresh state, and the key to give it."""
    setup = make_setup(run)
    return lambda key: run.family.init(spec, setup, key), jax.random.split(key_of(run.seed), 3)[0]


def _prepare(run: Run, rundir: RunDir, resuming: bool, fresh: bool, stop: Stop) -> tuple[Session, State, int, float]:
    """Opens data and devices and makes or reads the state; touches the directory only when all of it has worked.

    Returns:
        The session, the state on its devices, the steps done, and the seconds they took.
    """
    if resuming:
        rundir.claim()
    family, source = run.family, load_run(run.init.source) if run.init.source and not resuming else None
    strategy = run.parallel.start(run.batch_size, run.optimizer.microbatches)
    spec = rundir.spec() if resuming else source.model.spec if source else None
    if source:
        run.data.check_tokenizer(source.model.spec)
    data = run.data.open(length=family.length, batch_size=run.batch_size, seed=run.seed, spec=spec)
    if not isinstance(data.spec, family.accepts):
        raise UserError(
            f"data gives {type(data.spec).__name__}, but {type(family).__name__} takes {family.accepts.__name__}"
        )
    scoring = attainable(run.scoring, family, data.spec) if run.score_every else run.scoring
    _, step_key, eval_key = jax.random.split(key_of(run.seed), 3)

    def train_step(state: State, batch: Any, step: jax.Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(step_key, step)
        return family.step(state, data.augment(batch, jax.random.fold_in(key, AUGMENTATION)), step, key)

    start, seconds = 0, 0.0
    if resuming:
        checkpoints = Checkpoints(rundir.path, run.keep, family.monitor)
        start, state = checkpoints.restore_last(strategy.abstract(*_initial(run, data.spec)))
        state = strategy.place(state)
        checkpoints.clear_after(start)
        seconds = rundir.cut_back(start)
        if start < run.steps:
            rundir.write_config(run)
    else:
        state = first_state(run, data.spec, strategy, source)
        rundir.create(run, data.spec, fresh)
        rundir.write_preview(data.preview(step_key))
        checkpoints = Checkpoints(rundir.path, run.keep, family.monitor)
    session = Session(
        run, rundir, strategy, data, checkpoints, strategy.compile_step(train_step),
        compile_evaluation(strategy, family, eval_key), eval_key, stop, scoring,
    )  # fmt: skip
    return session, state, start, seconds


def _loop(session: Session, state: State, start: int, seconds: float, console: Any) -> tuple[State, int]:
    """Runs the steps from `start` on; returns the state and the number of steps done."""
    run, family = session.run, session.run.family
    units = run.batch_size * (family.length or 1)
    best = session.checkpoints.best()
    if start >= run.steps:
        log.info("%s is at step %d of %d already; give a larger --steps to go on", run.rundir, start, run.steps)
        return state, start
    log.info("%s from step %d to %d", run.rundir, start, run.steps)
    meter, done = Meter(console, start, run.steps, family.unit, units), start
    pace, pending, skipped = Pace(start, seconds), None, []

    def report() -> None:
        """Logs the metrics of the last step that has some to log; waits for that step."""
        nonlocal pending
        if pending is None:
            return
        step, metrics, skips = jax.device_get(pending)
        pending, rate = None, units * pace.at(step)
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
        metrics |= {f"{family.unit}_per_second": rate}
        session.rundir.write_metrics(step, "train", metrics, pace.seconds)
        meter.update(step, loss, rate)

    try:
        for batch in _batches(session, start):
            if session.stop.signum:
                break
            state, metrics = session.train_step(state, batch, np.int32(done))
            done += 1
            skipped.append(metrics.get("skipped", 0.0))
            report()  # of the step before, while this one runs
            due = Due.at(run, done)
            if due.log or done == start + 1:
                pending, skipped = (done, metrics, skipped), []
            if not due.anything:
                continue
            report()
            jax.block_until_ready(metrics)
            pace.at(done)
            score = _evaluate(session, state, done, due.score, pace.seconds) if due.evaluate else None
            if score is not None and (best is None or _improves(score, best[1], family.monitor[1])):
                best = (done, score)
            if due.save or best == (done, score):
                _save(session, state, done, score)
            if due.sample:
                _sample(session, state, done)
            pace.skip()
        report()
        if session.stop.signum and done not in session.checkpoints.steps():
            _save(session, state, done, None)
    finally:
        meter.close()
    return state, done


def _batches(session: Session, start: int) -> Iterator[Any]:
    """Batches from `start` on, each read while the step before runs."""

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
    """Scores held-out data and logs it; returns the metric that says which checkpoint is best, where it is known."""
    run, family = session.run, session.run.family
    started = time.perf_counter()
    means = evaluate_split(session.strategy, session.evaluation, state, session.data, run.eval_batches)
    if with_scores:
        means |= _score(session, state, done, means)
    took = time.perf_counter() - started
    session.rundir.write_metrics(done, "eval", means, seconds)
    told = "  ".join(f"{name} {text}" for name, text in format_figures(means, errors=False).items())
    log.info("step %d held-out: %s  (%.1f s)", done, told, took)
    return means.get(family.monitor[0])


def _score(session: Session, state: State, done: int, means: Metrics) -> Metrics:
    """The family's own figures; none, and a warning the first time, where they cannot be had: training goes on."""
    model = session.model(state, done)
    try:
        return session.run.family.score(model, means, session.data, session.scoring, session.key)
    except UserError as error:
        if str(error) not in session.warned:
            log.warning("step %d is not scored: %s", done, error)
        session.warned.add(str(error))
        return {}


def _sample(session: Session, state: State, done: int) -> None:
    family = session.run.family
    model = session.model(state, done)
    # The same noise each time, so that samples show what training changed.
    artifacts = family.sample(model, family.Request(), session.key)
    path = session.rundir.write_samples(done, artifacts)
    texts = "\n\n".join(artifact.text for artifact in artifacts if isinstance(artifact, Text))
    log.info("step %d sample, in %s%s", done, path, f":\n{texts}\n" if texts else "")


def _save(session: Session, state: State, done: int, score: float | None) -> None:
    whole = session.strategy.gather(state)
    # A state that no step can mend must not push the good ones out.
    if not is_finite(whole):
        raise UserError(f"the state after step {done} holds values that are not finite; {DIVERGED}")
    session.checkpoints.save(done, whole, to_json(session.run), score)


@jax.jit
def is_finite(state: State) -> jax.Array:
    """Whether every floating-point number of a state is finite."""
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
        # What fails here fails again, and is told, where the module is used. Or it does not: Python 3.11 can fail to
        # parse in two threads at once.
        with suppress(Exception):
            importlib.import_module(name)
