"""The C library's allocator and Python's collector; imported before all else, so it imports next to nothing."""

import ctypes
import gc
import os
import sys

TUNABLES = "GLIBC_TUNABLES"
_paused = False


def use_huge_pages() -> None:
    """Starts the program again, in the same process, with an allocator that asks for pages of 2 MiB.

    XLA's CPU backend allocates a training step's memory, hundreds of MiB, anew at every step. In pages of 4 KiB that is
    a hundred thousand page faults, and a fifth to a third of the step's time. glibc reads this setting only when a
    program starts, so call it first of all. Nothing happens on other systems, or where the variable is set already.
    """
    if sys.platform == "linux" and TUNABLES not in os.environ:
        os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back() -> None:
    """Gives memory that is free back to the system, where the C library is glibc.

    Compiling leaves hundreds of MiB in pieces that the allocator keeps and a training step has no use for.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def pause_garbage_collection() -> None:
    """Stops Python from looking for garbage while a script imports; `resume_garbage_collection` ends it.

    JAX and Flax make a million objects as they are imported, and all of them stay. Looking through them again and again
    takes a quarter of the time to the first line of help.
    """
    global _paused
    _paused = True
    gc.disable()


def resume_garbage_collection() -> None:
    """Looks for garbage again, if it was paused, but no more among what has been imported."""
    global _paused
    if _paused:
        _paused = False
        gc.freeze()
        gc.enable()
