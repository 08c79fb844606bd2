from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from random_sequences import make_sequences
from untrained_towers import statistics_of

from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.towers import export, inference
from learn_torchrec.towers.build import build_towers
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.export import ExportConfig
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.snapshots import snapshot_events
from learn_torchrec.vector_table import VectorTable

CPU = torch.device("cpu")


def make_towers(store):
    torch.manual_seed(0)
    shape = EncoderShape(
        width=8, num_layers=1, num_heads=2, feed_forward_dim=16, vector_dim=4
    )
    return build_towers(TowersModelConfig(encoder=shape), statistics_of(store)).eval()


@pytest.mark.parametrize("tokens_per_batch", [7, 10_000])
def test_histories_equal_one_window_at_a_time(store, tokens_per_batch, monkeypatch):
    monkeypatch.setattr(inference, "_TOKENS_PER_BATCH", tokens_per_batch)
    sequences, towers = make_sequences([3, 9, 1, 5]), make_towers(store)
    events = np.array([0, 2, 4, 5, 9, 10, 11, 12, 17])
    vectors = inference.encode_histories(towers, store, sequences, events, 4, CPU)
    for event, vector in zip(events, vectors, strict=True):
        user = np.searchsorted(sequences.offsets, event, side="right") - 1
        start = max(sequences.offsets[user], event - 3)
        rows = sequences.items[start : event + 1]
        content = torch.from_numpy(store.gather(rows))
        count = len(rows)
        alone = towers.encoder(content, torch.arange(count), torch.tensor([count]))
        torch.testing.assert_close(vector, alone[-1])


def naive_batches(sequences, events, history_length):
    """One pass over all windows and events for each batch."""
    every = np.arange(len(sequences.items))
    starts, ends = inference.history_windows(sequences, every, history_length)
    users = np.repeat(np.arange(len(sequences)), sequences.lengths)
    first = ends - sequences.offsets[users] <= history_length
    windows = [
        event
        for place, event in enumerate(events)
        if not first[event]
        # The last of the wanted events in the user's first window.
        or not any(users[e] == users[event] and first[e] for e in events[place + 1 :])
    ]
    batches, cost = {}, 0
    for event in windows:
        cost += ends[event] - starts[event]
        batches.setdefault(cost // inference._TOKENS_PER_BATCH, []).append(event)
    owner = [min(window for window in windows if window >= event) for event in events]
    for chosen in batches.values():
        reads = [
            event for event, own in zip(events, owner, strict=True) if own in chosen
        ]
        yield starts[chosen], ends[chosen], np.array(reads)


@pytest.mark.parametrize("tokens_per_batch", [1, 7, 40, 10_000])
@pytest.mark.parametrize("history_length", [1, 4, 100])
def test_batches_equal_one_pass_for_each(tokens_per_batch, history_length, monkeypatch):
    monkeypatch.setattr(inference, "_TOKENS_PER_BATCH", tokens_per_batch)
    random = np.random.default_rng(0)
    sequences = make_sequences(random.integers(1, 15, 20))
    events = np.flatnonzero(random.random(len(sequences.items)) < 0.6)
    found = list(inference._batches(sequences, events, history_length))
    expected = list(naive_batches(sequences, events, history_length))
    assert len(found) == len(expected)
    for batch, naive in zip(found, expected, strict=True):
        for part, naive_part in zip(batch, naive, strict=True):
            assert part.tolist() == naive_part.tolist()
    read = np.concatenate([reads for _, _, reads in found])
    assert read.tolist() == events.tolist()  # vectors come in the order of the events


def test_no_events_give_no_vectors(store):
    towers = make_towers(store)
    none = np.empty(0, np.int64)
    vectors = inference.encode_histories(
        towers, store, make_sequences([3]), none, 4, CPU
    )
    assert vectors.shape == (0, 4)


@pytest.mark.parametrize("rows", [1, 6, 10_000])
def test_user_vectors_are_written_a_part_at_a_time(store, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_TOKENS_PER_BATCH", 5)
    monkeypatch.setattr(export, "_PART_ROWS", rows)
    sequences, towers = make_sequences([3, 9, 1, 5]), make_towers(store)
    events = np.array([0, 2, 4, 5, 9, 10, 11, 12, 17])
    asked = towers, store, sequences, events, 4, CPU
    path = tmp_path / "user_vectors.parquet" / "part-00000.parquet"
    parts = inference.history_vectors(*asked)
    export.write_user_vectors(tmp_path, 0, sequences, events, parts, 4, parquet=True)
    written = pq.read_table(path)
    assert written["user_id"].to_pylist() == [0, 0, 1, 1, 1, 1, 1, 2, 3]
    assert written["timestamp"].to_pylist() == sequences.times[events].tolist()
    vectors = torch.tensor(written["vector"].to_pylist())
    assert torch.equal(vectors, inference.encode_histories(*asked))
    halves = np.load(tmp_path / "users" / "vectors-00000.npy")
    np.testing.assert_array_equal(halves, vectors.numpy().astype(np.float16))
    groups = pq.ParquetFile(path).metadata
    sizes = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
    assert all(size >= rows for size in sizes[:-1])
    assert (len(sizes) > 1) == (rows < 9)


def test_no_user_vectors_are_a_file_without_rows(store, tmp_path):
    none = np.empty(0, np.int64)
    parts = inference.history_vectors(
        make_towers(store), store, make_sequences([3]), none, 4, CPU
    )
    sequences = make_sequences([3])
    export.write_user_vectors(tmp_path, 0, sequences, none, parts, 4, parquet=True)
    written = pq.read_table(tmp_path / "user_vectors.parquet")
    assert written.num_rows == 0
    assert written.schema.field("vector").type == pa.list_(pa.float32(), 4)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("parquet", [True, False])
def test_ranks_write_one_table_of_users_and_one_of_items(
    store, ranks, parquet, tmp_path
):
    sequences, random = make_sequences([3, 9, 0, 1, 5]), np.random.default_rng(0)
    events = np.array([0, 2, 4, 5, 9, 10, 11, 17])  # of user 3 none
    user_vectors = torch.from_numpy(random.normal(size=(8, 4))).float()
    item_vectors = torch.from_numpy(random.normal(size=(40, 4))).float()
    for rank in range(ranks):
        mine = np.array_split(np.arange(8), ranks)[rank]
        vectors = [user_vectors[mine[:1]], user_vectors[mine[1:]]]
        written = sequences, events[mine], vectors, 4, parquet
        export.write_user_vectors(tmp_path, rank, *written)
        mine = np.array_split(np.arange(40), ranks)[rank]
        ids, vectors = store.item_ids.take(pa.array(mine)), [item_vectors[mine]]
        export.write_item_vectors(tmp_path, rank, ids, vectors, (len(mine), 4), parquet)
    export.write_vector_indexes(tmp_path, store.item_ids, sequences, events)
    users, items = (VectorTable.open(tmp_path / side) for side in ("users", "items"))
    for number, event in enumerate(events):
        owner = np.searchsorted(sequences.offsets, event, side="right") - 1
        row = users.rows_as_of(
            sequences.user_ids.take(pa.array([owner])), sequences.times[[event]] + 1
        )
        vector = user_vectors[number].half().numpy()
        np.testing.assert_array_equal(users.gather(row)[0], vector)
    absent = users.rows_as_of(pa.array([2, 3]), None)
    assert absent.tolist() == [-1, -1]
    rows = items.rows_as_of(store.item_ids, None)
    np.testing.assert_array_equal(items.gather(rows), item_vectors.half().numpy())
    assert (tmp_path / "item_vectors.parquet").exists() == parquet
    if parquet:
        table = pq.read_table(tmp_path / "user_vectors.parquet")
        assert table.column_names == ["user_id", "timestamp", "vector"]
        assert table["vector"].to_pylist() == user_vectors.tolist()
        table = pq.read_table(tmp_path / "item_vectors.parquet")
        assert table["item_id"].to_pylist() == store.item_ids.to_pylist()


def test_vectors_that_are_not_finite_are_not_exported(tmp_path):
    vectors = [torch.tensor([[1.0, np.nan]])]
    with pytest.raises(UserError, match="items: the towers give vectors that are not"):
        export.write_item_vectors(tmp_path, 0, pa.array([7]), vectors, (1, 2), False)


def test_catalogue_is_in_the_order_asked_for(store):
    towers = make_towers(store)
    rows = np.array([5, 0, 39])
    vectors = inference.encode_catalogue(towers, store, rows, CPU)
    for row, vector in zip(rows, vectors, strict=True):
        one = inference.encode_catalogue(towers, store, np.array([row]), CPU)
        torch.testing.assert_close(vector, one[0])


def test_snapshots():
    sequences = make_sequences([3, 2, 1])  # times 0 10 20, 0 10, 0
    times = SplitTimes(towers_until=5, test_from=15)
    every = snapshot_events(sequences, ExportConfig(snapshots="event"), times)
    assert every.tolist() == [0, 1, 2, 3, 4, 5]
    busy = replace(sequences, times=np.array([0, 0, 20, 0, 10, 10]))
    every = snapshot_events(busy, ExportConfig(snapshots="event"), times)
    assert every.tolist() == [1, 2, 3, 4, 5]  # two users' last events are of one second
    # The last events before 5 are 0, 3, 5; the last before 15 are 1, 4, 5.
    last = snapshot_events(sequences, ExportConfig(snapshots="last"), times)
    assert last.tolist() == [0, 1, 3, 4, 5]
    early = SplitTimes(towers_until=0, test_from=0)
    none = snapshot_events(sequences, ExportConfig(snapshots="last"), early)
    assert none.tolist() == []
