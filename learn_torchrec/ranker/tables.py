"""The ranker's ID tables."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

from learn_torchrec.config import configuration
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.rows import SparseFeature
from learn_torchrec.training.sharding import ShardingKind
from learn_torchrec.training.table_optimizer import TableOptimizerConfig

TABLE_PREFIX = "t_"
# TorchRec's planner shares managed-collision tables evenly among any divisor of it.
# Once trained, ranks' shares can be joined but not cut: see `sharding.load_state`.
_BUCKETS = 64


@configuration
class ShardingConfig:
    """How tables are divided among ranks.

    Attributes:
        kind: of every table that does not name its own; "auto" lets TorchRec's
            planner choose between table-wise and row-wise for each. Where columns are
            divided (column_wise, table_column_wise, grid_shard), row-wise Adagrad
            keeps a state for each part of a row: another step than an undivided
            table's, so results then depend on the number of ranks.
    """

    kind: ShardingKind = "auto"


def sharding_kinds(
    features: Iterable[SparseFeature], config: ShardingConfig
) -> Mapping[str, ShardingKind]:
    """Return the kind of each table by name."""
    return {
        TABLE_PREFIX + feature.column: (
            "row_wise" if _is_managed(feature) else feature.sharding or config.kind
        )
        for feature in features
    }


def refuse_managed(
    features: Iterable[SparseFeature],
    optimizer: TableOptimizerConfig,
    device: torch.device,
) -> None:
    """Refuse managed collision with an optimizer whose state the CPU cannot reset.

    Raises:
        UserError: names feature, setting and mend.
    """
    managed = [feature.column for feature in features if _is_managed(feature)]
    if device.type != "cpu" or not managed:
        return
    if optimizer.optimizer == "rowwise_adagrad":
        raise UserError(
            "ranker.tables.optimizer=rowwise_adagrad: fbgemm cannot reset its state on "
            f"the CPU when feature {managed[0]!r} (managed_collision) gives up an id; "
            "use adagrad or sgd, or train on CUDA"
        )


def embedding_bag_collection(
    features: tuple[SparseFeature, ...], embedding_dim: int
) -> EmbeddingBagCollection:
    """Return the tables of ID features, `t_<feature>` each, summed bags.

    They hold no values until `training.sharding` has placed and filled them. Where
    one feature has weights the whole collection is weighted.
    """
    return EmbeddingBagCollection(
        device=torch.device("meta"),  # no rank holds a whole table: see init_tables
        is_weighted=is_weighted(features),
        tables=[_table(feature, embedding_dim) for feature in unmanaged(features)],
    )


def managed_collection(
    features: tuple[SparseFeature, ...],
    embedding_dim: int,
    eviction_interval: int,
    device: torch.device,
) -> ManagedCollisionEmbeddingBagCollection | None:
    """Return the tables whose ids TorchRec gives rows; None without such features.

    `MCHManagedCollisionModule` trains on the CPU and on CUDA; its faster successor,
    `HashZchManagedCollisionModule`, trains on CUDA only.
    """
    configs = [_table(f, embedding_dim) for f in features if _is_managed(f)]
    if not configs:
        return None
    modules: dict[str, Any] = {
        config.name: MCHManagedCollisionModule(
            zch_size=config.num_embeddings,
            device=device,
            eviction_policy=DistanceLFU_EvictionPolicy(),
            eviction_interval=eviction_interval,
            buckets=_BUCKETS,
        )
        for config in configs
    }
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(device=torch.device("meta"), tables=configs),
        ManagedCollisionCollection(modules, configs),
    )


def unmanaged(features: Iterable[SparseFeature]) -> list[SparseFeature]:
    """Return the features whose ids are rows before they reach the model."""
    return [feature for feature in features if not _is_managed(feature)]


def is_weighted(features: Iterable[SparseFeature]) -> bool:
    """Whether a feature has weights."""
    return any(feature.weights for feature in features)


def _is_managed(feature: SparseFeature) -> bool:
    return feature.ids == "managed_collision"


def _table(feature: SparseFeature, embedding_dim: int) -> EmbeddingBagConfig:
    rows = feature.num_embeddings
    if _is_managed(feature):
        rows = -(-rows // _BUCKETS) * _BUCKETS
    return EmbeddingBagConfig(
        name=TABLE_PREFIX + feature.column,
        embedding_dim=embedding_dim,
        num_embeddings=rows,
        feature_names=[feature.column],
    )
