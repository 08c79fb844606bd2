"""Dense features: number columns, perhaps standardized."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import FiniteFloat, PositiveFloat

from learn_torchrec.arrays import BoolArray, Float32Array, Float64Array
from learn_torchrec.config import configuration
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.features.columns import FeatureColumn, Nulls, read_column
from learn_torchrec.schema import SAMPLING_RATE, WEIGHT

Transform: TypeAlias = Literal["none", "standard", "log"]
CLIP = 10.0  # standard deviations


@configuration
class DenseFeature:
    """A number column.

    Attributes:
        column: of the impressions or the catalogue, or a past count or rate.
        transform: "none"; "standard": (x - mean) / std, clipped at 10 standard
            deviations; "log": the same of sign(x) log(1 + |x|). None: what derivation
            chooses (see `derive`), without it "none".
        mean: of the transformed column; also what replaces a null.
        std: of the transformed column.
        null_flag: add an input that is 1 where the column is null, else 0.
    """

    column: str
    transform: Transform | None = None
    mean: FiniteFloat = 0.0
    std: PositiveFloat = 1.0
    null_flag: bool = False

    @property
    def width(self) -> int:
        """Inputs that the model gets."""
        return 1 + self.null_flag

    def apply(self, numbers: Float64Array) -> Float64Array:
        """Return transformed numbers [V]; any finite number gives a finite one."""
        if self.transform in (None, "none"):
            return numbers
        if self.transform == "log":
            numbers = signed_log(numbers)
        with np.errstate(over="ignore"):  # infinity is clipped, too
            scaled: Float64Array = (numbers - self.mean) / self.std
        return scaled.clip(-CLIP, CLIP)


def signed_log(numbers: Float64Array) -> Float64Array:
    """Return sign(x) log(1 + |x|)."""
    logs: Float64Array = np.sign(numbers) * np.log1p(np.abs(numbers))
    return logs


def encode_dense(
    table: pa.Table,
    features: Sequence[DenseFeature],
    source: str,
    nulls: Nulls = "refuse",
) -> tuple[Float32Array, list[BoolArray | None]]:
    """Return number columns side by side, and which rows were null in each.

    Returns:
        float32 [N, F] and, for each feature, bool [N], None without nulls.

    Raises:
        UserError: a column is missing, not a number, not finite or null where nulls
            are refused; names the row.
    """
    width = sum(feature.width for feature in features)
    matrix = np.zeros((table.num_rows, width), np.float32)
    at, missing = 0, []
    for feature in features:
        column = _one_number_each(table, feature.column, source, nulls)
        plain = feature.transform in (None, "none")
        numbers = column.numbers(np.float32 if plain else np.float64)
        # After standardizing, the mean is 0.
        fill = feature.mean if plain else 0.0
        matrix[:, at] = column.spread(feature.apply(numbers), fill)
        if feature.null_flag and column.has_null is not None:
            matrix[:, at + 1] = column.has_null
        at += feature.width
        missing.append(column.has_null)
    return matrix, missing


def encode_weights(table: pa.Table, source: str) -> Float32Array:
    """Return the rows' weights, float32 [N]; 1 without a weight column.

    Raises:
        UserError: as `encode_dense`; a negative or null weight.
    """
    if WEIGHT not in table.column_names:
        return np.ones(table.num_rows, np.float32)
    column = _one_number_each(table, WEIGHT, source, "fill")
    if column.has_null is not None:
        row = column.row_numbers[np.argmax(column.has_null)]
        raise UserError(
            f"{source}: column {WEIGHT!r} is null in row {row}; fill it, with 1 as "
            "usual or with 0 to leave the row out"
        )
    weights: Float32Array = column.numbers()
    if (weights < 0).any():
        row = column.row_of(np.argmax(weights < 0))
        raise UserError(
            f"{source}: column {WEIGHT!r} is negative in row {row}; make it 0 or more"
        )
    return weights


def encode_rates(table: pa.Table, source: str) -> Float64Array:
    """Return the rows' sampling rates, float64 [N]; 1 where null.

    Raises:
        UserError: as `encode_dense`; a rate that is not in (0, 1].
    """
    column = _one_number_each(table, SAMPLING_RATE, source, "fill")
    rates: Float64Array = column.numbers(np.float64)
    is_bad = (rates <= 0) | (rates > 1)
    if is_bad.any():
        bad = np.argmax(is_bad)
        raise UserError(
            f"{source}: column {SAMPLING_RATE!r} is {rates[bad]:g} in row "
            f"{column.row_of(bad)}; write the chance that the row was kept, above 0 "
            "and at most 1"
        )
    return np.asarray(column.spread(rates, 1.0))


def _one_number_each(
    table: pa.Table, name: str, source: str, nulls: Nulls
) -> FeatureColumn:
    column = read_column(table, name, source, nulls)
    if column.is_list:
        raise UserError(
            f"{source}: column {name!r} is {table[name].type}, must be a number; "
            "list it under ranker.features.sparse"
        )
    return column
