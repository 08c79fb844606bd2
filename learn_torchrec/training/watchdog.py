"""A rank that hangs says where, and ends, so that the job can start again.

Without it one hung rank leaves the others in a collective until that times out, and
nobody learns where the first one was.
"""

import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable, Iterator

from learn_torchrec.training.distributed import rank_name

_STDERR = 2  # also where sys.stderr is something else
_GRACE = 30.0  # seconds; then the interpreter itself must hang


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[Callable[[], None]]:
    """Yield a function that must be called again and again within so many seconds.

    Where it is not, the stacks of all threads go to stderr and the process ends with
    exit code 1.

    Args:
        seconds: 0 does not watch.
    """
    if not seconds:
        yield lambda: None
        return
    alive, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not alive.wait(seconds):
                _end(f"{rank_name()}: no step for {seconds:g} s; its threads:")
            alive.clear()

    def beat() -> None:
        alive.set()
        # This one works even where the interpreter's lock is never released.
        faulthandler.dump_traceback_later(seconds + _GRACE, exit=True, file=_STDERR)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        beat()
        yield beat
    finally:
        done.set()
        alive.set()
        faulthandler.cancel_dump_traceback_later()
        thread.join()


def _end(reason: str) -> None:
    os.write(_STDERR, f"{reason}\n".encode())
    faulthandler.dump_traceback(file=_STDERR, all_threads=True)
    os._exit(1)
