"""Unbounded ids, to which TorchRec assigns rows while it trains."""

import logging
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from learn_torchrec.arrays import Int64Array
from learn_torchrec.config import configuration, require
from learn_torchrec.errors import UserError
from learn_torchrec.ids import hash_ids
from learn_torchrec.ranker.features.base import SizedFeature
from learn_torchrec.ranker.features.columns import FeatureColumn

if TYPE_CHECKING:
    import torch
    from torchrec.modules.mc_modules import MCHManagedCollisionModule

    from learn_torchrec.training.table_optimizer import TableOptimizerConfig

logger = logging.getLogger(__name__)

# TorchRec's planner splits managed-collision tables evenly over any divisor of it: 1,
# 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64 ranks and more. Trained shards can be merged but
# not split: see `sharding.load_state`.
_BUCKETS = 192


@configuration
class ManagedCollisionFeature(SizedFeature):
    """Integers or strings; frequent ids get their own row, rare ones are evicted.

    One rank and several do not compute the same: each rank assigns and evicts the rows
    of its own part of the ids. The same number of ranks, a divisor of 192, does.

    Attributes:
        ids: the kind.
    """

    is_managed: ClassVar[bool] = True

    ids: Literal["managed_collision"] = "managed_collision"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.weights is None,
            "weights: managed_collision does not support them "
            f"(column {self.column!r}); remove them or use another kind",
        )
        require(
            self.pooling != "attention",
            "pooling: managed_collision does not support attention "
            f"(column {self.column!r}); pool by sum or mean, or use another kind",
        )
        require(
            self.sharding in (None, "auto", "row_wise"),
            f"sharding: TorchRec shards managed_collision tables row_wise only, not "
            f"{self.sharding} (column {self.column!r})",
        )

    @property
    def table_rows(self) -> int:
        """Rows of its table, rounded up to a multiple of 192."""
        return -(-super().table_rows // _BUCKETS) * _BUCKETS

    def rows_of(self, ids: FeatureColumn) -> Int64Array:
        """Return a non-negative 63-bit key of each id, int64 [V]."""
        return (hash_ids(ids.ids()) >> np.uint64(1)).astype(np.int64)

    def check(self, optimizer: "TableOptimizerConfig", device: "torch.device") -> None:
        """Refuse an optimizer whose state the CPU cannot reset, and uneven ranks."""
        import torch.distributed as dist  # features are read without torch

        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if _BUCKETS % ranks:
            raise UserError(
                f"{ranks} ranks: the table of feature {self.name!r} "
                f"(managed_collision) has {_BUCKETS} parts, which they cannot share "
                f"evenly; use a number of ranks that divides {_BUCKETS}, or ids=hash"
            )
        if device.type == "cpu" and optimizer.optimizer == "rowwise_adagrad":
            raise UserError(
                "ranker.tables.optimizer=rowwise_adagrad: fbgemm cannot reset its "
                f"state on the CPU when feature {self.name!r} (managed_collision) "
                "evicts an id; use adagrad or sgd, or train on CUDA"
            )

    def collision_module(
        self, eviction_interval: int, device: "torch.device"
    ) -> "MCHManagedCollisionModule":
        """Return what maps ids to rows.

        `MCHManagedCollisionModule` trains on the CPU and on CUDA; its faster
        successor, `HashZchManagedCollisionModule`, trains on CUDA only.
        """
        import torch.distributed as dist  # serving has no TorchRec
        from torchrec.modules.mc_modules import (
            DistanceLFU_EvictionPolicy,
            MCHManagedCollisionModule,
        )

        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks > 1 and dist.get_rank() == 0:
            logger.info(
                "feature %s (managed_collision): %d ranks assign its rows otherwise "
                "than another number would; compare runs of equally many ranks",
                *(self.name, ranks),
            )
        return MCHManagedCollisionModule(
            zch_size=self.table_rows,
            device=device,
            eviction_policy=DistanceLFU_EvictionPolicy(),
            eviction_interval=eviction_interval,
            buckets=_BUCKETS,
        )
