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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from learn_torchrec.arrays import BoolArray, Int64Array
from learn_torchrec.datasets.adapters.base import Dataset
from learn_torchrec.datasets.generated.market import ORACLE
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER, RowSource
from learn_torchrec.datasets.split import SplitTimes, nothing_between
from learn_torchrec.errors import UserError
from learn_torchrec.ids import as_ids, is_text, type_name
from learn_torchrec.ranker.features import (
    CalendarFeature,
    DenseFeature,
    FeaturesConfig,
    HashedFeature,
    IdFeature,
    SparseFeature,
)
from learn_torchrec.ranker.features.calendar import Part
from learn_torchrec.ranker.features.choices import (
    LEFT_OUT,
    DerivedFeatures,
    FeatureChoice,
    uses_of,
)
from learn_torchrec.ranker.features.columns import is_list, is_number
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
    SAMPLING_RATE,
    TIMESTAMP,
    USER_ID,
    WEIGHT,
)

IMPRESSIONS, CATALOGUE, LOG = "impressions", "catalogue", "log"
_PANDAS_INDEX = "__index_level_"
_TELLING_AUC = 0.99
_OUTCOMES = re.compile(
    r"(is|has|was|did)?_?(click|buy|bought|purchase|order|conversion|convert|cart|"
    r"add_to_cart|like|rating|rated|label|target|outcome|revenue)(s|d|ed)?"
    r"|label_.*|.*_label"
)
_DAY = 86_400
_LEAST_DAYS = {"hour": 2, "weekday": 14}  # of training, to learn from a part of a time
# Rows of both logs up to which past counts are derived: a few GB in each process.
MAX_PAST_ROWS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """The choice for every column, given what the sample says of it.

    Attributes:
        columns: of the impressions and the catalogue, by name.
        ids: users and items of the sampled rows as codes, by origin of the columns.
        tasks: whose labels are no features.
        days: that the training interval spans.
        past_rows: rows of both logs.
    """

    columns: Mapping[str, ColumnProfile]
    ids: Mapping[str, Mapping[str, Int64Array]]
    tasks: Sequence[TaskConfig]
    days: float
    past_rows: int

    def derive(self, actions: Sequence[str]) -> DerivedFeatures:
        """Choose the features; past counts count events of `actions`."""
        chosen: dict[FeatureChoice, Sequence[SparseFeature | DenseFeature]] = {}
        for column in self.columns.values():
            features, reason = self._choose(column)
            choice = FeatureChoice(column.name, column.origin, LEFT_OUT, reason)
            chosen[choice] = features
        for name, past in past_columns(self.tasks).items():
            if name in self.columns:
                continue
            what = f"labels ({past.label})" if past.label else ", ".join(actions)
            reason = f"{what} of the {past.side} before the impression"
            fits = self.past_rows <= MAX_PAST_ROWS
            if not fits:
                reason = (
                    f"the logs have {self.past_rows:,} rows, more than "
                    f"{MAX_PAST_ROWS:,}; name it to compute it"
                )
            choice = FeatureChoice(name, LOG, LEFT_OUT, reason)
            chosen[choice] = [DenseFeature(column=name)] * fits
        every = [feature for features in chosen.values() for feature in features]
        sparse = [feature for feature in every if isinstance(feature, IdFeature)]
        config = FeaturesConfig(
            sparse=tuple(_with_own_names(sparse)),
            dense=tuple(f for f in every if isinstance(f, DenseFeature)),
        )
        choices = (
            replace(choice, use=", ".join(uses_of(config, choice.column)) or LEFT_OUT)
            for choice in chosen
        )
        return DerivedFeatures(config, tuple(choices), self.columns)

    def _choose(
        self, column: ColumnProfile
    ) -> tuple[Sequence[SparseFeature | DenseFeature], str]:
        """Return a column's features, perhaps none, and the reason."""
        if column.name in (USER_ID, ITEM_ID):
            return [_hashed(column)], f"an id, about {column.cardinality:,} values"
        if column.name == TIMESTAMP:
            # Months and years of the test lie after those of training.
            parts = _parts(column, ("hour", "weekday"))
            kept = [f for f in parts if self.days >= _LEAST_DAYS[f.part]]
            return kept, f"the training interval spans {self.days:.3g} days"
        reason = (
            self._forbidden(column) or _unusable(column) or self._tells_a_label(column)
        )
        if reason:
            return [], reason
        kind, nulls = column.kind, ""
        if column.null_share:
            nulls = f", null in {max(column.null_share, 0.001):.1%} of the rows"
        if pt.is_timestamp(kind) or pt.is_date(kind):
            every = _parts(column, ("hour", "weekday", "month", "year"))
            return every, f"a time{nulls}"
        if is_decimal_number(kind):
            number = column.number_feature()
            tail = ", its tail is heavy" if number.transform == "log" else ""
            return [number], f"a number{tail}{nulls}"
        for owner, ids in self.ids[column.origin].items():
            if not is_list(kind) and column.is_key_of(ids):
                return [], f"one value for each {owner}, as its id"
        if column.distinct > 100 and column.unique_share > 0.9:
            return [], "hardly a value repeats"
        values = f"about {column.cardinality:,} values{nulls}"
        return [_hashed(column)], f"{type_name(kind)}, {values}"

    def _forbidden(self, column: ColumnProfile) -> str | None:
        """Return why a column must not be a feature, whatever it holds."""
        if column.name == WEIGHT:
            return "the weight of the row"
        if column.name == SAMPLING_RATE:
            return "how likely the row was drawn, which depends on the label"
        if column.name in label_columns(self.tasks):
            return "a label"
        if column.name.startswith(_PANDAS_INDEX):
            return "the index of a pandas frame"
        if column.origin == CATALOGUE:
            return None
        if column.name == ORACLE:
            return "the true probability that a generated market knows"
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
        if column is None or not is_number(column.kind):
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


def derive_features(
    dataset: Dataset,
    times: SplitTimes,
    tasks: Sequence[TaskConfig],
    actions: Sequence[str],
) -> DerivedFeatures:
    """Derive the ranker's features from the data, in seconds.

    Args:
        dataset: with impressions.
        times: the split; only impressions in [towers_until, test_from) are looked at.
        tasks: whose labels are no features.
        actions: that past counts count.

    Raises:
        UserError: no impressions in the interval, or a column that cannot be read.
    """
    source = dataset.impressions_between(times.towers_until, times.test_from)
    if source.earliest is None:
        shown_at = dataset.impression_moments
        raise nothing_between(source.name, times, shown_at, dataset.moments)
    shown = _profiles(source, IMPRESSIONS)
    items = _profiles(dataset.rows(ITEMS_FILE), CATALOGUE)
    rules = _Rules(
        columns=shown | {n: c for n, c in items.items() if n not in shown},
        ids={
            IMPRESSIONS: {"item": shown[ITEM_ID].codes, "user": shown[USER_ID].codes},
            CATALOGUE: {"item": items[ITEM_ID].codes},
        },
        tasks=tasks,
        days=(times.test_from - source.earliest) / _DAY,
        past_rows=sum(map(dataset.num_rows, (INTERACTIONS_FILE, IMPRESSIONS_FILE))),
    )
    return rules.derive(actions)


def _profiles(source: RowSource, origin: str) -> dict[str, ColumnProfile]:
    """Return the columns of a sample, by name."""
    sample = sample_rows(source)
    sampled, found = sample.num_rows / source.num_rows, {}
    for name in sample.column_names:
        values = sample[name].combine_chunks()
        if pt.is_dictionary(values.type):
            values = values.dictionary_decode()
        if name != ROW_NUMBER:
            found[name] = ColumnProfile(
                name=name, origin=origin, values=values, sampled=sampled
            )
    return found


def _hashed(column: ColumnProfile) -> HashedFeature:
    return HashedFeature(column=column.name, num_embeddings=column.table_rows)


def _parts(column: ColumnProfile, parts: Sequence[Part]) -> list[CalendarFeature]:
    """Return those parts of a time that take several values in the sample."""
    table = pa.table({column.name: column.values})
    features = [CalendarFeature(column=column.name, part=part) for part in parts]
    return [f for f in features if len(set(f.encode(table, "", "fill").values)) > 1]


def _unusable(column: ColumnProfile) -> str | None:
    """Return why a column's type or values are no feature."""
    kind = column.kind
    if column.null_share == 1:
        return "null in every sampled row"
    if is_decimal_number(kind) and not len(column.numbers()):
        return "no finite number in the sampled rows"
    if column.infinite:
        return f"infinite in {column.infinite} of the sampled rows; replace them"
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


def _with_own_names(features: Iterable[SparseFeature]) -> Iterator[SparseFeature]:
    """Yield the features, numbered where two would have one name."""
    taken: set[str] = set()
    for feature in features:
        name, number = feature.name, 2
        while name in taken:
            name, number = f"{feature.name}_{number}", number + 1
        taken.add(name)
        yield replace(feature, name=name)
