"""One rank and several compute the same: losses, gradients, curves, scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("ranks_worker.py")


def run(ranks: int, store, market: Path, out: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), str(WORKER)]
    command += [str(store.directory), str(market), str(out)]
    root = str(WORKER.parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_ranks_equal_one(ranks, store, market, tmp_path):
    one = run(1, store, market, tmp_path / "one.json")
    several = run(ranks, store, market, tmp_path / "several.json")

    def close(*path, tolerance):
        first, second = one, several
        for name in path:
            first, second = first[name], second[name]
        np.testing.assert_allclose(
            second, first, rtol=tolerance, atol=tolerance, err_msg=str(path)
        )

    for name in ("loss", "anchor_gradient", "positive_gradient"):
        close("contrastive", name, tolerance=1e-5)
    close("towers", tolerance=2e-4)
    close("ranker", "loss", tolerance=1e-5)
    close("ranker", "scores", tolerance=1e-5)
    assert one["towers"][-1] < one["towers"][0]
    assert one["ranker"]["loss"][-1] < one["ranker"]["loss"][0]
    assert one["ranker"]["count"] == several["ranker"]["count"] == 3000
    for result in (one, several):
        assert result["ranker"]["pipelined"] == ["ShardedEmbeddingBagCollection"]
