"""Which user vectors are exported: against plain loops, and against all of them."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from random_sequences import sequence_set

from learn_torchrec.apps import main as command_line
from learn_torchrec.apps.export_vectors import asked_impressions
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.row_groups import RowGroups
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.towers.export import ExportConfig
from learn_torchrec.towers.snapshots import asked_for, snapshot_events

DAY = 86_400
TIMES = SplitTimes(towers_until=4 * DAY, test_from=7 * DAY)


@pytest.fixture(params=range(3))
def users(request):
    """Users with up to 12 events in ten days, some of them of one second."""
    random = np.random.default_rng(request.param)
    lengths = random.integers(0, 13, 30)
    lengths[[0, 7]], lengths[-1] = 0, 5
    times = [np.sort(random.integers(0, 40, n)) * DAY // 4 for n in lengths]
    return sequence_set(
        user_ids=pa.array(range(100, 130)),
        offsets=np.r_[0, np.cumsum(lengths)],
        items=random.integers(0, 40, lengths.sum()),
        times=np.concatenate(times).astype(np.int64),
    )


def chosen(users, snapshots, **options):
    config = ExportConfig(snapshots=snapshots)
    return snapshot_events(users, config, TIMES, **options).tolist()


def events_of(users):
    for start, end in zip(users.starts.tolist(), users.ends.tolist(), strict=True):
        yield range(start, end)


def test_the_last_of_the_log_of_every_user(users):
    expected = [max(events) for events in events_of(users) if events]
    assert chosen(users, "latest") == expected


def test_the_last_before_both_moments(users):
    expected = {
        max(e for e in events if users.times[e] < moment)
        for events in events_of(users)
        for moment in (TIMES.towers_until, TIMES.test_from)
        if any(users.times[e] < moment for e in events)
    }
    assert chosen(users, "last") == sorted(expected)


def closing(users, since, period):
    """The last event of each period, but those that a lookup from `since` on skips."""
    kept = []
    for events in events_of(users):
        last = {users.times[e] // period: e for e in events}
        found = list(last.values())
        for one, later in itertools.zip_longest(found, found[1:]):
            if later is None or since is None or users.times[later] >= since:
                kept.append(one)
    return kept


@pytest.mark.parametrize("since", [None, 0, 5 * DAY, 5 * DAY + 1, 99 * DAY])
@pytest.mark.parametrize(("snapshots", "period"), [("event", 1), ("daily", DAY)])
def test_the_last_of_every_second_or_day(users, since, snapshots, period):
    assert chosen(users, snapshots, since=since) == closing(users, since, period)


def impressions(count=200):
    random = np.random.default_rng(5)
    ids = random.integers(95, 135, count)  # some unknown
    return pa.table(
        {
            "user_id": ids.astype(np.int32),
            "item_id": ids,
            "timestamp": random.integers(-3, 45, count) * DAY // 4,
        }
    )


def test_what_impressions_ask_for(users, tmp_path):
    """An impression looks up the last vector strictly before it."""
    shown = impressions()
    expected = set()
    index = dict(zip(users.user_ids.to_pylist(), events_of(users), strict=True))
    for row in shown.to_pylist():
        events = index.get(row["user_id"], ())
        expected |= {
            max((e for e in events if users.times[e] < row["timestamp"]), default=-1)
        }
    expected.discard(-1)
    asked = asked_for(users, TableRows(shown, None, "memory"))
    assert 5 < asked.sum() < len(asked)
    assert chosen(users, "as-of-impressions", asked=asked) == sorted(expected)
    every = set(chosen(users, "event"))
    assert expected <= every
    pq.write_table(shown, tmp_path / "shown.parquet", row_group_size=30)
    rows = RowGroups(tmp_path / "shown.parquet")
    parts = [asked_for(users, rows, rank, 3) for rank in range(3)]
    assert np.array_equal(np.any(parts, axis=0), asked)
    assert not np.array_equal(parts[0], asked)


def test_impressions_of_another_type_of_ids_are_refused(users):
    shown = impressions()
    names = shown["user_id"].cast(pa.string())
    shown = shown.set_column(0, "user_id", names)
    with pytest.raises(UserError, match=r"memory: column 'user_id'.*the log"):
        asked_for(users, TableRows(shown, None, "memory"))


def exported(market: Path, store, out: Path, snapshots: str, *more: str):
    common = ["--data", f"parquet:{market}", "--content", str(store.directory)]
    sizes = ("width=16", "feed_forward_dim=32")
    settings = [f"--set=towers.model.encoder.{size}" for size in sizes]
    settings += [
        "--set=towers.training.epochs=1",
        "--set=towers.training.batch_size=16",
    ]
    settings += [
        f"--set=split.towers_until={40 * DAY}",
        f"--set=split.test_from={48 * DAY}",
    ]
    towers = out.parent / "towers"
    command_line.main(["train-towers", *common, "--out", str(towers), *settings])
    command = ["export-vectors", *common, "--towers", str(towers), "--out", str(out)]
    command_line.main(
        [*command, f"--set=export.snapshots={snapshots}", *settings, *more]
    )
    return LearnVectors.open(out)


def test_impressions_find_what_they_would_find_among_all(market, store, tmp_path):
    every = exported(market, store, tmp_path / "every", "event")
    asked = exported(market, store, tmp_path / "asked", "as-of-impressions")
    latest = exported(market, store, tmp_path / "latest", "latest")
    shown = asked_impressions(open_dataset(f"parquet:{market}"), 40 * DAY)
    rows = pa.concat_tables([p for n in range(len(shown)) for p in shown.pieces(n)])
    columns = rows["user_id"], rows["item_id"], rows["timestamp"]
    (before, _, there), (found, _, too) = every.lookup(*columns), asked.lookup(*columns)
    # Histories in other batches are summed in another order.
    torch.testing.assert_close(before, found, atol=1e-3, rtol=0)
    assert there.equal(too)
    assert there[:, 0].sum() > 100
    assert len(asked.users.vectors) < len(every.users.vectors)
    assert len(latest.users.vectors) == len(latest.users.index)
    now, _, _ = latest.lookup(*columns[:2])
    torch.testing.assert_close(now, every.lookup(*columns[:2])[0], atol=1e-3, rtol=0)


def test_other_impressions_are_other_vectors(market, store, tmp_path):
    """Their fingerprint is an input, so that nothing stale is reused."""
    made = exported(market, store, tmp_path / "asked", "as-of-impressions")
    path = market / "impressions.parquet"
    pq.write_table(pq.read_table(path).slice(0, 2900), path)
    with pytest.raises(SystemExit):
        exported(market, store, tmp_path / "asked", "as-of-impressions")
    again = exported(
        market, store, tmp_path / "asked", "as-of-impressions", "--overwrite"
    )
    assert len(again.users.vectors) < len(made.users.vectors)
