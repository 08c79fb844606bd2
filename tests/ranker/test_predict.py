"""What `predict` reads: the impressions of an interval, from memory or Parquet."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.loading.time_range import Interval


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
