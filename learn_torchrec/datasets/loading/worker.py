"""A process that reads ahead; if it dies or hangs, its reader learns of it.

torch's `DataLoader` notices a worker that was killed by a signal handler of the main
thread, which raises wherever the training happens to be, or after its timeout; here
the reader of a pipe waits for the answer and for the end of the process at once.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from learn_torchrec.errors import UserError

_GRACE = 5.0  # seconds in which a process must end once it is told to


class ReadingProcess:
    """Runs `read(*arguments)` elsewhere; an item waits in the pipe.

    Args:
        read: picklable; returns an iterator of picklable items.
        arguments: of `read`.
    """

    def __init__(
        self, read: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
    ) -> None:
        # Never forked from here: the parent holds threads and file systems that do
        # not survive it.
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
            TimeoutError: there is none for `timeout` seconds.
            EOFError: the process ended; the message tells how.
            UserError: what `read` raised.
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
        """End the process, whatever it does."""
        self._items.close()
        self._process.terminate()
        self._process.join(_GRACE)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()


def _serve(
    items: Connection, read: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for item in read(*arguments):
            items.send(item)
    except BrokenPipeError:  # nobody reads any more
        return
    except UserError as error:
        items.send(error)
    except Exception:
        items.send(RuntimeError(f"in a reading process:\n{traceback.format_exc()}"))


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
