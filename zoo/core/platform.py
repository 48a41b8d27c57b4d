"""Settings of the process that must stand before the first computation."""

import os
from pathlib import Path

import jax

from zoo.core.memory import resume_garbage_collection

CACHE = "jax_compilation_cache_dir"


def prepare() -> None:
    """Turns the compile cache on, in the user's cache folder; `JAX_COMPILATION_CACHE_DIR` names another."""
    resume_garbage_collection()
    if not getattr(jax.config, CACHE, None):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update(CACHE, str(Path(home) / "generative-zoo" / "jax"))
    # By default only what took a second to compile is cached, which is almost nothing on small models.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
