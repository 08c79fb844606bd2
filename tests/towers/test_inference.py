import numpy as np
import pytest
import torch
from random_sequences import make_sequences

from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.towers import inference
from learn_torchrec.towers.encoder import EncoderShape
from learn_torchrec.towers.export import ExportConfig, snapshot_events
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.training import build_towers

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


def test_no_events_give_no_vectors(store):
    towers = make_towers(store)
    none = np.empty(0, np.int64)
    vectors = inference.encode_histories(
        towers, store, make_sequences([3]), none, 4, CPU
    )
    assert vectors.shape == (0, 4)


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
