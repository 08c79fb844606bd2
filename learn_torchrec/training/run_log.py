"""The run log: JSON lines, written by rank 0 while the stage runs.

Where the `tensorboard` package is installed, the same numbers go there as well:
`tensorboard --logdir RUN/logs`.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from learn_torchrec.progress import move_to, progress_bar
from learn_torchrec.refusals import naming, one_line
from learn_torchrec.training.distributed import is_writer

RUN_LOG = "log.jsonl"
_PROGRESS_SECONDS = 1.0

logger = logging.getLogger(__name__)


def live_log_path(out: Path) -> Path:
    """Return the path of the log of the stage that makes `out`, while it runs."""
    return out.parent / "logs" / f"{out.name}.jsonl"


def _tensorboard(directory: Path) -> Any:
    """Return a TensorBoard writer, or None without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory))


class RunLog:
    """Writes metrics and progress of the stage that makes `out`, on rank 0 only."""

    def __init__(self, out: Path) -> None:
        self.path = live_log_path(out)
        self._start = time.monotonic()
        self._last_progress = -math.inf
        self._is_fresh = True
        self._stream = None
        self._board = None
        self._bar = progress_bar(out.name, shown=is_writer())
        if is_writer():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a+", buffering=1, encoding="utf-8")
            with self._without_board_if_refused():
                self._board = _tensorboard(self.path.with_suffix(""))

    def write(self, **values: Any) -> None:
        """Write one line; the `seconds` since the start are added.

        `step` and `total` tell an observer how far the stage is.
        """
        if self._stream is not None:
            if self._is_fresh:
                self.resume(0)
            values["seconds"] = round(time.monotonic() - self._start, 3)
            with naming(self.path):
                self._stream.write(json.dumps(values) + "\n")
        if self._board is not None and "step" in values:
            with self._without_board_if_refused():
                for name in values.keys() - {"step", "total"}:
                    self._board.add_scalar(name, values[name], values["step"])

    def position(self) -> int:
        """Return the length of the log in bytes; 0 on other ranks."""
        if self._stream is None or self._is_fresh:
            return 0
        return self._stream.tell()

    def resume(self, position: int) -> None:
        """Continue after the first `position` bytes of an earlier run's log."""
        self._is_fresh = False
        if self._stream is not None:
            position = min(position, os.fstat(self._stream.fileno()).st_size)
            self._stream.truncate(position)
            self._stream.seek(position)

    def save(self, directory: Path) -> None:
        """Copy the log into an artefact, even if its file was removed meanwhile."""
        if self._stream is not None:
            self._stream.seek(0)
            text = self._stream.read()
            (directory / RUN_LOG).write_text(text, encoding="utf-8")

    def progress(self, done: int, total: int) -> None:
        """Show the progress, and write it at most once a second."""
        move_to(self._bar, done, total)
        now = time.monotonic()
        if now - self._last_progress >= _PROGRESS_SECONDS or done == total:
            self._last_progress = now
            self.write(step=done, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._stream is not None:
            self._stream.close()
        if self._board is not None:
            with self._without_board_if_refused():
                self._board.close()

    @contextlib.contextmanager
    def _without_board_if_refused(self) -> Iterator[None]:
        """Go on without TensorBoard, which only repeats the log, on a full disk."""
        try:
            yield
        except OSError as error:
            self._board = None
            logger.warning("no more for TensorBoard: %s", one_line(error) or error)
