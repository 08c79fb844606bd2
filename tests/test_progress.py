import io
import sys

import pytest

from learn_torchrec import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, shown: bool) -> str:
    """Return what 100 units of work print, with a line for each moment."""
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress_bar("towers", unit="epoch", shown=shown) as bar:
        for done in range(101):
            progress.move_to(bar, done, 100)
    return stream.getvalue()


def test_a_log_gets_whole_lines_and_a_terminal_a_bar(monkeypatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0)
    lines = work(monkeypatch, io.StringIO(), shown=True).splitlines()
    assert lines[-1].startswith("towers: 100% (100 of 100), 00:0")
    assert {line.partition(":")[0] for line in lines} == {"towers"}
    assert "\r" not in "".join(lines)
    assert "| 100/100 [" in work(monkeypatch, Terminal(), shown=True)
    assert work(monkeypatch, io.StringIO(), shown=False) == ""


def test_a_log_gets_a_line_every_half_minute(monkeypatch) -> None:
    """On a clock that this test turns: a unit takes 7 seconds."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress_bar("towers", 20) as bar:
        for _ in range(20):
            now[0] += 7
            bar.update()
    shares = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert shares == ["25%", "50%", "75%", "100%"]

    with progress.progress_bar("short", 2) as bar:
        now[0] += 7
        bar.update(2)
    assert "short" not in stream.getvalue()
