"""The preparation of a log: clean, cut, cap, sort, group, split, count.

One description in SQL that DuckDB and Spark both run (see `engines`), for logs that are
larger than memory. The engine sorts the log once; what needs a user's events side by
side is done on that stream (`user_stream`). What is left out is counted by reason:

- `nulls`: a row without user, item, time or action;
- `bad_times`: a time before 1970 or after 2200;
- `unknown_items`: an item that the item table does not have;
- `outside_window`: before the history, or after the targets (`history_days`);
- `repeats`: a further row with the same user, item, time and action;
- `over_cap`: a user's oldest events of a behaviour beyond its cap;
- `short_users`: events of users with fewer than `min_events`.

Events of a user are sorted by time; at equal times by item and action, so that every
engine gives the same order. Users are in the order of their ids.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt

from learn_torchrec.config import Share, configuration
from learn_torchrec.datasets.preparation.engines import Engine
from learn_torchrec.datasets.preparation.user_stream import UserStream
from learn_torchrec.errors import UserError
from learn_torchrec.schema import ACTION, ITEM_ID, TIMESTAMP, USER_ID

_DAY = 86_400
_YEAR_2200 = 7_258_118_400
_MOST_ACTIONS = 1 << 15  # an event's is stored as int16
LOG, ITEMS = "log", "items"


@configuration
class PrepareConfig:
    """How a log becomes sequences.

    Attributes:
        history_days: days of history that are kept before the moment that parts
            history from targets (the paper: 270, nine months); 0 keeps everything.
        target_days: days from that moment to the end of the log (the paper: 30).
        split: what parts a user's history from the targets: that moment ("time"),
            a share of the events ("ratio"), or the last event ("leave_one_out").
        history_share: that share.
        test_users: share of the users marked as test users, by a hash of their id.
        length_quantile: caps the events a user may have of a behaviour (action) at
            this quantile of all users' numbers of them; the latest are kept. 1 caps
            nothing.
        min_events: users with fewer events are left out.
        drop_repeats: an event that is exactly repeated counts once.
    """

    history_days: NonNegativeInt = 0
    target_days: PositiveInt = 30
    split: Literal["time", "ratio", "leave_one_out"] = "time"
    history_share: Share = 0.8
    test_users: Annotated[float, Field(ge=0, lt=1)] = 0.2
    length_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_events: PositiveInt = 1
    drop_repeats: bool = True


class Prepared:
    """A log in an engine, ready to be read once.

    Attributes:
        actions: names; an event's action is a number into them.
        moment: that parts history from targets, unix seconds.
        dropped: rows left out, by reason; complete once `events` has ended.
        users: `user_id`, `events`, `history_events`, `first_time`, `last_time` and
            `is_test`, in the order of the ids; there once `events` has ended.
    """

    def __init__(
        self,
        engine: Engine,
        config: PrepareConfig,
        actions: list[str],
        moment: int,
        good_rows: int,
        dropped: dict[str, int],
        source: str,
    ) -> None:
        self.actions, self.moment, self.dropped = actions, moment, dropped
        self.users = pa.table({})
        self._engine, self._config, self._source = engine, config, source
        self._good_rows = good_rows

    def events(self) -> Iterator[pa.RecordBatch]:
        """Yield `item`, `event_time` and `action`, sorted by user and time.

        Raises:
            UserError: no user has enough events, or the engine fails (a full disk).
        """
        config, dropped = self._config, self.dropped
        stream = UserStream(
            self._engine.stream(
                "SELECT user_id, item, event_time, action FROM kept "
                "ORDER BY user_id, event_time, item, action"
            ),
            moment=self.moment,
            min_events=config.min_events,
            drop_repeats=config.drop_repeats,
        )
        yield from stream.events()
        # What is good and did not come lies outside of the window, or is counted.
        did_not_come = self._good_rows - stream.rows
        dropped["outside_window"] = (
            did_not_come - dropped["repeats"] - dropped["over_cap"]
        )
        dropped["repeats"] += stream.repeats
        dropped["short_users"] = stream.of_short_users
        users = stream.users()
        if not users.num_rows:
            raise UserError(
                f"{self._source}: no user has prepare.min_events={config.min_events} "
                "events; lower it, or keep more days (prepare.history_days)"
            )
        self.users = _with_split(users, self._engine, config)


def prepare(
    engine: Engine, config: PrepareConfig, time_type: pa.DataType, source: str
) -> Prepared:
    """Run the preparation on the tables `log` and `items` of an engine.

    Args:
        engine: with `log` (`user_id`, `item_id`, `timestamp`, `action`) and `items`
            (`item_id` and its row number `item`).
        config: see `PrepareConfig`.
        time_type: of the log's times: integers are unix seconds.
        source: of the log, for messages.

    Raises:
        UserError: nothing is left, more actions than can be numbered, or a statement
            that the engine refuses.
    """
    time = engine.seconds(f"l.{TIMESTAMP}", time_type)
    actions = engine.table(
        f"SELECT DISTINCT {ACTION} AS name FROM log WHERE {ACTION} IS NOT NULL "
        "ORDER BY name"
    )
    if actions.num_rows > _MOST_ACTIONS:
        raise UserError(
            f"{source}: column {ACTION!r} has {actions.num_rows:,} distinct values, "
            f"more than {_MOST_ACTIONS:,}; name the column of the kind of event "
            "(parquet:DIR#action=COLUMN)"
        )
    codes = pa.array(range(actions.num_rows), pa.int16())
    engine.add("actions", actions.append_column("code", codes))
    counts = _count_rows(engine, time)
    if counts["good"] == 0:
        raise UserError(
            f"{source}: none of its {counts['rows_read']} rows can be used "
            f"({_reasons(counts)}); look at its columns and at the item table"
        )
    moment = counts["latest"] + 1 - config.target_days * _DAY
    first = moment - config.history_days * _DAY if config.history_days else 1
    dropped = {name: counts[name] for name in ("nulls", "bad_times", "unknown_items")}
    dropped |= {"repeats": 0, "over_cap": 0}
    if config.length_quantile == 1:
        engine.view("kept", _events_sql(time, first))
    else:
        dropped |= _keep_latest(engine, _events_sql(time, first), config)
    return Prepared(
        engine=engine,
        config=config,
        actions=actions["name"].to_pylist(),
        moment=moment,
        good_rows=counts["good"],
        dropped=dropped,
        source=source,
    )


def _count_rows(engine: Engine, time: str) -> dict[str, int]:
    null = " OR ".join(
        f"l.{name} IS NULL" for name in (USER_ID, ITEM_ID, TIMESTAMP, ACTION)
    )
    wild = f"({time} < 1 OR {time} >= {_YEAR_2200})"
    cases = {
        "nulls": null,
        "bad_times": f"NOT ({null}) AND {wild}",
        "unknown_items": f"NOT ({null}) AND NOT {wild} AND i.item IS NULL",
        "good": f"NOT ({null}) AND NOT {wild} AND i.item IS NOT NULL",
    }
    sums = ", ".join(
        f"CAST(coalesce(sum(CASE WHEN {case} THEN 1 ELSE 0 END), 0) AS BIGINT) "
        f"AS {name}"
        for name, case in cases.items()
    )
    row: dict[str, int] = engine.table(
        f"SELECT CAST(count(*) AS BIGINT) AS rows_read, {sums}, "
        f"CAST(max(CASE WHEN {cases['good']} THEN {time} END) AS BIGINT) AS latest "
        f"FROM log l LEFT JOIN items i ON l.{ITEM_ID} = i.{ITEM_ID}"
    ).to_pylist()[0]
    return row


def _events_sql(time: str, first: int) -> str:
    """The good rows inside the window."""
    return (
        f"SELECT l.{USER_ID} AS user_id, CAST(i.item AS INT) AS item, "
        f"{time} AS event_time, a.code AS action "
        f"FROM log l JOIN items i ON l.{ITEM_ID} = i.{ITEM_ID} "
        f"JOIN actions a ON l.{ACTION} = a.name "
        f"WHERE l.{USER_ID} IS NOT NULL "
        f"AND {time} >= {first} AND {time} < {_YEAR_2200}"
    )


def _keep_latest(engine: Engine, events: str, config: PrepareConfig) -> dict[str, int]:
    """Make `kept`: events within the cap of their behaviour; return what is not."""
    columns = "user_id, item, event_time, action"
    if config.drop_repeats:  # a repeat must not use up the cap
        engine.keep(
            "events",
            f"SELECT {columns}, count(*) AS copies FROM ({events}) rows "
            f"GROUP BY {columns}",
        )
    else:
        engine.keep("events", f"SELECT {columns}, 1 AS copies FROM ({events}) rows")
    engine.keep(
        "caps",
        f"SELECT action, percentile_disc({config.length_quantile}) "
        "WITHIN GROUP (ORDER BY n) AS cap FROM (SELECT user_id, action, count(*) AS n "
        "FROM events GROUP BY user_id, action) lengths GROUP BY action",
    )
    engine.keep(
        "kept",
        "SELECT r.user_id, r.item, r.event_time, r.action FROM ("
        f"SELECT {columns}, row_number() OVER (PARTITION BY user_id, action "
        "ORDER BY event_time DESC, item DESC) AS recency FROM events) r "
        "JOIN caps c ON r.action = c.action WHERE r.recency <= c.cap",
    )
    rows, distinct = _sum(engine, "copies", "events"), _sum(engine, "1", "events")
    return {
        "repeats": rows - distinct,
        "over_cap": distinct - _sum(engine, "1", "kept"),
    }


def _with_split(users: pa.Table, engine: Engine, config: PrepareConfig) -> pa.Table:
    """Add `is_test`; say which events are history where the moment does not."""
    if config.split != "time":
        events = users["events"].to_numpy()
        # 0.29 * 100 is a little less than 29, in floating point.
        history = np.floor(np.round(events * config.history_share, 6)).astype(np.int64)
        if config.split == "leave_one_out":
            history = events - 1
        place = users.column_names.index("history_events")
        users = users.set_column(place, "history_events", pa.array(history))
    # The first 32 bits of the hash, as text: both engines spell them the same way.
    bound = f"{min(round(config.test_users * 2**32), 2**32 - 1):08x}"
    engine.add("users", users.select([USER_ID]))
    is_test = engine.table(
        f"SELECT substr(md5(CAST({USER_ID} AS STRING)), 1, 8) < '{bound}' AS is_test "
        f"FROM users ORDER BY {USER_ID}"
    )
    return users.append_column("is_test", is_test["is_test"])


def _sum(engine: Engine, value: str, name: str) -> int:
    sql = f"SELECT CAST(coalesce(sum({value}), 0) AS BIGINT) AS n FROM {name}"
    return int(engine.table(sql)["n"][0].as_py())


def _reasons(counts: dict[str, int]) -> str:
    names = ("nulls", "bad_times", "unknown_items")
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in names)
