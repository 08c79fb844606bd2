"""Checked columns of a table of scores, from which every ranking metric is computed.

N rows, U distinct users.
"""

from typing import NamedTuple

import numpy as np

from learn_torchrec.arrays import (
    AnyArray,
    BoolArray,
    Column,
    Float64Array,
    Int64Array,
    name_rows,
)
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.pairs import Scores
from learn_torchrec.ids import encode_ids
from learn_torchrec.schema import CLICK, LABEL, SAMPLING_RATE, SCORE, USER_ID, WEIGHT

# A pair counts a product of weights, which must neither vanish nor be infinite.
_LEAST, _MOST = 1e-100, 1e100
_EXTREME = f"not between {_LEAST:g} and {_MOST:g}"


class Columns(NamedTuple):
    """Checked columns of the rows of positive weight.

    Attributes:
        is_positive: bool [N].
        scores: float32 or float64 [N], finite.
        weights: float64 [N], positive; None for 1.
        clicks: float64 [N], or None where there is no such column.
        population_weights: float64 [N], weights among all rows, of which these are a
            sample; None for `weights`.
        kept: bool, the mask of these rows among the given ones; None for all.
    """

    is_positive: BoolArray
    scores: Scores
    weights: Float64Array | None
    clicks: Float64Array | None
    population_weights: Float64Array | None
    kept: BoolArray | None


class ScoredRows(NamedTuple):
    """Checked rows of positive weight, ready for the metrics.

    Attributes:
        users: int64 [N] in [0, num_users), numbered by first appearance.
        num_users: U.
        is_positive: bool [N].
        scores: float32 or float64 [N], finite.
        weights: float64 [N], positive; None for 1.
        clicks: float64 [N], or None.
        population_weights: float64 [N], for log loss, NE and calibration; None for
            `weights`.
    """

    users: Int64Array
    num_users: int
    is_positive: BoolArray
    scores: Scores
    weights: Float64Array | None
    clicks: Float64Array | None = None
    population_weights: Float64Array | None = None

    def row_weights(self) -> Float64Array:
        """Return the weights [N], ones if there are none."""
        return np.ones(len(self.users)) if self.weights is None else self.weights

    def probability_weights(self) -> Float64Array | None:
        """Return the weights for log loss, NE and calibration [N]; None for ones."""
        sampled = self.population_weights
        return self.weights if sampled is None else sampled


def prepare_rows(
    user_ids: Column,
    labels: Column,
    scores: Column,
    weights: Column | None = None,
    clicks: Column | None = None,
    sampling_rates: Column | None = None,
) -> ScoredRows:
    """Check the columns and drop rows of weight 0; arguments of `auc.evaluate_auc`.

    Raises:
        UserError: see `auc.evaluate_auc`.
    """
    users, distinct = encode_ids(user_ids, USER_ID)
    columns = check_columns(
        len(users), labels, scores, weights, clicks, sampling_rates=sampling_rates
    )
    if columns.kept is not None:
        users, distinct = encode_ids(users[columns.kept], USER_ID)
    return ScoredRows(users, len(distinct), *columns[:-1])


def check_columns(
    length: int,
    labels: Column,
    scores: Column,
    weights: Column | None = None,
    clicks: Column | None = None,
    first_row: int = 0,
    names: tuple[str, str] = (LABEL, SCORE),
    sampling_rates: Column | None = None,
) -> Columns:
    """Check the columns of `auc.evaluate_auc` beside the ids; drop rows of weight 0.

    `length` is N. `first_row`, the first row's number, and `names`, of the columns of
    labels and scores, are for messages.

    Raises:
        UserError: see `auc.evaluate_auc`.
    """

    def refuse(is_bad: BoolArray, problem: str, fix: str) -> None:
        if is_bad.any():
            raise UserError(f"{problem} in {name_rows(is_bad, first_row)}; {fix}")

    label_name, score_name = names
    label_values = _as_numbers(labels, label_name, length)
    score_values = _as_float(scores, score_name, length)
    weight_values: Float64Array | None = None
    click_values: Float64Array | None = None
    kept: BoolArray | None = None
    if weights is not None:
        weight_values = _as_float(weights, WEIGHT, length).astype(np.float64)
        refuse(
            ~np.isfinite(weight_values) | (weight_values < 0),
            f"{WEIGHT}: negative or not finite",
            "weights must be 0 (ignore the row) or more",
        )
        refuse(_is_extreme(weight_values), f"{WEIGHT}: {_EXTREME}", "scale all weights")
        if not weight_values.all():
            kept = weight_values > 0
    is_used = np.True_ if kept is None else kept
    refuse(
        is_used & (label_values != 0) & (label_values != 1),
        f"{label_name}: neither 0 nor 1",
        "write labels as 0 or 1",
    )
    refuse(
        is_used & ~np.isfinite(score_values),
        f"{score_name}: not finite",
        "find what made the NaN or infinity before evaluating",
    )
    if clicks is not None:
        click_values = _as_float(clicks, CLICK, length).astype(np.float64)
        refuse(
            is_used & ~(click_values >= 0),
            f"{CLICK}: negative or not a number",
            "clicks must be 0 or more",
        )
        refuse(
            is_used & _is_extreme(click_values), f"{CLICK}: {_EXTREME}", "count clicks"
        )
    sampled: Float64Array | None = None
    if sampling_rates is not None:
        rates = _as_float(sampling_rates, SAMPLING_RATE, length).astype(np.float64)
        refuse(
            is_used & ~((rates > 0) & (rates <= 1)),
            f"{SAMPLING_RATE}: not above 0 and at most 1",
            "write the chance that the row was kept",
        )
        refuse(
            is_used & _is_extreme(rates),
            f"{SAMPLING_RATE}: {_EXTREME}",
            "write the chance that the row was kept",
        )
        sampled = population_weights(label_values == 1, weight_values, rates)
    columns = (label_values == 1, score_values, weight_values, click_values, sampled)
    if kept is None:
        return Columns._make([*columns, None])
    return Columns._make([*(c if c is None else c[kept] for c in columns), kept])


def _is_extreme(values: Float64Array) -> BoolArray:
    """Return which positive values have products that float64 may not hold [N]."""
    is_extreme: BoolArray = ((values > 0) & (values < _LEAST)) | (values > _MOST)
    return is_extreme


def population_weights(
    is_positive: BoolArray, weights: Float64Array | None, rates: Float64Array
) -> Float64Array:
    """Return weights [N] by which a kept negative stands for those that were not.

    Args:
        is_positive: bool [N]; positives keep their weight.
        weights: [N]; None for 1.
        rates: [N], the chance that a negative was kept.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # in rows of weight 0
        stands_for = np.where(is_positive, 1.0, 1 / rates)
        return stands_for if weights is None else weights * stands_for


def _as_float(column: Column, name: str, length: int) -> Scores:
    """Return a column as float32 if it is that already, else as float64."""
    values = _as_numbers(column, name, length)
    return values if values.dtype == np.float32 else values.astype(np.float64)


def _as_numbers(column: Column, name: str, length: int) -> AnyArray:
    if hasattr(column, "cpu"):  # a torch tensor; NumPy has no bfloat16
        column = column.detach().cpu()
        column = column.float() if column.element_size() == 2 else column
    values = np.asarray(column)
    if values.dtype.kind not in "biuf":
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError):
            raise UserError(f"{name}: not numeric; write numbers") from None
    if values.shape != (length,):
        raise UserError(
            f"{name}: shape {list(values.shape)}, {USER_ID} has {length} rows; "
            "pass one value per row"
        )
    return values
