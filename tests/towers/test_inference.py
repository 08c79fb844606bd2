import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.towers import inference
from learn_torchrec.towers.encoder import EncoderShape
from learn_torchrec.towers.export import ExportConfig, snapshot_events
from learn_torchrec.towers.holdout import (
    RetrievalConfig,
    evaluate_baselines,
    retrieval_task,
    split_users,
)
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.training import build_towers

CPU = torch.device("cpu")


def make_sequences(lengths, seed=0):
    random = np.random.default_rng(seed)
    return SequenceSet(
        user_ids=pa.array(range(len(lengths))),
        offsets=np.r_[0, np.cumsum(lengths)],
        items=random.integers(0, 40, sum(lengths)),
        times=np.concatenate([np.arange(length) * 10 for length in lengths]),
    )


def make_towers(store):
    torch.manual_seed(0)
    shape = EncoderShape(
        width=8, num_layers=1, num_heads=2, feed_forward_dim=16, vector_dim=4
    )
    mean, std = (
        torch.from_numpy(store.mean).float(),
        torch.from_numpy(store.std).float(),
    )
    return build_towers(TowersModelConfig(encoder=shape), mean, std).eval()


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


def test_users_are_split_by_arrival():
    sequences = SequenceSet(
        user_ids=pa.array(range(200)),
        offsets=np.arange(201) * 4,
        items=np.zeros(800, np.int64),
        times=np.concatenate(
            [np.arange(4) + (0 if user < 150 else 100) for user in range(200)]
        ),
    )
    users = split_users(sequences, 3, SplitConfig(min_events=3, validation_users=0.2))
    assert users.test.user_ids.to_pylist() == list(range(150, 200))
    known = [*users.train.user_ids.to_pylist(), *users.validation.user_ids.to_pylist()]
    assert sorted(known) == list(range(150))
    assert 10 < len(users.validation) < 50
    # Nothing at or after the cut-off reaches training or validation.
    assert users.train.times.max() == users.validation.times.max() == 2
    with pytest.raises(UserError, match=r"no test user has split\.min_events=3"):
        split_users(sequences, 1000, SplitConfig(min_events=3))


def test_retrieval_task_and_baselines(store):
    sequences = make_sequences([5, 2])
    task = retrieval_task(sequences, 0.8)
    assert task.last_history.tolist() == [3, 5]
    assert task.history.offsets.tolist() == [0, 4, 5]
    assert task.targets.rows.tolist() == [sequences.items[4], sequences.items[6]]
    everything = RetrievalConfig(ks=(40,), filter_history=False)
    for metrics in evaluate_baselines(sequences, store, task, everything).values():
        assert metrics["r@40"] == 1.0
    filtered = RetrievalConfig(ks=(40,), filter_history=True)
    rows = evaluate_baselines(sequences, store, task, filtered)
    expected = np.mean(
        [
            sequences.items[4] not in sequences.items[:4],
            sequences.items[6] != sequences.items[5],
        ]
    )
    for metrics in rows.values():
        assert metrics["r@40"] == expected
