"""Dense features: number columns, unchanged."""

import numpy as np
import pyarrow as pa

from learn_torchrec.arrays import Float32Array
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.features.columns import read_column
from learn_torchrec.schema import WEIGHT


def encode_dense(table: pa.Table, names: tuple[str, ...], source: str) -> Float32Array:
    """Return number columns side by side, float32 [N, F].

    Raises:
        UserError: a column is missing, not a number or not finite; names the row.
    """
    matrix = np.empty((table.num_rows, len(names)), np.float32)
    for index, name in enumerate(names):
        matrix[:, index] = _one_number_each(table, name, source)
    return matrix


def encode_weights(table: pa.Table, source: str) -> Float32Array:
    """Return the rows' weights, float32 [N]; 1 without a weight column.

    Raises:
        UserError: as `encode_dense`; a negative weight.
    """
    if WEIGHT not in table.column_names:
        return np.ones(table.num_rows, np.float32)
    weights = _one_number_each(table, WEIGHT, source)
    if (weights < 0).any():
        row = read_column(table, WEIGHT, source).row_of(np.argmax(weights < 0))
        raise UserError(
            f"{source}: column {WEIGHT!r} is negative in row {row}; make it 0 or more"
        )
    return weights


def _one_number_each(table: pa.Table, name: str, source: str) -> Float32Array:
    column = read_column(table, name, source)
    if column.is_list:
        raise UserError(
            f"{source}: column {name!r} is {table[name].type}, must be a number; "
            "list it under ranker.features.sparse"
        )
    return column.numbers()
