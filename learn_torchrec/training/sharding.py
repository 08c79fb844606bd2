"""Sharding a model's ID tables over ranks with TorchRec's planner."""

import hashlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.optim import RowWiseAdagrad

from learn_torchrec.training.distributed import local_world_size

# data_parallel is left out: TorchRec drops the in-backward optimizer of such tables,
# and fbgemm's unfused kernel is wrong for an EmbeddingCollection on a CPU.
_SHARDING_TYPES = ["table_wise", "row_wise"]
_ADAGRAD_EPS = 1e-8
_ROWS_IN_BLOCK = 4096


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, which hides row-wise sharding on CPU although it works."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return types + [kind for kind in _SHARDING_TYPES if kind not in types]


def shard(
    model: nn.Module, device: torch.device, table_learning_rate: float
) -> DistributedModelParallel:
    """Shard every table of `model` and replicate the rest.

    Tables are updated inside the backward pass with row-wise Adagrad, the one
    adaptive optimizer that fbgemm has on both CPU and CUDA.

    Args:
        model: with unsharded tables; its other parameters equal on every rank.
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
    sharders = [_BagSharder(), EmbeddingCollectionSharder()]
    plan = EmbeddingShardingPlanner(
        topology=topology, constraints=constraints
    ).collective_plan(model, sharders, dist.group.WORLD)
    return DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)


@torch.no_grad()
def init_tables(model: DistributedModelParallel, seed: int) -> None:
    """Fill every table as TorchRec does, uniformly within sqrt(1 / rows).

    The values follow from (seed, table, row) alone, so they are the same for any
    number of ranks and any sharding. TorchRec itself fills each shard by its rank's
    random state: equal seeds give equal shards, and another number of ranks gives
    other values.
    """
    for name, table in model.state_dict().items():
        if not isinstance(table, ShardedTensor):
            continue
        num_rows, dim = table.size()
        bound = num_rows**-0.5
        for shard in table.local_shards():
            first_row, first_column = shard.metadata.shard_offsets
            count, width = shard.metadata.shard_sizes
            columns = slice(first_column, first_column + width)
            first_block = first_row // _ROWS_IN_BLOCK
            for block in range(first_block, -(-(first_row + count) // _ROWS_IN_BLOCK)):
                start = block * _ROWS_IN_BLOCK
                random = torch.Generator().manual_seed(_block_seed(seed, name, block))
                rows = torch.rand((_ROWS_IN_BLOCK, dim), generator=random)
                low = max(first_row, start)
                high = min(first_row + count, start + _ROWS_IN_BLOCK)
                values = (2 * rows[low - start : high - start, columns] - 1) * bound
                shard.tensor[low - first_row : high - first_row].copy_(values)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's state to the CPU, every sharded table whole; all ranks call it.

    Returns:
        Names and tensors; on ranks other than 0 sharded tables are empty.
    """
    state = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            whole = torch.empty(value.size() if dist.get_rank() == 0 else 0)
            value.gather(dst=0, out=whole if dist.get_rank() == 0 else None)
            state[name] = whole
        else:
            state[name] = value.detach().cpu().clone()
    return state


def _block_seed(seed: int, name: str, block: int) -> int:
    text = f"{seed}/{name}/{block}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def _tables(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            for name, bag in module.embedding_bags.items():
                yield name, bag.weight
        elif isinstance(module, EmbeddingCollection):
            for name, table in module.embeddings.items():
                yield name, table.weight
