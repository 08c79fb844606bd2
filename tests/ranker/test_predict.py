"""How `predict` shares the impressions out among ranks."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.apps import predict
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.evaluation.activity import CohortActivity
from learn_torchrec.ranker.rows import FeaturesConfig, SparseFeature

FEATURES = FeaturesConfig(
    sparse=(SparseFeature(column="user_id", num_embeddings=9),), dense=("row",)
)
NO_EVENTS = pa.table(
    {
        "user_id": pa.array([], pa.int64()),
        "item_id": pa.array([], pa.int64()),
        "timestamp": pa.array([], pa.int64()),
        "action": pa.array([], pa.string()),
    }
)


def impressions(count):
    return pa.table(
        {
            "user_id": pa.array(np.arange(count), pa.int32()),
            "item_id": np.arange(count),
            "timestamp": np.arange(count) % 7,
            "label": np.zeros(count, np.int64),
            "row": np.arange(count, dtype=np.float32),
        }
    )


@pytest.fixture(params=["parquet", "memory"])
def source(request, tmp_path):
    """Makes the impressions at or after time 3 of so many."""

    def make(count):
        table, interval = impressions(count), Interval("timestamp", 3, 10**9)
        if request.param == "memory":
            return TableRows(table, interval, "memory")
        pq.write_table(table, tmp_path / "impressions", row_group_size=10)
        return RowGroups(tmp_path / "impressions", interval=interval)

    return make


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [4, 9, 70, 101])
def test_ranks_write_every_row_once_in_order(source, count, ranks, monkeypatch):
    monkeypatch.setattr(predict, "_PART_ROWS", 8)
    monkeypatch.setattr(predict.dist, "get_world_size", lambda: ranks)
    expected = impressions(count).filter(np.arange(count) % 7 >= 3)
    activity = CohortActivity(NO_EVENTS, ["buy"], 7)
    written, shapes = [], set()
    for rank in range(ranks):
        monkeypatch.setattr(predict.dist, "get_rank", lambda rank=rank: rank)
        share = predict.Share(source(count), FEATURES, None, activity)
        parts = list(share)
        shapes.add((len(parts), share.parts, share.width))
        for rows, table in parts:
            assert 1 <= len(rows) <= share.width
            known = rows.dense[: table.num_rows, 0].tolist()
            assert known == table["row"].to_pylist()
        written += [row for _, table in parts for row in table["row"].to_pylist()]
        assert share.report.rows == sum(table.num_rows for _, table in parts)
    assert written == expected["row"].to_pylist()
    assert len(shapes) == 1


def test_memory_and_parquet_are_the_same_rows(tmp_path):
    interval = Interval("timestamp", 3, 5)
    pq.write_table(impressions(30), tmp_path / "impressions")
    there = RowGroups(tmp_path / "impressions", interval=interval)
    here = TableRows(impressions(30), interval, "memory")

    assert here.earliest == there.earliest == 3
    assert here.sizes.tolist() == there.sizes.tolist()
    for skip in (0, 5):
        one, other = (pa.concat_tables(x.pieces(0, skip)) for x in (here, there))
        assert one.equals(other)
    assert here.empty().schema == there.empty().schema


def test_an_empty_interval_has_no_rows():
    rows = TableRows(impressions(9), Interval("timestamp", 50, 60), "memory")

    assert (rows.num_rows, len(rows), rows.earliest) == (0, 0, None)
