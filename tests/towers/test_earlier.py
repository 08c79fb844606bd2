"""Vectors that are taken over from an earlier export, and those that must not be."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from random_sequences import make_sequences

from learn_torchrec.apps import export_vectors
from learn_torchrec.apps import main as command_line
from learn_torchrec.artifact import read_manifest
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.towers import earlier
from learn_torchrec.towers.earlier import EarlierVectors, known_events, taken_over
from learn_torchrec.vector_table import VectorTable

DAY = 86_400


# --- What a user knows ----------------------------------------------------------------


@pytest.fixture(params=[1, 2, 100])
def users(request, monkeypatch):
    """Users with 3, 0, 2 and 4 events, of whom 1, 2 or all are read at a time."""
    monkeypatch.setattr(earlier, "_USERS", request.param)
    return make_sequences([3, 0, 2, 4])


def test_later_events_and_other_users_change_nothing(users):
    every = known_events(users, np.arange(9))
    assert len(set(every.tolist())) == 9
    assert (
        known_events(users, np.array([1, 4, 8])).tolist() == every[[1, 4, 8]].tolist()
    )
    shorter = users.select_events(np.array([0, 1, 3, 4, 5, 6]))
    found = known_events(shorter, np.arange(6))
    assert found.tolist() == every[[0, 1, 3, 4, 5, 6]].tolist()


@pytest.mark.parametrize("column", ["items", "times", "actions"])
def test_another_event_changes_what_is_known_from_it_on(users, column):
    values = getattr(users, column).copy()
    values[6] += 1
    before = known_events(users, np.arange(9))
    after = known_events(replace(users, **{column: values}), np.arange(9))
    assert np.flatnonzero(before != after).tolist() == [6, 7, 8]


def test_the_order_of_one_second_counts(users):
    items = users.items.copy()
    items[5:9] = [1, 2, 3, 4]
    times = np.zeros(9, np.int64)
    one = replace(users, items=items, times=times)
    other = replace(one, items=items[[0, 1, 2, 3, 4, 6, 5, 7, 8]])
    assert known_events(one, np.array([8])) != known_events(other, np.array([8]))


def test_an_event_of_zeros_is_an_event(users):
    zeros = replace(users, items=np.zeros(9, np.int64), times=np.zeros(9, np.int64))
    assert (known_events(zeros, np.arange(9)) != 0).all()


# --- Tables ---------------------------------------------------------------------------


def table_of_items(ids, vectors):
    users = VectorTable.build(ids=[1], times=np.array([5]), vectors=[[1.0, 0.0]])
    items = VectorTable.build(ids=ids, vectors=vectors)
    return EarlierVectors(items, users, np.zeros(1, np.uint64))


@pytest.mark.parametrize(
    ("ids", "rows", "vectors", "same"),
    [
        ([7, 8], [0, 1], [[1, 0], [0, 1]], True),
        ([8], [1], [[0, 1.0005]], True),
        ([8, 9], [1, 2], [[0, 1], [0.6, 0.8]], True),  # an item is new
        ([8], [1], [[0.1, 0.99]], False),
        ([8, 7], [0, 1], [[0, 1], [1, 0]], False),
        ([9], [1], [[0, 1]], False),
    ],
)
def test_items_that_are_the_same(ids, rows, vectors, same):
    before = table_of_items([7, 8], [[1, 0], [0, 1]])
    given = pa.array(ids), np.array(rows), torch.tensor(vectors, dtype=torch.float32)
    assert before.has_items(*given) is same


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_old_and_new_vectors_are_in_their_order(at_once, monkeypatch):
    monkeypatch.setattr(earlier, "_ROWS", at_once)
    table = VectorTable.build(ids=[5, 6, 7], vectors=[[0, 5], [0, 6], [0, 7]])
    rows = np.array([UNKNOWN, 2, 0, UNKNOWN, UNKNOWN, UNKNOWN, 1, 1])
    encoded = [torch.tensor([[1.0, 1], [1, 2], [1, 3]]), torch.tensor([[1.0, 4]])]
    found = torch.cat(list(taken_over(encoded, rows, table))).tolist()
    new = [[1, 1], [1, 2], [1, 3], [1, 4]]
    assert found == [new[0], [0, 7], [0, 5], *new[1:], [0, 6], [0, 6]]


# --- The app --------------------------------------------------------------------------


class Runs:
    """Trains towers on a market, and exports its vectors again and again."""

    def __init__(self, market, store, folder, monkeypatch):
        self.log = market / "interactions.parquet"
        self.folder, self.encoded = folder, []
        sizes = ("width=16", "feed_forward_dim=32")
        settings = [f"--set=towers.model.encoder.{size}" for size in sizes]
        settings += [f"--set=split.towers_until={40 * DAY}"]
        settings += [f"--set=split.test_from={48 * DAY}"]
        settings += ["--set=towers.training.epochs=1"]
        settings += ["--set=towers.training.batch_size=16"]
        self.settings = ["--data", f"parquet:{market}", *settings]
        self.settings += ["--content", str(store.directory)]
        self.train("towers")
        encode = export_vectors.history_vectors

        def counted(towers, store, sequences, events, *more):
            self.encoded.append(len(events))
            return encode(towers, store, sequences, events, *more)

        monkeypatch.setattr(export_vectors, "history_vectors", counted)

    def train(self, name, *more):
        out = ["--out", str(self.folder / name)]
        command_line.main(["train-towers", *self.settings, *out, *more])

    def export(self, name, before=None, towers="towers", snapshots="event"):
        """Return the users' vectors, how many were encoded and how many taken over."""
        out = self.folder / name
        command = [*self.settings, "--towers", str(self.folder / towers)]
        command += ["--out", str(out), f"--set=export.snapshots={snapshots}"]
        command += ["--earlier", str(self.folder / before)] if before else []
        command_line.main(["export-vectors", *command])
        facts = read_manifest(out).facts
        assert facts["snapshots"] == self.encoded[-1] + facts["taken_over"]
        return LearnVectors.open(out).users, self.encoded[-1], facts["taken_over"]

    def rewrite(self, change):
        pq.write_table(change(pq.read_table(self.log)), self.log)


@pytest.fixture
def runs(market, store, tmp_path, monkeypatch):
    return Runs(market, store, tmp_path, monkeypatch)


def until(day):
    return lambda log: log.filter(pa.array(log["timestamp"].to_numpy() < day * DAY))


def assert_same(one, other):
    assert one.index.ids.equals(other.index.ids)
    assert np.array_equal(one.times, other.times)
    rows = np.arange(len(one.vectors))
    found = one.vectors[rows].astype(float), other.vectors[rows].astype(float)
    np.testing.assert_allclose(*found, atol=2e-3)


@pytest.mark.parametrize("snapshots", ["event", "latest"])
def test_only_users_with_new_events_are_encoded(runs, snapshots):
    whole = pq.read_table(runs.log)
    runs.rewrite(until(58))
    _, first, none = runs.export("first", snapshots=snapshots)
    assert none == 0
    pq.write_table(whole, runs.log)
    every, count, _ = runs.export("every", snapshots=snapshots)
    found, encoded, taken = runs.export("next", "first", snapshots=snapshots)
    assert_same(found, every)
    liked = until(99)(whole).filter(pa.array(np.array(whole["action"]) == "like"))
    new = liked.filter(pa.array(liked["timestamp"].to_numpy() >= 58 * DAY))
    active = len(new["user_id"].unique())
    wanted = active if snapshots == "latest" else new.num_rows
    assert 0 < encoded <= wanted
    assert taken == count - encoded
    if snapshots == "event":
        assert taken == first


def test_an_event_that_arrives_late_is_known_to_all_later_vectors(runs):
    runs.export("first")

    def with_late_event(log):
        one = log.slice(0, 1).to_pylist()[0] | {"timestamp": 5, "action": "like"}
        return pa.concat_tables([pa.Table.from_pylist([one], log.schema), log])

    user = pq.read_table(runs.log)["user_id"][0].as_py()
    runs.rewrite(with_late_event)
    every, _, _ = runs.export("every")
    found, encoded, _ = runs.export("next", "first")
    assert_same(found, every)
    row = found.index.rows_of(pa.array([user]))[0]
    assert encoded == np.diff(found.offsets)[row]


def test_other_towers_take_nothing_over(runs, monkeypatch):
    """Not even if they agree on the items."""
    monkeypatch.setattr(EarlierVectors, "has_items", lambda *_: True)
    runs.export("first")
    more = ["--warm-start", str(runs.folder / "towers"), "--set=towers.training.seed=7"]
    runs.train("others", *more)
    _, _, taken = runs.export("next", "first", towers="others")
    assert taken == 0
