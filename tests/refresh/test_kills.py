"""A refresh is killed at twenty moments: what is served is whole, and it completes."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from daily_market import DAY

from learn_torchrec.apps import refresh
from learn_torchrec.artifact import verify
from learn_torchrec.refresh.runs import Runs

KILLS, LOG_LINES = 20, 18  # a refresh logs about as many
LIMIT = 300.0  # seconds of one refresh


def start(data, out):
    command = [sys.executable, "-m", "learn_torchrec.apps.refresh"]
    command += ["--data", data, "--run", str(out)]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines_of(log):
    return log.read_text(encoding="utf-8").count("\n")


def kill_after(process, log, lines, seconds):
    """Kill a refresh some time after it has logged some lines; say if it was alive."""
    end, before = time.monotonic() + LIMIT, lines_of(log)
    while process.poll() is None and lines_of(log) < before + lines:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


@pytest.mark.slow
def test_whatever_is_killed_the_served_run_is_whole(days, tmp_path):
    until, settings = days
    out = tmp_path / "daily"
    refresh.main(["--data", until(55), "--run", str(out), "--set", *settings])
    runs, log, draws = Runs(out), out / "refresh.log", random.Random(0)
    day, kills, served = 57.0, 0, {1}
    while kills < KILLS:
        process = start(until(day), out)
        lines = kills % LOG_LINES
        kills += kill_after(process, log, lines, draws.uniform(0, 1))
        current = runs.current()
        for kind in ("content", "towers", "vectors", "ranker"):
            verify(runs.path(current) / kind, kind)
        assert current in (max(served), max(served) + 1)
        assert process.returncode != 0 or current == max(served) + 1
        if current not in served:  # it was faster than the kill: the next hours
            day += 0.2
        served.add(current)
    before = runs.current()
    process = start(until(day + 0.2), out)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    assert runs.current() == before + 1
    assert runs.plan(runs.current()).test_from > (day - 0.5) * DAY
    left = [path.name for path in (out / "runs" / f"{runs.current():03d}").iterdir()]
    assert not [name for name in left if name.endswith((".tmp", ".old"))], left
