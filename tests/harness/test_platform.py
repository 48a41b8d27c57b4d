"""What stands before the first computation."""

import jax

from zoo.harness import platform


def test_memory_is_given_back_after_each_long_compilation(monkeypatch):
    given_back = []
    monkeypatch.setattr(platform, "give_back", lambda: given_back.append(1))
    platform.prepare()
    platform.prepare()
    for seconds in (0.01, 1.0):
        jax.monitoring.record_event_duration_secs(platform.COMPILED, seconds)
    assert len(given_back) == 1
    # JAX tells of its own compilations by that name.
    monkeypatch.setattr(platform, "LONG", -1.0)
    jax.jit(lambda x: x * 1.25 + 3)(2.0)
    assert len(given_back) > 1
