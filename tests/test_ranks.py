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
    done = start(ranks, WORKER, store.directory, market, out)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def start(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), *map(str, arguments)]
    path = os.pathsep.join(map(str, (WORKER.parents[1], WORKER.parent / "ranker")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240
    )


def test_managed_collision_promises_equally_many_ranks(tmp_path):
    """Two trainings are equal in all bits; five ranks divide no table."""
    worker, out = WORKER.with_name("managed_worker.py"), tmp_path / "out.json"
    for ranks in (2, 3):
        done = start(ranks, worker, out)
        assert done.returncode == 0, done.stderr[-4000:]
        first, second = json.loads(out.read_text())
        assert first == second
        assert len(set(first)) > 10
        said = f"{ranks} ranks assign its rows otherwise than another"
        assert done.stderr.count(said) == 2
    done = start(5, worker, out)
    assert "5 ranks: the table of feature 'user_id' (managed_collision)" in done.stderr
    assert "use a number of ranks that divides 192" in done.stderr


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_ranks_equal_one(ranks, store, market, tmp_path):
    one = run(1, store, market, tmp_path / "one.json")
    several = run(ranks, store, market, tmp_path / "several.json")

    def close(stage: str, name: str, tolerance: float) -> None:
        np.testing.assert_allclose(
            several[stage][name],
            one[stage][name],
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"{stage} {name}",
        )

    for name in ("loss", "anchor_gradient", "positive_gradient"):
        close("contrastive", name, tolerance=1e-5)
    for name in ("loss", "mrr", "weights"):
        close("towers", name, tolerance=1e-4)
    for name in ("loss", "mrr", "weights", "table"):
        close("next_item", name, tolerance=1e-4)
    assert several["next_item"]["chosen"] == one["next_item"]["chosen"] != [1.0, 0.0]
    for stage in ("ranker", "residual", "attention"):
        # Attention's products amplify the rounding of sums in another order.
        tolerance = 2e-3 if stage == "attention" else 1e-4
        for name in ("loss", "scores", "ne"):
            close(stage, name, tolerance=tolerance)
        for name in ("auc", "uauc"):  # close scores may change places
            close(stage, name, tolerance=2e-3)
    assert several["ranker"]["offset"] == one["ranker"]["offset"] > 0.5
    assert several["ranker"]["step"] == one["ranker"]["step"] == [25, 50, 75, 100, 117]
    for stage in ("towers", "next_item", "ranker"):
        assert one[stage]["loss"][-1] < one[stage]["loss"][0] - 0.01, stage
    assert len(one["ranker"]["scores"]) == len(several["ranker"]["scores"]) == 3000
    for result in (one, several):
        assert result["ranker"]["pipelined"] == ["ShardedEmbeddingBagCollection"]
        names = ["ShardedEmbeddingBagCollection", "ShardedEmbeddingCollection"]
        assert result["attention"]["pipelined"] == names
        assert result["next_item"]["pipelined"] == ["ShardedEmbeddingCollection"]
