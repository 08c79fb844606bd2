"""The ranker's ID tables."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torchrec import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection

from learn_torchrec.config import configuration
from learn_torchrec.ranker.features import IdFeature
from learn_torchrec.ranker.features.base import TABLE_PREFIX
from learn_torchrec.training.sharding import ShardingKind


@configuration
class ShardingConfig:
    """How tables are sharded.

    Attributes:
        kind: of every table without its own; "auto" lets TorchRec's planner choose
            between table-wise and row-wise for each. Sharding of columns (column_wise,
            table_column_wise, grid_shard) gives row-wise Adagrad a state per part of a
            row, so that results depend on the number of ranks.
    """

    kind: ShardingKind = "auto"


def sharding_kinds(
    features: Iterable[IdFeature], config: ShardingConfig
) -> Mapping[str, ShardingKind]:
    """Return the sharding kind of each table by name."""
    return {
        TABLE_PREFIX + feature.name: (
            "row_wise" if feature.is_managed else feature.sharding or config.kind
        )
        for feature in features
    }


def embedding_bag_collection(
    features: Iterable[IdFeature], embedding_dim: int
) -> EmbeddingBagCollection:
    """Return the tables of ID features, `t_<feature>` each, with sum pooling.

    They are on "meta" until `training.sharding` places and initializes them. If one
    feature has weights, the whole collection is weighted.
    """
    features = [feature for feature in features if not feature.is_managed]
    return EmbeddingBagCollection(
        device=torch.device("meta"),  # no rank holds a full table: see init_tables
        is_weighted=any(feature.weights for feature in features),
        tables=[feature.table(embedding_dim) for feature in features],
    )


def managed_collection(
    features: Iterable[IdFeature],
    embedding_dim: int,
    eviction_interval: int,
    device: torch.device,
) -> ManagedCollisionEmbeddingBagCollection | None:
    """Return the managed-collision tables; None without such features."""
    features = [feature for feature in features if feature.is_managed]
    if not features:
        return None
    tables = [feature.table(embedding_dim) for feature in features]
    modules: dict[str, Any] = {
        table.name: feature.collision_module(eviction_interval, device)
        for table, feature in zip(tables, features, strict=True)
    }
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(device=torch.device("meta"), tables=tables),
        ManagedCollisionCollection(modules, tables),
    )
