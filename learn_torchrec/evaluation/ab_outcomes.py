"""Outcomes of an A/B test: a user's day a row, read and checked.

N user-days.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.arrays import (
    BoolArray,
    Float64Array,
    Int64Array,
    encode_ids,
    name_rows,
)
from learn_torchrec.schema import USER_ID

ARM, DAY = "arm", "day"
# Key of the file's metadata; b"true" marks generated outcomes.
SIMULATED = b"simulated"
IMPRESSIONS, CONVERSIONS, REVENUE = "impressions", "conversions", "revenue"
OUTCOMES = (IMPRESSIONS, CONVERSIONS, REVENUE)
ALL = "all"


class Outcomes(NamedTuple):
    """Checked rows of a test: a user's day, or a part of it (one item cohort's).

    Attributes:
        users: int64 [N] in [0, num_users).
        is_treatment: bool [num_users].
        days: int64 [N].
        values: float64 [N, 3] impressions, conversions and revenue.
        cohorts: bool [N] rows of every cohort, by name; "all" first.
        is_simulated: as the file says of itself.
    """

    users: Int64Array
    is_treatment: BoolArray
    days: Int64Array
    values: Float64Array
    cohorts: dict[str, BoolArray]
    is_simulated: bool


def read_outcomes(
    path: Path, arms: tuple[str, str], cohort_columns: Sequence[str] = ()
) -> Outcomes:
    """Read and check a Parquet file of outcomes.

    Args:
        path: columns `user_id`, `arm`, `day` (integer or date), `impressions`,
            `conversions` and `revenue`; rows of other arms are left out.
        arms: names of the control and of the treatment.
        cohort_columns: columns whose values are cohorts, of users or of items.

    Raises:
        UserError: a missing or unreadable file, a missing column, nulls, negative or
            non-finite outcomes, an arm without rows, a user in both arms.
    """
    names = [USER_ID, ARM, DAY, *OUTCOMES, *cohort_columns]
    try:
        schema = pq.read_schema(path)
        missing = [name for name in names if name not in schema.names]
        if missing:
            raise UserError(
                f"{path}: no column {', '.join(missing)}; outcomes need "
                f"{', '.join(names)}"
            )
        table = pq.read_table(path, columns=names)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name the outcomes of a test") from None
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({first_line})") from None
    try:
        outcomes = _checked(table, arms, cohort_columns)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    is_simulated = (schema.metadata or {}).get(SIMULATED) == b"true"
    return outcomes._replace(is_simulated=is_simulated)


def _checked(
    table: pa.Table, arms: tuple[str, str], cohort_columns: Sequence[str]
) -> Outcomes:
    for name in table.column_names:
        if table[name].null_count:
            raise UserError(f"{name}: null in some rows; remove or fill them")
    control, treatment = arms
    table = table.filter(pc.is_in(table[ARM].cast(pa.string()), pa.array(arms)))
    in_treatment = np.asarray(pc.equal(table[ARM].cast(pa.string()), treatment))
    for arm, is_there in (
        (control, (~in_treatment).any()),
        (treatment, in_treatment.any()),
    ):
        if not is_there:
            raise UserError(f"{ARM}: no row of {arm!r}; name the arms with --set")
    users, num_users = encode_ids(table[USER_ID], USER_ID)
    is_treatment = np.zeros(num_users, dtype=bool)
    is_treatment[users] = in_treatment
    in_both = is_treatment[users] != in_treatment
    if in_both.any():
        user = table[USER_ID][int(np.flatnonzero(in_both)[0])].as_py()
        raise UserError(
            f"{USER_ID}: {user!r} is in both arms; a user belongs to one arm"
        )
    values = np.stack([_outcome(table[name], name) for name in OUTCOMES], axis=1)
    cohorts = {ALL: np.ones(len(users), dtype=bool)}
    for name in cohort_columns:
        column = table[name].cast(pa.large_string())
        for value in sorted(column.unique().to_pylist()):
            cohorts[f"{name}={value}"] = np.asarray(pc.equal(column, value))
    return Outcomes(users, is_treatment, _days(table[DAY]), values, cohorts, False)


def _outcome(column: pa.ChunkedArray, name: str) -> Float64Array:
    try:
        values = np.asarray(column).astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name}: {column.type}; a number is needed") from None
    is_bad = ~np.isfinite(values) | (values < 0)
    if is_bad.any():
        raise UserError(
            f"{name}: negative or not finite in {name_rows(is_bad)}; outcomes are 0 "
            "or more"
        )
    return values


def _days(column: pa.ChunkedArray) -> Int64Array:
    if pa.types.is_date(column.type):
        column = column.cast(pa.date32()).cast(pa.int32())
    if not pa.types.is_integer(column.type):
        raise UserError(f"{DAY}: {column.type}; an integer or a date is needed")
    return np.asarray(column).astype(np.int64)
