"""Outcomes of an A/B test: one row per user and day, read and checked.

N user-days, U users of both arms.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import (
    BoolArray,
    Float64Array,
    Int64Array,
    as_arrow,
    joined,
    name_rows,
)
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.cohorts import ALL, MOST_COHORTS
from learn_torchrec.evaluation.parquet import (
    ParquetParts,
    as_cohorts,
    as_counts,
    as_numbers,
    refuse_null,
)
from learn_torchrec.ids import encode_ids, is_text
from learn_torchrec.schema import SIMULATED, USER_ID

ARM, DAY = "arm", "day"
_LAST_DAY = 99_991_231  # as YYYYMMDD; unix seconds are larger
IMPRESSIONS, CONVERSIONS, REVENUE = "impressions", "conversions", "revenue"
OUTCOMES = (IMPRESSIONS, CONVERSIONS, REVENUE)


class Cohort(NamedTuple):
    """A part of the outcomes with results of its own.

    Attributes:
        rows: bool [N], its rows.
        members: bool [U], its users. In a cohort of items these are all users: one
            without such an item counts with 0.
    """

    rows: BoolArray
    members: BoolArray


class Outcomes(NamedTuple):
    """Checked rows of a test: a user's day, or its part with one cohort of items.

    Attributes:
        users: int64 [N] in [0, U).
        is_treatment: bool [U].
        days: int64 [N].
        values: float64 [N, 3] impressions, conversions and revenue.
        cohorts: by name; "all" first.
        is_simulated: whether the file is marked as simulated.
    """

    users: Int64Array
    is_treatment: BoolArray
    days: Int64Array
    values: Float64Array
    cohorts: dict[str, Cohort]
    is_simulated: bool


def read_outcomes(
    path: Path,
    arms: tuple[str, str],
    user_cohort_columns: Sequence[str] = (),
    item_cohort_columns: Sequence[str] = (),
) -> Outcomes:
    """Read and check outcomes in a Parquet file, or a folder of parts.

    Args:
        path: columns `user_id`, `arm`, `day` (a number, a date, a date as text, or a
            time, of which the UTC date counts), `impressions`, `conversions` and
            `revenue` (refunds are negative). Rows of other arms are ignored.
        arms: names of control and treatment.
        user_cohort_columns: columns whose values are cohorts of users.
        item_cohort_columns: columns whose values are cohorts of items.

    Raises:
        UserError: a missing or unreadable file, a missing column, nulls, non-finite
            outcomes, negative counts, an arm without rows, a user in both arms or in
            two cohorts of a user column, a cohort column given twice, too many cohorts.
    """
    cohort_columns = (*user_cohort_columns, *item_cohort_columns)
    for name in cohort_columns:
        if cohort_columns.count(name) > 1:
            raise UserError(f"{name}: given twice as a cohort column; give it once")
    is_of_users = {name: name in user_cohort_columns for name in cohort_columns}
    # A cohort column may be one of the known columns, such as the day.
    names = list(dict.fromkeys([USER_ID, ARM, DAY, *OUTCOMES, *cohort_columns]))
    parts = ParquetParts(path, "the outcomes of a test")
    parts.require(names, f"outcomes need {', '.join(names)}")
    table = parts.read(names)
    try:
        outcomes = _checked_outcomes(table, arms, is_of_users)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    is_simulated = parts.metadata.get(SIMULATED) == b"true"
    return outcomes._replace(is_simulated=is_simulated)


def _checked_outcomes(
    table: pa.Table, arms: tuple[str, str], is_of_users: Mapping[str, bool]
) -> Outcomes:
    for name in table.column_names:
        refuse_null(joined(table[name]), name)
    control, treatment = arms
    names = table[ARM].cast(pa.large_string())
    found = names.unique().to_pylist()
    table = table.filter(pc.is_in(names, pa.array(arms, pa.large_string())))
    in_treatment = np.asarray(pc.equal(table[ARM].cast(pa.large_string()), treatment))
    for arm, in_arm in ((control, ~in_treatment), (treatment, in_treatment)):
        if not in_arm.any():
            raise UserError(
                f"{ARM}: no row of {arm!r}, but of {', '.join(map(repr, found[:9]))}; "
                "name the arms, e.g. --set ab.control=A ab.treatment=B"
            )
    users, distinct = encode_ids(table[USER_ID], USER_ID)
    num_users = len(distinct)
    is_treatment = np.zeros(num_users, dtype=bool)
    is_treatment[users] = in_treatment
    in_both = is_treatment[users] != in_treatment
    if in_both.any():
        user = table[USER_ID][int(np.flatnonzero(in_both)[0])].as_py()
        raise UserError(
            f"{USER_ID}: {user!r} is in both arms; a user belongs to one arm"
        )
    values = np.stack([_outcome(table[name], name) for name in OUTCOMES], axis=1)
    cohorts = _cohorts(table, is_of_users, users, num_users)
    return Outcomes(users, is_treatment, _days(table[DAY]), values, cohorts, False)


def _cohorts(
    table: pa.Table, is_of_users: Mapping[str, bool], users: Int64Array, num_users: int
) -> dict[str, Cohort]:
    """Return the cohorts by name: each value of a cohort column is one."""
    everyone = np.ones(num_users, dtype=bool)
    cohorts = {ALL: Cohort(np.ones(len(users), dtype=bool), everyone)}
    for name, has_own_users in is_of_users.items():
        encoded = as_cohorts(joined(table[name]), name).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        values = encoded.dictionary.to_pylist()
        count = len(cohorts) - 1 + len(values)
        if count > MOST_COHORTS:
            raise UserError(
                f"{name}: {count} cohorts in the cohort columns, {MOST_COHORTS} at "
                "most; group its values first"
            )
        code_of_user = np.zeros(num_users, dtype=np.int64)
        code_of_user[users] = codes
        differs = np.flatnonzero(code_of_user[users] != codes)
        if has_own_users and len(differs):
            row = differs[0]
            one, other = values[codes[row]], values[code_of_user[users[row]]]
            raise UserError(
                f"{name}: user {table[USER_ID][int(row)].as_py()!r} is in {one!r} and "
                f"in {other!r}; a user belongs to one cohort of users; name columns of "
                "item cohorts with --item-cohort-column"
            )
        for value in sorted(values):
            code = values.index(value)
            members = code_of_user == code if has_own_users else everyone
            cohorts[f"{name}={value}"] = Cohort(codes == code, members)
    return cohorts


def _outcome(column: pa.ChunkedArray, name: str) -> Float64Array:
    values = as_numbers(joined(column), name).astype(np.float64)
    is_bad, problem = ~np.isfinite(values), "not finite"
    if name != REVENUE:  # a refund is negative revenue
        is_bad, problem = is_bad | (values < 0), "negative or not finite"
    if is_bad.any():
        raise UserError(f"{name}: {problem} in {name_rows(is_bad)}; correct them")
    return values


def _days(column: pa.ChunkedArray) -> Int64Array:
    """Return integers as they are, and dates as days since 1970, int64 [N]."""
    column = as_arrow(column)
    kind = column.type
    if is_text(kind):
        try:
            column = column.cast(pa.timestamp("us"))
        except pa.ArrowException:
            raise UserError(
                f"{DAY}: text that is not a date; write days as 2026-01-31"
            ) from None
    if pa.types.is_date(kind) or pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.date32(), safe=False).cast(pa.int32()), int)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(f"{DAY}: {kind}; an integer or a date is needed")
    days = as_counts(joined(column), DAY)
    if days.max() > _LAST_DAY:
        raise UserError(
            f"{DAY}: {days.max()} is a time; write days, e.g. unix seconds // 86400"
        )
    return days
