"""What a sample of the training impressions says of each column.

The sample holds up to 200,000 rows of the ranker's training interval, the same in every
run and on every rank; nothing at or after `test_from` is read.

Letters: N sampled rows.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import BoolArray, Float64Array, Int64Array
from learn_torchrec.datasets.loading.row_groups import RowSource
from learn_torchrec.ranker.features.columns import is_list
from learn_torchrec.ranker.features.dense import (
    DenseFeature,
    Transform,
    signed_log,
)

SAMPLE_ROWS = 200_000
_GROUPS = 32  # row groups that are read, spread over the interval
_STRIDE = 8  # of long row groups only a first part is read, every 8th row of it
_BINS = 200  # of numbers, to compare them with labels
_ENOUGH = 25  # positives and negatives, to judge a column by its AUC

_MIN_ROWS, _ROOMY_ROWS, _MAX_ROWS = 2**10, 2**20, 2**24  # of a table
# A tail is heavy if it reaches further than this many times the spread of the middle
# half: 3 in a normal distribution, 8 in an exponential one, 19 in a log-normal one.
_HEAVY = 10.0
_HUGE = 1e15  # squares of larger numbers leave too little of float64's range


def sample_rows(source: RowSource, rows: int = SAMPLE_ROWS) -> pa.Table:
    """Return rows spread over a source; the same ones in every run."""
    groups = np.unique(np.linspace(0, len(source) - 1, _GROUPS).astype(int))
    wanted = -(-rows // len(groups))
    parts = [source.empty()]
    for group in groups.tolist():
        stride = max(1, int(source.sizes[group]) // wanted)
        if len(groups) > 1:
            stride = min(_STRIDE, stride)
        parts += _every(source.pieces(group), stride, wanted)
    return pa.concat_tables(parts)


def _every(pieces: Iterator[pa.Table], stride: int, wanted: int) -> Iterator[pa.Table]:
    """Yield every `stride`-th row of a group, up to `wanted` rows."""
    seen = 0
    for piece in pieces:
        first, seen = -seen % stride, seen + piece.num_rows
        taken = np.arange(first, piece.num_rows, stride)[:wanted]
        wanted -= len(taken)
        yield piece.take(pa.array(taken)) if stride > 1 else piece.slice(0, len(taken))
        if not wanted:
            return


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """A column in the sample.

    Attributes:
        name: of the column.
        origin: "impressions" or "catalogue".
        values: [N], dictionaries decoded.
        sampled: share of the interval's rows that are in the sample.
    """

    name: str
    origin: str
    values: pa.Array
    sampled: float

    @property
    def kind(self) -> pa.DataType:
        """Type of its values."""
        return self.values.type

    @functools.cached_property
    def null_share(self) -> float:
        """Share of rows that are null or NaN."""
        nulls = self.values.is_null(nan_is_null=pt.is_floating(self.kind))
        return float(pc.mean(nulls).as_py() or 0)

    @functools.cached_property
    def counts(self) -> Int64Array:
        """How often each distinct value, or entry of its lists, occurs."""
        entries = self.values.flatten() if is_list(self.kind) else self.values
        found: Int64Array = pc.value_counts(entries.drop_null()).field(1).to_numpy()
        return found

    @property
    def distinct(self) -> int:
        """Distinct values in the sample, nulls aside."""
        return len(self.counts)

    @property
    def unique_share(self) -> float:
        """Distinct values of the sample for each row, or entry of a list, with one."""
        return self.distinct / max(1, int(self.counts.sum()))

    @property
    def cardinality(self) -> int:
        """Estimate of the interval's distinct values (Chao 1984, bias-corrected)."""
        if self.sampled >= 1:
            return self.distinct
        once, twice = (int((self.counts == times).sum()) for times in (1, 2))
        unseen = once * (once - 1) / (2 * (twice + 1))
        entries = self.counts.sum() / self.sampled
        return int(min(self.distinct + unseen, entries))

    @property
    def table_rows(self) -> int:
        """Rows of a hash table: 2 to 4 for each id, 8 to 16 where that is little."""
        count = max(1, self.cardinality)
        roomy = min(_power_of_two(8 * count), _ROOMY_ROWS)
        return min(max(_MIN_ROWS, roomy, _power_of_two(2 * count)), _MAX_ROWS)

    @functools.cached_property
    def codes(self) -> Int64Array:
        """A number for each distinct value, or bin of numbers, and for null, [N]."""
        if is_decimal_number(self.kind):
            numbers = self.values.cast(pa.float64(), safe=False)
            numbers = numbers.to_numpy(zero_copy_only=False)  # a null becomes NaN
            finite = numbers[np.isfinite(numbers)]
            quantiles = np.quantile(finite, np.linspace(0, 1, _BINS))
            codes = np.searchsorted(quantiles, numbers, side="right")
            return np.where(np.isnan(numbers), _BINS + 1, codes)
        encoded = self.values.dictionary_encode(null_encoding="encode").indices
        return encoded.to_numpy(zero_copy_only=False).astype(np.int64)

    def numbers(self) -> Float64Array:
        """Return the finite values, float64."""
        numbers = self.values.drop_null().cast(pa.float64(), safe=False)
        values: Float64Array = numbers.to_numpy(zero_copy_only=False)
        return values[np.isfinite(values)]

    @property
    def infinite(self) -> int:
        """Number of infinite values."""
        if not pt.is_floating(self.values.type):
            return 0
        return pc.sum(pc.is_inf(self.values)).as_py() or 0

    def number_feature(self) -> DenseFeature:
        """Return the column as a dense feature, its transform fitted to the sample."""
        transform, mean, std = fit_number(self.numbers())
        return DenseFeature(
            column=self.name,
            transform=transform,
            mean=mean,
            std=std,
            null_flag=self.null_share >= 0.01,
        )

    def is_key_of(self, ids: Int64Array) -> bool:
        """Whether each id has one value, hardly shared; `ids` are codes, int64 [N]."""
        count = int(ids.max()) + 1
        if self.distinct <= 0.9 * count:
            return False
        pairs = np.unique(ids * (self.codes.max() + 1) + self.codes)
        return len(pairs) == count

    def auc(self, labels: BoolArray, is_known: BoolArray) -> float:
        """Return how well the column alone tells the labels, 0.5 to about 1.

        Values are replaced by the rate of their labels in one half of the rows; the AUC
        is that of the other half. `labels` and `is_known` are [N].

        Returns:
            0.5 where there are too few labels of a kind.
        """
        codes, labels = self.codes[is_known], labels[is_known]
        size = int(codes.max(initial=0)) + 1
        fitted, judged = (
            [
                np.bincount(half[wanted == value], minlength=size)
                for value in (False, True)
            ]
            for half, wanted in ((codes[::2], labels[::2]), (codes[1::2], labels[1::2]))
        )
        if min(judged[0].sum(), judged[1].sum()) < _ENOUGH:
            return 0.5
        overall = fitted[1].sum() / max(1, fitted[0].sum() + fitted[1].sum())
        rates = (fitted[1] + overall) / (fitted[0] + fitted[1] + 1)
        _, ranks = np.unique(rates, return_inverse=True)
        no, yes = (np.bincount(ranks, weights=part) for part in judged)
        wins = yes * (np.cumsum(no) - no / 2)
        return float(wins.sum() / (no.sum() * yes.sum()))


def is_decimal_number(kind: pa.DataType) -> bool:
    """Whether a type's values are numbers, and no ids."""
    return pt.is_floating(kind) or pt.is_decimal(kind)


def fit_number(numbers: Float64Array) -> tuple[Transform, float, float]:
    """Return transform, mean and standard deviation for `DenseFeature`.

    Extremes (0.1 % at either end) are pulled in first, so that single outliers decide
    neither number.

    Args:
        numbers: finite float64, at least one.
    """
    low, lower, middle, upper, high = np.quantile(
        numbers, [0.001, 0.25, 0.5, 0.75, 0.999], method="nearest"
    )
    transform: Transform = "standard"
    with np.errstate(over="ignore"):
        spread = (upper - lower) / 1.35  # a normal distribution's standard deviation
        is_heavy = max(high - middle, middle - low) > _HEAVY * spread > 0
    if is_heavy or max(abs(low), abs(high)) > _HUGE:
        transform = "log"
        numbers = signed_log(numbers)
        low, high = signed_log(np.array([low, high]))
    kept = numbers.clip(low, high)
    mean, std = float(kept.mean()), float(kept.std())
    return transform, mean, std if std > 1e-9 * max(1.0, abs(mean)) else 1.0


def _power_of_two(count: int) -> int:
    """Return the next power of two."""
    return 1 << max(0, count - 1).bit_length()
