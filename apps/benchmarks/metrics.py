"""Exact metrics and exact top-K beside scikit-learn and FAISS.

- AUC, UAUC and WUAUC (with NE and calibration) of 100 million rows and 5 million users,
  from a Parquet file to the metrics, in a process of its own.
- Per-user AUCs of one million rows beside one `roc_auc_score` per user.
- The top 100 of 200,000 items, 64 dims: in turns with FAISS's `IndexFlatIP` on some
  users (both scale linearly with users), then for all 240,000 in a process of its own.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from learn_torchrec.evaluation.conventions import PAPER
from learn_torchrec.evaluation.predictions import stream_predictions
from learn_torchrec.evaluation.rows import prepare_rows
from learn_torchrec.evaluation.stream import MetricsStream
from learn_torchrec.evaluation.topk import top_items
from learn_torchrec.evaluation.user_auc import count_users, users_that_count

from ..common import program
from ..common.hardware import describe_machine
from . import measure

_DISK_PER_ROW = 14  # bytes: an int64, an int8 and a float32, and their pages
_ROWS_PER_USER = 20
_ROW_GROUP = 1 << 20
_SKLEARN_ROWS = 1_000_000
_NUM_ITEMS, _DIM, _K = 200_000, 64, 100
_TIMED_USERS = 4_096


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; write JSON where asked."""
    parser = measure.parser("metrics", __doc__)
    parser.add_argument(
        "--rows", type=int, default=100_000_000, metavar="N", help="of a file"
    )
    parser.add_argument(
        "--users", type=int, default=240_000, metavar="N", help="of the top-K"
    )
    args = parser.parse_args(argv)
    measure.require(faiss="faiss-cpu", sklearn="scikit-learn")
    measure.require_machine(1, args.rows * _DISK_PER_ROW)
    body = {
        **measure_rows(args.rows),
        **measure_against_sklearn(),
        **measure_top_items(args.users),
        "machine": describe_machine(),
    }
    measure.publish(body, args.json)


def measure_rows(num_rows: int) -> dict[str, Any]:
    """Return the time and peak memory of `num_rows` rows from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        _write_rows(path, num_rows)
        cost = measure.in_fresh_process("metrics", "time_file", str(path))
    return {"rows": num_rows, **cost}


def measure_against_sklearn() -> dict[str, Any]:
    """Return the time ratio to scikit-learn per user, and the largest difference."""
    from sklearn.metrics import roc_auc_score

    users, labels, scores = _rows(np.random.default_rng(1), _SKLEARN_ROWS)
    order = np.argsort(users, kind="stable")
    users, labels, scores = users[order], labels[order], scores[order]

    def by_sklearn() -> np.ndarray:
        cuts = np.flatnonzero(np.diff(users)) + 1
        groups = zip(np.split(labels, cuts), np.split(scores, cuts), strict=True)
        return np.array(
            [roc_auc_score(*group) for group in groups if 0 < group[0].mean() < 1]
        )

    def ours() -> np.ndarray:
        rows = prepare_rows(users, labels, scores)
        return users_that_count(count_users(rows), PAPER).values

    # scikit-learn runs once: it takes most of a minute.
    start = time.perf_counter()
    expected = by_sklearn()
    sklearn_seconds = time.perf_counter() - start
    difference = np.abs(expected - ours()).max()
    seconds = measure.interleaved_medians({"ours": ours}, repeats=5)
    return {
        "over_sklearn": sklearn_seconds / seconds["ours"],
        "max_difference": float(difference),
        "sklearn_rows": _SKLEARN_ROWS,
        "sklearn_users_kept": len(expected),
    }


def measure_top_items(num_users: int) -> dict[str, Any]:
    """Return the time ratio to FAISS on some users; time and memory of all."""
    users, items = _vectors(_TIMED_USERS)
    import faiss

    index = faiss.IndexFlatIP(_DIM)
    index.add(items.numpy())
    seconds = measure.interleaved_medians(
        {
            "ours": lambda: top_items(users, items, _K),
            "faiss": lambda: index.search(users.numpy(), _K),
        },
        repeats=3,
    )
    found = top_items(users, items, _K).scores
    assert np.allclose(found, index.search(users.numpy(), _K)[0], atol=1e-4)
    cost = measure.in_fresh_process("metrics", "time_top_items", num_users)
    return {
        "topk_over_faiss": seconds["ours"] / seconds["faiss"],
        "topk_timed_users": _TIMED_USERS,
        "topk_users": num_users,
        "topk_seconds": cost["seconds"],
        "topk_peak_gb": cost["peak_gb"],
    }


def time_file(path: str) -> dict[str, Any]:
    """Return the time, peak memory and metrics of a prediction file."""
    start = time.perf_counter()
    stream = MetricsStream()
    stream_predictions(Path(path), stream)
    metrics = stream.finish()
    return {**_cost(start), "metrics": metrics}


def time_top_items(num_users: int) -> dict[str, Any]:
    """Return the time and peak memory of a top-K search."""
    vectors = _vectors(num_users)
    start = time.perf_counter()
    top_items(*vectors, _K)
    return _cost(start)


def _cost(start: float) -> dict[str, Any]:
    seconds, peak_gb = time.perf_counter() - start, measure.peak_memory_mb() / 1024
    return {"seconds": round(seconds, 2), "peak_gb": round(peak_gb, 3)}


def _write_rows(path: Path, num_rows: int) -> None:
    generator = np.random.default_rng(0)
    schema = pa.schema(
        {"user_id": pa.int64(), "label": pa.int8(), "score": pa.float32()}
    )
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for start in range(0, num_rows, _ROW_GROUP):
            count = min(_ROW_GROUP, num_rows - start)
            columns = _rows(generator, count, num_rows // _ROWS_PER_USER)
            writer.write_table(pa.table(list(columns), schema=schema))


def _rows(
    generator: np.random.Generator, count: int, num_users: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users int64, labels int8 (one in ten positive) and scores float32."""
    num_users = num_users or count // _ROWS_PER_USER
    scores = generator.random(count, dtype=np.float32)
    labels = generator.random(count, dtype=np.float32) < scores / 5
    users = generator.integers(num_users, size=count) * 7919
    return users, labels.astype(np.int8), scores


def _vectors(num_users: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    users, items = (
        torch.nn.functional.normalize(torch.randn(n, _DIM, generator=generator))
        for n in (num_users, _NUM_ITEMS)
    )
    return users, items


if __name__ == "__main__":
    program.run(main)
