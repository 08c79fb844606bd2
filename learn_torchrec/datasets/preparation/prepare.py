"""The preparation of a log: filter, cap, sort, group by user, count.

The same SQL runs on DuckDB and Spark (see `engines`), for logs larger than memory. The
engine sorts the log once; steps on a user's events run on the sorted stream
(`user_stream`). Dropped rows are counted by reason:

- `nulls`: no user, item, time or action;
- `bad_times`: a time before 1970 or after 2200;
- `unknown_items`: an item that is not in the item table;
- `outside_window`: before the history or after the targets (`history_days`);
- `repeats`: a duplicate of user, item, time and action;
- `over_cap`: a user's oldest events of an action beyond its cap;
- `short_users`: events of users with fewer than `min_events`.

A user's events are sorted by time in full resolution, of which seconds are kept, and at
equal times by item and action, so that all engines give the same order. Users are
sorted by id.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import pyarrow as pa
from pydantic import Field, PositiveInt

from learn_torchrec.arrays import decoded
from learn_torchrec.config import Days, configuration
from learn_torchrec.datasets.preparation.engines import Engine
from learn_torchrec.datasets.preparation.user_stream import UserStream
from learn_torchrec.errors import UserError, require_columns
from learn_torchrec.ids import is_text, normal_type, refuse_other_types, type_name
from learn_torchrec.schema import ACTION, ITEM_ID, TIMESTAMP, USER_ID
from learn_torchrec.times import ISO, YEAR_2200, is_time, not_iso

_DAY = 86_400
_MOST_ACTIONS = 1 << 15  # an event's is stored as int16
LOG, ITEMS = "log", "items"


@configuration
class PrepareConfig:
    """How a log becomes sequences.

    Attributes:
        history_days: days of history to keep before the moment that separates history
            from targets (the paper: 270, nine months); 0 for all.
        target_days: days from that moment to the end of the log (the paper: 30).
        length_quantile: caps a user's events of an action at this quantile of all
            users' counts of it, keeping the latest; 1 for no cap.
        min_events: users with fewer events are dropped.
        drop_repeats: drop exact duplicates of an event.
    """

    history_days: Annotated[int, Field(ge=0, le=36_525)] = 0
    target_days: Days = 30
    length_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_events: PositiveInt = 1
    drop_repeats: bool = True


@dataclass(kw_only=True)
class PreparedLog:
    """A log in an engine, to be read once.

    Attributes:
        engine: with the table `kept`.
        config: of the preparation.
        source: of the log, for messages.
        actions: names; an event's action is a position in them.
        moment: that separates history from targets, unix seconds.
        latest: time of the last valid row, unix seconds.
        valid_rows: rows that are not null, of implausible times or of unknown items.
        dropped: rows by reason; complete after `events`.
        users: `user_id` and `events`, sorted by id; complete after `events`.
    """

    engine: Engine
    config: PrepareConfig
    source: str
    actions: list[str]
    moment: int
    latest: int
    valid_rows: int
    dropped: dict[str, int]
    users: pa.Table = field(default_factory=lambda: pa.table({}))

    def events(self) -> Iterator[pa.RecordBatch]:
        """Yield `item`, `event_time` and `action`, sorted by user and time.

        Raises:
            UserError: no user has enough events, or the engine fails (a full disk).
        """
        config, dropped = self.config, self.dropped
        stream = UserStream(
            self.engine.stream(
                "SELECT user_id, item, event_time, action, tick FROM kept "
                "ORDER BY user_id, tick, item, action"
            ),
            min_events=config.min_events,
            drop_repeats=config.drop_repeats,
        )
        yield from stream.events()
        # Valid rows that were not read are outside the window or already counted.
        not_read = self.valid_rows - stream.rows
        dropped["outside_window"] = not_read - dropped["repeats"] - dropped["over_cap"]
        dropped["repeats"] += stream.repeats
        dropped["short_users"] = stream.of_short_users
        self.users = stream.users()
        if not self.users.num_rows:
            raise UserError(
                f"{self.source}: no user has prepare.min_events={config.min_events} "
                "events; lower it, or keep more days (prepare.history_days)"
            )


def check_types(log: pa.Schema, item_ids: pa.DataType, source: str) -> None:
    """Check a log's column types, which SQL would otherwise coerce.

    Args:
        log: schema of the log.
        item_ids: type of the item table's ids.
        source: of the log, for messages.

    Raises:
        UserError: a column is missing or of the wrong type, or its item ids are of
            another type than the item table's.
    """
    require_columns(log.names, (USER_ID, ITEM_ID, TIMESTAMP, ACTION), source)
    for name in (USER_ID, ITEM_ID):
        where = f"{source}: column {name!r}"
        ids = normal_type(decoded(log.field(name).type), where)
    refuse_other_types(ids, item_ids, where, "the item table")
    for name, wanted, fits in (
        (TIMESTAMP, "int64 (unix seconds)", is_time),
        (ACTION, "string", is_text),
    ):
        kind = decoded(log.field(name).type)
        if not fits(kind):
            raise UserError(
                f"{source}: column {name!r} is {type_name(kind)}, must be {wanted}; "
                "convert it"
            )


def prepare(
    engine: Engine, config: PrepareConfig, time_type: pa.DataType, source: str
) -> PreparedLog:
    """Run the preparation on the tables `log` and `items` of an engine.

    Args:
        engine: with `log` (`user_id`, `item_id`, `timestamp`, `action`) and `items`
            (`item_id` and its row number `item`).
        config: see `PrepareConfig`.
        time_type: of the log's times, see `times.is_time`.
        source: of the log, for messages.

    Raises:
        UserError: no valid row, too many actions, or a statement that the engine
            refuses.
    """
    time = engine.seconds(f"l.{TIMESTAMP}", time_type)
    tick = engine.ticks(f"l.{TIMESTAMP}", time_type)
    if is_text(time_type):
        _refuse_other_notation(engine, source)
    actions = engine.table(
        f"SELECT DISTINCT {ACTION} AS name FROM log WHERE {ACTION} IS NOT NULL "
        "ORDER BY name"
    )
    if actions.num_rows > _MOST_ACTIONS:
        raise UserError(
            f"{source}: column {ACTION!r} has {actions.num_rows:,} distinct values, "
            f"more than {_MOST_ACTIONS:,}; name the column of the event's type "
            "(parquet:DIR#action=COLUMN)"
        )
    codes = pa.array(range(actions.num_rows), pa.int16())
    engine.register("actions", actions.append_column("code", codes))
    counts = _count_rows(engine, time)
    dropped = {name: counts[name] for name in ("nulls", "bad_times", "unknown_items")}
    if counts["valid"] == 0:
        reasons = (f"{n} {name.replace('_', ' ')}" for name, n in dropped.items())
        raise UserError(
            f"{source}: none of its {counts['rows_read']} rows can be used "
            f"({', '.join(reasons)}); check its columns and the item table, and that "
            "times are unix seconds, not milliseconds"
        )
    moment = counts["latest"] + 1 - config.target_days * _DAY
    first = moment - config.history_days * _DAY if config.history_days else 1
    dropped |= {"repeats": 0, "over_cap": 0}
    if config.length_quantile == 1:
        engine.view("kept", _events_sql(time, tick, first))
    else:
        dropped |= _keep_latest(engine, _events_sql(time, tick, first), config)
    return PreparedLog(
        engine=engine,
        config=config,
        source=source,
        actions=actions["name"].to_pylist(),
        moment=moment,
        latest=counts["latest"],
        valid_rows=counts["valid"],
        dropped=dropped,
    )


def unknown_items(engine: Engine) -> pa.ChunkedArray:
    """Return the ids of the table `log` that the table `items` lacks, sorted."""
    return engine.table(
        f"SELECT DISTINCT l.{ITEM_ID} AS id FROM log l LEFT JOIN items i "
        f"ON l.{ITEM_ID} = i.{ITEM_ID} "
        f"WHERE i.item IS NULL AND l.{ITEM_ID} IS NOT NULL ORDER BY id"
    )["id"]


def _refuse_other_notation(engine: Engine, source: str) -> None:
    """Refuse texts that are not ISO 8601; engines would read some of them."""
    other = engine.table(
        f"SELECT {TIMESTAMP} AS time FROM log WHERE {TIMESTAMP} IS NOT NULL "
        f"AND regexp_extract({TIMESTAMP}, '{ISO}', 0) = '' LIMIT 1"
    )
    if other.num_rows:
        where = f"{source}: column {TIMESTAMP!r}"
        raise not_iso(where, other["time"][0].as_py())


def _count_rows(engine: Engine, time: str) -> dict[str, int]:
    null = " OR ".join(
        f"l.{name} IS NULL" for name in (USER_ID, ITEM_ID, TIMESTAMP, ACTION)
    )
    implausible = f"({time} < 1 OR {time} >= {YEAR_2200})"
    cases = {
        "nulls": null,
        "bad_times": f"NOT ({null}) AND {implausible}",
        "unknown_items": f"NOT ({null}) AND NOT {implausible} AND i.item IS NULL",
        "valid": f"NOT ({null}) AND NOT {implausible} AND i.item IS NOT NULL",
    }
    sums = ", ".join(
        f"CAST(coalesce(sum(CASE WHEN {case} THEN 1 ELSE 0 END), 0) AS BIGINT) "
        f"AS {name}"
        for name, case in cases.items()
    )
    row: dict[str, int] = engine.table(
        f"SELECT CAST(count(*) AS BIGINT) AS rows_read, {sums}, "
        f"CAST(max(CASE WHEN {cases['valid']} THEN {time} END) AS BIGINT) AS latest "
        f"FROM log l LEFT JOIN items i ON l.{ITEM_ID} = i.{ITEM_ID}"
    ).to_pylist()[0]
    return row


def _events_sql(time: str, tick: str, first: int) -> str:
    """Return the query for the valid rows inside the window."""
    return (
        f"SELECT l.{USER_ID} AS user_id, CAST(i.item AS INT) AS item, "
        f"{time} AS event_time, a.code AS action, {tick} AS tick "
        f"FROM log l JOIN items i ON l.{ITEM_ID} = i.{ITEM_ID} "
        f"JOIN actions a ON l.{ACTION} = a.name "
        f"WHERE l.{USER_ID} IS NOT NULL "
        f"AND {time} >= {first} AND {time} < {YEAR_2200}"
    )


def _keep_latest(engine: Engine, events: str, config: PrepareConfig) -> dict[str, int]:
    """Create `kept`, the events within the cap of their action; count the others."""
    columns = "user_id, item, event_time, action, tick"
    copies, group_by = "1", ""
    if config.drop_repeats:  # a repeat must not use up the cap
        copies, group_by = "count(*)", f" GROUP BY {columns}"
    engine.materialize(
        "events", f"SELECT {columns}, {copies} AS copies FROM ({events}) rows{group_by}"
    )
    engine.materialize(
        "caps",
        f"SELECT action, percentile_disc({config.length_quantile}) "
        "WITHIN GROUP (ORDER BY n) AS cap FROM (SELECT user_id, action, count(*) AS n "
        "FROM events GROUP BY user_id, action) lengths GROUP BY action",
    )
    engine.materialize(
        "kept",
        "SELECT r.user_id, r.item, r.event_time, r.action, r.tick FROM ("
        f"SELECT {columns}, row_number() OVER (PARTITION BY user_id, action "
        "ORDER BY tick DESC, item DESC) AS recency FROM events) r "
        "JOIN caps c ON r.action = c.action WHERE r.recency <= c.cap",
    )
    rows, distinct = _sum(engine, "copies", "events"), _sum(engine, "1", "events")
    return {
        "repeats": rows - distinct,
        "over_cap": distinct - _sum(engine, "1", "kept"),
    }


def _sum(engine: Engine, value: str, name: str) -> int:
    sql = f"SELECT CAST(coalesce(sum({value}), 0) AS BIGINT) AS n FROM {name}"
    return int(engine.table(sql)["n"][0].as_py())
