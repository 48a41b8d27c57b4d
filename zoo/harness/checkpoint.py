"""Checkpoints on disk by Orbax: asynchronous, atomic, with checksums; the last few and the best are kept.

A state is stored as a flat mapping from a leaf's path (`net.params.blocks.0.attention.query_key_value.kernel`) to its
array, so that any part of it can be read alone and errors can name the leaf that does not fit.
"""

import functools
import json
import logging
import math
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from zoo.core.errors import UserError
from zoo.harness.formats import paths_in

FOLDER, DAMAGED, PREFIX = "checkpoints", "damaged", "step"
_log = logging.getLogger("zoo")


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be read, or its contents have changed since it was saved."""


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of a tree by dotted path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(like: Any, leaves: dict[str, Any]) -> Any:
    """The inverse of `flatten`: a tree with the structure of `like` and the given leaves."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in flatten(like)])


def _check_sums(leaves: dict[str, Array]) -> dict[str, int]:
    """The checksum of each leaf, computed one leaf at a time to limit the memory of temporary arrays."""
    return {name: int(_check_sum(leaf)) for name, leaf in leaves.items()}


@jax.jit
def _check_sum(leaf: Array) -> UInt32[Array, ""]:
    """The sum of a leaf's elements, as unsigned integers, weighted by odd numbers that increase with the position,
    modulo 2^32. It is exact, so it does not depend on the order of summation."""
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, width)
    flat = bits.astype(jnp.uint32).reshape(-1)
    return jnp.sum(flat * (2 * jnp.arange(flat.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, rundir: Path, keep: int = 1, monitor: tuple[str, str] = ("loss", "min")) -> None:
        """Opens the folder, which is created when the first checkpoint is saved.

        Args:
            rundir: the run directory.
            keep: number of last checkpoints to keep, in addition to the best.
            monitor: the held-out metric that selects the best checkpoint, and "min" or "max".
        """
        import orbax.checkpoint as ocp  # takes a second to import: not at start-up

        options = ocp.CheckpointManagerOptions(
            # Orbax's own policies do not know the scores of checkpoints that an earlier process saved.
            preservation_policy=_LastAndBest(self, keep),
            # The harness decides when to save; Orbax's own policy would skip a step while a save is running.
            save_decision_policy=_Always(),
            step_prefix=PREFIX,
            step_format_fixed_length=8,
            cleanup_tmp_directories=False,  # another process may be writing to them: see `clear_after`
            create=False,
        )
        self.folder = rundir.resolve() / FOLDER
        self._options, self._ocp, self._best_of = options, ocp, min if monitor[1] == "min" else max
        self._scores: dict[int, float | None] = {}
        self._manager: Any = None
        if self.folder.is_dir():
            self._open()

    def _open(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._manager = self._ocp.CheckpointManager(self.folder, options=self._options)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def best(self) -> tuple[int, float] | None:
        """The step and the score of the best checkpoint; None if none has a score."""
        return self.best_of(self.steps())

    def best_of(self, steps: Iterable[int]) -> tuple[int, float] | None:
        """`best` among some of the steps."""
        scored = [(step, score) for step in steps if (score := self._score(step)) is not None]
        return self._best_of(scored, key=lambda pair: pair[1]) if scored else None

    def _score(self, step: int) -> float | None:
        if step not in self._scores:
            try:
                self._scores[step] = self._about(step)["score"]
            except DamagedCheckpointError:
                self._scores[step] = None
        return self._scores[step]

    def _about(self, step: int) -> dict[str, Any]:
        """The description saved with a state: step, config, score, and each leaf's shape, dtype and checksum."""
        args = self._ocp.args
        try:
            about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore()))["about"]
            if about["sum"] != _sum_of_json(about):
                raise ValueError("its description is not what was saved")
            return about
        except Exception as error:  # a damaged file can make a reader raise any exception
            raise DamagedCheckpointError(f"step {step}: {_first_line(error)}") from error

    def save(self, step: int, state: Any, config: Any, score: float | None = None) -> None:
        """Saves in the background; returns once the arrays are copied, so that the state may then be donated.

        Args:
            step: number of steps done.
            state: a global state.
            config: plain JSON that is saved with the state.
            score: the held-out metric, if this step has been evaluated.
        """
        if not self._manager:
            self._open()
        leaves = flatten(state)
        # On the CPU a host array can share memory with the device array, which the next step overwrites: save a copy.
        leaves, sums = jax.tree.map(jnp.copy, leaves), _check_sums(leaves)
        self._scores[step] = float(score) if score is not None and math.isfinite(score) else None
        about: dict[str, Any] = {
            "step": step,
            "config": config,
            "score": self._scores[step],
            "leaves": {
                name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sum": sums[name]}
                for name, leaf in leaves.items()
            },
        }
        about["sum"] = _sum_of_json(about)
        args = self._ocp.args
        items = args.Composite(state=args.PyTreeSave(leaves), about=args.JsonSave(about))
        self._manager.save(step, args=items, force=True)

    def restore(self, step: int, like: Any) -> Any:
        """Reads only the leaves of `like`, with its shardings.

        Args:
            step: step of the checkpoint.
            like: a tree of `ShapeDtypeStruct`, the state or part of it.

        Raises:
            DamagedCheckpointError: files are missing or cannot be read, or an array's checksum is wrong.
            UserError: the checkpoint lacks a leaf, or has it with another shape or dtype.
        """
        args, wanted = self._ocp.args, flatten(like)
        saved = self._about(step)["leaves"]
        paths = paths_in(saved, wanted)
        self._check_fits(step, wanted, {name: saved[path] for name, path in paths.items() if path in saved})
        reading = {paths[name]: leaf for name, leaf in wanted.items()}
        restore = args.PyTreeRestore(
            reading, restore_args=self._ocp.checkpoint_utils.construct_restore_args(reading), partial_restore=True
        )
        _hush_abandoned_reads()
        try:
            leaves = self._manager.restore(step, args=args.Composite(state=restore))["state"]
            sums = _check_sums(leaves)
        except Exception as error:
            raise DamagedCheckpointError(f"step {step}: {_first_line(error)}") from error
        for name, value in sums.items():
            if value != saved[name]["sum"]:
                raise DamagedCheckpointError(f"step {step}: {name} is not what was saved")
        return unflatten(like, {name: leaves[path] for name, path in paths.items()})

    def restore_last(self, like: Any) -> tuple[int, Any]:
        """Reads the last checkpoint that is not damaged, with a warning for each damaged one.

        Returns:
            Its step and state.

        Raises:
            UserError: no checkpoint can be read, or the state does not fit; see `restore`.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.restore(step, like)
            except DamagedCheckpointError as error:
                _log.warning("the checkpoint in %s is damaged (%s); falling back to the one before", self.folder, error)
        raise UserError(
            f"none of the checkpoints in {self.folder} ({_list(steps)}) can be read; start the run over with --fresh"
        )

    def clear_after(self, step: int) -> None:
        """Prepares the folder for a run that resumes from `step`.

        Later checkpoints, which are damaged, are moved to `damaged/`; temporary folders of interrupted saves are
        deleted.
        """
        for partial in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(partial)
        aside = self.folder.parent / DAMAGED
        for later in [s for s in self.steps() if s > step]:
            path = next(path for path in self.folder.glob(f"{PREFIX}_*") if _step_of(path) == later)
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / path.name, ignore_errors=True)
            path.rename(aside / path.name)
        self._manager.reload()

    def close(self) -> None:
        """Waits until all saves are on disk."""
        if self._manager:
            self._manager.wait_until_finished()
            self._manager.close()
            self._manager = None

    def _check_fits(self, step: int, wanted: dict[str, Any], saved: dict[str, Any]) -> None:
        for name, leaf in wanted.items():
            if name not in saved:
                hint = "; it holds weights to start from with --init.from" if ".opt_state" in name else ""
                raise UserError(f"the checkpoint of step {step} in {self.folder} has no {name}{hint}")
            shape, dtype = tuple(saved[name]["shape"]), saved[name]["dtype"]
            if shape != leaf.shape or dtype != str(leaf.dtype):
                raise UserError(
                    f"{name} is {dtype}{list(shape)} in the checkpoint of step {step} in {self.folder}, "
                    f"but this run needs {leaf.dtype}{list(leaf.shape)}"
                )


def _sum_of_json(about: dict[str, Any]) -> int:
    """The checksum of the description saved with a state."""
    return zlib.crc32(json.dumps({key: about[key] for key in sorted(about) if key != "sum"}, sort_keys=True).encode())


class _LastAndBest:
    """Orbax policy that keeps the last few checkpoints and the best."""

    def __init__(self, checkpoints: Checkpoints, last: int) -> None:
        self.checkpoints, self.last = checkpoints, last

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        best = self.checkpoints.best_of(steps)
        kept = {*steps[-self.last :], *(best[:1] if best else ())}
        return [checkpoint.step in kept for checkpoint in checkpoints]


class _Always:
    """Orbax policy that never skips a save."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return True


def _list(steps: list[int]) -> str:
    return f"steps {', '.join(map(str, steps))}" if steps else "it is empty"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:120]


@functools.cache
def _hush_abandoned_reads() -> None:
    """Silences the later errors of reads that Orbax abandons when one read fails; they would hide its message."""
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
    hook = sys.unraisablehook

    def but_for_abandoned(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        orbax = code is not None and "orbax" in code.co_filename
        if not orbax and "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = but_for_abandoned


def has_checkpoints(rundir: Path) -> bool:
    """Whether a run directory has a finished checkpoint; does not import Orbax."""
    folder = rundir / FOLDER
    return folder.is_dir() and any(_step_of(path) is not None for path in folder.iterdir())


def _step_of(path: Path) -> int | None:
    """The step of a finished checkpoint's folder; None for other paths."""
    prefix, _, number = path.name.rpartition("_")
    return int(number) if prefix == PREFIX and number.isdigit() else None
