"""That nothing is compiled."""

from contextlib import contextmanager

import jax


@contextmanager
def no_compilation():
    """A block in which compiling anything is an error."""
    compiled = []

    def heard(name, *_args, **_kwargs):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert not compiled
