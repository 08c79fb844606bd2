"""A process that prefetches, and reports if it dies or hangs.

torch's `DataLoader` detects a killed worker after a timeout or in a signal handler,
which raises at an arbitrary point of the training; here the receiver waits for the
pipe and for the end of the process at the same time.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from learn_torchrec.errors import UserError
from learn_torchrec.refusals import one_line

_GRACE = 5.0  # seconds for a process to terminate


class ReaderProcess:
    """Runs `read(*arguments)` in a process; its items pass through a pipe.

    Args:
        read: picklable; returns an iterator of picklable items.
        arguments: of `read`.
    """

    def __init__(
        self, read: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
    ) -> None:
        # Not forked: the parent has threads and file systems that do not survive it.
        context = multiprocessing.get_context("forkserver")
        self._items, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_serve, args=(theirs, read, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def receive(self, timeout: float) -> Any:
        """Return the next item.

        Raises:
            TimeoutError: no item within `timeout` seconds.
            EOFError: the process ended; the message says how.
            UserError: raised by `read`, or something that the system refused it.
            RuntimeError: any other error of `read`, with its traceback.
        """
        if not wait([self._items, self._process.sentinel], timeout):
            raise TimeoutError
        try:
            item = self._items.recv()
        except (EOFError, OSError):
            self._process.join(_GRACE)
            raise EOFError(_how_it_ended(self._process.exitcode)) from None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Terminate the process."""
        self._items.close()
        self._process.terminate()
        self._process.join(_GRACE)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()


def _serve(
    items: Connection, read: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent terminates this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for item in read(*arguments):
            items.send(item)
    except BrokenPipeError:  # the reader is gone
        return
    except Exception as error:
        line = one_line(error)
        trace = RuntimeError(f"in a reader process:\n{traceback.format_exc()}")
        items.send(trace if line is None else UserError(line))


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
