"""Requests of a ranker, and their rows as a table.

Letters: N candidates of a request.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

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
    """

    user_id: Id
    item_ids: Sequence[Id]
    timestamp: int
    context: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Event | tuple[Id, int, str]] = ()


def table_of(
    requests: Sequence[RankRequest],
    ids: Mapping[str, pa.DataType],
    context: pa.Schema,
    fills: bool,
) -> pa.Table:
    """Return the requests' candidates as rows of impressions.

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
    users = ids_of([r.user_id for r in requests], ids[USER_ID], USER_ID)
    times = np.array([_time(request.timestamp) for request in requests], np.int64)
    owners = np.repeat(np.arange(len(requests)), counts)
    items = [item for request in requests for item in request.item_ids]
    columns = {
        USER_ID: users.take(pa.array(owners)),
        ITEM_ID: ids_of(items, ids[ITEM_ID], ITEM_ID),
        TIMESTAMP: pa.array(times[owners]),
    }
    for column in context:
        values = [
            value for request in requests for value in _values(request, column, fills)
        ]
        columns[column.name] = _array(values, column)
    return pa.table(columns)


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


def _values(request: RankRequest, column: pa.Field, fills: bool) -> Sequence[Any]:
    """Return a column's value for each candidate."""
    count = len(request.item_ids)
    value = request.context.get(column.name)
    if value is None:
        if not fills and count:
            raise UserError(
                f"context: column {column.name!r} ({column.type}) is missing; give it"
            )
        return [None] * count
    is_many = isinstance(value, list | tuple | np.ndarray)
    if is_many and is_list(column.type):
        is_many = any(isinstance(v, list | tuple | np.ndarray) for v in value)
    if not is_many:
        return [value] * count
    if len(value) != count:
        raise UserError(
            f"context: column {column.name!r} has {len(value)} values for {count} "
            "candidates; give one for all, or one each"
        )
    return list(value)


def _array(values: Sequence[Any], column: pa.Field) -> pa.Array:
    try:
        return pa.array(values, column.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise UserError(
            f"context: column {column.name!r} has a value that is no {column.type}; "
            "give values of that type"
        ) from None
