"""The ID tables: their collections, their first values and their optimizer."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.optim import SGD, Adagrad, Adam, RowWiseAdagrad
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper

from learn_torchrec.config import require
from learn_torchrec.errors import UserError
from learn_torchrec.ranker.rows import SparseFeature

TABLE_PREFIX = "t_"
_ROWS_IN_BLOCK = 4096
# In the backward pass by fbgemm, and as a plain optimizer of replicated tables.
_IN_BACKWARD = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": Adagrad,
    "sgd": SGD,
    "adam": Adam,
}
_PLAIN = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
# How many ranks managed-collision tables can be shared by: any divisor of it.
_BUCKETS = 64


@dataclass(frozen=True, kw_only=True)
class TableOptimizerConfig:
    """The optimizer of the ID tables; it steps inside the backward pass.

    Attributes:
        optimizer: fbgemm has row-wise Adagrad, Adagrad and SGD on both backends, and
            Adam on CUDA only.
        learning_rate: peak; warm-up and decay are those of `ranker.optimizer`.
        eps: added to the root of the second moment.
        weight_decay: on CUDA only: fbgemm's CPU kernels ignore it.
        beta1: of Adam.
        beta2: of Adam.
    """

    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    learning_rate: float = 0.05
    eps: float = 1e-8
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "ranker.tables.learning_rate: above 0")
        require(self.eps > 0, "ranker.tables.eps: above 0")
        require(self.weight_decay >= 0, "ranker.tables.weight_decay: at least 0")
        for beta in (self.beta1, self.beta2):
            require(0 <= beta < 1, "ranker.tables.beta1, beta2: from 0, below 1")

    def arguments(self) -> dict[str, Any]:
        """Return a fresh dictionary: what takes it in the backward pass alters it."""
        result: dict[str, Any] = {"lr": self.learning_rate}
        if self.weight_decay:
            result["weight_decay"] = self.weight_decay
        if self.optimizer != "sgd":
            result["eps"] = self.eps
        if self.optimizer == "adam":
            result["betas"] = (self.beta1, self.beta2)
        return result


def refuse_unsupported(
    config: TableOptimizerConfig,
    features: tuple[SparseFeature, ...],
    device: torch.device,
) -> None:
    """Refuse what fbgemm's CPU kernels lack, or would silently ignore.

    Raises:
        UserError: names the setting and the mend.
    """
    if device.type != "cpu":
        return
    if config.optimizer == "adam":
        raise UserError(
            "ranker.tables.optimizer=adam: fbgemm has no Adam for tables on the CPU; "
            "use rowwise_adagrad, adagrad or sgd, or train on CUDA"
        )
    if config.weight_decay:
        raise UserError(
            f"ranker.tables.weight_decay={config.weight_decay}: fbgemm ignores weight "
            "decay of tables on the CPU; set it to 0, or train on CUDA"
        )
    managed = [f.column for f in features if f.ids == "managed_collision"]
    if managed and config.optimizer == "rowwise_adagrad":
        raise UserError(
            f"ranker.tables.optimizer=rowwise_adagrad: fbgemm cannot reset its state "
            f"when feature {managed[0]!r} (managed_collision) gives up an id on the "
            "CPU; use adagrad or sgd, or train on CUDA"
        )


def embedding_bag_collection(
    features: tuple[SparseFeature, ...], embedding_dim: int
) -> EmbeddingBagCollection:
    """Return the tables of ID features, `t_<feature>` each, summed bags.

    They hold no values until the model is sharded and `init_tables` has filled them.
    Where one feature has weights the whole collection is weighted.
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


def step_in_backward(model: nn.Module, config: TableOptimizerConfig) -> None:
    """Let every table of an unsharded model be updated inside the backward pass."""
    for _, parameter in named_tables(model):
        _apply_optimizer_in_backward(
            _IN_BACKWARD[config.optimizer], [parameter], config.arguments()
        )


def replicated_optimizer(
    tables: dict[str, nn.Parameter], config: TableOptimizerConfig
) -> KeyedOptimizer:
    """Return the same optimizer for data-parallel tables, which get a plain gradient.

    TorchRec drops the in-backward optimizer of such tables.
    """

    def make(values: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer: Any = _PLAIN[config.optimizer]
        result: torch.optim.Optimizer = optimizer(values, **config.arguments())
        return result

    return KeyedOptimizerWrapper(tables, make)


def named_tables(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the tables of an unsharded model by name."""
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            for name, bag in module.embedding_bags.items():
                yield name, bag.weight


def is_table(name: str) -> bool:
    """Whether a parameter's name is a table's."""
    return f".embedding_bags.{TABLE_PREFIX}" in name and name.endswith(".weight")


@torch.no_grad()
def init_tables(model: DistributedModelParallel, seed: int) -> None:
    """Fill every table as TorchRec does, uniformly within sqrt(1 / rows).

    The values follow from (seed, table, row) alone, so they are the same for any
    number of ranks and any sharding. TorchRec itself fills each shard by its rank's
    random state: equal seeds give equal shards, and another number of ranks gives
    other values.
    """
    for parameter, table in model.state_dict().items():
        if not is_table(parameter):
            continue
        name = parameter.split(".")[-2]
        num_rows, dim = table.size()
        if not isinstance(table, ShardedTensor):  # replicated
            _fill(table, (0, 0), (num_rows, dim), seed, name)
            continue
        for shard in table.local_shards():
            place = shard.metadata
            _fill(
                shard.tensor,
                place.shard_offsets,
                (num_rows, dim),
                seed,
                name,
            )


def _fill(
    part: Tensor, offsets: Any, size: tuple[int, int], seed: int, name: str
) -> None:
    """Fill the part of a table of `size` that starts at row and column `offsets`."""
    num_rows, dim = size
    (first_row, first_column), (count, width) = offsets, part.shape
    columns = slice(first_column, first_column + width)
    first_block = first_row // _ROWS_IN_BLOCK
    for block in range(first_block, -(-(first_row + count) // _ROWS_IN_BLOCK)):
        start = block * _ROWS_IN_BLOCK
        random = torch.Generator().manual_seed(_block_seed(seed, name, block))
        rows = torch.rand((_ROWS_IN_BLOCK, dim), generator=random)
        low = max(first_row, start)
        high = min(first_row + count, start + _ROWS_IN_BLOCK)
        values = (2 * rows[low - start : high - start, columns] - 1) * num_rows**-0.5
        part[low - first_row : high - first_row].copy_(values)


def _block_seed(seed: int, name: str, block: int) -> int:
    text = f"{seed}/{name}/{block}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1
