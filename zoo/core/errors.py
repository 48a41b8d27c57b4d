"""`UserError`: an error the user can fix, printed as one sentence without a traceback; exit status 2."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from zoo.core.bounds import bounds_of

SURROUNDINGS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip
"""Errors of the operating system that are due to the user's files and disk and not to this program."""


class UserError(Exception):
    """An error the user can fix.

    The message is one sentence that names the wrong value and what it must be.
    """


def require(settings: Any, prefix: str, *conditions: tuple[str, str, bool]) -> None:
    """Checks the bounds of the fields of settings (see `zoo.core.bounds`), then conditions that relate fields.

    Args:
        settings: a dataclass.
        prefix: the prefix of its flags on the command line, such as "family."; may be empty.
        conditions: for each, the field's name, what it must be, and whether it is.

    Raises:
        UserError: names the first field that is out of bounds or breaks a condition.
    """
    kind: Any = type(settings)
    within = ((name, str(bounds), bounds.hold(getattr(settings, name))) for name, bounds in bounds_of(kind).items())
    for name, right, holds in (*within, *conditions):
        if not holds:
            raise UserError(f"{prefix}{name} is {getattr(settings, name)!r}; it must be {right}")


_reading_saved: ContextVar[bool] = ContextVar("_reading_saved", default=False)


@contextmanager
def reading_saved() -> Iterator[None]:
    """Context in which the settings of a saved run are read: `refuse` raises no error."""
    token = _reading_saved.set(True)
    try:
        yield
    finally:
        _reading_saved.reset(token)


def refuse(message: str, when: bool) -> None:
    """Rejects settings for training that earlier versions accepted.

    A run that was trained with them can still sample, be scored and initialise others: see `reading_saved`.

    Raises:
        UserError: with the message.
    """
    if when and not _reading_saved.get():
        raise UserError(message)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after the run was saved.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


_in_script: ContextVar[bool] = ContextVar("_in_script", default=False)


def is_script() -> bool:
    """Whether the process runs one of the scripts; false in notebooks and other programs."""
    return _in_script.get()


def run_script(main: Callable[[], None]) -> NoReturn:
    """Runs a script's main function and converts errors that a user can cause to exit statuses.

    0: success; 1: standard output was closed; 2: `UserError`, or files that cannot be written or read; 130 and 143:
    stopped by Ctrl-C and by SIGTERM.
    """
    token = _in_script.set(True)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Python flushes standard output again at exit, which would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    finally:
        _in_script.reset(token)
    sys.exit(0)
