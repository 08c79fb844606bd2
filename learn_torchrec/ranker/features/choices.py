"""What was derived: the features, a choice with its reason for every column."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from learn_torchrec.ranker.features import (
    BucketizedFeature,
    FeaturesConfig,
    SparseFeature,
)
from learn_torchrec.ranker.features.base import SizedFeature
from learn_torchrec.ranker.features.columns import is_number
from learn_torchrec.ranker.features.profile import ColumnProfile
from learn_torchrec.text import printable

LEFT_OUT = "left out"


@dataclass(frozen=True)
class FeatureChoice:
    """What becomes of a column.

    Attributes:
        column: of the impressions or the catalogue, or computed.
        source: "impressions", "catalogue" or "log".
        use: such as "hash, 4,096 rows", "standard, null flag" or "left out".
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
        columns: what they were derived from, by name.
    """

    config: FeaturesConfig
    choices: tuple[FeatureChoice, ...]
    columns: Mapping[str, ColumnProfile]

    def with_settings(self, features: FeaturesConfig) -> "DerivedFeatures":
        """Return the user's features instead, what they leave open derived.

        A bare name (`ranker.features.sparse=user_id,item_id,store`) gets the table size
        or the transform that derivation chooses; what is set stays.
        """
        config = self._completed(features)
        choices = []
        for choice in self.choices:
            before, now = (uses_of(c, choice.column) for c in (self.config, config))
            if before != now:
                use = ", ".join(now) or LEFT_OUT
                choice = replace(choice, use=use, reason="as set")
            choices.append(choice)
        return DerivedFeatures(config, tuple(choices), self.columns)

    def table(self) -> str:
        """Return the choices as aligned text, a line for each column."""
        lines: list[tuple[str, ...]] = [("column", "from", "used as", "because")]
        for one in self.choices:
            cells = (one.column, one.source, one.use, one.reason)
            lines.append(tuple(map(printable, cells)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines
        )

    def _completed(self, features: FeaturesConfig) -> FeaturesConfig:
        """Return features with what they leave open: table sizes, transforms."""
        sparse: list[SparseFeature] = []
        for feature in features.sparse:
            column = self.columns.get(feature.column)
            if feature.table is not None:
                column = None  # it gets what its table's owner gets
            if isinstance(feature, SizedFeature) and column is not None:
                rows = feature.num_embeddings or column.table_rows
                feature = replace(feature, num_embeddings=rows)
            if isinstance(feature, BucketizedFeature) and column is not None:
                feature = feature.with_quantiles(column.numbers())
            sparse.append(feature)
        dense = []
        for number in features.dense:
            column = self.columns.get(number.column)
            fits = column and is_number(column.kind) and len(column.numbers())
            if number.transform is None and column and fits:
                number = column.number_feature()
            dense.append(number)
        return replace(features, sparse=tuple(sparse), dense=tuple(dense))


def uses_of(config: FeaturesConfig, column: str) -> list[str]:
    """Return how a column is used, a phrase for each of its features."""
    uses: list[str] = []
    for feature in config.sparse:
        if feature.column == column:
            size = f"{feature.ids}, {feature.table_rows:,} rows"
            uses.append(feature.part if feature.ids == "calendar" else size)
    for number in config.dense:
        if number.column == column:
            uses.append(number.transform or "number")
            uses += ["null flag"] * number.null_flag
    return uses
