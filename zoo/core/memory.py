"""How the C library's allocator gets memory from the operating system; imports nothing heavy."""

import os
import sys

TUNABLES = "GLIBC_TUNABLES"


def use_huge_pages() -> None:
    """Starts the program again, in the same process, with an allocator that asks for pages of 2 MiB.

    XLA's CPU backend allocates a training step's memory, hundreds of MiB, anew at every step. In pages of 4 KiB that is
    a hundred thousand page faults, and a fifth to a third of the step's time. glibc reads this setting only when a
    program starts, so call it first of all. Nothing happens on other systems, or where the variable is set already.
    """
    if sys.platform == "linux" and TUNABLES not in os.environ:
        os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
