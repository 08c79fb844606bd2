"""How launched ranks fail: what torchrun and torchx show, and who ends whom."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
)

from learn_torchrec.apps.common import program
from learn_torchrec.errors import UserError

SECONDS = 60


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (UserError("--data x: no such file"), "error: --data x: no such file"),
        (
            PermissionError(13, "Permission denied", "x"),
            "error: x: Permission denied; ",
        ),
        (ZeroDivisionError("a bug"), "in fail\n    raise error\nZeroDivisionError: a "),
    ],
    ids=["user", "system", "bug"],
)
def test_torchrun_shows_why_a_rank_failed(error, shown, tmp_path, monkeypatch) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))

    def fail(argv: object) -> None:
        raise error

    with pytest.raises((SystemExit, ZeroDivisionError)):
        program.run(fail, [])
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    text = str(ChildFailedError("job", {0: failure}))
    assert shown.replace("\n", "\n  ") in text
    assert failure.timestamp == pytest.approx(time.time(), abs=5)
    assert json.loads(file.read_text())["message"]["message"]  # what torchx shows


SLEEPER = """
import os, sys, time; from learn_torchrec.apps.common import program
program.run(lambda argv: (print(os.getpid(), flush=True), time.sleep(600)), [])
"""
PARENT = """
import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])
"""


@pytest.mark.parametrize("launched", [True, False])
def test_a_rank_ends_with_its_launcher(launched: bool) -> None:
    environment = os.environ | ({"TORCHELASTIC_RUN_ID": "x"} if launched else {})
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, SLEEPER],
        stdout=subprocess.PIPE,
        env=environment,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
    gone, alive = psutil.wait_procs([child], timeout=SECONDS if launched else 0.5)
    for process in alive:
        process.send_signal(signal.SIGKILL)
    assert bool(gone) == launched


@pytest.mark.slow
def test_a_killed_quickstart_leaves_no_rank(
    market: Path, model_dir: Path, tmp_path: Path
) -> None:
    settings = [
        *("content.encoder.dtype=float32", f"content.encoder.model={model_dir}"),
        *("towers.model.encoder.width=16", "towers.model.encoder.feed_forward_dim=32"),
        *("towers.training.batch_size=16", "towers.training.epochs=1000000"),
        "towers.training.patience=1000000",
    ]
    command = [sys.executable, "-m", "learn_torchrec.apps.quickstart", "--ranks", "2"]
    command += ["--data", f"parquet:{market}", "--out", str(tmp_path / "run")]
    log = tmp_path / "run" / "logs" / "towers.jsonl"
    with subprocess.Popen([*command, "--set", *settings]) as parent:
        end = time.monotonic() + 3 * SECONDS
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert time.monotonic() < end
            assert parent.poll() is None
            time.sleep(0.2)
        started = psutil.Process(parent.pid).children(recursive=True)
        ranks = [p for p in started if "RANK" in p.environ()]
        assert len(ranks) >= 2
        parent.kill()
    _, alive = psutil.wait_procs(started, timeout=SECONDS)
    for process in alive:
        process.kill()
    assert alive == []
    assert not (tmp_path / "run" / "towers").exists()  # they did not just finish
