import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from random_sequences import make_sequences

from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.towers import export, inference
from learn_torchrec.towers.build import build_towers
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.export import ExportConfig, snapshot_events
from learn_torchrec.towers.model import TowersModelConfig

CPU = torch.device("cpu")


def make_towers(store):
    torch.manual_seed(0)
    shape = EncoderShape(
        width=8, num_layers=1, num_heads=2, feed_forward_dim=16, vector_dim=4
    )
    mean, std = (
        torch.from_numpy(store.mean).float(),
        torch.from_numpy(store.std).float(),
    )
    return build_towers(
        TowersModelConfig(encoder=shape), mean, std, torch.ones(len(store))
    ).eval()


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
    starts, ends = inference.history_windows(sequences, history_length)
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
    path = tmp_path / "users.parquet"
    parts = inference.history_vectors(*asked)
    export.write_user_vectors(path, sequences, events, parts, dim=4)
    written = pq.read_table(path)
    assert written["user_id"].to_pylist() == [0, 0, 1, 1, 1, 1, 1, 2, 3]
    assert written["timestamp"].to_pylist() == sequences.times[events].tolist()
    vectors = torch.tensor(written["vector"].to_pylist())
    assert torch.equal(vectors, inference.encode_histories(*asked))
    groups = pq.ParquetFile(path).metadata
    sizes = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
    assert all(size >= rows for size in sizes[:-1])
    assert (len(sizes) > 1) == (rows < 9)


def test_no_user_vectors_are_a_file_without_rows(store, tmp_path):
    none, path = np.empty(0, np.int64), tmp_path / "users.parquet"
    parts = inference.history_vectors(
        make_towers(store), store, make_sequences([3]), none, 4, CPU
    )
    export.write_user_vectors(path, make_sequences([3]), none, parts, dim=4)
    written = pq.read_table(path)
    assert written.num_rows == 0
    assert written.schema.field("vector").type == pa.list_(pa.float32(), 4)


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
    # The last events before 5 are 0, 3, 5; the last before 15 are 1, 4, 5.
    last = snapshot_events(sequences, ExportConfig(snapshots="last"), times)
    assert last.tolist() == [0, 1, 3, 4, 5]
    early = SplitTimes(towers_until=0, test_from=0)
    none = snapshot_events(sequences, ExportConfig(snapshots="last"), early)
    assert none.tolist() == []
