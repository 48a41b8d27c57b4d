"""Settings of the process: compilation cache, memory and matrix product precision."""

import functools
from contextlib import AbstractContextManager
from typing import Any

import jax

from zoo.core.cache import cache_folder
from zoo.harness.memory import give_back, resume_garbage_collection

CACHE = "jax_compilation_cache_dir"
COMPILED = "/jax/core/compile/backend_compile_duration"
LONG = 0.1
"""Seconds of compilation, or of reading from the cache, above which free memory is returned to the system."""


def prepare() -> None:
    """Enables JAX's compilation cache, in the user's cache folder or in `JAX_COMPILATION_CACHE_DIR`.

    It also resumes garbage collection, and makes each later compilation return its free memory to the system.
    """
    resume_garbage_collection()
    _give_back_after_compiling()
    if not getattr(jax.config, CACHE, None):
        jax.config.update(CACHE, str(cache_folder() / "jax"))
    # By default only compilations of at least a second are cached, which are few for small models.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def exact_float32() -> AbstractContextManager[None]:
    """Context in which matrix products of float32 arrays are computed in float32 on every device.

    By default, JAX rounds their operands to TF32 on NVIDIA GPUs and to bfloat16 on TPUs. Products of bfloat16 arrays do
    not change.
    """
    return jax.default_matmul_precision("highest")


@functools.cache
def _give_back_after_compiling() -> None:
    """Registers a listener that calls `give_back` after each compilation; once in a process, as JAX keeps listeners."""

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED and duration_secs > LONG:
            give_back()

    jax.monitoring.register_event_duration_secs_listener(compiled)
