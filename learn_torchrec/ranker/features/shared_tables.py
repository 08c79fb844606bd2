"""Tables that several ID features share."""

from collections.abc import Mapping, Sequence
from typing import Any

from learn_torchrec.config import replace, require
from learn_torchrec.ranker.features.base import IdFeature

# What the feature that owns a table sets for all that share it.
_OWNERS = ("num_embeddings", "boundaries", "embedding_dim", "sharding")
_UNSET = (None, ())


def with_shared_tables(features: Sequence[Any]) -> tuple[Any, ...]:
    """Return the features; those that share a table have its owner's settings.

    Attention shares the table of its query.

    Raises:
        ValueError: a feature that cannot share the table that it names; names both.
    """
    by_name = {feature.name: feature for feature in features}
    return tuple(_with_owner(_with_query(f, by_name), by_name) for f in features)


def _with_query(feature: IdFeature, by_name: Mapping[str, IdFeature]) -> IdFeature:
    if feature.query is None:
        return feature
    query = by_name.get(feature.query)
    require(
        query is not None and query.pooling != "attention",
        f"sparse: {feature.name!r} has the query {feature.query!r}; name a feature "
        "that is not itself pooled by attention",
    )
    assert query is not None
    table = query.table or query.name
    require(
        feature.table in (None, table),
        f"sparse: {feature.name!r} must share the table of its query "
        f"{query.name!r}, {table!r}, not that of {feature.table!r}",
    )
    return replace(feature, table=table)


def _with_owner(feature: IdFeature, by_name: Mapping[str, IdFeature]) -> IdFeature:
    if feature.table is None:
        return feature
    owner = by_name.get(feature.table)
    both = f"sparse: {feature.name!r} shares the table of {feature.table!r}"
    require(
        owner is not None and owner.table is None,
        f"{both}; name an ID feature that has its own table",
    )
    changes = {}
    for name in _OWNERS:
        own, shared = getattr(feature, name, None), getattr(owner, name, None)
        require(
            own in (*_UNSET, shared),
            f"{both}, but sets {name}={own}, not {shared}; set it there alone",
        )
        if hasattr(feature, name):
            changes[name] = shared
    feature = replace(feature, **changes)
    mine, theirs = (_rows(one) for one in (feature, owner))
    require(
        mine == theirs,
        f"{both}, but maps its ids to {mine}, not to {theirs}; give both the same ids",
    )
    return feature


def _rows(feature: Any) -> str:
    return f"{feature.table_rows:,} rows by {feature.row_mapping}"
