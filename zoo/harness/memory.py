"""Settings of the C allocator and of Python's garbage collector. The scripts import this module first; its imports are
few and fast."""

import ctypes
import gc
import os
import sys

TUNABLES = "GLIBC_TUNABLES"
_paused = False


def use_huge_pages() -> None:
    """Restarts the program in the same process with an allocator that requests pages of 2 MiB.

    XLA's CPU backend allocates a training step's memory, hundreds of MiB, again at every step. With pages of 4 KiB that
    is a hundred thousand page faults, a fifth to a third of the step's time. glibc reads this setting only when a
    program starts, so this function must be called first. It does nothing on other systems, or if the variable is set.
    """
    if sys.platform == "linux" and TUNABLES not in os.environ:
        os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back() -> None:
    """Returns free memory to the system, if the C library is glibc.

    Compilation leaves hundreds of MiB in fragments that the allocator keeps and a training step cannot use.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def pause_garbage_collection() -> None:
    """Disables Python's garbage collector while a script imports modules, until `resume_garbage_collection`.

    Importing JAX and Flax creates a million objects, none of which is garbage. Scanning them repeatedly takes a quarter
    of the time that `--help` takes.
    """
    global _paused
    _paused = True
    gc.disable()


def resume_garbage_collection() -> None:
    """Enables the garbage collector if it was paused; existing objects are excluded from later collections."""
    global _paused
    if _paused:
        _paused = False
        gc.freeze()
        gc.enable()
