"""Prefetching in a thread, while the caller works on the current item."""

import contextlib
import queue
import threading
from collections.abc import Generator
from typing import Any, TypeVar

Item = TypeVar("Item")
_ITEM, _ERROR, _END = "item", "error", "end"


def prefetch(items: Generator[Item], depth: int) -> Generator[Item]:
    """Yield `items`, with up to `depth` prefetched by a thread.

    Errors are raised here. The thread and `items` end with this iterator, whether it is
    exhausted or closed.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()
    reader = threading.Thread(
        target=_fill, args=(items, ready, stopped), name="prefetch", daemon=True
    )
    reader.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == _ERROR:
                raise value
            if kind == _END:
                return
            yield value
    finally:
        stopped.set()
        reader.join()


def _fill(
    items: Generator[Any], ready: queue.Queue[tuple[str, Any]], stopped: threading.Event
) -> None:
    def offer(kind: str, value: Any) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put((kind, value), timeout=0.1)

    try:
        with contextlib.closing(items):
            for item in items:
                offer(_ITEM, item)
                if stopped.is_set():
                    return
    except BaseException as error:  # the caller must see any error
        offer(_ERROR, error)
    else:
        offer(_END, None)
