"""Map from functions of the code to the tests that enter them, for `tools/mutants.py`.

It is measured by group of tests, since the tests of a group share compiled functions: a function that JAX traced for
one test is not entered again in the next test, although that test runs it. A group is a test file, or a config in the
contract suite.
"""

import builtins
import json
from collections import Counter
from fnmatch import fnmatch
from hashlib import sha1
from itertools import chain
from pathlib import Path
from typing import Any

from mutant_runner import Cache, Tests, in_child, instrumented, report, serve
from mutations import Mutation, files

Groups = dict[str, dict[str, Any]]
"""By name: `files` of its tests; once measured, `seconds` by test, `entered`: tests by function, `failed`: tests that
fail with the unchanged code, `spent`: CPU seconds of all tests."""


def measured(root: Path, store: Path, wanted: list[str], again: bool, folder: Path) -> Groups:
    """The groups of tests; those whose files changed since they were last measured are measured again.

    Args:
        root: root of the repository, and this process's working directory.
        store: the file in which they are saved.
        wanted: the groups to measure, as patterns.
        again: whether all of these are measured again.
        folder: folder for temporary files.
    """
    known = json.loads(store.read_text()) if store.exists() else {"code": {}, "tests": {}, "groups": {}}
    tests = _hashes(root, sorted(path.as_posix() for path in _python_files(root) if _is_test(path)))
    code = _hashes(root, files(root))
    groups: Groups = known["groups"]
    if tests != known["tests"]:
        changed = {file for file in tests.keys() | known["tests"].keys() if tests.get(file) != known["tests"].get(file)}
        current = _collected(folder)
        groups = {
            group: groups[group] if group in groups and not changed & set(of) else {"files": of}
            for group, of in current.items()
        }
    asked = [group for group in groups if any(fnmatch(group, pattern) for pattern in wanted)]
    missing = [group for group in asked if again or "seconds" not in groups[group]]
    if len(missing) < len(asked) and (other := sorted(file for file in code if code[file] != known["code"].get(file))):
        report(f"changed since tests were measured: {', '.join(other)}; --map measures them again")
    marked = {file: instrumented(file, (root / file).read_bytes()) for file in code}
    for number, group in enumerate(missing, 1):
        groups[group] = _measure(group, groups[group]["files"], marked, folder)
        of = groups[group]
        report(f"{number}/{len(missing)} {group}: {len(of['seconds'])} tests, {of['spent']:.0f} s")
        if of["failed"]:
            report(f"    fail with the code as it is and are left out: {', '.join(of['failed'])}")
        kept = code if len(missing) == len(groups) else known["code"] or code
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps({"code": kept, "tests": tests, "groups": groups}))
    return {group: groups[group] for group in asked}


def plan(change: Mutation, groups: Groups) -> list[tuple[str, list[str]]]:
    """The groups of tests that enter the changed function, and their tests that enter it, most specific ones first.

    A test is more specific the fewer functions it enters; a group is as specific as its most specific test. Code at
    module level is covered by all tests that import the module, most specifically by those that enter few functions.
    """
    name, found = f"{change.file}::{change.function}", []
    for group, of in groups.items():
        if change.function:
            tests = of["entered"].get(name, [])
        else:
            of_file = (each for function, each in of["entered"].items() if function.split("::")[0] == change.file)
            tests = sorted(set(chain.from_iterable(of_file)))
        if tests:
            breadth = Counter(chain.from_iterable(of["entered"].values()))
            tests = sorted(tests, key=lambda test: (breadth[test], of["seconds"][test]))
            found.append((breadth[tests[0]], group, tests))
    return [(group, tests) for _, group, tests in sorted(found)]


def _python_files(root: Path) -> list[Path]:
    """Paths of Python files relative to the root."""
    return [path.relative_to(root) for path in root.glob("*/**/*.py")]


def _is_test(path: Path) -> bool:
    return path.parts[0] == "configs" or (path.parts[0] == "tests" and path.name.startswith("test_"))


def _hashes(root: Path, names: list[str]) -> dict[str, str]:
    return {name: sha1((root / name).read_bytes()).hexdigest() for name in names}


def _collected(folder: Path) -> dict[str, list[str]]:
    """The files of each group, as pytest collects them."""
    found = in_child(lambda: Tests(None).run(["tests"], folder), folder)["found"]
    if not found:
        raise SystemExit((folder / "log").read_text())
    groups: dict[str, set[str]] = {}
    for group, test in found:
        groups.setdefault(group, set()).add(test.split("::")[0])
    return {group: sorted(of) for group, of in groups.items()}


def _measure(group: str, of: list[str], marked: dict[str, bytes], folder: Path) -> dict[str, Any]:
    cache = Cache()

    def work() -> dict[str, Any]:
        cache.use()
        vars(builtins)["entered"] = set()
        serve(marked)
        return Tests(group).run(of, folder)

    done = in_child(work, folder)
    names = ("seconds", "entered", "spent")
    return {"files": of, "failed": sorted(set(done["failed"]))} | {name: done[name] for name in names}
