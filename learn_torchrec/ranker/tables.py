"""The ranker's ID tables."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
)
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection

from learn_torchrec.config import configuration
from learn_torchrec.errors import UserError
from learn_torchrec.placement import ShardingKind
from learn_torchrec.ranker.features import FeaturesConfig, IdFeature


@configuration
class ShardingConfig:
    """How tables are sharded.

    Attributes:
        kind: of every table without its own; "auto" lets TorchRec's planner choose
            for each: on the CPU between table-wise and row-wise, on GPUs also
            table-row-wise and, for small tables, data-parallel. Sharding of columns
            (column_wise, table_column_wise, grid_shard) gives row-wise Adagrad a state
            per part of a row, so that results depend on the number of ranks; the
            planner chooses from it with other optimizers only.
    """

    kind: ShardingKind = "auto"


def sharding_kinds(
    features: FeaturesConfig, config: ShardingConfig
) -> Mapping[str, ShardingKind]:
    """Return the sharding kind of each table by name.

    Raises:
        UserError: a table that attention reads would be replicated.
    """
    kinds: dict[str, ShardingKind] = {
        table: "row_wise" if first.is_managed else first.sharding or config.kind
        for table, (first, *_) in _by_table(features.sparse).items()
    }
    for feature in features.sequences:
        if kinds[feature.table_name] == "data_parallel":
            raise UserError(
                "ranker.sharding.kind=data_parallel: TorchRec cannot replicate the "
                f"table of feature {feature.name!r}, which attention reads; set the "
                "sharding of the feature that owns it to auto, table_wise or row_wise"
            )
    return kinds


def table_type(precision: str) -> DataType:
    """Return TorchRec's name of a precision of `TableOptimizerConfig`."""
    return {"float32": DataType.FP32, "float16": DataType.FP16}[precision]


def embedding_bag_collection(
    features: Iterable[IdFeature], embedding_dim: int, precision: str = "float32"
) -> EmbeddingBagCollection:
    """Return the tables of pooled features, `t_<feature>` each, with sum pooling.

    They are on "meta" until `training.sharding` places and initializes them. If one
    feature has weights, the whole collection is weighted.
    """
    features = list(features)
    return EmbeddingBagCollection(
        device=torch.device("meta"),  # no rank holds a full table: see init_tables
        is_weighted=any(feature.weights for feature in features),
        tables=_tables(EmbeddingBagConfig, features, embedding_dim, precision),
    )


def embedding_collection(
    features: Iterable[IdFeature], embedding_dim: int, precision: str = "float32"
) -> EmbeddingCollection | None:
    """Return the tables that attention reads, on "meta"; None without any."""
    tables = _tables(EmbeddingConfig, features, embedding_dim, precision)
    if not tables:
        return None
    return EmbeddingCollection(device=torch.device("meta"), tables=tables)


def managed_collection(
    features: Iterable[IdFeature],
    embedding_dim: int,
    eviction_interval: int,
    device: torch.device,
    precision: str = "float32",
) -> ManagedCollisionEmbeddingBagCollection | None:
    """Return the managed-collision tables; None without such features."""
    features = list(features)
    tables = _tables(EmbeddingBagConfig, features, embedding_dim, precision)
    if not tables:
        return None
    modules: dict[str, Any] = {
        table: first.collision_module(eviction_interval, device)
        for table, (first, *_) in _by_table(features).items()
    }
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(device=torch.device("meta"), tables=tables),
        ManagedCollisionCollection(modules, tables),
    )


def _tables(
    kind: Any, features: Iterable[IdFeature], embedding_dim: int, precision: str
) -> list[Any]:
    """Return TorchRec's configurations of the features' tables."""
    return [
        kind(
            name=table,
            embedding_dim=shared[0].embedding_dim or embedding_dim,
            num_embeddings=shared[0].table_rows,
            feature_names=[feature.name for feature in shared],
            data_type=table_type(precision),
        )
        for table, shared in _by_table(features).items()
    ]


def _by_table(features: Iterable[IdFeature]) -> dict[str, list[IdFeature]]:
    found: dict[str, list[IdFeature]] = {}
    for feature in features:
        found.setdefault(feature.table_name, []).append(feature)
    return found
