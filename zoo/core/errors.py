"""The one exception that is the user's to mend: a sentence, exit status 2, no traceback."""

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
"""Errors of the operating system that say something about the user's disk and not about this program."""


class UserError(Exception):
    """Something that the user gave cannot be used.

    The message is one sentence that names the value and says what would be right.
    """


def require(settings: Any, prefix: str, *conditions: tuple[str, str, bool]) -> None:
    """Checks the bounds beside the fields of settings (see `zoo.core.bounds`), and then what relates fields.

    Args:
        settings: a dataclass.
        prefix: the prefix of its flags on the command line, such as "family."; may be empty.
        conditions: (field, what it must be, whether it is) of each relation.

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
    """While the settings of a saved run are read, `refuse` lets them pass."""
    token = _reading_saved.set(True)
    try:
        yield
    finally:
        _reading_saved.reset(token)


def refuse(message: str, when: bool) -> None:
    """Refuses settings that earlier versions took, and with which nothing is to be trained from now on.

    A run that was trained with them still samples, scores and starts others: see `reading_saved`.

    Raises:
        UserError: with the message.
    """
    if when and not _reading_saved.get():
        raise UserError(message)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after it had saved.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


_in_script: ContextVar[bool] = ContextVar("_in_script", default=False)


def is_script() -> bool:
    """Whether the process is one of the scripts, and not a notebook or another program."""
    return _in_script.get()


def run_script(main: Callable[[], None]) -> NoReturn:
    """Runs a script's main function and turns the errors a user can cause into exit statuses.

    0: done; 1: standard output was closed; 2: `UserError`, or files that cannot be written or read; 130 and 143:
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
        # Python flushes standard output once more on its way out, and would complain.
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
