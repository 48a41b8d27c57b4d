"""Measures the matrix product rate (GFLOP/s) and memory bandwidth (GB/s) of NumPy, PyTorch or JAX on this machine.

    python benchmarks/peers/limits.py {numpy|torch|jax}

`peak.c` in this folder measures the machine's peak. Prints one JSON line a figure: best and median of several calls.
"""

import json
import os
import statistics
import sys
import time

THREADS = int(os.environ.get("PEER_THREADS", "2"))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("OPENBLAS_NUM_THREADS", str(THREADS))

import numpy as np  # noqa: E402

SIZES = (1024, 2048, 4096)
STREAM = 64 * 1024 * 1024
"""Floats in an array of the memory tests, 256 MiB."""


def report(library, metric, unit, work, call, times=5):
    """Times call(), which does an amount `work` in the given unit, and prints the rate per second."""
    call()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    rates = {"value": work / min(seconds), "median": work / statistics.median(seconds)}
    line = {"peer": library, "task": "limit", "metric": metric} | {k: round(v, 2) for k, v in rates.items()}
    print(json.dumps(line | {"unit": unit, "threads": THREADS}), flush=True)


def report_products(library, make, multiply, dtypes):
    for dtype in dtypes:
        for n in SIZES:
            a, b = make((n, n), dtype), make((n, n), dtype)
            report(library, f"matmul {dtype} {n}", "GFLOP/s", 2 * n**3 / 1e9, lambda a=a, b=b: multiply(a, b))


def report_memory(library, make, multiply, total, triad):
    x, y = make((STREAM,), "float32"), make((STREAM,), "float32")
    report(library, "read", "GB/s", 4 * STREAM / 1e9, lambda: total(x), times=7)
    report(library, "triad, 3 streams", "GB/s", 12 * STREAM / 1e9, lambda: triad(x, y), times=7)
    for n, m, times in ((8192, 16384, 7), (2048, 1024, 50)):
        row, matrix = make((1, n), "float32"), make((n, m), "float32")
        metric, read = f"vector x matrix, {4 * n * m >> 20} MiB", 4 * n * m / 1e9
        report(library, metric, "GB/s", read, lambda row=row, matrix=matrix: multiply(row, matrix), times)


def make_array(shape, dtype):
    return np.random.default_rng(0).random(shape, dtype="float32").astype(dtype)


def main(library):
    if library == "numpy":
        report_products(library, make_array, np.matmul, ["float32"])
    elif library == "torch":
        import torch

        torch.set_num_threads(THREADS)
        out = torch.empty(STREAM)

        def make(shape, dtype):
            return torch.rand(shape, dtype=getattr(torch, dtype))

        report_products(library, make, torch.matmul, ["float32", "bfloat16"])
        report_memory(library, make, torch.matmul, torch.sum, lambda x, y: torch.add(x, y, alpha=3.0, out=out))
    else:
        import jax
        import jax.numpy as jnp

        def compiled(function):
            jitted = jax.jit(function)
            return lambda *arrays: jitted(*arrays).block_until_ready()

        def make(shape, dtype):
            return jnp.asarray(make_array(shape, "float32"), dtype)

        multiply = compiled(jnp.matmul)
        report_products(library, make, multiply, ["float32", "bfloat16"])
        report_memory(library, make, multiply, compiled(jnp.sum), compiled(lambda x, y: x + 3 * y))


if __name__ == "__main__":
    main(sys.argv[1])
