"""The progress of long work: a bar on a terminal, elsewhere a line now and then."""

import sys
from typing import Any

from tqdm import tqdm

from learn_torchrec.text import printable

_SECONDS = 30.0  # between two lines
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_LINE = "{desc}: {percentage:.0f}% ({n_fmt} of {total_fmt}), {elapsed} so far, "
_LINE += "{remaining} left, {rate_fmt}"


class _Lines:
    """Standard error, where each of the bar's updates becomes a line."""

    _last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line not in ("", self._last):  # closing the bar shows it again
            sys.stderr.write(f"{line}\n")
            self._last = line

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(
    desc: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "step",
    shown: bool = True,
) -> "tqdm[Any]":
    """Return a bar on standard error to `update`; close it, or use it as a context.

    In a log (nohup, CI) it prints a line every half minute, and one at the end if it
    took that long.

    Args:
        desc: what is done, a word.
        total: of units; None until it is known, see `move_to`.
        initial: units that an earlier run did.
        unit: what is counted.
        shown: False for silence, such as on all ranks but one.
    """
    form: dict[str, Any] = {"bar_format": _BAR}
    if not sys.stderr.isatty():
        form = {"bar_format": _LINE, "file": _Lines(), "mininterval": _SECONDS}
        form |= {"maxinterval": float("inf"), "miniters": 1, "delay": _SECONDS}
    form |= {"unit": f" {unit}", "disable": not shown}
    return tqdm(desc=printable(desc), total=total, initial=initial, **form)


def move_to(bar: "tqdm[Any]", done: int, total: int) -> None:
    """Move a bar to `done` of `total` units."""
    bar.total = total
    bar.update(done - bar.n)
