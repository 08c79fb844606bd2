"""Sharding the ranker's tables over ranks: planned by TorchRec, or pinned by config."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
)
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder, ParameterSharding, ShardingPlan

from learn_torchrec.errors import UserError
from learn_torchrec.ranker.rows import ShardingKind, SparseFeature
from learn_torchrec.ranker.tables import TABLE_PREFIX, named_tables
from learn_torchrec.training.distributed import (
    from_writer,
    is_writer,
    local_world_size,
)

# What the planner chooses from: replicated tables would send whole gradients.
_PLANNED = ["table_wise", "row_wise"]
# What runs on the CPU although TorchRec's sharder does not offer it there.
_HIDDEN_ON_CPU = ["row_wise", "table_row_wise", "grid_shard"]
_NARROWEST_COLUMNS = 4  # fbgemm reads rows in fours of float32


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How tables are divided among ranks.

    Attributes:
        kind: of every table that does not name its own; "auto" lets TorchRec's
            planner choose between table-wise and row-wise for each.
    """

    kind: ShardingKind = "auto"


class _Sharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, which hides on the CPU kinds that work there."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return types + [kind for kind in _HIDDEN_ON_CPU if kind not in types]


def shard(
    model: nn.Module,
    features: tuple[SparseFeature, ...],
    config: ShardingConfig,
    device: torch.device,
    on_plan: Callable[[str], None] | None = None,
) -> DistributedModelParallel:
    """Shard every table of `model` and replicate the rest.

    Args:
        model: with unsharded tables that already have their optimizer; its other
            parameters equal on every rank.
        features: the ID features.
        config: how.
        device: this rank's.
        on_plan: called with the plan as text.

    Raises:
        UserError: a plan that the backend cannot run, with the reason.
    """
    sharders: list[ModuleSharder[nn.Module]] = [
        _Sharder(),
        ManagedCollisionEmbeddingBagCollectionSharder(ebc_sharder=_Sharder()),
    ]
    kinds = {TABLE_PREFIX + f.column: _kinds(f, config) for f in features}
    constraints = {
        table: ParameterConstraints(
            sharding_types=list(wanted),
            compute_kernels=["dense" if wanted == ["data_parallel"] else "fused"],
            min_partition=_NARROWEST_COLUMNS,
        )
        for table, wanted in kinds.items()
    }
    topology = Topology(
        world_size=dist.get_world_size(),
        local_world_size=local_world_size(),
        compute_device=device.type,
    )
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    plan = _plan_together(lambda: planner.plan(model, sharders), kinds, device)
    if on_plan is not None:
        on_plan(describe(plan, model))
    return DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)


def _kinds(feature: SparseFeature, config: ShardingConfig) -> list[str]:
    if feature.ids == "managed_collision":
        return ["row_wise"]
    kind = feature.sharding or config.kind
    return list(_PLANNED) if kind == "auto" else [kind]


def _plan_together(
    make: Callable[[], ShardingPlan], kinds: dict[str, list[str]], device: torch.device
) -> ShardingPlan:
    """Plan on rank 0; its failure is every rank's, so that none waits for a plan."""
    outcome: ShardingPlan | UserError | None = None
    if is_writer():
        try:
            outcome = make()
        except (PlannerError, RuntimeError, IndexError, ValueError) as error:
            outcome = UserError(_refusal(error, kinds, device))
    outcome = from_writer(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def _refusal(
    error: Exception, kinds: dict[str, list[str]], device: torch.device
) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    pinned = [f"{table} {kind[0]}" for table, kind in kinds.items() if len(kind) == 1]
    return (
        f"ranker.sharding: TorchRec finds no plan for {dist.get_world_size()} ranks on "
        f"{device.type} ({', '.join(pinned) or 'nothing pinned'}): {reason}; pin "
        "another kind, let the planner choose (auto), or make the tables smaller"
    )


def describe(plan: ShardingPlan, model: nn.Module) -> str:
    """Return a plan as text: a line for each table."""
    sizes = {name: tuple(table.shape) for name, table in named_tables(model)}
    lines = [
        f"{table}: {sizes[table][0]:,} x {sizes[table][1]}, {placed.sharding_type}, "
        f"{placed.compute_kernel}: {', '.join(_places(placed))}"
        for tables in plan.plan.values()
        for table, placed in tables.items()
    ]
    return "\n".join(sorted(lines))


def _places(placed: ParameterSharding) -> Iterator[str]:
    if placed.sharding_spec is None:
        yield "every rank holds all of it"
        return
    for place in placed.sharding_spec.shards:
        (row, column), (rows, columns) = place.shard_offsets, place.shard_sizes
        yield (
            f"rank {place.placement.rank()} rows {row:,}-{row + rows:,} "
            f"columns {column}-{column + columns}"
        )
