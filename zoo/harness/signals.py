"""Ctrl-C and SIGTERM: the step in hand is finished and saved."""

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
    """Remembers Ctrl-C and SIGTERM until the step is done; before the first step, and the second time, stops at once.

    Attributes:
        signum: the signal, or 0.
        training: whether there is something to save.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.signum, self.training = console, 0, False

    def _receive(self, signum: int, _frame: Any) -> None:
        if not self.training:
            self._end(signum, "stopped before training began; the same command starts again")
        if self.signum:
            self._end(signum, "stopped at once; the same command goes on from the last checkpoint")
        self.signum = signum
        # From a thread: the handler may have come in the middle of a line that is being logged.
        threading.Thread(target=log.info, args=("stopping after this step (again: at once)",)).start()

    def _end(self, signum: int, told: str) -> None:
        """Ends a script like kill -9 does, which loses nothing more: Python may drop what a handler raises."""
        if is_script():
            self.console.show_cursor(True)
            os.write(2, f"{told}\n".encode())
            os._exit(128 + signum)
        log.info(told)
        raise Interrupted(signum)

    @classmethod
    @contextmanager
    def on_signals(cls, console: Console) -> Iterator["Stop"]:
        """Receives the signals; outside the main thread Python allows nobody to, and they keep their meaning."""
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
