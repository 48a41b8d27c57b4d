"""Selection of a layer's implementation by platform.

A layer is written as in the literature and decorated with faster implementations of the same function:

    @by_platform(cpu=cpu.layer_norm)
    def layer_norm(x, scale, epsilon):
        ...                                  # the plain form

The plain form runs on platforms without another, and on all platforms within `plain_forms`:

    with plain_forms():
        y, tangent = jax.jvp(net, (x,), (v,))

Plain forms support forward-mode differentiation; many of the others have a custom reverse gradient (`jax.custom_vjp`),
for which `jax.jvp` fails.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

_plain = jax.make_user_context(False)


def plain_forms(wanted: bool = True) -> Any:
    """Returns a context in which layers use their plain form; with False, the platform's form again.

    The context is part of the key of JAX's caches: a jitted function called both inside and outside it is traced and
    compiled for each.
    """
    return _plain(wanted)


def by_platform(
    *, cpu: Callable[..., Any] | None = None, accelerator: Callable[..., Any] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates the plain form of a function with the forms that replace it, by JAX's default backend.

    The form is chosen when the caller is traced.

    Args:
        cpu: the form on the CPU: same arguments, same result up to rounding; None: the plain form.
        accelerator: the form on GPUs and TPUs; likewise.
    """

    def decorate(plain: Callable[P, R]) -> Callable[P, R]:
        @wraps(plain)
        def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
            tuned = None if _plain.value else cpu if jax.default_backend() == "cpu" else accelerator
            return (tuned or plain)(*args, **kwargs)

        return chosen

    return decorate
