"""Standard output whose reader may leave (`| head`): the work goes on regardless.

A run of hours must not lose its results because nobody reads its progress any more.
"""

import io
import os
import sys
from typing import Any


class Output(io.FileIO):
    """Standard output; what is written after its reader left goes nowhere.

    Attributes:
        is_broken: whether the reader left.
    """

    is_broken = False

    def write(self, data: Any, /) -> int:
        """Write bytes; return how many."""
        try:
            return super().write(data)
        except BrokenPipeError:
            self.is_broken = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for the programs started here, too
            os.close(nowhere)
            return memoryview(data).nbytes


def keep_writing() -> Output | None:
    """Let this process outlive its reader; None where output is captured."""
    before = sys.stdout
    if not isinstance(before, io.TextIOWrapper):
        return None  # closed, or captured
    raw = getattr(before.buffer, "raw", None)
    if isinstance(raw, Output):
        return raw
    if before is not sys.__stdout__:
        return None
    before.flush()
    output = Output(before.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=before.encoding,
        errors="backslashreplace",  # titles in a terminal of latin-1
        line_buffering=before.line_buffering,
    )
    return output
