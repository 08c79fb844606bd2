"""The stores of recent events: SQLite and a real Redis keep the same."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis_server

from learn_torchrec.datasets.adapters import open_dataset
from learn_torchrec.errors import UserError
from learn_torchrec.serving.events import (
    Event,
    EventStore,
    SeedRow,
    SqliteEvents,
    open_events,
)
from learn_torchrec.serving.seed import seed


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server.running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "new" / "events.sqlite")
    import redis

    url = request.getfixturevalue("redis_url")
    redis.Redis.from_url(url).flushall()
    return url


@pytest.fixture
def store(place: str) -> Iterator[EventStore]:
    opened = open_events(place)
    yield opened
    opened.close()


def test_the_latest_events_oldest_first(store: EventStore) -> None:
    events = [Event(10 + n, 100 + n, "buy") for n in range(5)]
    late = Event(9, 50, "look")
    assert store.append([("a", event) for event in [*events, late]]) == 6
    assert store.recent("a", 3) == events[2:]
    assert store.recent("a", 9) == [late, *events]
    assert store.recent("b", 9) == []


def test_ids_of_both_types_are_kept_apart(store: EventStore) -> None:
    store.append([(1, Event("x", 1, "buy")), ("1", Event(2, 2, "buy"))])
    assert store.recent(1, 9) == [Event("x", 1, "buy")]
    assert store.recent("1", 9) == [Event(2, 2, "buy")]
    big = 2**63 - 1
    store.append([(big, Event(-big, 3, "buy")), ("é:*\n", Event("é", 3, "ü"))])
    assert store.recent(big, 9) == [Event(-big, 3, "buy")]
    assert store.recent("é:*\n", 9) == [Event("é", 3, "ü")]


def test_an_event_sent_twice_counts_once(store: EventStore) -> None:
    once = ("a", Event(1, 5, "buy"))
    assert store.append([once, once]) == 1
    assert store.append([once, ("a", Event(1, 5, "look"))]) == 1
    assert len(store.recent("a", 9)) == 2


def test_a_log_is_added_once_as_it_is(store: EventStore) -> None:
    # Twice the same in one second, as in a log of purchases, and in the log's order.
    items = [3, 1, 3, 2]
    rows = [SeedRow("a", Event(item, 7, "buy")) for item in items]
    rows[2] = rows[2]._replace(copy=1)
    assert store.seed("first", rows) == 4
    assert [event.item_id for event in store.recent("a", 9)] == items
    assert store.seed("first", [SeedRow("b", Event(1, 1, "buy"))]) == 0
    assert store.recent("b", 9) == []
    assert store.seed("second", [*rows, SeedRow("b", Event(1, 1, "buy"))]) == 1


def test_users_by_the_start_of_their_id(store: EventStore) -> None:
    event = Event(1, 1, "buy")
    store.append([(user, event) for user in (12, 17, 21)])
    assert sorted(store.users("1", 9)) == [12, 17]
    assert len(store.users("", 2)) == 2
    assert store.users("3", 9) == []


def test_new_items_replace_each_other(store: EventStore) -> None:
    store.put_items([(7, {"title": "cup"}), ("7", {"title": "jug"})])
    store.put_items([(7, {"title": "mug"})])
    assert sorted(map(str, store.items())) == sorted(
        map(str, [(7, {"title": "mug"}), ("7", {"title": "jug"})])
    )


def test_another_process_sees_the_same(place: str, store: EventStore) -> None:
    store.append([("a", Event(1, 5, "buy"))])
    other = open_events(place)
    assert other.recent("a", 9) == [Event(1, 5, "buy")]
    other.append([("a", Event(2, 6, "buy"))])
    assert len(store.recent("a", 9)) == 2
    other.close()


def test_many_threads_lose_nothing(store: EventStore) -> None:
    def add(worker: int) -> None:
        for n in range(40):
            store.append([("a", Event(n, worker, "buy"))])
            assert len(store.recent("a", 500)) > n

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.recent("a", 500)) == 160


def test_a_thread_that_has_ended_holds_no_connection(tmp_path: Path) -> None:
    """A server makes threads anew with every reload."""
    path = tmp_path / "events.sqlite"
    store = SqliteEvents(path)

    def opened() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(link.exists() and link.resolve() == path for link in links)

    before = opened()
    for _ in range(20):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(store.recent, 1, 9).result() == []
    assert opened() == before == 1
    store.close()
    assert opened() == 0


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    code = (
        "import os, signal, sys\n"
        "from learn_torchrec.serving.events import Event, open_events\n"
        "store = open_events(sys.argv[1])\n"
        "for n in range(20): store.append([(1, Event(n, n, 'buy'))])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(open_events(str(path)).recent(1, 99)) == 20


def test_a_data_set_seeds_its_chosen_actions(tmp_path: Path, store: EventStore) -> None:
    items = {"item_id": [1, 2], "title": ["cup", "jug"]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    log = {
        "user_id": [5, 5, 5, 6],
        "item_id": [1, 2, 1, 2],
        "timestamp": [9, 8, 9, 4],
        "action": ["buy", "buy", "buy", "look"],
    }
    pq.write_table(pa.table(log), tmp_path / "interactions.parquet")
    dataset = open_dataset(f"parquet:{tmp_path}")
    assert seed(store, dataset, ["buy"]) == 3
    assert [event.item_id for event in store.recent(5, 9)] == [2, 1, 1]
    assert store.recent(6, 9) == []
    assert seed(store, dataset, ["buy"]) == 0
    assert seed(store, dataset, None) == 1


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be none" * 9)
    for place, message in (
        (str(tmp_path / "text"), "cannot be opened .*file is not a database"),
        (str(tmp_path), "cannot be opened"),
        ("http://host", "give the path of a file, or redis://"),
        ("redis://127.0.0.1:1/0", "Redis does not answer"),
        ("redis://:secret@127.0.0.1:1/0", "Redis does not answer"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            open_events(place)
        assert "secret" not in str(refused.value)


def test_a_store_that_is_gone_says_so(tmp_path: Path) -> None:
    with redis_server.running(tmp_path) as url:
        store = open_events(url)
    with pytest.raises(UserError, match="Redis does not answer"):
        store.check()
    file = SqliteEvents(tmp_path / "events.sqlite")
    with sqlite3.connect(tmp_path / "events.sqlite") as connection:
        connection.execute("DROP TABLE notes")
    with pytest.raises(UserError, match="no such table"):
        file.check()
