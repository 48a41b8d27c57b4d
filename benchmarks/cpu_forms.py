"""Compares the times of each form tuned for XLA's CPU compiler and its plain form: the value and all gradients.

    python -m benchmarks cpu_forms --rounds 1            # every form
    python -m benchmarks.cpu_forms [all | FORM ...] [--tiny]

Prints one JSON line per form: milliseconds of both, timed in turn in one process; their ratio, plain / zoo; and the
memory of temporaries. A form whose ratio is at most 1, and whose temporaries are no smaller, has no use with this XLA.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

if __name__ == "__main__":
    from zoo.harness.memory import use_huge_pages

    use_huge_pages()

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.nets.transformer import gelu
from zoo.nn.attend import Mask, attend
from zoo.nn.conv import conv2d, conv_transpose2d
from zoo.nn.cpu.barriers import lean
from zoo.nn.dense import activated_matmul, matmul
from zoo.nn.group_norm import group_norm
from zoo.nn.linear_cross_entropy import linear_cross_entropy
from zoo.nn.norm import layer_norm, rms_norm
from zoo.nn.platform import plain_forms
from zoo.nn.recurrence import recur
from zoo.nn.remat import rematerialised

Shapes = tuple[tuple[int, ...], ...]


class Form(NamedTuple):
    """A layer with a form for the CPU, as a function of float32 arrays."""

    function: Callable[..., jax.Array]
    shapes: Shapes
    """Shapes of the arrays, as in a configuration of the zoo."""
    tiny: Shapes
    """The smallest shapes for which the same form is used."""


class _Layers(nnx.Module):
    """Dense layers with kernels [layers d d], each after a GELU."""

    def __init__(self, kernels: jax.Array):
        self.kernels = nnx.Param(kernels)

    def __call__(self, x: jax.Array) -> jax.Array:
        for kernel in self.kernels[...]:
            x = matmul(gelu(x), kernel)
        return x


def _norm(x, scale, bias):
    return group_norm(x, scale, bias, 2, 1e-5, jax.nn.silu)


def _norm_and_conv(x, scale, bias, kernel):
    return lean(lambda x: conv2d(_norm(x, scale, bias), kernel, 1, 1))(x)


def _recurrent(cell):
    return lambda a, kernel, bias, *state: recur(cell, a, kernel, bias, state, None, None)[0]


def _vocabulary(x, table, bias):
    rows, positions, _ = x.shape
    targets = jnp.arange(rows * positions).reshape(rows, positions) % len(table)
    # The mean length of the rows is half that of the longest.
    counted = jnp.arange(positions)[None, :] * rows < positions * (1 + jnp.arange(rows)[:, None])
    return linear_cross_entropy(x, table, targets, counted, bias)


FORMS = {
    "dense": Form(
        lambda x, kernel: activated_matmul(gelu, False, x, kernel), ((3072, 1536), (1536, 384)), ((6, 8), (8, 5))
    ),
    "layer_norm": Form(lambda x, scale: layer_norm(x, scale, 1e-5), ((12, 256, 384), (384,)), ((2, 3, 8), (8,))),
    "rms_norm": Form(lambda x, scale: rms_norm(x, scale, 1e-5), ((12, 256, 384), (384,)), ((2, 3, 8), (8,))),
    "group_norm": Form(_norm, ((16, 32, 32, 64), (64,), (64,)), ((2, 3, 4, 4), (4,), (4,))),
    "conv3x3": Form(
        lambda x, kernel: conv2d(x, kernel, 1, 1), ((16, 16, 16, 64), (3, 3, 64, 64)), ((1, 4, 4, 64), (3, 3, 64, 64))
    ),
    "conv4x4": Form(
        lambda x, kernel: conv2d(x, kernel, 2, 1), ((64, 16, 16, 64), (4, 4, 64, 128)), ((2, 4, 6, 3), (4, 4, 3, 5))
    ),
    "conv_transpose4x4": Form(
        conv_transpose2d, ((64, 8, 8, 128), (4, 4, 128, 64)), ((2, 3, 2, 3), (4, 4, 3, 5))
    ),
    "causal_attention": Form(
        lambda q, k, v: attend(q, k, v, Mask(causal=True)), ((12, 6, 256, 64),) * 3, ((1, 2, 128, 4),) * 3
    ),
    "full_attention": Form(lambda q, k, v: attend(q, k, v, Mask()), ((16, 4, 256, 32),) * 3, ((1, 2, 6, 4),) * 3),
    "lstm": Form(
        _recurrent("lstm"),
        ((64, 32, 1024), (256, 1024), (1024,), (32, 256), (32, 256)),
        ((5, 2, 12), (3, 12), (12,), (2, 3), (2, 3)),
    ),
    "gru": Form(
        _recurrent("gru"), ((64, 32, 768), (256, 768), (768,), (32, 256)), ((5, 2, 9), (3, 9), (9,), (2, 3))
    ),
    "vocabulary": Form(
        _vocabulary, ((32, 64, 256), (10000, 256), (10000,)), ((4, 100, 4), (1024, 4), (1024,))
    ),
    "rematerialised": Form(
        lambda x, kernels: rematerialised(_Layers(kernels))(x), ((2048, 384), (8, 384, 384)), ((4, 8), (2, 8, 8))
    ),
    "lean": Form(
        _norm_and_conv, ((16, 32, 32, 64), (64,), (64,), (3, 3, 64, 64)), ((2, 4, 4, 4), (4,), (4,), (3, 3, 4, 4))
    ),
}  # fmt: skip


def inputs(shapes: Shapes) -> list[jax.Array]:
    """Standard normal arrays; matrices and kernels are divided by the square root of their fan-in."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    drawn = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    sums = [x[..., 0].size if x.ndim in (2, 4) and x.shape != shapes[0] else 1 for x in drawn]
    return [drawn[0], *(x / n**0.5 for x, n in zip(drawn[1:], sums[1:], strict=True))]


def compiled(function: Callable[..., jax.Array], arrays: list[jax.Array], plain: bool) -> jax.stages.Compiled:
    """The compiled gradients of the sum of squares of the output with respect to all arrays."""
    with plain_forms(plain):
        return jax.jit(jax.grad(lambda arrays: jnp.square(function(*arrays)).sum())).lower(arrays).compile()


def compare(name: str, tiny: bool, seconds: float) -> dict:
    """The JSON line of a form; both programs are timed in turn for `seconds` in all, at least three times each."""
    form = FORMS[name]
    arrays = inputs(form.tiny if tiny else form.shapes)
    programs = {"zoo": compiled(form.function, arrays, False), "plain": compiled(form.function, arrays, True)}
    times: dict[str, list[float]] = {which: [] for which in programs}
    for program in programs.values():
        jax.block_until_ready(program(arrays))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["plain"]) < 3:
        for which, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(arrays))
            times[which].append(time.perf_counter() - begun)
    medians = {which: statistics.median(each) for which, each in times.items()}
    return {
        "task": f"cpu_forms {name}",
        "ms": {which: round(1000 * median, 3) for which, median in medians.items()},
        "ratio": round(medians["plain"] / medians["zoo"], 2),
        "temporaries_mib": {
            which: round(program.memory_analysis().temp_size_in_bytes / 2**20, 1) for which, program in programs.items()
        },
        "n": len(times["plain"]),
    }


def main() -> None:
    """Parses the command line and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forms", nargs="*", choices=["all", *FORMS], default="all")
    parser.add_argument("--tiny", action="store_true", help="the smallest shapes, to see that it works")
    asked = parser.parse_args()
    for name in FORMS if "all" in asked.forms else asked.forms:
        print(json.dumps(compare(name, asked.tiny, 0.0 if asked.tiny else 4.0)), flush=True)


if __name__ == "__main__":
    main()
