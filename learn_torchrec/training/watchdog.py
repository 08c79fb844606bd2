"""A rank that hangs prints its stacks and exits, so that the job can restart.

Without it the other ranks wait in a collective until its timeout, and nobody learns
where the first one hangs. The stacks are `faulthandler`'s. Its own timer does not name
the rank and writes line by line, so that the output of several ranks mixes; here it is
the fallback for an interpreter that hangs itself.
"""

import contextlib
import faulthandler
import os
import threading
from collections.abc import Iterator
from typing import Self

from learn_torchrec.training.distributed import rank_name

_STDERR = 2  # also where sys.stderr is something else
_GRACE = 30.0  # seconds; after that the interpreter itself must hang


class Watchdog:
    """Ends the process if `beat` is not called every `seconds` inside its `with` block.

    The stacks of all threads then go to stderr, and the exit code is 1. 0 disables it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._alive, self._done = threading.Event(), threading.Event()
        self._pauses = 0
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Report a finished step."""
        if self._thread is not None and not self._pauses:
            self._alive.set()
            # Works even if the GIL is never released.
            faulthandler.dump_traceback_later(
                self._seconds + _GRACE, exit=True, file=_STDERR
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not watch what is not a step, such as waiting for a file system."""
        self._pauses += 1
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self._alive.set()  # before the pause ends: see `_watch`
            self._pauses -= 1
            self.beat()

    def __enter__(self) -> Self:
        if self._seconds:
            self._done.clear()
            self._thread = threading.Thread(
                target=self._watch, name="watchdog", daemon=True
            )
            self._thread.start()
            self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._done.set()
            self._alive.set()
            faulthandler.cancel_dump_traceback_later()
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._done.is_set():
            is_alive = self._alive.wait(self._seconds) or self._pauses
            # A pause that ended in between has set the event.
            if not is_alive and not self._alive.is_set():
                _end(f"{rank_name()}: no step for {self._seconds:g} s; its threads:")
            self._alive.clear()


def _end(reason: str) -> None:
    # One write per rank: ranks that wait for a hung one end at the same time.
    stacks = os.memfd_create("stacks")
    os.write(stacks, f"{reason}\n".encode())
    faulthandler.dump_traceback(file=stacks, all_threads=True)
    os.write(_STDERR, os.pread(stacks, os.fstat(stacks).st_size, 0))
    os._exit(1)
