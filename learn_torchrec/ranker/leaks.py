"""Features that tell the label: refused, or warned of.

Labels among the features by name are refused by `RankerConfig`.
"""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import BoolArray, Float64Array, decoded, joined
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.auc import evaluate_auc
from learn_torchrec.evaluation.pooled_auc import PooledAuc
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.tasks import label_columns

_SAMPLE_ROWS = 100_000
_LEAST_OF_CLASS = 50  # rows; with fewer, a feature may tell the label by chance
_SUSPICIOUS_AUC = 0.99

logger = logging.getLogger(__name__)


def refuse_label_copies(impressions: Impressions) -> None:
    """Refuse feature columns that hold a label under another name or other values.

    Looks at the first 100,000 rows. A column that is there for one label alone is such
    a copy. One whose order, or whose values by their share of ones in other rows,
    rank the rows almost as their label does is warned of: it may be known only
    afterwards.

    Raises:
        UserError: names the column and the label.
    """
    table = _sample(impressions)
    for label in label_columns(impressions.tasks):
        is_one = table[label].to_numpy() == 1
        if min(is_one.sum(), (~is_one).sum()) < _LEAST_OF_CLASS:
            continue
        for name in impressions.encoder().features.columns:
            if name in table.column_names:
                _check(table[name], name, label, is_one, impressions.source.name)


def _sample(impressions: Impressions) -> pa.Table:
    """Return the first labelled rows, checked."""
    source, encoder = impressions.source, impressions.encoder()
    pieces, rows = [], 0
    for group in range(len(source)):
        for piece in source.pieces(group):
            pieces.append(encoder.checked(piece))
            rows += piece.num_rows
            if rows >= _SAMPLE_ROWS:
                return pa.concat_tables(pieces).slice(0, _SAMPLE_ROWS)
    return pa.concat_tables(pieces)


def _check(
    column: pa.ChunkedArray, name: str, label: str, is_one: BoolArray, source: str
) -> None:
    values = _as_values(column)
    ones, zeros = (values.filter(pa.array(each)).unique() for each in (is_one, ~is_one))
    known = values.is_valid().to_numpy(zero_copy_only=False)
    if (len(ones) == len(zeros) == 1 and ones != zeros) or (known == is_one).all():
        what, other = ("there", "missing") if len(ones) > 1 else (ones[0], zeros[0])
    elif (known != is_one).all():
        what, other = "missing", "there"
    else:
        auc = max(_order_auc(values, known, is_one), _values_auc(values, is_one))
        if auc > _SUSPICIOUS_AUC:
            logger.warning(
                "%s: column %r alone ranks %r with AUC %.4f; is it known before the "
                "impression?",
                *(source, name, label, auc),
            )
        return
    raise UserError(
        f"{source}: column {name!r} is {what} where {label!r} is 1 and {other} "
        "elsewhere: it is the label; leave it out of ranker.features"
    )


def _as_values(column: pa.ChunkedArray) -> pa.Array:
    """Return a column of plain values [N]: null where it has none, lists as text."""
    values = joined(column)
    if (plain := decoded(values.type)) != values.type:
        values = values.cast(plain)
    if pa.types.is_nested(values.type):
        lists = values.to_pylist()
        return pa.array([str(each) if each else None for each in lists])
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_nan(values), None, values)
    return values


def _order_auc(values: pa.Array, known: BoolArray, is_one: BoolArray) -> float:
    """Return how well the known numbers, or their opposites, rank their labels."""
    kind, is_one = values.type, is_one[known]
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not is_number or min(is_one.sum(), (~is_one).sum()) < _LEAST_OF_CLASS:
        return 0.0
    numbers = values.drop_null().to_numpy().astype(np.float64)
    finite = np.isfinite(numbers)
    auc = _auc(is_one[finite], numbers[finite])
    return max(auc, 1 - auc)


def _values_auc(values: pa.Array, is_one: BoolArray) -> float:
    """Return how well the values' shares of ones in one half rank the other half.

    Null is a value, too. One that the first half lacks says nothing.
    """
    codes = values.dictionary_encode("encode").indices.to_numpy()
    learned, judged = np.array_split(
        np.random.default_rng(0).permutation(len(codes)), 2
    )
    size = int(codes.max()) + 1
    count = np.bincount(codes[learned], minlength=size)
    ones = np.bincount(codes[learned], is_one[learned], size)
    share = np.where(count > 0, ones / np.maximum(count, 1), is_one[learned].mean())
    return _auc(is_one[judged], share[codes[judged]])


def _auc(is_one: BoolArray, scores: Float64Array) -> float:
    """Return the AUC over all rows; 0 where it is undefined."""
    nobody = np.zeros(len(scores), np.int64)  # one user
    found = evaluate_auc(nobody, is_one, scores, metrics=[PooledAuc()])
    return float(np.nan_to_num(found["auc"]))
