"""All tests run on eight simulated devices, with shapes and types checked and warnings as errors."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

install_import_hook("zoo", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def _forget_what_was_compiled():
    """A process has room for some ten thousands of mapped pieces of code; past that, XLA crashes."""
    yield
    jax.clear_caches()
    gc.collect()
