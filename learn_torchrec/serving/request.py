"""Requests of a ranker, and their columns as tables.

Letters: N candidates of a request, R requests, B rows of all requests.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import AnyArray, Int64Array
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.features.columns import is_list
from learn_torchrec.schema import ITEM_ID, TIMESTAMP, USER_ID
from learn_torchrec.times import YEAR_2200

Id = int | str


class Event(NamedTuple):
    """Something that a user did.

    Attributes:
        item_id: of the item.
        timestamp: unix seconds.
        action: such as "buy".
    """

    item_id: Id
    timestamp: int
    action: str


@dataclass(frozen=True)
class ExtraItem:
    """A candidate that a bundle does not know.

    Attributes:
        content: float [C], of the content store's encoder; None for none.
        vector: float [D], of the item tower; None for none.
    """

    content: AnyArray | None = None
    vector: AnyArray | None = None


@dataclass(frozen=True)
class RankRequest:
    """A user and candidates to score.

    Attributes:
        user_id: of the user, known or not.
        item_ids: [N], known or not.
        timestamp: unix seconds: the features know only what lies strictly before.
        context: values of impression columns: one for all candidates, or a list of N.
            A column of lists takes one list for all, or a list of N lists.
        events: what the user did since the bundle's moment, in any order; earlier ones
            are left out where the bundle has the user's history.
        extra_items: content and vectors of candidates that the bundle does not know;
            those of others are ignored.
    """

    user_id: Id
    item_ids: Sequence[Id]
    timestamp: int
    context: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Event | tuple[Id, int, str]] = ()
    extra_items: Mapping[Id, ExtraItem] = field(default_factory=dict)


@dataclass(frozen=True)
class Questions:
    """Requests as tables of impressions' columns.

    Attributes:
        once: R rows: what all candidates of a request share, the user and the time
            among it.
        each: B rows: what differs between candidates, and the user and the time.
        owners: int64 [B], the request of each row.
    """

    once: pa.Table
    each: pa.Table
    owners: Int64Array

    def with_columns(self, names: Sequence[str]) -> pa.Table:
        """Return the rows [B] with more of the columns that they share."""
        table = self.each
        for name in names:
            if name not in table.column_names and name in self.once.column_names:
                shared = self.once[name].take(pa.array(self.owners))
                table = table.append_column(name, shared)
        return table


def questions(
    requests: Sequence[RankRequest],
    ids: Mapping[str, pa.DataType],
    context: pa.Schema,
    fills: bool,
) -> Questions:
    """Return the columns of requests.

    Args:
        requests: at least one candidate in all.
        ids: the types of the users' and the items' ids.
        context: the columns that requests bring.
        fills: whether a column that a request lacks is null.

    Raises:
        UserError: ids or values of another type, unknown or missing columns, lists of
            another length than the candidates, or a time that is no unix seconds.
    """
    for request in requests:
        _refuse_unknown(request.context, context)
    counts = [len(request.item_ids) for request in requests]
    owners = np.repeat(np.arange(len(requests)), counts)
    items = [item for request in requests for item in request.item_ids]
    users = ids_of([r.user_id for r in requests], ids[USER_ID], USER_ID)
    times = pa.array([_time(request.timestamp) for request in requests], pa.int64())
    once = {USER_ID: users, TIMESTAMP: times}
    rows = pa.array(owners)
    each = {name: values.take(rows) for name, values in once.items()}
    each[ITEM_ID] = ids_of(items, ids[ITEM_ID], ITEM_ID)
    for column in context:
        found = [_value(request, column, fills) for request in requests]
        if any(isinstance(value, _ForEach) for value in found):
            spread = [
                value.values if isinstance(value, _ForEach) else [value] * count
                for value, count in zip(found, counts, strict=True)
            ]
            values = [value for part in spread for value in part]
            each[column.name] = _array(values, column)
        else:
            once[column.name] = _array(found, column)
    return Questions(pa.table(once), pa.table(each), owners)


def ids_of(values: Sequence[Any], kind: pa.DataType, name: str) -> pa.Array:
    """Return ids of a type.

    Raises:
        UserError: an id of another type.
    """
    wanted: type = int if pa.types.is_integer(kind) else str
    for value in values:
        if type(value) is not wanted and not isinstance(value, np.integer):
            raise UserError(
                f"{name}: {value!r} is no {wanted.__name__}; the ids of this ranker "
                f"are {'integers' if wanted is int else 'strings'}"
            )
    try:
        return pa.array(values, kind)
    except (OverflowError, pa.ArrowException):
        raise UserError(
            f"{name}: an id does not fit int64; use those of the data"
        ) from None


def _time(value: Any) -> int:
    if type(value) is bool or not isinstance(value, int | np.integer):
        raise UserError(f"timestamp: {value!r} is no integer; give unix seconds")
    if not -YEAR_2200 <= value <= YEAR_2200:
        raise UserError(f"timestamp: {value} is after 2200; give unix seconds")
    return int(value)


def _refuse_unknown(given: Mapping[str, Any], context: pa.Schema) -> None:
    for name in given:
        if name not in context.names:
            close = difflib.get_close_matches(name, context.names, n=1)
            known = ", ".join(context.names) or "none"
            hint = f"did you mean {close[0]!r}?" if close else f"it reads {known}"
            raise UserError(f"context: this ranker reads no column {name!r}; {hint}")


class _ForEach(NamedTuple):
    """A value for each candidate of a request."""

    values: Sequence[Any]


def _value(request: RankRequest, column: pa.Field, fills: bool) -> Any:
    """Return a column's value for all candidates, or one for each."""
    count = len(request.item_ids)
    value = request.context.get(column.name)
    if value is None:
        if not fills and count:
            raise UserError(
                f"context: column {column.name!r} ({column.type}) is missing; give it"
            )
        return None
    is_many = _is_sequence(value)
    if is_many and is_list(column.type):
        is_many = any(map(_is_sequence, value))
    if not is_many:
        return value
    if len(value) != count:
        raise UserError(
            f"context: column {column.name!r} has {len(value)} values for {count} "
            "candidates; give one for all, or one each"
        )
    return _ForEach(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _array(values: Sequence[Any], column: pa.Field) -> pa.Array:
    try:
        return pa.array(values, column.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise UserError(
            f"context: column {column.name!r} has a value that is no {column.type}; "
            "give values of that type"
        ) from None
