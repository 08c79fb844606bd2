"""Users' events in Redis, which several servers share."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from learn_torchrec.errors import UserError, first_line
from learn_torchrec.serving.events import Event, Id, SeedRow

_PREFIX = "learn-torchrec"
_ITEMS, _SEED = f"{_PREFIX}:items", f"{_PREFIX}:seed"
_EVENTS = f"{_PREFIX}:events:"
_TIMEOUT_SECONDS = 2.0
_BATCH = 5_000
_ORDER = 2.0**-20  # of events of one second within its score

T = TypeVar("T")


class RedisEvents:
    """Each user's events as a sorted set by time, each item as a field of a hash.

    Args:
        url: `redis://host:port/db`, `rediss://` for TLS, or `unix://`.

    Raises:
        UserError: redis-py is missing, or the server does not answer.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError:
            raise UserError(
                f"--events {url}: needs redis-py: pip install redis"
            ) from None
        self._error = redis.RedisError
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=_TIMEOUT_SECONDS, decode_responses=True
            )
        except ValueError as error:
            raise UserError(
                f"--events: not a Redis URL ({first_line(error)})"
            ) from None
        self.check()

    def append(self, events: Iterable[tuple[Id, Event]]) -> int:
        """See `EventStore`."""
        return self._insert(SeedRow(user, event) for user, event in events)

    def recent(self, user_id: Id, limit: int) -> list[Event]:
        """See `EventStore`."""
        key = _EVENTS + json.dumps(user_id)
        found = self._asked(lambda: self._client.zrange(key, -limit, -1))
        events = (json.loads(member) for member in found)
        return [Event(item, time, action) for time, item, action, _ in events]

    def users(self, start: str, limit: int) -> list[Id]:
        """See `EventStore`."""
        if limit < 1:
            return []
        found: list[Id] = []
        keys = self._client.scan_iter(match=f"{_EVENTS}*", count=1000)
        try:
            for key in itertools.islice(keys, 100_000):
                user: Id = json.loads(key.removeprefix(_EVENTS))
                if str(user).startswith(start):
                    found.append(user)
                    if len(found) == limit:
                        break
        except self._error as error:
            raise self._refused(error) from None
        return found

    def seed(self, name: str, rows: Iterable[SeedRow]) -> int:
        """See `EventStore`."""
        if self._asked(lambda: self._client.get(_SEED)) == name:
            return 0
        added = self._insert(rows)
        self._asked(lambda: self._client.set(_SEED, name))
        return added

    def put_items(self, items: Iterable[tuple[Id, dict[str, Any]]]) -> None:
        """See `EventStore`."""
        bodies = {json.dumps(item): json.dumps(body) for item, body in items}
        if bodies:
            self._asked(lambda: self._client.hset(_ITEMS, mapping=bodies))

    def items(self) -> Iterator[tuple[Id, dict[str, Any]]]:
        """See `EventStore`."""
        found = self._asked(lambda: self._client.hgetall(_ITEMS))
        for item, body in found.items():
            yield json.loads(item), json.loads(body)

    def check(self) -> None:
        """See `EventStore`."""
        self._asked(self._client.ping)

    def close(self) -> None:
        """See `EventStore`."""
        self._client.close()

    def _insert(self, rows: Iterable[SeedRow]) -> int:
        added, places = 0, dict[tuple[Id, int], int]()
        for batch in _batches(rows):
            pipe = self._client.pipeline(transaction=False)
            for user, event, copy in batch:
                # Events of one second stay in the order in which they came.
                place = places.get((user, event.timestamp), 0)
                places[user, event.timestamp] = place + 1
                body = [event.timestamp, event.item_id, event.action, copy]
                score = event.timestamp + min(place * _ORDER, 0.5)
                key = _EVENTS + json.dumps(user)
                pipe.zadd(key, {json.dumps(body): score}, nx=True)
            added += sum(self._asked(pipe.execute))
        return added

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except self._error as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> UserError:
        # Not the URL, which may hold a password.
        return UserError(f"--events: Redis does not answer ({first_line(error)})")


def _batches(rows: Iterable[SeedRow]) -> Iterator[list[SeedRow]]:
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, _BATCH)):
        yield batch
