"""All tests run on eight simulated devices, with shapes and types checked and warnings as errors."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    # Compiles in half the time; XLA ends a process for a flag that another version may not know.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
# A folder for each worker, since JAX writes an entry in place: another process could read half of it.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / f"jax{WORKER}"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

install_import_hook("zoo", "beartype.beartype")


def pytest_collection_modifyitems(items):
    """Keeps a file's tests in one worker, since they share what is compiled; the contract suite's by config."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True, scope="session")
def _codes_in_a_folder_of_their_own(tmp_path_factory):
    """The cache of codes, which is the user's otherwise."""
    from zoo.data.images import codes

    folder = tmp_path_factory.mktemp("codes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "_cache", lambda: folder)
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_what_was_compiled():
    """A process has room for some ten thousands of mapped pieces of code; past that, XLA crashes."""
    yield
    jax.clear_caches()
    gc.collect()
