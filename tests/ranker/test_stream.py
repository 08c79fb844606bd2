import dataclasses
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.errors import UserError
from learn_torchrec.ranker import stream
from learn_torchrec.ranker.batch import collate
from learn_torchrec.ranker.prepare import prepare_rows
from learn_torchrec.ranker.rows import FeaturesConfig, SparseFeature
from learn_torchrec.ranker.stream import StreamConfig, StreamedRows
from learn_torchrec.ranker.vectors import LearnVectors
from learn_torchrec.vector_table import VectorTable

ROWS, BATCH = 500, 16
FEATURES = FeaturesConfig(
    sparse=(
        SparseFeature(column="user_id", num_embeddings=50),
        SparseFeature(column="tags", num_embeddings=9, ids="index"),
    ),
    dense=("row",),
)
# Rows 100 to 459 lie inside; their times repeat and straddle row groups.
FIRST, END = 50, 230
MEMORY = Location.of("fsspec+memory:///")


def table():
    random = np.random.default_rng(0)
    lengths = random.integers(0, 3, ROWS)
    offsets = pa.array(np.r_[0, lengths.cumsum()].astype(np.int32))
    tags = pa.array(random.integers(0, 12, lengths.sum()))
    return pa.table(
        {
            "user_id": random.integers(0, 30, ROWS),
            "item_id": random.integers(0, 30, ROWS),
            "timestamp": np.arange(ROWS) // 2,
            "label": random.integers(0, 2, ROWS),
            "tags": pa.ListArray.from_arrays(offsets, tags),
            "row": np.arange(ROWS, dtype=np.float32),
            "never_read": ["x"] * ROWS,
        }
    )


@pytest.fixture
def path(tmp_path):
    """Two files of several row groups each."""
    directory = tmp_path / "impressions.parquet"
    directory.mkdir()
    whole = table()
    pq.write_table(whole.slice(0, 270), directory / "a.parquet", row_group_size=64)
    pq.write_table(whole.slice(270), directory / "b.parquet", row_group_size=50)
    return directory


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setattr(stream.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(stream.dist, "get_rank", lambda: 0)


def assert_equal(one, other):
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "sparse_features":
            assert ours.values().equal(theirs.values())
            assert ours.lengths().equal(theirs.lengths())
        elif ours is None:
            assert theirs is None
        else:
            assert ours.equal(theirs), field.name


def vectors():
    random = np.random.default_rng(1)
    users, items = (
        VectorTable.build(
            ids=pa.array(range(25)),
            times=times,
            vectors=random.normal(size=(25, 4)).astype(np.float32),
        )
        for times in (np.full(25, 60), None)
    )
    return LearnVectors(users=users, items=items, manifest=None)


def opened(path, learn=None, lanes=4, workers=0, **bounds):
    bounds = {"first": FIRST, "end": END, **bounds}
    config = StreamConfig(lanes=lanes, shuffle_rows=64, workers=workers)
    return StreamedRows(path, FEATURES, learn, config=config, **bounds)


def epoch(path, monkeypatch, world_size, number=0, **options):
    """Rows of every global batch, in the order of the ranks."""
    monkeypatch.setattr(stream.dist, "get_world_size", lambda: world_size)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(stream.dist, "get_rank", lambda rank=rank: rank)
        batches = opened(path, **options).batches(
            batch_size=BATCH, seed=1, epoch=number
        )
        parts.append([b.dense_features[:, 0].long().tolist() for b in batches])
    return [[x for part in step for x in part] for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_batches_do_not_depend_on_the_number_of_ranks(path, world_size, monkeypatch):
    batches = epoch(path, monkeypatch, world_size)
    assert batches == epoch(path, monkeypatch, 1)
    assert len(batches) == 360 // BATCH
    assert {len(batch) for batch in batches} == {BATCH}
    seen = [row for batch in batches for row in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(100, 460))


def test_the_order_follows_from_the_epoch(path, monkeypatch):
    first, second = (epoch(path, monkeypatch, 1, number) for number in (0, 1))
    assert first == epoch(path, monkeypatch, 1, 0)
    assert first != second
    # A batch takes from all lanes, not from one stretch of the file.
    assert all(max(batch) - min(batch) > 60 for batch in first)


def test_a_batch_is_what_rows_in_memory_give(path, one_rank):
    learn = vectors()
    rows = prepare_rows(table(), FEATURES, learn, "memory")
    streamed = opened(path, learn)
    for batch in streamed.batches(batch_size=BATCH, seed=1, epoch=0):
        expected = collate(rows, batch.dense_features[:, 0].long().numpy())
        assert_equal(batch, expected)
    seen = 360 // BATCH * BATCH
    assert streamed.report.rows == seen
    assert 0 < streamed.report.missing["user_vectors"] < seen
    assert streamed.report.left_out["tags"] > 0


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (8, 0), (16, 0), (2, 2)])
def test_ranks_report_each_row_once(path, ranks, workers, monkeypatch):
    monkeypatch.setattr(stream.dist, "get_world_size", lambda: ranks)
    reports = []
    for rank in range(ranks):  # up to four of them share one lane
        monkeypatch.setattr(stream.dist, "get_rank", lambda rank=rank: rank)
        streamed = opened(path, vectors(), workers=workers)
        batches = list(streamed.batches(batch_size=BATCH, seed=1, epoch=0))
        lacking = sum(int((b.has_vectors[:, 0] == 0).sum()) for b in batches)
        assert streamed.report.missing["user_vectors"] == lacking
        reports.append(streamed.report)
    assert sum(report.rows for report in reports) == 360 // BATCH * BATCH


def test_only_wanted_columns_and_row_groups_are_read(path, one_rank, monkeypatch):
    read = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(self, size, groups, columns, **options):
        read.append((self.metadata.num_rows, groups[0], tuple(columns)))
        return iter_batches(self, size, groups, columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    list(opened(path, lanes=1).batches(batch_size=BATCH, seed=0, epoch=0))
    columns = {columns for _, _, columns in read}
    assert columns == {("user_id", "item_id", "timestamp", "label", "tags", "row")}
    # The first row group of the first file (rows 0 to 63) has no wanted row.
    assert (270, 0) not in {(rows, group) for rows, group, _ in read}
    assert len(read) == len(set(read)) == 4 + 4


def test_going_on_is_the_rest_of_the_pass(path, one_rank):
    whole = list(opened(path).batches(batch_size=BATCH, seed=1, epoch=2))
    for start in (3, 4, 21):  # within a window of 4 steps, at its edge, in the last
        rest = list(
            opened(path).batches(batch_size=BATCH, seed=1, epoch=2, start=start)
        )
        assert len(rest) == len(whole) - start
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert ours.dense_features.equal(theirs.dense_features)


def test_arrow_timestamps_and_a_uri(path, one_rank):
    whole = table()
    times = whole["timestamp"].cast(pa.timestamp("s")).cast(pa.timestamp("us", "UTC"))
    other = whole.set_column(2, "timestamp", times)
    pq.write_table(other, "/memory.parquet", filesystem=MEMORY.filesystem)
    uri = "fsspec+memory:///memory.parquet"
    rows = StreamedRows(uri, FEATURES, None, FIRST, END, StreamConfig(lanes=4))
    assert (len(rows), rows.earliest) == (360, FIRST)
    read = [b.dense_features for b in rows.batches(batch_size=8, seed=0, epoch=0)]
    assert sorted(torch.cat(read)[:, 0].tolist()) == list(range(100, 460))


def test_what_lies_outside_is_counted(path, caplog):
    caplog.set_level("INFO", logger="learn_torchrec")
    opened(path)
    assert "360 impressions lie in [50, 230), 140 outside are left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "label",
            np.eye(1, ROWS, 333)[0] * 2,
            r"'label' is 2\.0 in row 333",
        ),
        ("row", [np.inf if i == 400 else i for i in range(ROWS)], "is inf in row 400"),
        ("user_id", [None if i == 290 else i for i in range(ROWS)], "in row 290; drop"),
    ],
)
def test_an_error_names_the_row_of_the_data(path, one_rank, name, values, message):
    place = table().column_names.index(name)
    bad = table().set_column(place, name, pa.array(values)).slice(270)
    pq.write_table(bad, path / "b.parquet", row_group_size=50)
    with pytest.raises(UserError, match=message):
        list(opened(path).batches(batch_size=BATCH, seed=1, epoch=0))


def test_a_null_time_is_refused(path):
    times = pa.array([None if i == 300 else i // 2 for i in range(ROWS)])
    bad = table().set_column(2, "timestamp", times).slice(270)
    pq.write_table(bad, path / "b.parquet", row_group_size=50)
    with pytest.raises(UserError, match=r"b\.parquet: .* nulls, the first in row 30;"):
        opened(path)


def test_a_file_that_changes_meanwhile_is_noticed(path, one_rank):
    rows = opened(path)
    later = table().set_column(2, "timestamp", pa.array(np.arange(ROWS) + 900))
    pq.write_table(later.slice(270), path / "b.parquet", row_group_size=50)
    with pytest.raises(UserError, match=r"b\.parquet: row group \d+ "):
        list(rows.batches(batch_size=BATCH, seed=1, epoch=0))


def test_what_does_not_fit_is_refused(path, monkeypatch):
    monkeypatch.setattr(stream.dist, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match=r"batch_size=16 must be a multiple .* 3"):
        opened(path).batches(batch_size=BATCH, seed=0, epoch=0)
    with pytest.raises(UserError, match="batch_size=363 is more than the 360 training"):
        opened(path).batches(batch_size=363, seed=0, epoch=0)
    with pytest.raises(UserError, match=r"no impression lies in \[900, 1000\)"):
        opened(path, first=900, end=1000)
    features = FeaturesConfig(dense=("price",))
    with pytest.raises(UserError, match="column 'price' is missing"):
        StreamedRows(path, features, None, 0, 10, StreamConfig())


def test_a_reader_that_stops_early_leaves_no_thread(path, one_rank):
    batches = opened(path).batches(batch_size=BATCH, seed=0, epoch=0)
    next(batches)
    assert "read-ahead" in {thread.name for thread in threading.enumerate()}
    batches.close()
    assert "read-ahead" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.slow  # starts processes that load torch
def test_worker_processes_give_the_same_batches(path, one_rank):
    learn = vectors()
    alone, helped = opened(path, learn), opened(path, learn, workers=2)
    for ours, theirs in zip(
        helped.batches(batch_size=BATCH, seed=1, epoch=0),
        alone.batches(batch_size=BATCH, seed=1, epoch=0),
        strict=True,
    ):
        assert_equal(ours, theirs)
    assert helped.report == alone.report
