"""Features that tell the label: refused, or warned of.

Labels among the features by name are refused by `RankerConfig`.
"""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_torchrec.arrays import BoolArray
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

    Looks at the first 100,000 rows. A single number that ranks them almost as their
    label does is warned of: it may be known only afterwards.

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
    kind = column.type
    if pa.types.is_nested(kind):
        return
    ones, zeros = (
        pc.unique(column.filter(pa.array(chosen))) for chosen in (is_one, ~is_one)
    )
    if len(ones) == len(zeros) == 1 and ones != zeros:
        raise UserError(
            f"{source}: column {name!r} is {ones[0].as_py()!r} where {label!r} is 1 "
            f"and {zeros[0].as_py()!r} elsewhere: it is the label; leave it out of "
            "ranker.features"
        )
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return
    known = column.is_valid().to_numpy()
    values = pc.fill_null(column, 0).to_numpy().astype(np.float64)
    known &= np.isfinite(values)
    if min(is_one[known].sum(), (~is_one[known]).sum()) < _LEAST_OF_CLASS:
        return
    nobody = np.zeros(int(known.sum()), np.int64)  # one user: AUC over all rows
    found = evaluate_auc(nobody, is_one[known], values[known], metrics=[PooledAuc()])
    auc = found["auc"]
    if max(auc, 1 - auc) > _SUSPICIOUS_AUC:
        logger.warning(
            "%s: column %r alone ranks %r with AUC %.4f; is it known before the "
            "impression?",
            *(source, name, label, auc),
        )
