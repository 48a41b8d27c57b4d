"""Mutation testing: makes small changes to the code, one at a time, and reports those that no test detects.

    python tools/mutants.py --seed 0 --count 300           # as `make mutants`
    python tools/mutants.py --only zoo/metrics/text.py --count 20
    python tools/mutants.py --only zoo/ddpm.py --list      # lists all changes of a file
    python tools/mutants.py --again                        # the changes that survived the last time
    python tools/mutants.py --tests test_ddpm_loss --only zoo/ddpm.py

Changes (`tools/mutations.py`) are drawn from losses, evaluation, metrics, samplers and the learner, from each file in
proportion to its number of changes. For each change, the tests that enter the changed function are run, most specific
ones first, until one fails. The map from functions to tests is measured once (`tools/mutant_map.py`), again for test
files that changed, and for all with `--map`; it is saved in `.pytest_cache/mutants`. The working tree is not changed: a
changed module exists only in the memory of a child process (`tools/mutant_runner.py`). Tests that start other processes
run the unchanged code.

An equivalent change, which no test can detect since all results are the same, belongs in
`tools/mutants_equivalent.toml` with its reason, and is not counted.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mutant_map import Groups, measured, plan
from mutant_runner import Cache, Tests, in_child, preload, report, serve
from mutations import Mutation, files, mutations

ROOT = Path(__file__).parents[1]
STORE = ROOT / ".pytest_cache" / "mutants"
EQUIVALENT = ROOT / "tools" / "mutants_equivalent.toml"
PATIENCE = 4
"""Limit of a mutant's CPU time as a multiple of that of the unchanged code; half a minute is added."""


# ------------------------------------------------------------------------------------------- one mutant


def judge(change: Mutation, known: Groups, folder: Path, budget: float) -> dict[str, Any]:
    """Runs the tests of a mutant: {"killed": the failed test, or empty; "left": groups not run, for lack of time}."""
    spent, groups = 0.0, plan(change, known)
    for i, (group, first) in enumerate(groups):
        of = known[group]
        if i and spent + of["spent"] > budget:
            return {"killed": "", "left": [group for group, _ in groups[i:]], "spent": spent}

        def work(group: str = group, first: list[str] = first, of: dict[str, Any] = of) -> dict[str, Any]:
            serve({change.file: change.apply((ROOT / change.file).read_bytes())})
            return Tests(group, first, of["failed"]).run(of["files"], folder, "-x", "--tb=no")

        limit = 30 + PATIENCE * of["spent"]
        done = in_child(work, folder, limit)
        spent += done.get("spent", limit)
        if "signal" in done:
            why = "takes too long" if done["signal"] in (signal.SIGXCPU, signal.SIGKILL) else "crashes"
            return {"killed": f"{group} {why}", "left": [], "spent": spent}
        if done["code"]:
            return {"killed": (done["failed"] or [f"pytest ends with {done['code']}"])[0], "left": [], "spent": spent}
    return {"killed": "", "left": [], "spent": spent}


def judge_all(changes: list[Mutation], known: Groups, jobs: int, budget: float) -> list[dict[str, Any]]:
    """The result of `judge` for each mutant, with `jobs` processes at a time."""
    results: list[dict[str, Any]] = [{} for _ in changes]
    waiting, running, before = list(enumerate(changes)), {}, edited()
    folders = [Path(tempfile.mkdtemp(prefix="mutants")) for _ in range(jobs)]
    caches = [Cache(job) for job in range(jobs)]
    free = list(range(jobs))
    try:
        while waiting or running:
            while free and waiting:
                (number, change), job = waiting.pop(0), free.pop()
                child = os.fork()
                if child == 0:
                    _work(change, known, folders[job], caches[job], budget)
                running[child] = (number, job)
            if later := edited() - before:
                raise SystemExit(f"edited since mutants were drawn: {', '.join(sorted({file for file, _ in later}))}")
            child, _ = os.wait()
            number, job = running.pop(child)
            free.append(job)
            caches[job].forget()
            results[number] = json.loads((folders[job] / "verdict.json").read_text())
            (folders[job] / "verdict.json").unlink()
            _say(changes[number], results[number], sum(map(bool, results)), len(changes))
    finally:
        for child in running:
            os.kill(child, signal.SIGTERM)
        for folder, cache in zip(folders, caches, strict=True):
            shutil.rmtree(folder, ignore_errors=True)
            cache.remove()
    return results


def edited() -> set[tuple[str, int]]:
    """Time of the last change of each file of the code."""
    return {(path.relative_to(ROOT).as_posix(), path.stat().st_mtime_ns) for path in ROOT.glob("zoo/**/*.py")}


def _work(change: Mutation, known: Groups, folder: Path, cache: Cache, budget: float) -> None:
    """The main function of a job's process."""
    code = 1
    try:
        cache.use()
        (folder / "verdict.json").write_text(json.dumps(judge(change, known, folder, budget)))
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _say(change: Mutation, result: dict[str, Any], number: int, count: int) -> None:
    verdict = f"killed by {result['killed']}" if result["killed"] else "SURVIVED"
    report(f"{number}/{count} {result['spent']:.0f} s {change.file}:{change.line} {verdict}")
    if not result["killed"]:
        report(f"    - {change.before}\n    + {change.after}")


# ---------------------------------------------------------------------------------------------- samples


def draw(sites: dict[str, list[Mutation]], count: int, seed: int) -> list[Mutation]:
    """Draws `count` changes by the seed, from each file in proportion to its number of changes."""
    total = sum(map(len, sites.values()))
    count = min(count, total)
    shares = {file: count * len(of) / total for file, of in sites.items()}
    counts = {file: int(share) for file, share in shares.items()}
    by_remainder = sorted(shares, key=lambda file: (counts[file] - shares[file], file))
    for file in by_remainder[: count - sum(counts.values())]:
        counts[file] += 1
    return [change for file, of in sites.items() for change in random.Random(f"{seed} {file}").sample(of, counts[file])]


def equivalents() -> dict[tuple[str, str, str, str], str]:
    """The reasons of equivalent changes, by file, function, and lines before and after."""
    entries = tomllib.loads(EQUIVALENT.read_text()).get("mutant", []) if EQUIVALENT.exists() else []
    return {(each["file"], each["function"], each["before"], each["after"]): each["reason"] for each in entries}


def key(change: Mutation) -> tuple[str, str, str, str]:
    """The key of a change, which does not depend on its line number."""
    return change.file, change.function, change.before, change.after


def summary(changes: list[Mutation], results: list[dict[str, Any]]) -> str:
    """The report: the survivors, then the shares."""
    lines, counts = [], Counter()
    for change, result in zip(changes, results, strict=True):
        counts[change.file, bool(result["killed"])] += 1
        if not result["killed"]:
            lines += [f"{change.file}:{change.line} in {change.function or 'the module'}", f"    - {change.before}"]
            lines += [f"    + {change.after}"]
            if result["left"]:
                lines += [f"    not run, for the budget: {', '.join(result['left'])}"]
    for file in dict.fromkeys(change.file for change in changes):
        killed, survived = counts[file, True], counts[file, False]
        lines.append(f"{killed:4} of {killed + survived:4} killed in {file}")
    killed, spent = sum(counts[each] for each in counts if each[1]), sum(result["spent"] for result in results)
    lines.append(f"{killed} of {len(changes)} killed, {killed / max(len(changes), 1):.1%}; "
                 f"{spent / max(len(changes), 1):.0f} CPU seconds a mutant")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Parses the command line, measures the map if necessary, runs the mutants and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which changes are drawn")
    parser.add_argument("--count", type=int, default=300, help="how many")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="of these files only (patterns)")
    parser.add_argument("--list", action="store_true", help="list the changes drawn, run nothing")
    parser.add_argument("--again", action="store_true", help="those that survived the last time")
    parser.add_argument("--tests", nargs="+", metavar="GROUP", default=["*"], help="use these groups only (patterns)")
    parser.add_argument("--map", action="store_true", help="measure again what tests enter, and run nothing else")
    parser.add_argument("--jobs", type=int, default=1, help="how many mutants are judged at a time")
    parser.add_argument("--budget", type=float, default=240, help="CPU seconds of further groups for a survivor")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # this process and each job end their child processes
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # this `zoo`, not an installed one
    sites = {file: mutations(ROOT, file) for file in files(ROOT)}
    reasons, everywhere = equivalents(), {key(change) for of in sites.values() for change in of}
    for entry in reasons.keys() - everywhere:
        report(f"{EQUIVALENT.name} names what there is not: {entry}")
    if given.only:
        sites = {file: of for file, of in sites.items() if any(fnmatch(file, pattern) for pattern in given.only)}
    changes, last = draw(sites, given.count, given.seed), STORE / "survivors.json"
    if given.again:
        survived = {tuple(each) for each in json.loads(last.read_text())}
        changes = [change for of in sites.values() for change in of if key(change) in survived]
    known_equivalent = [change for change in changes if key(change) in reasons]
    changes = [change for change in changes if key(change) not in reasons]
    if given.list:
        for change in changes:
            report(f"{change.file}:{change.line} in {change.function}\n    - {change.before}\n    + {change.after}")
        report(f"{len(changes)} of {sum(map(len, sites.values()))}, and {len(known_equivalent)} known to be equivalent")
        return
    preload()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        known = measured(ROOT, STORE / "map.json", given.tests, given.map, Path(folder))
    if given.map:
        return
    results = judge_all(changes, known, given.jobs, given.budget)
    survivors = [key(change) for change, result in zip(changes, results, strict=True) if not result["killed"]]
    last.write_text(json.dumps(survivors))
    report(f"\n{summary(changes, results)}")
    report(f"{len(known_equivalent)} more are equivalent ({EQUIVALENT.name}); {time.monotonic() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
