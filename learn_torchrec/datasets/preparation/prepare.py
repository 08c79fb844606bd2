"""The preparation of a log: clean, cut, cap, sort, group, count.

One description in SQL that DuckDB and Spark both run (see `engines`), for logs that are
larger than memory. The engine sorts the log once; what needs a user's events side by
side is done on that stream (`user_stream`). Rows left out are counted by reason:

- `nulls`: a row without user, item, time or action;
- `bad_times`: a time before 1970 or after 2200;
- `unknown_items`: an item that the item table does not have;
- `outside_window`: before the history, or after the targets (`history_days`);
- `repeats`: a further row with the same user, item, time and action;
- `over_cap`: a user's oldest events of a behaviour beyond its cap;
- `short_users`: events of users with fewer than `min_events`.

Events of a user are sorted by time in its full resolution, of which seconds are kept;
at equal times by item and action, so that every engine gives the same order. Users are
in the order of their ids.
"""

from collections.abc import Iterator
from typing import Annotated

import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt

from learn_torchrec.config import configuration
from learn_torchrec.datasets.preparation.engines import Engine
from learn_torchrec.datasets.preparation.user_stream import UserStream
from learn_torchrec.errors import UserError, require_columns
from learn_torchrec.ids import is_text, normal_type, refuse_other_types
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
        length_quantile: caps the events a user may have of a behaviour (action) at
            this quantile of all users' numbers of them; the latest are kept. 1 caps
            nothing.
        min_events: users with fewer events are left out.
        drop_repeats: an event that is exactly repeated counts once.
    """

    history_days: NonNegativeInt = 0
    target_days: PositiveInt = 30
    length_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_events: PositiveInt = 1
    drop_repeats: bool = True


class PreparedLog:
    """A log in an engine, ready to be read once.

    Attributes:
        actions: names; an event's action is a number into them.
        moment: that parts history from targets, unix seconds.
        dropped: rows left out, by reason; complete once `events` has ended.
        users: `user_id` and `events`, in the order of the ids; there once `events` has
            ended.
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
                "SELECT user_id, item, event_time, action, tick FROM kept "
                "ORDER BY user_id, tick, item, action"
            ),
            min_events=config.min_events,
            drop_repeats=config.drop_repeats,
        )
        yield from stream.events()
        # Good rows that were not read lie outside the window, or are counted already.
        not_read = self._good_rows - stream.rows
        dropped["outside_window"] = not_read - dropped["repeats"] - dropped["over_cap"]
        dropped["repeats"] += stream.repeats
        dropped["short_users"] = stream.of_short_users
        self.users = stream.users()
        if not self.users.num_rows:
            raise UserError(
                f"{self._source}: no user has prepare.min_events={config.min_events} "
                "events; lower it, or keep more days (prepare.history_days)"
            )


def check_types(log: pa.Schema, item_ids: pa.DataType, source: str) -> None:
    """Refuse a log whose columns SQL would compare or round in its own way.

    Args:
        log: its columns.
        item_ids: type of the item table's ids.
        source: of the log, for messages.

    Raises:
        UserError: a column is missing or of the wrong type, or item ids are of
            another type than the item table's.
    """
    require_columns(log.names, (USER_ID, ITEM_ID, TIMESTAMP, ACTION), source)
    for name in (USER_ID, ITEM_ID):
        where = f"{source}: column {name!r}"
        ids = normal_type(_decoded(log.field(name).type), where)
    refuse_other_types(ids, item_ids, where, "the item table")
    for name, wanted, fits in (
        (TIMESTAMP, "int64 (unix seconds)", _is_time),
        (ACTION, "string", is_text),
    ):
        kind = _decoded(log.field(name).type)
        if not fits(kind):
            raise UserError(
                f"{source}: column {name!r} is {kind}, must be {wanted}; cast it"
            )


def prepare(
    engine: Engine, config: PrepareConfig, time_type: pa.DataType, source: str
) -> PreparedLog:
    """Run the preparation on the tables `log` and `items` of an engine.

    Args:
        engine: with `log` (`user_id`, `item_id`, `timestamp`, `action`) and `items`
            (`item_id` and its row number `item`).
        config: see `PrepareConfig`.
        time_type: of the log's times: an Arrow timestamp, or integers: unix seconds.
        source: of the log, for messages.

    Raises:
        UserError: nothing is left, more actions than can be numbered, or a statement
            that the engine refuses.
    """
    time = engine.seconds(f"l.{TIMESTAMP}", time_type)
    tick = engine.ticks(f"l.{TIMESTAMP}", time_type)
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
    engine.register("actions", actions.append_column("code", codes))
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
        engine.view("kept", _events_sql(time, tick, first))
    else:
        dropped |= _keep_latest(engine, _events_sql(time, tick, first), config)
    return PreparedLog(
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
    implausible = f"({time} < 1 OR {time} >= {_YEAR_2200})"
    cases = {
        "nulls": null,
        "bad_times": f"NOT ({null}) AND {implausible}",
        "unknown_items": f"NOT ({null}) AND NOT {implausible} AND i.item IS NULL",
        "good": f"NOT ({null}) AND NOT {implausible} AND i.item IS NOT NULL",
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


def _events_sql(time: str, tick: str, first: int) -> str:
    """Return the query for the good rows inside the window."""
    return (
        f"SELECT l.{USER_ID} AS user_id, CAST(i.item AS INT) AS item, "
        f"{time} AS event_time, a.code AS action, {tick} AS tick "
        f"FROM log l JOIN items i ON l.{ITEM_ID} = i.{ITEM_ID} "
        f"JOIN actions a ON l.{ACTION} = a.name "
        f"WHERE l.{USER_ID} IS NOT NULL "
        f"AND {time} >= {first} AND {time} < {_YEAR_2200}"
    )


def _keep_latest(engine: Engine, events: str, config: PrepareConfig) -> dict[str, int]:
    """Make `kept`: events within the cap of their behaviour; count the others."""
    columns = "user_id, item, event_time, action, tick"
    if config.drop_repeats:  # a repeat must not use up the cap
        engine.materialize(
            "events",
            f"SELECT {columns}, count(*) AS copies FROM ({events}) rows "
            f"GROUP BY {columns}",
        )
    else:
        engine.materialize(
            "events", f"SELECT {columns}, 1 AS copies FROM ({events}) rows"
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


def _reasons(counts: dict[str, int]) -> str:
    names = ("nulls", "bad_times", "unknown_items")
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in names)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_time(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_timestamp(kind)
