"""How any program ends: well, or in one line with exit code 2; within minutes."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from learn_torchrec.apps.common import program

LIMIT = 120  # seconds
GATE_FAILED = 1


class Hang(BaseException):
    """A command took more than `LIMIT`."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def holds(capfd, main: Callable[[Any], object], *arguments: object) -> str:
    """Run a program and check how it ends; return what it says."""
    capfd.readouterr()
    code: Any = 0
    with limited():
        try:
            program.run(main, [str(one) for one in arguments])
        except SystemExit as ended:
            code = ended.code
    said = capfd.readouterr().err
    assert code in (0, GATE_FAILED, 2), said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if "error: " in line]
    assert len(errors) == (code == 2), said
    return said
