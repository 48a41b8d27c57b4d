"""Times a function and prints one JSON line: rate, share of the machine used by other processes, peak memory."""

import json
import os
import resource
import statistics
import time
from pathlib import Path

THREADS = int(os.environ.get("PEER_THREADS", "2"))


def _machine_seconds():
    """CPU seconds used by the whole machine since it started; 0 if /proc/stat does not exist."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    ticks = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def _own_seconds():
    return sum(os.times()[:4])


def wait_until_quiet(busy=0.25, tries=20):
    """Waits, at most `tries` seconds, until less than the share `busy` of the machine is in use."""
    for _ in range(tries):
        before, began = _machine_seconds(), time.perf_counter()
        time.sleep(1)
        if (_machine_seconds() - before) / (time.perf_counter() - began) / os.cpu_count() < busy:
            return


def timed(step, warm=2, min_s=8.0, min_n=3):
    """Calls step() for at least `min_s` seconds and `min_n` times; returns seconds per call and the load by others."""
    began = time.perf_counter()
    for _ in range(warm):
        step()
    warm_s = time.perf_counter() - began
    wait_until_quiet()
    machine, own, began, seconds = _machine_seconds(), _own_seconds(), time.perf_counter(), []
    while time.perf_counter() - began < min_s or len(seconds) < min_n:
        before = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - before)
    wall = time.perf_counter() - began
    others = max(0.0, (_machine_seconds() - machine) - (_own_seconds() - own)) / wall / os.cpu_count()
    return {
        "median": statistics.median(seconds),
        "best": min(seconds),
        "n": len(seconds),
        "other_cpu": round(others, 2),
        "warm_s": round(warm_s, 1),
    }


def emit(peer, task, metric, units_per_call, timing, **more):
    """Prints the JSON line; `value` and `best` are in units a second."""
    line = {
        "peer": peer,
        "task": task,
        "metric": metric,
        "value": round(units_per_call / timing["median"], 2),
        "best": round(units_per_call / timing["best"], 2),
        **{name: timing[name] for name in ("n", "other_cpu", "warm_s")},
        "threads": THREADS,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(line | more), flush=True)
