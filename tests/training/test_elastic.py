"""SIGKILL of a real rank: the job resumes by itself, and on another number of ranks."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.slow
SETTINGS = [
    "--set",
    "ranker.features.dense=hour",
    "ranker.training.batch_size=64",
    "ranker.training.epochs=25",
    "ranker.sharding.kind=row_wise",
    'ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}]',
    "checkpoint.every_steps=20",
]
LIMIT = 300


def start(
    market, out, ranks=2, restarts=0, extra=(), app="learn_torchrec.apps.train_ranker"
):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), "--max_restarts", str(restarts)]
    command += ["-m", app, "--data", f"parquet:{market}"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    stderr = out.with_suffix(".stderr").open("a")
    return subprocess.Popen(
        [*command, "--out", str(out), *SETTINGS, *extra], env=environment, stderr=stderr
    )


def last_rank_after(job, checkpoints, steps):
    """Return the process of the last rank once a checkpoint of `steps` is there."""
    end = time.monotonic() + LIMIT
    while not any(int(p.name[5:]) >= steps for p in checkpoints.glob("step-*")):
        assert job.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.05)
    return max(psutil.Process(job.pid).children(), key=lambda process: process.pid)


def kill_a_rank_after(job, checkpoints, steps):
    last_rank_after(job, checkpoints, steps).kill()


def losses(out):
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines]


def weights(out):
    files = json.loads((out / "manifest.json").read_text())["files"]
    return {k: v["sha256"] for k, v in files.items() if k.endswith(".distcp")}


def test_a_killed_rank_changes_nothing(market, tmp_path):
    whole, cut, fewer = (tmp_path / name for name in ("whole", "cut", "fewer"))
    assert start(market, whole).wait(LIMIT) == 0
    job = start(market, cut, restarts=2)
    kill_a_rank_after(job, tmp_path / "checkpoints/cut", 20)
    kill_a_rank_after(job, tmp_path / "checkpoints/cut", 160)
    assert job.wait(LIMIT) == 0
    assert cut.with_suffix(".stderr").read_text().count("resuming after step") == 2
    assert weights(cut) == weights(whole)
    assert losses(cut) == losses(whole)

    job = start(market, fewer)
    kill_a_rank_after(job, tmp_path / "checkpoints/fewer", 100)
    assert job.wait(LIMIT) != 0
    other_plan = ["ranker.sharding.kind=table_wise"]
    assert start(market, fewer, ranks=1, extra=other_plan).wait(LIMIT) == 0
    assert "resuming after step" in fewer.with_suffix(".stderr").read_text()
    assert losses(fewer) == pytest.approx(losses(whole), abs=1e-5)


def test_a_hung_rank_shows_its_stack_and_the_job_resumes(market, tmp_path):
    whole, hung = tmp_path / "whole", tmp_path / "hung"
    assert start(market, whole).wait(LIMIT) == 0
    job = start(
        market,
        hung,
        restarts=1,
        extra=["checkpoint.hang_seconds=5"],
        app="tests.training.hanging_ranker",
    )
    assert job.wait(LIMIT) == 0
    stderr = hung.with_suffix(".stderr").read_text()
    assert "rank 1: no step for 5 s; its threads:" in stderr
    assert "in hang" in stderr
    assert stderr.count("resuming after step") == 1
    assert weights(hung) == weights(whole)


def test_a_slow_rank_is_waited_for(market, tmp_path):
    whole, slow = tmp_path / "whole", tmp_path / "slow"
    assert start(market, whole).wait(LIMIT) == 0
    job = start(market, slow, extra=["checkpoint.hang_seconds=60"])
    for step in (20, 100):
        rank = last_rank_after(job, tmp_path / "checkpoints/slow", step)
        rank.suspend()
        time.sleep(5)
        rank.resume()
    assert job.wait(LIMIT) == 0
    assert "no step for" not in slow.with_suffix(".stderr").read_text()
    assert weights(slow) == weights(whole)
