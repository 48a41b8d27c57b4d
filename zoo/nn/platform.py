"""The one place where a layer's form is chosen by platform.

A layer is written as in the literature and decorated with the forms that compute the same faster:

    @by_platform(cpu=cpu.layer_norm)
    def layer_norm(x, scale, epsilon):
        ...                                  # the plain form

The plain form runs wherever no other is given, and everywhere within `plain_forms`:

    with plain_forms():
        y, tangent = jax.jvp(net, (x,), (v,))

Plain forms can be differentiated in forward mode; many of the others have a hand-written reverse gradient
(`jax.custom_vjp`), through which `jax.jvp` fails.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

_plain = jax.make_user_context(False)


def plain_forms(wanted: bool = True) -> Any:
    """A context in which layers are traced in their plain form; with False, in that of the platform again.

    The context is part of the key of JAX's caches: a jitted function that is called inside and outside is traced and
    compiled for each.
    """
    return _plain(wanted)


def by_platform(
    *, cpu: Callable[..., Any] | None = None, accelerator: Callable[..., Any] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates the plain form of a function with those that replace it on JAX's default platform.

    The choice is made when the caller is traced.

    Args:
        cpu: takes the same arguments and returns the same, up to rounding; None: the plain form serves the CPU.
        accelerator: the same on GPUs and TPUs.
    """

    def decorate(plain: Callable[P, R]) -> Callable[P, R]:
        @wraps(plain)
        def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
            tuned = None if _plain.value else cpu if jax.default_backend() == "cpu" else accelerator
            return (tuned or plain)(*args, **kwargs)

        return chosen

    return decorate
