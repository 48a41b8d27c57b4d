"""The layout: which folder may import which, who names a family, and who names a device; read from the source."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

FILES = sorted((ROOT / "zoo").rglob("*.py"))

MAY_IMPORT = {
    "core": set(),
    "nn": {"core"},
    "data": {"core"},
    "nets": {"core", "nn"},
    "sampling": {"core", "nn", "data", "nets"},
    "metrics": {"core", "nn", "data", "sampling"},
    "families": {"core", "nn", "data", "nets", "sampling", "metrics"},
    "harness": {"core", "nn", "data", "nets", "sampling", "metrics", "interop"},
    "interop": {"core", "nn", "data", "nets", "sampling", "metrics", "families", "harness"},
}
"""Every folder may import itself, too, but a family imports no other family. Files in `zoo/` itself are families."""

COLLECTIVES = {
    "psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute", "psum_scatter", "axis_index", "axis_size",
    "pmap", "shard_map", "device_put", "Mesh", "NamedSharding", "PartitionSpec", "SingleDeviceSharding",
    "with_sharding_constraint", "make_mesh", "set_mesh",
}  # fmt: skip
"""Names by which JAX places arrays on devices and computes across them."""

PARALLEL = {
    "zoo/core/learner.py": "sums gradients over devices",
    "zoo/nn/conv.py": "gathers kernels that fsdp splits, since the compiler's partitioned convolution is wrong",
    "zoo/nn/batch_norm.py": "takes its moments over the global batch, in the middle of a network",
}
"""Files outside the harness that use `zoo.core.parallel`, and for what."""

RENAMED = {"zoo/harness/formats.py": "class names in runs of earlier formats"}
"""Files of core and harness whose strings name a family, and for what."""


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(parts: tuple[str, ...]) -> str:
    """The folder of a module `zoo.x.y`, given as its parts; "zoo" for the package itself."""
    if len(parts) == 1:
        return "zoo"
    return parts[1] if parts[1] in MAY_IMPORT else "families"


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules of this package that a file imports, wherever in it."""
    for node in ast.walk(parse(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path)} imports relatively"
            module = node.module or ""
            # `from zoo.core import parallel` imports a module, `from zoo.core.data import Spec` a name in one.
            names = [f"{module}.{alias.name}" if module.count(".") < 2 else module for alias in node.names]
        for name in names:
            parts = tuple(name.split("."))
            if parts[0] == "zoo":
                yield parts


def names(tree: ast.Module) -> set[str]:
    """The identifiers that a file uses: variables, attributes and what it imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.update(node.name.split("."))
    return found


def strings(tree: ast.Module) -> str:
    """All string constants of a file, docstrings among them."""
    return "\n".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str
    )


def modules_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def families() -> dict[str, str]:
    """Class names of the families, with the module of each."""
    found = {}
    for path in FILES:
        if room(modules_of(path)) == "families":
            for node in parse(path).body:
                if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Family" for base in node.bases):
                    found[node.name] = path.stem
    return found


def files(*rooms: str) -> list[Path]:
    return [path for path in FILES if room(modules_of(path)) in rooms]


@pytest.mark.parametrize("here", MAY_IMPORT)
def test_imports_follow_the_layout(here):
    against = []
    for path in files(here):
        for module in imported(path):
            there = room(module)
            own = here == there and (here != "families" or module[1] == path.stem)
            if not own and there not in MAY_IMPORT[here]:
                against.append(f"{place(path)} imports {'.'.join(module)}")
    assert not against


def test_no_two_folders_import_each_other_but_harness_and_interop():
    """Interop writes and reads runs; the harness reads extractors' weights that other programs wrote."""
    for here, allowed in MAY_IMPORT.items():
        for there in allowed:
            assert here not in MAY_IMPORT[there] or {here, there} == {"harness", "interop"}


def test_every_folder_is_in_the_table():
    assert {path.name for path in (ROOT / "zoo").iterdir() if path.is_dir() and any(path.glob("*.py"))} == {
        *MAY_IMPORT.keys() - {"families"}
    }


def test_core_and_harness_name_no_family():
    known = families()
    assert {"TransformerLM", "DCGAN", "Classifier"} <= known.keys()
    modules = {f"zoo.{module}" for module in known.values()}
    for path in files("core", "harness"):
        tree = parse(path)
        assert not names(tree) & known.keys(), place(path)
        if place(path) not in RENAMED:
            words = set(re.findall(r"\w+(?:\.\w+)?", strings(tree)))
            assert not words & (known.keys() | modules), place(path)


def test_only_core_parallel_places_arrays_and_computes_across_devices():
    for path in FILES:
        if place(path) != "zoo/core/parallel.py":
            assert not names(parse(path)) & COLLECTIVES, place(path)


def test_families_and_layers_do_not_use_parallel():
    using = {
        place(path)
        for path in FILES
        if room(modules_of(path)) != "harness" and ("zoo", "core", "parallel") in {m[:3] for m in imported(path)}
    }
    assert using == PARALLEL.keys()
