"""A rank that hangs ends with the stacks of its threads."""

import subprocess
import sys
import time

import pytest

from learn_torchrec.training.distributed import process_group
from learn_torchrec.training.watchdog import Watchdog

HANGS = """
import time
from learn_torchrec.training.distributed import process_group
from learn_torchrec.training.watchdog import Watchdog

def stuck_here():
    time.sleep(60)

with process_group(), Watchdog(0.5) as watchdog:
    with watchdog.paused():
        time.sleep(1.5)
    watchdog.beat()
    print("still here", flush=True)
    stuck_here()
"""


def test_a_hang_prints_the_stack_and_ends():
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "still here\n"
    assert "rank 0: no step for 0.5 s; its threads:" in done.stderr
    assert "in stuck_here" in done.stderr
    assert time.monotonic() - started < 50


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_progressing_run_is_left_alone(seconds):
    with process_group(), Watchdog(seconds) as watchdog:
        for _ in range(5):
            time.sleep(0.1)
            watchdog.beat()
