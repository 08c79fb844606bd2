"""Sharding the ranker's tables over ranks with TorchRec's planner."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.optim import RowWiseAdagrad

from learn_torchrec.ranker.rows import SparseFeature
from learn_torchrec.training.distributed import local_world_size

# data_parallel is left out: TorchRec drops the in-backward optimizer of such tables.
_SHARDING_TYPES = ["table_wise", "row_wise"]
_ADAGRAD_EPS = 1e-8


class _Sharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, which hides row-wise sharding on CPU although it works."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return types + [kind for kind in _SHARDING_TYPES if kind not in types]


def embedding_bag_collection(
    features: tuple[SparseFeature, ...], embedding_dim: int
) -> EmbeddingBagCollection:
    """Return the tables of ID features, `t_<feature>` each, summed bags."""
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"t_{feature.column}",
                embedding_dim=embedding_dim,
                num_embeddings=feature.num_embeddings,
                feature_names=[feature.column],
            )
            for feature in features
        ]
    )


def shard(
    model: nn.Module, device: torch.device, table_learning_rate: float
) -> DistributedModelParallel:
    """Shard every table of `model` and replicate the rest.

    Tables are updated inside the backward pass with row-wise Adagrad, the one
    adaptive optimizer that fbgemm has on both CPU and CUDA.

    Args:
        model: with unsharded tables on the CPU, equal on every rank.
        device: this rank's.
        table_learning_rate: of the tables.
    """
    tables = dict(_tables(model))
    for parameter in tables.values():
        _apply_optimizer_in_backward(
            RowWiseAdagrad,
            [parameter],
            {"lr": table_learning_rate, "eps": _ADAGRAD_EPS},
        )
    constraints = {
        name: ParameterConstraints(
            sharding_types=_SHARDING_TYPES, compute_kernels=["fused"]
        )
        for name in tables
    }
    topology = Topology(
        world_size=dist.get_world_size(),
        local_world_size=local_world_size(),
        compute_device=device.type,
    )
    sharders = [_Sharder()]
    plan = EmbeddingShardingPlanner(
        topology=topology, constraints=constraints
    ).collective_plan(model, sharders, dist.group.WORLD)
    return DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)


def _tables(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            for name, bag in module.embedding_bags.items():
                yield name, bag.weight
