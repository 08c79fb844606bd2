"""Memory, Parquet and prediction give the same rows, at any number of readers."""

import dataclasses
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.location import Location
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.loading.time_range import Interval
from learn_torchrec.errors import UserError
from learn_torchrec.ranker import impressions
from learn_torchrec.ranker.batch import collate, evaluation_batches
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerTrainingConfig,
    StreamConfig,
)
from learn_torchrec.ranker.encode import columns_of
from learn_torchrec.ranker.features import FeaturesConfig, HashedFeature, IndexedFeature
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.vector_table import VectorTable

ROWS, BATCH = 500, 16
FEATURES = FeaturesConfig(
    sparse=(
        HashedFeature(column="user_id", num_embeddings=50),
        IndexedFeature(column="tags", num_embeddings=9),
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


def as_rank(monkeypatch, rank=0, ranks=1):
    monkeypatch.setattr(impressions.dist, "get_world_size", lambda: ranks)
    monkeypatch.setattr(impressions.dist, "get_rank", lambda: rank)


@pytest.fixture
def one_rank(monkeypatch):
    as_rank(monkeypatch)


def assert_equal(one, other):
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "sparse_features":
            assert ours.values().equal(theirs.values())
            assert ours.lengths().equal(theirs.lengths())
        elif field.name == "labels":
            assert ours.keys() == theirs.keys()
            assert all(ours[name].equal(theirs[name]) for name in ours)
        elif ours is None:
            assert theirs is None
        elif dataclasses.is_dataclass(ours):
            assert_equal(ours, theirs)
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
    made = LearnVectors(users=users, items=items, manifest=None)
    return LearnInputs(made)


def configured(lanes=4, workers=0, batch_size=BATCH, window=64, tasks=None):
    stream = StreamConfig(lanes=lanes, shuffle_rows=window, workers=workers)
    training = RankerTrainingConfig(batch_size=batch_size, seed=1, stream=stream)
    tasks = tasks or (TaskConfig(),)
    return RankerConfig(features=FEATURES, tasks=tasks, training=training)


def opened(path, learn=None, first=FIRST, end=END, **options):
    config = configured(**options)
    interval = Interval("timestamp", first, end)
    rows = RowGroups(path, columns_of(config), interval, optional=["weight"])
    return Impressions(rows, config, learn)


def in_memory(learn=None, rows=None, **options):
    interval = Interval("timestamp", FIRST, END)
    source = TableRows(table() if rows is None else rows, interval, "memory")
    return Impressions(source, configured(**options), learn)


def epoch(make, monkeypatch, world_size, number=0, start=0):
    """Rows of every global batch, in the order of the ranks."""
    parts = []
    for rank in range(world_size):
        as_rank(monkeypatch, rank, world_size)
        batches = make().batches(number, start)
        parts.append([b.dense_features[:, 0].long().tolist() for b in batches])
    return [[x for part in step for x in part] for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("make", [opened, in_memory])
def test_batches_do_not_depend_on_the_number_of_ranks(
    path, make, world_size, monkeypatch
):
    def impressions():
        return make(path) if make is opened else make()

    batches = epoch(impressions, monkeypatch, world_size)
    assert batches == epoch(impressions, monkeypatch, 1)
    assert len(batches) == 360 // BATCH
    assert {len(batch) for batch in batches} == {BATCH}
    seen = [row for batch in batches for row in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(100, 460))


@pytest.mark.parametrize("readers", [1, 3])
def test_memory_is_parquet_that_fits_one_window(path, readers, monkeypatch):
    def parquet():
        return opened(path, vectors(), window=1000, batch_size=24)

    for rank in range(readers):
        as_rank(monkeypatch, rank, readers)
        here, there = in_memory(vectors(), batch_size=24), parquet()
        for number in (0, 1):
            for ours, theirs in zip(
                here.batches(number), there.batches(number), strict=True
            ):
                assert_equal(ours, theirs)
        assert here.report == there.report


def test_the_order_follows_from_the_epoch(path, monkeypatch):
    for make in (in_memory, lambda: opened(path)):
        first, second = (epoch(make, monkeypatch, 1, number) for number in (0, 1))
        assert first == epoch(make, monkeypatch, 1, 0)
        assert first != second
        # A batch takes from all lanes, not from one stretch of the file.
        assert all(max(batch) - min(batch) > 60 for batch in first)


def test_a_table_in_memory_is_encoded_once(one_rank, monkeypatch):
    calls = []
    encode = impressions.Encoder.__call__

    def counted(self, rows):
        calls.append(rows.num_rows)
        return encode(self, rows)

    monkeypatch.setattr(impressions.Encoder, "__call__", counted)
    rows = in_memory(window=64)
    for number in range(3):
        assert len(list(rows.batches(number))) == rows.loader.steps
    assert calls == [360]


def test_a_batch_is_what_its_rows_encode_to(path, one_rank):
    learn = vectors()
    streamed = opened(path, learn)
    rows = streamed.encoder()(table())
    for batch in streamed.batches(epoch=0):
        taken = rows.take(batch.dense_features[:, 0].long().numpy())
        assert_equal(batch, collate(taken, learn))
    seen = 360 // BATCH * BATCH
    assert streamed.report.rows == seen
    assert 0 < streamed.report.missing["user_vectors"] < seen
    assert streamed.report.left_out["tags"] > 0


def test_a_ranker_with_learn_off_looks_nothing_up(one_rank):
    config = configured()
    learn = LearnConfig(form="off")
    config = dataclasses.replace(config, learn=learn)
    rows = Impressions(TableRows(table(), None, "memory"), config, vectors())
    batch = next(rows.batches(epoch=0))
    assert batch.learn is None
    assert rows.learn is None


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (8, 0), (16, 0), (2, 2)])
def test_ranks_report_each_row_once(path, ranks, workers, monkeypatch):
    reports = []
    for rank in range(ranks):  # up to four of them share one lane
        as_rank(monkeypatch, rank, ranks)
        streamed = opened(path, vectors(), workers=workers)
        batches = list(streamed.batches(epoch=0))
        lacking = sum(int((b.learn.has_vectors[:, 0] == 0).sum()) for b in batches)
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
    list(opened(path, lanes=1).batches(epoch=0))
    columns = {columns for _, _, columns in read}
    assert columns == {("user_id", "item_id", "timestamp", "label", "tags", "row")}
    # The first row group of the first file (rows 0 to 63) has no wanted row.
    assert (270, 0) not in {(rows, group) for rows, group, _ in read}
    assert len(read) == len(set(read)) == 4 + 4


def test_resuming_is_the_rest_of_the_pass(path, monkeypatch):
    for make in (lambda: opened(path), in_memory):
        whole = epoch(make, monkeypatch, 1, number=2)
        for start in (3, 4, 21):  # within a window of 4 steps, at its edge, in the last
            rest = epoch(make, monkeypatch, 2, number=2, start=start)
            assert rest == whole[start:]


def test_arrow_timestamps_and_a_uri(path, one_rank):
    whole = table()
    times = whole["timestamp"].cast(pa.timestamp("s")).cast(pa.timestamp("us", "UTC"))
    other = whole.set_column(2, "timestamp", times)
    pq.write_table(other, "/memory.parquet", filesystem=MEMORY.filesystem)
    uri = "fsspec+memory:///memory.parquet"
    rows = opened(uri, batch_size=8)
    assert (len(rows), rows.source.earliest) == (360, FIRST)
    read = [b.dense_features for b in rows.batches(epoch=0)]
    assert sorted(torch.cat(read)[:, 0].tolist()) == list(range(100, 460))


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
        list(opened(path).batches(epoch=0))
    whole = table().set_column(place, name, pa.array(values))
    with pytest.raises(UserError, match=message):
        list(in_memory(rows=whole).batches(epoch=0))


def test_a_row_without_a_time_is_left_out(path, one_rank):
    times = pa.array([None if i == 300 else i // 2 for i in range(ROWS)])
    bad = table().set_column(2, "timestamp", times).slice(270)
    pq.write_table(bad, path / "b.parquet", row_group_size=50)
    streamed = opened(path)
    assert streamed.source.lacking == {"timestamp": (1, 300)}
    assert len(streamed) == 359
    rows = [b.dense_features[:, 0] for b in streamed.batches(epoch=0)]
    assert 300 not in torch.cat(rows).tolist()


def test_a_file_that_changes_meanwhile_is_noticed(path, one_rank):
    rows = opened(path)
    later = table().set_column(2, "timestamp", pa.array(np.arange(ROWS) + 900))
    pq.write_table(later.slice(270), path / "b.parquet", row_group_size=50)
    with pytest.raises(UserError, match=r"b\.parquet: row group \d+ "):
        list(rows.batches(epoch=0))


def test_what_does_not_fit_is_refused(path, monkeypatch):
    as_rank(monkeypatch, ranks=3)
    option = r"^ranker\.training\.batch_size="
    with pytest.raises(UserError, match=option + "16 must be a multiple .* 3"):
        opened(path).batches(epoch=0).__next__()
    with pytest.raises(UserError, match=option + "363 is more than the 360 rows of"):
        opened(path, batch_size=363).loader  # noqa: B018
    config = configured(tasks=(TaskConfig(label="bought"),))
    with pytest.raises(UserError, match="column 'bought' is missing"):
        RowGroups(path, columns_of(config))


def test_a_reader_that_stops_early_leaves_no_thread(path, one_rank):
    batches = opened(path).batches(epoch=0)
    next(batches)
    assert "prefetch" in {thread.name for thread in threading.enumerate()}
    batches.close()
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.slow  # starts processes that load torch
def test_worker_processes_give_the_same_batches(path, one_rank):
    learn = vectors()
    alone, helped = opened(path, learn), opened(path, learn, workers=2)
    for ours, theirs in zip(
        helped.batches(epoch=0),
        alone.batches(epoch=0),
        strict=True,
    ):
        assert_equal(ours, theirs)
    assert helped.report == alone.report


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [4, 9, 70, 101])
@pytest.mark.parametrize("source", ["memory", "parquet"])
def test_parts_are_every_row_once_in_order(tmp_path, source, count, ranks, monkeypatch):
    rows = table().slice(0, 2 * count)
    interval = Interval("timestamp", count // 2, 10**9)
    expected = [int(x) for x in interval.rows_of(rows)["row"].to_pylist()]
    made = TableRows(rows, interval, "memory")
    if source == "parquet":
        pq.write_table(rows, tmp_path / "impressions", row_group_size=10)
        made = RowGroups(tmp_path / "impressions", interval=interval)
    written, shapes = [], set()
    for rank in range(ranks):
        as_rank(monkeypatch, rank, ranks)
        impressions_of_rank = Impressions(made, configured(), None)
        parts = impressions_of_rank.parts(8)
        found = list(parts)
        shapes.add((len(found), parts.count, parts.padded_rows))
        for part in found:
            assert 1 <= len(part.rows) <= parts.padded_rows
            known = part.rows.dense[: part.table.num_rows, 0].tolist()
            assert known == part.table["row"].to_pylist()
            assert part.table.column_names == rows.column_names
        mine = [int(x) for part in found for x in part.table["row"].to_pylist()]
        assert impressions_of_rank.report.rows == len(mine)
        written += mine
    assert written == expected
    assert len(shapes) == 1


@pytest.mark.parametrize("count", [1, 5, 12, 13])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_to_score_are_padded_to_one_width(count, batch_size, one_rank):
    rows = in_memory().encoder()(table().slice(0, count))
    width = 13
    batches = list(evaluation_batches(rows, None, width, batch_size))
    sizes = [min(batch_size, width - at) for at in range(0, width, batch_size)]
    assert [len(batch.weights) for batch in batches] == sizes
    real = [b.dense_features[b.weights > 0, 0].tolist() for b in batches]
    assert [row for chunk in real for row in chunk] == list(range(count))
