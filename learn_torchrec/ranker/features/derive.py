"""Features derived from the data: a choice, with its reason, for every column.

The impressions' schema says what a column may be, and a sample of the training
interval (`profile`) how it is used:

| column | use |
|---|---|
| user and item ids | hashed, always |
| text, integers, booleans, lists of them | hashed, tables sized by cardinality |
| floats, decimals | standardized, their logarithm where a tail is heavy |
| dates and times, the impression's own included | hour, weekday, month, year |
| the catalogue's columns | the same, joined by item |
| past counts and rates | computed from the log before each impression |

Left out are labels and what tells them, constants, texts and keys that hardly repeat,
one value for each item or user, and types that are none of these.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import BoolArray, Int64Array
from learn_torchrec.config import replace
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER
from learn_torchrec.datasets.split import SplitTimes
from learn_torchrec.errors import UserError
from learn_torchrec.ids import as_ids, is_text, type_name
from learn_torchrec.ranker.features import (
    CalendarFeature,
    DenseFeature,
    FeaturesConfig,
    HashedFeature,
    SparseFeature,
)
from learn_torchrec.ranker.features.base import SizedFeature
from learn_torchrec.ranker.features.calendar import Part
from learn_torchrec.ranker.features.columns import is_list
from learn_torchrec.ranker.features.lookups import open_items
from learn_torchrec.ranker.features.past import past_columns
from learn_torchrec.ranker.features.profile import (
    ColumnProfile,
    is_decimal_number,
    sample_rows,
)
from learn_torchrec.ranker.tasks import TaskConfig, label_columns
from learn_torchrec.schema import (
    IMPRESSIONS_FILE,
    INTERACTIONS_FILE,
    ITEM_ID,
    ITEMS_FILE,
    TIMESTAMP,
    USER_ID,
    WEIGHT,
)

LEFT_OUT = "left out"
CATALOGUE = "catalogue"
_TELLING_AUC = 0.99
_OUTCOMES = re.compile(
    r"(is|has|was|did)?_?(click|buy|bought|purchase|order|conversion|convert|cart|"
    r"add_to_cart|like|rating|rated|label|target|outcome|revenue|oracle)(s|d|ed)?"
    r"|label_.*|.*_label"
)
_DAY = 86_400
# Rows of both logs up to which past counts are derived: a few GB in each process.
MAX_PAST_ROWS = 50_000_000


@dataclass(frozen=True)
class FeatureChoice:
    """What becomes of a column.

    Attributes:
        column: of the impressions or the catalogue, or computed.
        source: "impressions", "catalogue" or "log".
        use: such as "hash, 4,096 rows", "log" or "left out".
        reason: a phrase.
    """

    column: str
    source: str
    use: str
    reason: str


@dataclass(frozen=True)
class DerivedFeatures:
    """The features, and why.

    Attributes:
        config: to train with.
        choices: one for each column, in the order of the tables.
    """

    config: FeaturesConfig
    choices: tuple[FeatureChoice, ...]


@dataclass(frozen=True, kw_only=True)
class FeatureProfile:
    """What the data say of every column; see `profile_features`.

    Attributes:
        columns: of the impressions and the catalogue, by name.
        tasks: whose labels are no features.
        days: that the training interval spans.
        past_rows: rows of both logs.
    """

    columns: Mapping[str, ColumnProfile]
    tasks: Sequence[TaskConfig]
    days: float
    past_rows: int

    def derive(self) -> DerivedFeatures:
        """Choose the features."""
        sparse: list[SparseFeature] = []
        dense: list[DenseFeature] = []
        choices = []
        for column in self.columns.values():
            features, use, reason = self._choose(column)
            for feature in features:
                is_dense = isinstance(feature, DenseFeature)
                (dense if is_dense else sparse).append(feature)  # type: ignore[arg-type]
            choices.append(FeatureChoice(column.name, column.origin, use, reason))
        fits = self.past_rows <= MAX_PAST_ROWS
        for name, past in past_columns(self.tasks).items():
            if name in self.columns:
                continue
            what = f"labels ({past.label})" if past.label else "events"
            side = past.id_column.removesuffix("_id")
            reason = f"{what} of the {side} before the impression"
            if fits:
                dense.append(DenseFeature(column=name))
            else:
                reason = (
                    f"the log has {self.past_rows:,} rows, {MAX_PAST_ROWS:,} fit in "
                    "memory; name it to compute it"
                )
            use = "number" if fits else LEFT_OUT
            choices.append(FeatureChoice(name, "log", use, reason))
        config = FeaturesConfig(
            sparse=tuple(_with_own_names(sparse)), dense=tuple(dense)
        )
        return DerivedFeatures(config, tuple(choices))

    def complete(self, features: FeaturesConfig) -> FeaturesConfig:
        """Return features with what they leave open: sizes of tables, transforms.

        So a bare name (`ranker.features.sparse=user_id,item_id,store`) gets what
        derivation would give it; what is set stays.
        """
        return replace(
            features,
            sparse=tuple(self._completed_id(feature) for feature in features.sparse),
            dense=tuple(self._completed_number(feature) for feature in features.dense),
        )

    def _completed_id(self, feature: SparseFeature) -> SparseFeature:
        column = self.columns.get(feature.column)
        if isinstance(feature, SizedFeature) and column is not None:
            rows = feature.num_embeddings or column.table_rows
            return replace(feature, num_embeddings=rows)
        return feature

    def _completed_number(self, feature: DenseFeature) -> DenseFeature:
        column = self.columns.get(feature.column)
        if feature.transform or column is None or not len(column.numbers()):
            return feature
        return column.number_feature()

    def _choose(
        self, column: ColumnProfile
    ) -> tuple[Sequence[SparseFeature | DenseFeature], str, str]:
        """Return a column's features, their use and the reason."""
        name = column.name
        if name in (USER_ID, ITEM_ID):
            return _hashed(column, "an id")
        if name == TIMESTAMP:
            return self._own_time(column)
        reason = (
            self._forbidden(column) or _unusable(column) or self._tells_a_label(column)
        )
        if reason:
            return (), LEFT_OUT, reason
        kind = column.kind
        if pt.is_timestamp(kind) or pt.is_date(kind):
            return _split(column, ("hour", "weekday", "month", "year"))
        if is_decimal_number(kind):
            feature = column.number_feature()
            tail = "its tail is heavy" if feature.transform == "log" else "a number"
            flag = f", null in {column.null_share:.1%}" if feature.null_flag else ""
            return (
                [feature],
                f"{feature.transform}{', null flag' * bool(flag)}",
                (tail + flag),
            )
        if self._is_key(column):
            owner = "item" if column.is_key_of(self._codes(ITEM_ID)) else "user"
            return (), LEFT_OUT, f"one value for each {owner}, which its id tells"
        if column.distinct > 100 and column.unique_share > 0.9:
            return (), LEFT_OUT, "hardly a value repeats"
        return _hashed(
            column, f"{type_name(kind)}, about {column.cardinality:,} values"
        )

    def _own_time(
        self, column: ColumnProfile
    ) -> tuple[Sequence[SparseFeature], str, str]:
        parts: list[Part] = []
        parts += ["hour"] * (self.days >= 2)
        parts += ["weekday"] * (self.days >= 14)
        if not parts:
            return (), LEFT_OUT, "the training interval is shorter than two days"
        return _split(column, parts)

    def _forbidden(self, column: ColumnProfile) -> str | None:
        """Return why a column must not be a feature, whatever it holds."""
        if column.name == WEIGHT:
            return "the weight of the row"
        if column.name in label_columns(self.tasks):
            return "a label"
        if column.origin == CATALOGUE:
            return None
        if _OUTCOMES.fullmatch(column.name.lower()):
            return "named like an outcome, known only after the impression"
        return None

    def _tells_a_label(self, column: ColumnProfile) -> str | None:
        """Return which label a column tells, as an outcome does."""
        if column.origin == CATALOGUE or is_list(column.kind):
            return None
        for label in label_columns(self.tasks):
            auc = column.auc(*self._labels(label))
            if auc > _TELLING_AUC:
                return f"tells {label!r} almost surely (AUC {auc:.3f}): an outcome?"
        return None

    def _labels(self, name: str) -> tuple[BoolArray, BoolArray]:
        """Return a label of the sampled rows, and where it is known."""
        column = self.columns.get(name)
        if column is None:
            rows = len(self.columns[USER_ID].values)
            return np.zeros(rows, bool), np.zeros(rows, bool)
        is_one = pc.fill_null(
            pc.equal(column.values.cast(pa.float64(), safe=False), 1), False
        )
        known = column.values.is_valid()
        return (
            is_one.to_numpy(zero_copy_only=False),
            known.to_numpy(zero_copy_only=False),
        )

    def _codes(self, name: str) -> Int64Array:
        return self.columns[name].codes

    def _is_key(self, column: ColumnProfile) -> bool:
        return not is_list(column.kind) and any(
            column.is_key_of(self._codes(name)) for name in (ITEM_ID, USER_ID)
        )


def derive_features(
    dataset: Dataset, times: SplitTimes, tasks: Sequence[TaskConfig]
) -> DerivedFeatures:
    """Derive the ranker's features from the data, in seconds.

    Args:
        dataset: with impressions.
        times: the split; only impressions in [towers_until, test_from) are looked at.
        tasks: whose labels are no features.

    Raises:
        UserError: no impressions in the interval, or a column that cannot be read.
    """
    return profile_features(dataset, times, tasks).derive()


def profile_features(
    dataset: Dataset, times: SplitTimes, tasks: Sequence[TaskConfig]
) -> FeatureProfile:
    """Sample the training interval and profile every column; see `derive_features`."""
    source = dataset.impressions_between(times.towers_until, times.test_from)
    if source.earliest is None:
        raise UserError(
            f"{source.name}: no impression lies between split.towers_until and "
            f"split.test_from ({times.towers_until} to {times.test_from}, unix "
            "seconds); move them"
        )
    sample = sample_rows(source).drop_columns([ROW_NUMBER])
    sampled = sample.num_rows / source.num_rows
    columns = {
        n: _profile(n, "impressions", sample, sampled) for n in sample.schema.names
    }
    names = [n for n in dataset.schema(ITEMS_FILE).names if n not in columns]
    items = open_items(dataset, names)
    if items is not None:
        joined = items.add_to(sample.select([ITEM_ID]), source.name)
        columns |= {n: _profile(n, CATALOGUE, joined, sampled) for n in names}
    return FeatureProfile(
        columns=columns,
        tasks=tasks,
        days=(times.test_from - source.earliest) / _DAY,
        past_rows=sum(map(dataset.num_rows, (INTERACTIONS_FILE, IMPRESSIONS_FILE))),
    )


def _profile(name: str, origin: str, table: pa.Table, sampled: float) -> ColumnProfile:
    values = table[name].combine_chunks()
    if pt.is_dictionary(values.type):
        values = values.dictionary_decode()
    return ColumnProfile(name=name, origin=origin, values=values, sampled=sampled)


def _hashed(
    column: ColumnProfile, reason: str
) -> tuple[Sequence[SparseFeature], str, str]:
    feature = HashedFeature(column=column.name, num_embeddings=column.table_rows)
    return [feature], f"hash, {column.table_rows:,} rows", reason


def _split(
    column: ColumnProfile, parts: Sequence[Part]
) -> tuple[Sequence[SparseFeature], str, str]:
    """Return those parts of a time that take several values in the sample."""
    features = [CalendarFeature(column=column.name, part=part) for part in parts]
    table = pa.table({column.name: column.values})
    kept = [
        f for f in features if len(np.unique(f.encode(table, "", "fill").values)) > 1
    ]
    if not kept:
        return (), LEFT_OUT, "the same time in every sampled row"
    return kept, ", ".join(feature.part for feature in kept), "a time, split"


def _unusable(column: ColumnProfile) -> str | None:
    """Return why a column's type or values are no feature."""
    kind = column.kind
    if column.null_share == 1:
        return "null in every sampled row"
    if is_decimal_number(kind) and not len(column.numbers()):
        return "no finite number in the sampled rows"
    entries = kind.value_type if is_list(kind) else kind
    if is_list(kind) and is_decimal_number(entries):
        return "a list of numbers; only lists of ids are read"
    usable = (is_text, pt.is_integer, pt.is_boolean, pt.is_floating, pt.is_decimal)
    dates = pt.is_timestamp(kind) or pt.is_date(kind)
    if not dates and not any(matches(entries) for matches in usable):
        return f"no feature reads {kind}"
    if column.distinct < 2 and column.null_share == 0:
        return "the same value in every sampled row"
    if pt.is_uint64(entries):
        try:
            as_ids(column.values, column.name, allow_null=True)
        except UserError:
            return "ids beyond int64; write them as text"
    return None


def _with_own_names(features: Sequence[SparseFeature]) -> Iterator[SparseFeature]:
    """Yield the features, numbered where two would have one name."""
    taken: set[str] = set()
    for feature in features:
        name, number = feature.name, 2
        while name in taken:
            name, number = f"{feature.name}_{number}", number + 1
        taken.add(name)
        yield replace(feature, name=name)
