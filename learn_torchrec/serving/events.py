"""What users did lately: a store that the server appends to and reads from.

`open_events` returns one for a place: a SQLite file, beside the server, for one host;
or Redis, which several servers share. Both keep what they were told when the process is
killed. An event that is sent twice counts once: a client may send again what it got no
answer for.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from learn_torchrec.errors import UserError, first_line
from learn_torchrec.serving.request import Event as Event
from learn_torchrec.serving.request import Id as Id

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  user, time INTEGER, item, action TEXT, copy INTEGER,
  UNIQUE (user, time, item, action, copy));
CREATE TABLE IF NOT EXISTS items (item UNIQUE, body TEXT);
CREATE TABLE IF NOT EXISTS notes (name TEXT UNIQUE, body TEXT);
"""
# Columns without a type keep the number 1 and the text "1" apart, as ids are.
_INSERT = "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)"
_BUSY_SECONDS = 5.0
_SEED_NOTE = "seed"


class SeedRow(NamedTuple):
    """An event of a log.

    Attributes:
        user_id: who did it.
        event: what.
        copy: which of the equal events it is, from 0.
    """

    user_id: Id
    event: Event
    copy: int = 0


class EventStore(Protocol):
    """Events by user, and new items' texts; safe for several threads."""

    def append(self, events: Iterable[tuple[Id, Event]]) -> int:
        """Add users' events; return how many were new."""

    def recent(self, user_id: Id, limit: int) -> list[Event]:
        """Return a user's latest events, oldest first, at most `limit`."""

    def users(self, start: str, limit: int) -> list[Id]:
        """Return users whose id begins with a text, in no order that matters."""

    def seed(self, name: str, rows: Iterable[SeedRow]) -> int:
        """Add a log's events once; a log of the same name again adds none."""

    def put_items(self, items: Iterable[tuple[Id, dict[str, Any]]]) -> None:
        """Keep new items, each as JSON; an item of the same id is replaced."""

    def items(self) -> Iterator[tuple[Id, dict[str, Any]]]:
        """Yield the items that were kept."""

    def check(self) -> None:
        """Check that the store answers.

        Raises:
            UserError: it does not.
        """

    def close(self) -> None:
        """Release what it holds."""


def open_events(place: str) -> EventStore:
    """Open a store: `redis://...`, or the path of a SQLite file, made if missing.

    Raises:
        UserError: it cannot be opened.
    """
    if place.startswith(REDIS_SCHEMES):
        from learn_torchrec.serving.redis_events import RedisEvents

        return RedisEvents(place)
    if "://" in place:
        raise UserError(f"--events {place}: give the path of a file, or redis://...")
    return SqliteEvents(Path(place))


class SqliteEvents:
    """Events in a SQLite file with a write-ahead log: readers never wait.

    Raises:
        UserError: the file cannot be opened, or is none of SQLite's.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._writing = path, threading.Lock()
        # Whichever thread needs one takes the last: a server's threads come and go.
        self._idle: list[sqlite3.Connection] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._transaction() as connection:
                connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"--events {path}: cannot be opened ({first_line(error)}); name a file "
                "of its own"
            ) from None

    def append(self, events: Iterable[tuple[Id, Event]]) -> int:
        """See `EventStore`."""
        return self._insert(SeedRow(user, event) for user, event in events)

    def recent(self, user_id: Id, limit: int) -> list[Event]:
        """See `EventStore`."""
        query = "SELECT item, time, action FROM events WHERE user = ? "
        query += "ORDER BY time DESC, rowid DESC LIMIT ?"
        with self._connection() as connection:
            found = connection.execute(query, (user_id, limit)).fetchall()
        return [Event(*row) for row in reversed(found)]

    def users(self, start: str, limit: int) -> list[Id]:
        """See `EventStore`."""
        query = "SELECT DISTINCT user FROM events "
        given: tuple[Any, ...] = (limit,)
        if start:
            query += "WHERE substr(CAST(user AS TEXT), 1, ?) = ? "
            given = (len(start), start, limit)
        with self._connection() as connection:
            return [row[0] for row in connection.execute(query + "LIMIT ?", given)]

    def seed(self, name: str, rows: Iterable[SeedRow]) -> int:
        """See `EventStore`."""
        if self._note(_SEED_NOTE) == name:
            return 0
        added = self._insert(rows)
        with self._transaction() as connection:
            note = (_SEED_NOTE, name)
            connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", note)
        return added

    def put_items(self, items: Iterable[tuple[Id, dict[str, Any]]]) -> None:
        """See `EventStore`."""
        rows = [(item, json.dumps(body)) for item, body in items]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?)", rows)

    def items(self) -> Iterator[tuple[Id, dict[str, Any]]]:
        """See `EventStore`."""
        with self._connection() as connection:
            for item, body in connection.execute("SELECT item, body FROM items"):
                yield item, json.loads(body)

    def check(self) -> None:
        """See `EventStore`."""
        try:
            self._note(_SEED_NOTE)
        except sqlite3.Error as error:
            raise UserError(f"--events {self._path}: {first_line(error)}") from None

    def close(self) -> None:
        """See `EventStore`."""
        with self._writing:
            while self._idle:
                self._idle.pop().close()

    def _insert(self, rows: Iterable[SeedRow]) -> int:
        values = (
            (user, event.timestamp, event.item_id, event.action, copy)
            for user, event, copy in rows
        )
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany(_INSERT, values)
            return connection.total_changes - before

    def _note(self, name: str) -> str | None:
        query = "SELECT body FROM notes WHERE name = ?"
        with self._connection() as connection:
            found = connection.execute(query, (name,)).fetchone()
        return None if found is None else str(found[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing, self._connection() as connection, connection:
            yield connection

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Take a connection; readers of their own do not wait for writers."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # A crash of the machine may lose the last moments, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection
