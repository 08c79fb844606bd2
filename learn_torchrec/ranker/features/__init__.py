"""The ranker's features, one file per kind.

A new kind of ID feature is a file with a subclass of `IdFeature`, and an entry in
`IdKind` below; its `ids` setting is the kind's name.
"""

import typing
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, TypeAdapter

from learn_torchrec.config import configuration, require
from learn_torchrec.ranker.features.base import IdFeature
from learn_torchrec.ranker.features.bucketized import BucketizedFeature
from learn_torchrec.ranker.features.calendar import CalendarFeature
from learn_torchrec.ranker.features.columns import Nulls
from learn_torchrec.ranker.features.dense import DenseFeature
from learn_torchrec.ranker.features.hashed import HashedFeature
from learn_torchrec.ranker.features.indexed import IndexedFeature
from learn_torchrec.ranker.features.managed_collision import ManagedCollisionFeature
from learn_torchrec.ranker.features.shared_tables import with_shared_tables
from learn_torchrec.schema import ITEM_ID, USER_ID

__all__ = [
    "BucketizedFeature",
    "CalendarFeature",
    "DenseFeature",
    "FeaturesConfig",
    "HashedFeature",
    "IdFeature",
    "IndexedFeature",
    "ManagedCollisionFeature",
    "SparseFeature",
]

IdKind: TypeAlias = (
    HashedFeature
    | IndexedFeature
    | ManagedCollisionFeature
    | BucketizedFeature
    | CalendarFeature
)


def _as_kind(settings: Any) -> Any:
    """Return the feature that settings describe; a bare name is a hashed column."""
    settings = _named(settings)
    if isinstance(settings, IdFeature):
        return settings
    kinds = {kind.ids: kind for kind in typing.get_args(IdKind)}
    name = settings.get("ids", HashedFeature.ids)
    is_known = isinstance(name, str) and name in kinds
    require(is_known, f"ids: {name!r} is none of {', '.join(kinds)}")
    return TypeAdapter(kinds[name]).validate_python(settings)


def _named(settings: Any) -> Any:
    if isinstance(settings, str):
        return {"column": settings}
    require(
        isinstance(settings, dict | IdFeature | DenseFeature),
        f"{settings!r} is neither a column's name nor a JSON object",
    )
    return settings


SparseFeature: TypeAlias = Annotated[IdKind, BeforeValidator(_as_kind)]
NumberFeature: TypeAlias = Annotated[DenseFeature, BeforeValidator(_named)]


@configuration
class FeaturesConfig:
    """The columns of the impressions and the catalogue that the ranker reads.

    Codes of content (`content_code_1`, ...) and past counts and rates are columns, too.

    Attributes:
        sparse: ID features: names of columns to hash, or settings of any kind.
        dense: number columns: names, or settings.
        nulls: "fill": a null id has no embedding (it adds 0), a null number is the
            mean; both are counted. "refuse": a null is an error that names its row.

    Features that share a table have its settings after construction.
    """

    sparse: tuple[SparseFeature, ...] = (
        HashedFeature(column=USER_ID),
        HashedFeature(column=ITEM_ID),
    )
    dense: tuple[NumberFeature, ...] = ()
    nulls: Nulls = "fill"

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.sparse]
        require(len(names) > 0, "sparse: name at least one column")
        object.__setattr__(self, "sparse", with_shared_tables(self.sparse))
        require(
            len(self.pooled) > 0,
            "sparse: needs at least one feature without managed_collision whose table "
            "no attention reads",
        )
        dims = {feature.embedding_dim for feature in self.sequences}
        require(
            len(dims) < 2,
            "sparse: TorchRec needs one embedding_dim for all tables that attention "
            f"reads, not {', '.join(map(str, dims))}",
        )
        weighted = [feature.name for feature in self.sequences if feature.weights]
        require(
            not weighted,
            f"sparse: {', '.join(weighted)} has weights, but shares a table with "
            "attention, which takes none; give it a table of its own",
        )
        dense = [feature.column for feature in self.dense]
        for kind, listed, fix in (
            ("sparse", names, "list it once, or give one a `name`"),
            ("dense", dense, "list it once"),
        ):
            twice = [name for name in set(listed) if listed.count(name) > 1]
            require(not twice, f"{kind}: {', '.join(twice)} listed twice; {fix}")

    @property
    def sequences(self) -> tuple[IdFeature, ...]:
        """The features whose tables attention reads, in unpooled form."""
        read = {f.table_name for f in self.sparse if f.pooling == "attention"}
        return tuple(f for f in self.sparse if f.table_name in read)

    @property
    def managed(self) -> tuple[IdFeature, ...]:
        """The features whose ids TorchRec maps to rows while it trains."""
        return tuple(feature for feature in self.sparse if feature.is_managed)

    @property
    def pooled(self) -> tuple[IdFeature, ...]:
        """All other ID features."""
        others = (*self.sequences, *self.managed)
        return tuple(feature for feature in self.sparse if feature not in others)

    @property
    def columns(self) -> tuple[str, ...]:
        """The required columns, each once."""
        sparse = [name for feature in self.sparse for name in feature.columns]
        dense = [feature.column for feature in self.dense]
        return tuple(dict.fromkeys([*sparse, *dense]))

    @property
    def dense_width(self) -> int:
        """F, the dense inputs of the model."""
        return sum(feature.width for feature in self.dense)
