"""Ctrl-C and SIGTERM: the current step is finished and the run is saved."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from zoo.core.errors import Interrupted, is_script

log = logging.getLogger("zoo")


class Stop:
    """Records Ctrl-C or SIGTERM until the step is done; stops at once before the first step and at the second signal.

    Attributes:
        signum: number of the signal received, or 0.
        training: whether training has begun, so that there is a state to save.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.signum, self.training = console, 0, False

    def _receive(self, signum: int, _frame: Any) -> None:
        if not self.training:
            self._end(signum, "stopped before training began; the same command starts again")
        if self.signum:
            self._end(signum, "stopped at once; the same command goes on from the last checkpoint")
        self.signum = signum
        # In a thread, as the handler may interrupt a call of the logger, which holds its lock.
        threading.Thread(target=log.info, args=("stopping after this step (again: at once)",)).start()

    def _end(self, signum: int, message: str) -> None:
        """Ends a script without cleaning up, as Python may drop an exception of a handler; elsewhere raises.

        Raises:
            Interrupted: the process is a notebook or another program.
        """
        if is_script():
            self.console.show_cursor(True)
            os.write(2, f"{message}\n".encode())
            os._exit(128 + signum)
        log.info(message)
        raise Interrupted(signum)

    @classmethod
    @contextmanager
    def on_signals(cls, console: Console) -> Iterator["Stop"]:
        """Installs the handlers. Only the main thread may install handlers; elsewhere the defaults remain."""
        stop = cls(console)
        if threading.current_thread() is not threading.main_thread():
            yield stop
            return
        before = {number: signal.signal(number, stop._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
