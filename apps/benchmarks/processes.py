"""Runs commands side by side, in processes forked from one that has torch loaded.

So they meet at their work and not at their imports.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from .. import main as command_line
from .stages import LIMIT

_APPS = (
    *("data", "prepare", "evaluate_auc", "report", "job", "encode_content"),
    *("train_towers", "export_vectors", "train_ranker", "predict"),
)


def command(argv: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run `learn-torchrec` in this process, its errors into a file."""
    os.environ |= environment
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    command_line.main(argv)


class Processes:
    """Starts commands in processes that have everything loaded."""

    def __init__(self, logs: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        package = __package__.rpartition(".")[0]
        context.set_forkserver_preload([f"{package}.{app}" for app in _APPS])
        self._context: ForkServerContext = context
        self._logs, self._count = logs, 0

    def start(
        self, argv: Sequence[object], **environment: str
    ) -> tuple[ForkServerProcess, Path]:
        """Start a command; return its process and its log."""
        self._count += 1
        log = self._logs / str(self._count)
        arguments = [str(one) for one in argv], log, environment
        process = self._context.Process(target=command, args=arguments)
        process.start()
        return process, log

    def complete(self, argv: Sequence[object]) -> float:
        """Run a command to its end; return the seconds it took.

        Raises:
            RuntimeError: it failed; with its log.
        """
        began = time.monotonic()
        process, log = self.start(argv)
        process.join(LIMIT)
        if process.exitcode:
            raise RuntimeError(f"{argv} failed: {log.read_text()[-2000:]}")
        return time.monotonic() - began


def ended(process: ForkServerProcess, log: Path) -> tuple[int | None, list[str]]:
    """Wait for a process; return its exit code, None if it hung, and error lines."""
    process.join(LIMIT)
    code = process.exitcode
    process.kill()
    text = log.read_text()
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    return code, lines if "Traceback" not in text else [text]
