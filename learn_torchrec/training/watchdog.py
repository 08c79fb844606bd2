"""A rank that hangs says where, and ends, so that the job can start again.

Without it one hung rank leaves the others in a collective until that times out, and
nobody learns where the first one was. The stacks are `faulthandler`'s. Its timer alone
names no rank and writes line by line, so that ranks which end together mix; here it is
the second line, for an interpreter that hangs itself.
"""

import contextlib
import faulthandler
import os
import threading
from collections.abc import Iterator
from typing import Self

from learn_torchrec.training.distributed import rank_name

_STDERR = 2  # also where sys.stderr is something else
_GRACE = 30.0  # seconds; then the interpreter itself must hang


class Watchdog:
    """Ends the process where `beat` is not called again and again.

    Where it is not called within so many seconds, the stacks of all threads go to
    stderr and the process ends with exit code 1. It watches inside its `with` block.

    Args:
        seconds: 0 does not watch.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._alive, self._done = threading.Event(), threading.Event()
        self._pauses = 0
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Say that a step is done."""
        if self._thread is not None and not self._pauses:
            self._alive.set()
            # This one works even where the interpreter's lock is never released.
            faulthandler.dump_traceback_later(
                self._seconds + _GRACE, exit=True, file=_STDERR
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not watch what is no step, such as waiting for a file system."""
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
            # A pause that ended since has said so.
            if not is_alive and not self._alive.is_set():
                _end(f"{rank_name()}: no step for {self._seconds:g} s; its threads:")
            self._alive.clear()


def _end(reason: str) -> None:
    # Ranks that wait for a hung one end with it: their lines must not mix.
    stacks = os.memfd_create("stacks")
    os.write(stacks, f"{reason}\n".encode())
    faulthandler.dump_traceback(file=stacks, all_threads=True)
    os.write(_STDERR, os.pread(stacks, os.fstat(stacks).st_size, 0))
    os._exit(1)
