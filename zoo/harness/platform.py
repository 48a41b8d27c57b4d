"""Settings of the process that must stand before the first computation."""

import functools
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from zoo.harness.memory import give_back, resume_garbage_collection

CACHE = "jax_compilation_cache_dir"
COMPILED = "/jax/core/compile/backend_compile_duration"
LONG = 0.1
"""Seconds of compiling, or of reading from the cache, after which there is memory to give back."""


def prepare() -> None:
    """Turns the compile cache on, in the user's cache folder; `JAX_COMPILATION_CACHE_DIR` names another.

    From then on, what compiling leaves behind is given back to the system before the program runs.
    """
    resume_garbage_collection()
    _give_back_after_compiling()
    if not getattr(jax.config, CACHE, None):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update(CACHE, str(Path(home) / "generative-zoo" / "jax"))
    # By default only what took a second to compile is cached, which is almost nothing on small models.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def exact_float32() -> AbstractContextManager[None]:
    """Within it, products of float32 arrays are float32 on every device.

    By default JAX lets an NVIDIA GPU round their operands to TF32 and a TPU to bfloat16. Products of bfloat16 arrays
    stay as they are.
    """
    return jax.default_matmul_precision("highest")


@functools.cache
def _give_back_after_compiling() -> None:
    """Once a process, since JAX keeps every listener."""

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED and duration_secs > LONG:
            give_back()

    jax.monitoring.register_event_duration_secs_listener(compiled)
