"""The directory of a run: settings, logs, samples and scores.

config.json    the settings            metrics.jsonl   training and evaluation metrics, one flat JSON object a line
spec.json      the data's spec         tensorboard/    the same metrics as TensorBoard events
data/          preview of the first    samples/        samples of training and of sample.py
               training batch          scores.jsonl    results of evaluate.py
launches.jsonl each start: command,    scored/         images among results
               versions, devices       log.txt         log messages
checkpoints/   see checkpoint.py       damaged/        checkpoints that could not be read
codec/         the codec; see codecs.py
"""

import fcntl
import json
import logging
import math
import os
import platform
import shlex
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from zoo.core.artifacts import Artifacts, Image, Text, together, write_summary
from zoo.core.data import Spec
from zoo.core.errors import UserError
from zoo.core.estimates import STDERR
from zoo.core.family import Metrics
from zoo.harness.checkpoint import DAMAGED, FOLDER, has_checkpoints
from zoo.harness.config import PARTIAL, Run, read_json, write_json, write_whole

CONFIG, SPEC, METRICS, LAUNCHES, LOG = "config.json", "spec.json", "metrics.jsonl", "launches.jsonl", "log.txt"
SAMPLES, EVENTS, PREVIEW, CODEC = "samples", "tensorboard", "data", "codec"
SCORES, SCORED = "scores.jsonl", "scored"
RUN_CLASSES = (b"zoo.harness.config:Run", b"zoo.core.config:Run")
OURS = (FOLDER, DAMAGED, SPEC, METRICS, LAUNCHES, LOG, SAMPLES, EVENTS, PREVIEW, SCORES, SCORED, CODEC)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "generative-zoo")

log = logging.getLogger("zoo")


class RunDir:
    """The directory of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._events: Any = None
        self._claim: int | None = None

    # ------------------------------------------------------------------------------------ what is there

    def has_config(self) -> bool:
        """Whether a run has been started here."""
        return (self.path / CONFIG).is_file()

    def has_checkpoints(self) -> bool:
        """Whether the run can be resumed."""
        return self.has_config() and has_checkpoints(self.path)

    def require(self) -> None:
        """Checks that this is the directory of a run with a checkpoint.

        Raises:
            UserError: it is not.
        """
        if not self.path.is_dir():
            raise UserError(f"there is no run directory {self.path}; `python train.py configs/NAME.py` makes one")
        if not self.has_config():
            raise UserError(f"{self.path} is not a run directory: it has no {CONFIG}")
        if not self._is_ours():
            raise UserError(f"{self.path} is not a run directory: its {CONFIG} does not hold a run's settings")
        if not self.has_checkpoints():
            raise UserError(f"{self.path} has no checkpoint yet; let `train.py` run until it saves one")

    def config(self) -> Run:
        """The saved settings."""
        return read_json(self.path / CONFIG, Run)

    def spec(self) -> Spec:
        """The saved spec of the data."""
        if not (self.path / SPEC).is_file():
            raise UserError(f"{self.path} lacks {SPEC}; it is not a whole run directory")
        return read_json(self.path / SPEC, Spec)

    # ------------------------------------------------------------------------------------------ writing

    def check_free(self, fresh: bool) -> None:
        """Checks that a new run can start here.

        Args:
            fresh: whether an existing run may be deleted.

        Raises:
            UserError: the path is a file, the directory has other files, or it holds a run that may not be deleted.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --rundir must name a directory")
        if self.path.is_dir() and not self._is_ours():
            raise UserError(f"{self.path} has files in it and is not a run directory; name another by --rundir")
        if self.has_checkpoints() and not fresh:
            raise UserError(f"{self.path} holds a run; --fresh deletes it and starts over")

    def _is_ours(self) -> bool:
        """Whether the directory is empty or a run's; another program's config.json must not be deleted."""
        if self.has_config():
            settings = (self.path / CONFIG).read_bytes()
            return any(name in settings for name in RUN_CLASSES)
        return all(path.name == CONFIG + PARTIAL for path in self.path.iterdir())

    def create(self, run: Run, spec: Spec, fresh: bool) -> None:
        """Creates the directory of a new run.

        Args:
            run: the settings.
            spec: spec of the data.
            fresh: whether an existing run is deleted; the files of a run without checkpoints are always deleted.

        Raises:
            UserError: the directory cannot be created, `check_free` refuses it, or another process is training there.
        """
        self.check_free(fresh)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made ({error.strerror}); name another by --rundir") from None
        self.claim()
        # The settings are kept until they are replaced, so that a start that is killed here can be repeated.
        for name in OURS:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.write_config(run)
        write_json(self.path / SPEC, spec)

    def claim(self) -> None:
        """Locks the directory against training by other processes, until `close` or the end of this process.

        Raises:
            UserError: another process is training here.
        """
        self._claim = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {self.path}; wait for it, stop it, or give another --rundir"
            ) from None
        except OSError:  # a file system without locks
            pass

    def write_config(self, run: Run) -> None:
        """Writes the settings."""
        write_json(self.path / CONFIG, run)

    def launched(self, step: int, data: str, precision: str) -> None:
        """Records this start in launches.jsonl and in the log: command, versions, devices and first step.

        Args:
            step: number of steps done.
            data: the data set's fingerprint; a warning is logged if it differs from that of the last start.
            precision: dtype that the networks compute in, float32 or bfloat16.
        """
        if _last_record(self.path / LAUNCHES).get("data", data) != data:
            log.warning("the data is not what it was when this run was last started; it goes on with what there is now")
        command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
        record: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": "a notebook" if "ipykernel" in sys.modules else command,
            "from_step": step,
            "data": data,
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in PACKAGES},
            "platform": platform.platform(),
            "devices": [str(device) for device in jax.devices()],
            "device_kind": jax.devices()[0].device_kind,
            "precision": precision,
        }
        _append(self.path / LAUNCHES, record)
        versions = " ".join(f"{name} {version}" for name, version in record["versions"].items())
        log.info("command: %s", record["command"])
        log.info("python %s %s on %s in %s", record["python"], versions, ", ".join(record["devices"]), precision)

    def cut_back(self, step: int) -> float:
        """Deletes metrics and samples past `step`; returns the seconds of training until `step`."""
        path, seconds, kept = self.path / METRICS, 0.0, []
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            try:
                record = json.loads(line)
                past, spent = record["step"] > step, float(record["seconds"])
            except (ValueError, KeyError, TypeError):  # an incomplete line of a process that was killed
                continue
            if not past:
                kept.append(line)
                seconds = max(seconds, spent)
        if kept != lines:
            write_whole(path, "".join(line + "\n" for line in kept))
        for sample in (self.path / SAMPLES).glob("step_*"):
            number = sample.stem.removeprefix("step_")
            if number.isdigit() and int(number) > step:
                shutil.rmtree(sample) if sample.is_dir() else sample.unlink()
        return seconds

    def write_metrics(self, step: int, split: str, metrics: Metrics, seconds: float) -> None:
        """Appends a line to metrics.jsonl, and adds the figures without their standard errors to TensorBoard."""
        names = sorted(metrics, key=lambda name: name != "loss")  # the loss first
        record = {name: _plain(metrics[name]) for name in names}
        _append(self.path / METRICS, {"step": step, "split": split, **record, "seconds": round(seconds, 3)})
        for name, value in record.items():
            if not isinstance(value, str) and not name.endswith(STDERR):
                self._writer(step).add_scalar(f"{split}/{name}", value, step)

    def write_scores(self, record: Metrics) -> None:
        """Appends a line to scores.jsonl: figures of a trained model with their provenance."""
        try:
            _append(self.path / SCORES, {name: _plain(value) for name, value in record.items()})
        except OSError as error:  # another user's run may be read-only; the figures are still printed
            log.warning("%s cannot be written (%s)", self.path / SCORES, error.strerror)

    def keep_images(self, step: int, metrics: Metrics) -> Metrics:
        """Writes the images among scores to `scored/`; returns the metrics with their paths in their places."""
        images = {name: value for name, value in metrics.items() if isinstance(value, Image)}
        paths = {name: self.path / SCORED / f"step_{step:08d}_{name}.png" for name in images}
        try:
            for name, path in paths.items():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(images[name].png())
        except OSError as error:
            log.warning("%s cannot be written (%s)", self.path / SCORED, error.strerror)
            return {name: value for name, value in metrics.items() if name not in images}
        return metrics | {name: str(path) for name, path in paths.items()}

    def write_preview(self, artifacts: Artifacts) -> None:
        """Writes the preview of the training data."""
        if artifacts:
            (self.path / PREVIEW).mkdir(exist_ok=True)
            write_summary(self.path / PREVIEW / "first_batch", artifacts)

    def write_samples(self, step: int, artifacts: Artifacts) -> Path:
        """Writes the samples of a step during training, also to TensorBoard; returns their path."""
        (self.path / SAMPLES).mkdir(exist_ok=True)
        texts = [f"```\n{artifact.text}\n```" for artifact in artifacts if isinstance(artifact, Text)]
        picture = together(artifacts)
        if texts:
            self._writer(step).add_text("samples", "\n\n".join(texts), step)
        elif isinstance(picture, Image):
            self._writer(step).add_image("samples", picture.pixels, step, dataformats="HWC")
        return write_summary(self.path / SAMPLES / f"step_{step:08d}", artifacts)

    def next_samples(self) -> Path:
        """The next free path for samples requested without an output folder: `samples/asked_0000` and so on."""
        folder = self.path / SAMPLES
        folder.mkdir(exist_ok=True)
        taken = [int(path.stem.removeprefix("asked_")) for path in folder.glob("asked_" + "[0-9]" * 4 + "*")]
        return folder / f"asked_{max(taken, default=-1) + 1:04d}"

    def _writer(self, step: int) -> Any:
        if self._events is None:
            from tensorboardX import SummaryWriter

            # Earlier events past the step from which the run resumes are marked as superseded.
            self._events = SummaryWriter(str(self.path / EVENTS), purge_step=step)
        return self._events

    def close(self) -> None:
        """Flushes TensorBoard's events and releases the lock."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None


def make_out(folder: Path) -> None:
    """Creates a folder for samples before they are computed; existing samples are never overwritten.

    Raises:
        UserError: it cannot be created, or has samples in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --out must name a directory")
    if any(folder.glob("sample_*")):
        raise UserError(f"{folder} has samples in it already; name another by --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); name another by --out") from None


def _plain(value: Any) -> float | int | str:
    """A figure for JSON; numbers that are not finite, which JSON lacks, become strings."""
    if isinstance(value, str | int):
        return value
    return float(value) if math.isfinite(value) else str(float(value))


def _last_record(path: Path) -> dict[str, Any]:
    """The last complete record of a file of JSON lines; {} if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            return json.loads(line)
        except json.JSONDecodeError:  # an incomplete line of a process that was killed
            continue
    return {}


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
