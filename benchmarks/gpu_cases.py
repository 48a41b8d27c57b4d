"""Runs one case of `benchmarks.gpu` and prints one JSON line.

python -m benchmarks.gpu_cases CASE [--smoke]

device                      description of the device
contract:FAMILY             compares training on one device, on all by jit and by pmap, and resumed from a saved state
again:FAMILY                the digest of contract:FAMILY's parameters, computed in another process
precision:FAMILY            gradients in bfloat16 against float32, leaf by leaf, and 50 steps of both
train:FAMILY:PRECISION      rows a second and peak memory of a training step
gpt2:zoo                    the same for GPT-2 124M at context 1,024 in bfloat16, and its model-FLOPs utilisation
"""

import hashlib
import json
import statistics
import sys
import time
import types
from dataclasses import replace
from typing import Any

import jax
import numpy as np

PEAK = "peak_bytes_in_use"
ROUNDING = 1e-3
"""Tolerance of relative differences. Programs for different devices round differently, which four steps of a GAN
amplify to 1e-4; a wrong sum gives 1e-2."""


def stand_in_for_tyro() -> bool:
    """If tyro is missing, replaces it by a stand-in for the annotations of settings; returns whether it did."""
    try:
        import tyro
    except ImportError:
        tyro, conf = types.ModuleType("tyro"), types.ModuleType("tyro.conf")
        # Every attribute of `tyro.conf` is a marker that can be applied to a type, in brackets or in Annotated.
        conf.__dict__["__getattr__"] = lambda name: _marker
        tyro.__dict__["conf"] = conf
        sys.modules |= {"tyro": tyro, "tyro.conf": conf}
        return True
    return False


class _marker:  # noqa: N801
    """Stand-in for tyro's markers: `Marker[type]` is the type, `arg(...)` has no effect."""

    def __init__(self, **_: Any) -> None:
        pass

    def __class_getitem__(cls, kind: Any) -> Any:
        return kind


def device() -> dict[str, Any]:
    """Description of the device and of the versions of Python and JAX."""
    first = jax.devices()[0]
    return {
        "platform": jax.default_backend(),
        "kind": first.device_kind,
        "devices": jax.device_count(),
        "compute_capability": getattr(first, "compute_capability", ""),
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "memory_bytes": (first.memory_stats() or {}).get("bytes_limit"),
    }


def contract(name: str) -> dict[str, Any]:
    """Compares parameters after four steps of SGD in float32, with dropout, between strategies and after resuming."""
    from benchmarks.gpu_work import SGD, Program, make_work
    from zoo.core.parallel import Parallel

    work, count = make_work(name, tiny=True), jax.device_count()
    if hasattr(work.family, "dropout"):
        work = replace(work, family=replace(work.family, dropout=0.2))

    def run(parallel: Parallel) -> tuple[Program, list[np.ndarray]]:
        program = Program(work, SGD, "float32", parallel)
        program.advance(0, 4)
        return program, program.params()

    alone, params = run(Parallel(devices=1))
    scale = max(np.abs(leaf).max() for leaf in params)
    differences = {
        strategy: float(
            max(np.abs(a - b).max() for a, b in zip(params, run(Parallel(strategy, devices=count))[1], strict=True))
            / scale
        )
        for strategy in ("jit", "pmap")
    }
    # The same program from the same state; after two steps the state is copied to the host and back, like a checkpoint.
    first = alone.strategy.init(alone.make, jax.random.key(0))
    alone.state = first
    alone.advance(0, 2)
    alone.state = alone.strategy.place(jax.device_get(alone.strategy.gather(alone.state)))
    alone.advance(2, 2)
    resumed = all(np.array_equal(a, b) for a, b in zip(params, alone.params(), strict=True))
    return {
        "devices": count,
        "jit_difference": differences["jit"],
        "pmap_difference": differences["pmap"],
        "resumed_bitwise": resumed,
        "digest": digest(params),
        "ok": resumed and max(differences.values()) < ROUNDING,
    }


def again(name: str) -> dict[str, Any]:
    """The digest of `contract`'s parameters, for comparison between processes."""
    from benchmarks.gpu_work import SGD, Program, make_work

    work = make_work(name, tiny=True)
    if hasattr(work.family, "dropout"):
        work = replace(work, family=replace(work.family, dropout=0.2))
    program = Program(work, SGD, "float32")
    program.advance(0, 4)
    return {"digest": digest(program.params())}


def digest(params: list[np.ndarray]) -> str:
    """A checksum of the bits of all parameters."""
    total = hashlib.sha256()
    for leaf in params:
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()[:16]


def precision(name: str, smoke: bool) -> dict[str, Any]:
    """Gradients at the first step, and the losses of the last ten of 50 steps, in bfloat16 against float32."""
    from benchmarks.gpu_work import ADAM, SGD, Program, make_work

    work, steps = make_work(name, tiny=True), 4 if smoke else 50
    # With SGD at learning rate 1 and no momentum, a step subtracts the gradient from the parameters.
    plain = replace(SGD, learning_rate=1.0, clip_norm=0.0)
    moved, losses = {}, {}
    for dtype in ("float32", "bfloat16"):
        program = Program(work, plain, dtype)
        before = program.params()
        program.advance(0, 1)
        moved[dtype] = [a - b for a, b in zip(before, program.params(), strict=True)]
        told = Program(work, ADAM, dtype).advance(0, steps)
        losses[dtype] = float(np.mean([metrics["loss"] for metrics in told[-10:]]))
    errors = [
        float(np.linalg.norm(a - b) / np.linalg.norm(a))
        for a, b in zip(moved["float32"], moved["bfloat16"], strict=True)
        if np.linalg.norm(a) > 1e-6
    ]
    distance = abs(losses["bfloat16"] - losses["float32"]) / abs(losses["float32"])
    return {
        "leaves": len(errors),
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "steps": steps,
        "loss_float32": losses["float32"],
        "loss_bfloat16": losses["bfloat16"],
        "loss_distance": distance,
    }


def timed(program: Any, smoke: bool) -> dict[str, Any]:
    """Median seconds of a step after compilation, and the peak memory of the device."""
    work, strategy = program.work, program.strategy
    batches = [strategy.put(work.batch(n)) for n in range(2)]
    began, seconds = time.perf_counter(), []
    for n in range(3):
        program.state, metrics = program.step(program.state, batches[n % 2], np.int32(n))
    jax.block_until_ready(program.state)
    warm, began = time.perf_counter() - began, time.perf_counter()
    while len(seconds) < (2 if smoke else 10) or (not smoke and time.perf_counter() - began < 3.0):
        # Several steps between two readings of the clock, since the host runs ahead of the device in training too.
        start = time.perf_counter()
        for n in range(5):
            program.state, metrics = program.step(program.state, batches[n % 2], np.int32(n))
        jax.block_until_ready((program.state, metrics))
        seconds.append((time.perf_counter() - start) / 5)
    stats = jax.devices()[0].memory_stats() or {}
    step = statistics.median(seconds)
    assert np.isfinite(metrics["loss"])
    return {
        "step_ms": 1000 * step,
        "per_second": work.units / step,
        "unit": work.family.unit,
        "rows": work.batch_size,
        "parameters": sum(leaf.size for leaf in program.params()),
        "peak_bytes": stats.get(PEAK),
        "warm_seconds": warm,
        "steps": 5 * len(seconds),
    }


def train(name: str, dtype: str, smoke: bool) -> dict[str, Any]:
    """Rate and memory of a family's training step."""
    from benchmarks.gpu_work import ADAM, Program, make_work

    return timed(Program(make_work(name, tiny=smoke), ADAM, dtype), smoke)


def gpt2(smoke: bool) -> dict[str, Any]:
    """Rate, memory and utilisation of GPT-2 in bfloat16."""
    from benchmarks.gpu_work import ADAM, Program, gpt2, gpt_flops, peak_flops

    work = gpt2(smoke)
    family: Any = work.family
    figures = timed(Program(work, ADAM, "bfloat16"), smoke)
    flops = gpt_flops(family.layers, family.width, family.context, work.spec.tokenizer.vocab_size, work.units)
    rate, peak = flops / (figures["step_ms"] / 1000), peak_flops(jax.devices()[0].device_kind)
    used = {"flops_per_step": flops, "flops_per_second": rate, "peak_flops_per_second": peak}
    return figures | used | {"utilisation": rate / peak if peak else None}


def run(case: str, smoke: bool) -> dict[str, Any]:
    """Runs a case by name."""
    from zoo.harness.platform import exact_float32

    kind, *rest = case.split(":")
    stood_in = stand_in_for_tyro()
    programs: dict[str, Any] = {
        "device": device,
        "contract": contract,
        "again": again,
        "precision": lambda name: precision(name, smoke),
        "train": lambda name, dtype: train(name, dtype, smoke),
        "gpt2": lambda _: gpt2(smoke),
    }
    with exact_float32():
        return programs[kind](*rest) | ({"stand_ins": ["tyro"]} if stood_in else {})


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], "--smoke" in sys.argv[2:])), flush=True)
