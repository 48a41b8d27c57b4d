"""Runs a group of tests in a child process whose modules differ from those on disk, for `tools/mutants.py`.

This process has imported the libraries that tests need (JAX, Flax, pytest) and no module of `zoo`; every run is a fork
of it. JAX starts its threads at its first array, so forking before that is safe. A child imports modules by
`importlib`, in which `serve` replaces the source of some files.
"""

import ast
import builtins
import contextlib
import importlib.machinery
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

CACHES = Path(".pytest_cache")
MEMORY = 16 << 30
"""Limit of a mutant's address space in bytes, so that an endless loop cannot exhaust the machine's memory."""
COMMON = (
    "jax", "jax.numpy", "flax.nnx", "optax", "einops", "beartype", "jaxtyping", "scipy.stats", "PIL.Image", "tyro",
    "rich", "safetensors.numpy", "orbax.checkpoint", "tokenizers", "sacrebleu", "grain",
)  # fmt: skip


def preload() -> None:
    """Imports the libraries that most tests need, so that children do not import them again."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name in COMMON:
        importlib.import_module(name)


def serve(sources: dict[str, bytes]) -> None:
    """Makes this process import the given sources instead of the files' contents; their byte code is not cached."""
    by_path = {str(Path(file).resolve()): source for file, source in sources.items()}
    loader = importlib.machinery.SourceFileLoader
    get_data, cache = loader.get_data, loader._cache_bytecode

    def byte_code(path: str) -> bool:
        folder, name = Path(path).parents[1], Path(path).name.split(".")[0]
        return path.endswith(".pyc") and f"{folder / name}.py" in by_path

    def from_memory(self: Any, path: str) -> bytes:
        if path in by_path:
            return by_path[path]
        if byte_code(path):
            raise OSError("byte code of another source")
        return get_data(self, path)

    def keep(self: Any, source_path: str, bytecode_path: str, data: bytearray) -> None:
        if source_path not in by_path:
            cache(self, source_path, bytecode_path, data)

    loader.get_data, loader._cache_bytecode = from_memory, keep


def instrumented(file: str, source: bytes) -> bytes:
    """A module's source, changed to add the names of entered functions, and of the module, to `builtins.entered`."""
    tree = _Marks(file).visit(ast.parse(source))
    return ast.unparse(ast.fix_missing_locations(tree)).encode()


class _Marks(ast.NodeTransformer):
    """Inserts `entered.add("FILE::NAME")` at the start of each function of a module."""

    def __init__(self, file: str):
        self.file, self.names = file, [""]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.names.append(f"{self.names[-1]}.{node.name}".lstrip("."))
        self.generic_visit(node)
        self.names.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.visit_ClassDef(node)  # type: ignore[arg-type]
        return self._marked(node, f"{self.names[-1]}.{node.name}".lstrip("."))

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.generic_visit(node)
        return self._marked(node, "")

    def _marked(self, node: Any, name: str) -> ast.AST:
        documented = ast.get_docstring(node, clean=False) is not None
        node.body[documented:documented] = ast.parse(f"entered.add({f'{self.file}::{name}'!r})").body
        return node


class Tests:
    """A pytest plugin that runs the tests of one group in a given order and records the results.

    Args:
        group: the name in the `xdist_group` mark; None: all tests are collected and none is run.
        first: node ids of the tests to run first, in this order.
        without: node ids of tests to skip.
    """

    def __init__(self, group: str | None, first: Iterable[str] = (), without: Iterable[str] = ()):
        self.group, self.without = group, set(without)
        self.first = {name: i for i, name in enumerate(first)}
        self.found: list[tuple[str, str]] = []
        self.seconds: dict[str, float] = {}
        self.entered: dict[str, list[str]] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Selects the group's tests and moves those of `first` to the front."""
        groups = {item: item.get_closest_marker("xdist_group").args[0] for item in items}  # type: ignore[union-attr]
        self.found = [(groups[item], item.nodeid) for item in items]
        mine = [item for item in items if groups[item] == self.group and item.nodeid not in self.without]
        items[:] = sorted(mine, key=lambda item: self.first.get(item.nodeid, len(self.first)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Measures a test and records which functions it enters."""
        begin = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = round(time.process_time() - begin, 2)
            for function in vars(builtins).get("entered", ()):
                self.entered.setdefault(function, []).append(item.nodeid)
            vars(builtins).get("entered", set()).clear()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records a failed test."""
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Records a file that cannot be imported."""
        if report.failed:
            self.failed.append(report.nodeid)

    def run(self, files: list[str], folder: Path, *options: str) -> dict[str, Any]:
        """Runs the tests of some files; pytest's temporary files are in the folder."""
        arguments = [*files, "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "pytest"), *options]
        code = pytest.main([*arguments, "-W", "ignore::pytest.PytestAssertRewriteWarning"], plugins=[self])
        return {"code": int(code)} | {name: getattr(self, name) for name in ("found", "seconds", "entered", "failed")}


def in_child(work: Callable[[], dict[str, Any]], folder: Path, cpu_seconds: float | None = None) -> dict[str, Any]:
    """Runs a function in a forked child and returns its result.

    Args:
        work: the function; returns a dict that JSON can represent.
        folder: folder of `log` (its output) and of its result.
        cpu_seconds: limit of CPU time; the limit of elapsed time is ten times as much.

    Returns:
        The function's result with the CPU seconds `spent`; `{"signal": number}` instead if a signal ended the child.
    """
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            if cpu_seconds is not None:
                limit = int(cpu_seconds) + 1
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            result.write_text(json.dumps(work() | {"spent": time.process_time()}))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        status = _wait(child, None if cpu_seconds is None else 10 * cpu_seconds + 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    if not result.exists():
        raise RuntimeError((folder / "log").read_text()[-3000:])
    return json.loads(result.read_text())


def _wait(child: int, seconds: float | None) -> int:
    """Waits for a child, which is killed after its time limit; returns its status."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            return status
        if end is not None and time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            end = None
        time.sleep(0.02)


class Cache:
    """JAX's compilation cache of one job: a copy of the programs of the unchanged code.

    `tests/conftest.py` has a folder for each worker of pytest-xdist, named by the environment; a job uses such a name.
    JAX identifies a compiled program by its text, so a mutant never receives the program of another. A mutant that is
    killed may leave an incomplete file, so all files that a mutant adds are removed.
    """

    NAME = "-mutants"

    def __init__(self, job: int | None = None):
        self.worker = self.NAME if job is None else f"{self.NAME}{job}"
        self.path = CACHES / f"jax{self.worker}"
        if job is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            if (CACHES / f"jax{self.NAME}").exists():
                shutil.copytree(CACHES / f"jax{self.NAME}", self.path)
        self.kept = self._entries()

    def _entries(self) -> set[str]:
        return set(os.listdir(self.path)) if self.path.exists() else set()

    def use(self) -> None:
        """Makes the tests of this process and its children use this cache."""
        os.environ["PYTEST_XDIST_WORKER"] = self.worker

    def forget(self) -> None:
        """Removes the files that were added."""
        for name in self._entries() - self.kept:
            (self.path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def report(text: str) -> None:
    """Prints a line and flushes the output."""
    print(text, file=sys.stdout, flush=True)
