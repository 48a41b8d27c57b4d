"""The mutation tool: what it changes and leaves alone, and that a change is what tests import."""

import ast
import builtins
import importlib
import importlib.machinery
import sys
from pathlib import Path

import pytest
from paths import ROOT

SOURCE = '''"""Words: 1 + 2."""
import numpy as np

LIMIT = 3


def f(x: "a < b", n=0, *, axis=1):
    """x + 1."""
    if n < LIMIT and not x.any():
        raise ValueError(f"n is {n + 1}")
    total = np.where(x > 0, x, 0.0).sum(axis=axis)
    total = np.clip(total, 0.0, None)
    total += x[1:]
    return {"a": total} | {"ä": max(total, 2)}, g(n, x)


class Settings:
    width: int = 4
'''


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    for name in ("mutations", "mutant_runner", "mutant_map", "mutants"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("mutants")


def changes(tools, root: Path, source: str, file: str = "zoo/sampling/words.py") -> dict[tuple[int, str], str]:
    """What stands in each changed source, by (line, the line after the change)."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    found = tools.mutations(root, file)
    return {(each.line, each.after): each.apply(path.read_bytes()).decode() for each in found}


def test_operators_constants_calls_and_statements_are_changed_one_at_a_time(tools, tmp_path):
    found = changes(tools, tmp_path, SOURCE)
    for line, after in (
        (4, "LIMIT = 4"),
        (7, 'def f(x: "a < b", n=1, *, axis=1):'),
        (7, 'def f(x: "a < b", n=0, *, axis=0):'),
        (9, "if (n <= LIMIT) and not x.any():"),
        (9, "if (n < LIMIT or not x.any()):"),
        (9, "if n < LIMIT and x.any():"),
        (9, "if n < LIMIT and not x.all():"),
        (9, "if False:"),
        (11, "total = x.sum(axis=axis)"),
        (11, "total = (0.0).sum(axis=axis)"),
        (11, "total = np.where(x > 0, x, 0.0).mean(axis=axis)"),
        (11, "total = np.where(x > 0, x, 0.0).sum()"),
        (11, "total = np.where(x > 1, x, 0.0).sum(axis=axis)"),
        (12, "total = total"),
        (12, "pass"),
        (13, "pass"),
        (13, "total -= x[1:]"),
        (13, "total += x[:]"),
        (14, "return {'a': total}, g(n, x)"),
        (14, 'return {"a": total} | {"ä": min(total, 2)}, g(n, x)'),
        (14, 'return {"a": total} | {"ä": max(total, 2)}, g(x, n)'),
    ):
        assert (line, after) in found
    for (line, after), source in found.items():
        assert source.splitlines()[line - 1].strip() == after
        assert sum(a != b for a, b in zip(source.splitlines(), SOURCE.splitlines(), strict=True)) == 1
        ast.parse(source)


def test_words_annotations_refusals_and_defaults_of_settings_are_left_alone(tools, tmp_path):
    assert {line for line, _ in changes(tools, tmp_path, SOURCE)} == {4, 7, 9, 11, 12, 13, 14}


def test_every_change_of_the_code_can_be_parsed_and_has_a_known_place(tools):
    for file in ("zoo/nn/losses.py", "zoo/harness/evaluation.py", "zoo/sampling/diffusion/noise_levels.py"):
        found = tools.mutations(ROOT, file)
        assert len(found) > 10
        source = (ROOT / file).read_bytes()
        for each in found:
            ast.parse(each.apply(source))
    assert {each.function for each in tools.mutations(ROOT, "zoo/harness/trained.py")} == {"Trained.evaluate"}


def test_a_draw_is_a_function_of_the_seed_and_in_proportion(tools):
    sites = {"a": list(range(700)), "b": list(range(200)), "c": list(range(95)), "d": list(range(5))}
    drawn = tools.draw(sites, 100, 0)
    assert len(drawn) == 100
    assert drawn == tools.draw(sites, 100, 0)
    assert drawn != tools.draw(sites, 100, 1)
    only = {name: set(of) for name, of in sites.items()}
    sites = {name: [(name, i) for i in of] for name, of in only.items()}
    counts = [sum(name == each for each, _ in tools.draw(sites, 100, 0)) for name in sites]
    assert counts in ([70, 20, 10, 0], [70, 20, 9, 1])
    assert len(set(tools.draw(sites, 1000, 0))) == 1000


def test_known_equivalents_are_of_code_that_is_changed_and_have_reasons(tools):
    assert tools.equivalents()
    for (file, _, before, after), reason in tools.equivalents().items():
        assert file in tools.files(ROOT)
        assert before != after
        assert len(reason) > 20


def test_a_change_is_imported_from_memory_and_leaves_nothing(tools, tmp_path, monkeypatch):
    path = tmp_path / "a_module.py"
    path.write_text("def f(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("a_module")  # writes its byte code
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.py*")}
    for name in ("get_data", "_cache_bytecode"):
        loader = importlib.machinery.SourceFileLoader
        monkeypatch.setattr(loader, name, getattr(loader, name))
    tools.serve({str(path): b"def f(x):\n    return x - 1\n"})
    monkeypatch.delitem(sys.modules, "a_module")
    assert importlib.import_module("a_module").f(1) == 0
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.py*")} == before
    monkeypatch.delitem(sys.modules, "a_module")


def test_marked_functions_leave_their_names(tools, monkeypatch):
    runner = importlib.import_module("mutant_runner")
    source = (
        '"""Words."""\nclass A:\n    def f(self):\n        """More."""\n        def g(): return 1\n        return g()\n'
    )
    marked = runner.instrumented("m.py", source.encode())
    entered = set()
    monkeypatch.setattr(builtins, "entered", entered, raising=False)
    names = {}
    exec(marked, names)
    assert entered == {"m.py::"}
    assert names["__doc__"] == "Words."
    assert names["A"]().f() == 1
    assert entered == {"m.py::", "m.py::A.f", "m.py::A.f.g"}


def test_tests_that_enter_little_else_run_first(tools):
    site = tools.mutations(ROOT, "zoo/core/estimates.py")[0]
    name = f"{site.file}::{site.function}"
    seconds = {"whole": 1.0, "other": 1.0, "unit": 9.0, "broad": 0.1}
    entered = {
        "a": {name: ["whole"], "zoo/x.py::f": ["whole", "other"], "zoo/x.py::g": ["whole"]},
        "b": {name: ["broad", "unit"], "zoo/x.py::f": ["broad"]},
        "c": {"zoo/x.py::f": ["other"]},
    }
    groups = {group: {"seconds": seconds, "entered": of} for group, of in entered.items()}
    assert tools.plan(site, groups) == [("b", ["unit", "broad"]), ("a", ["whole"])]
