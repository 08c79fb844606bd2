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
from learn_torchrec.ranker.features.hashed import HashedFeature
from learn_torchrec.ranker.features.indexed import IndexedFeature
from learn_torchrec.ranker.features.managed_collision import ManagedCollisionFeature
from learn_torchrec.schema import ITEM_ID, USER_ID

__all__ = [
    "BucketizedFeature",
    "FeaturesConfig",
    "HashedFeature",
    "IdFeature",
    "IndexedFeature",
    "ManagedCollisionFeature",
]

IdKind: TypeAlias = (
    HashedFeature | IndexedFeature | ManagedCollisionFeature | BucketizedFeature
)


def _as_kind(settings: Any) -> Any:
    """Return the feature that settings describe; a bare name is a hashed column."""
    if isinstance(settings, str):
        settings = {"column": settings}
    if not isinstance(settings, dict):
        return settings
    kinds = {kind.ids: kind for kind in typing.get_args(IdKind)}
    name = settings.get("ids", HashedFeature.ids)
    require(name in kinds, f"ids: {name!r} is none of {', '.join(kinds)}")
    return TypeAdapter(kinds[name]).validate_python(settings)


SparseFeature: TypeAlias = Annotated[IdKind, BeforeValidator(_as_kind)]


@configuration
class FeaturesConfig:
    """The columns of the impressions that the ranker reads.

    Attributes:
        sparse: ID features: names of columns to hash, or settings of any kind.
        dense: number columns.
    """

    sparse: tuple[SparseFeature, ...] = (
        HashedFeature(column=USER_ID),
        HashedFeature(column=ITEM_ID),
    )
    dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [feature.column for feature in self.sparse]
        require(len(names) > 0, "sparse: name at least one column")
        require(
            not all(feature.is_managed for feature in self.sparse),
            "sparse: needs at least one feature without managed_collision",
        )
        for kind, listed in (("sparse", names), ("dense", self.dense)):
            twice = [name for name in set(listed) if listed.count(name) > 1]
            require(not twice, f"{kind}: {', '.join(twice)} listed twice; list it once")

    @property
    def columns(self) -> tuple[str, ...]:
        """The required columns, each once."""
        sparse = [name for feature in self.sparse for name in feature.columns]
        return tuple(dict.fromkeys([*sparse, *self.dense]))
