"""Which rank holds which ID table: TorchRec's planner on a real or a declared cluster.

Bytes are binary: 1 GiB is 2 ** 30.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import (
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.storage_reservations import (
    FixedAbsoluteStorageReservation,
)
from torchrec.distributed.planner.types import (
    PlannerError,
    PlannerErrorType,
    ShardingOption,
    Stats,
)
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan

from learn_torchrec.errors import UserError
from learn_torchrec.host_memory import host_memory
from learn_torchrec.placement import ShardingKind
from learn_torchrec.training.sharders import sharders
from learn_torchrec.training.table_optimizer import TableOptimizerConfig

GIB = 1 << 30
# What the planner chooses from by itself. On the CPU, fbgemm's unfused kernel is wrong
# for an EmbeddingCollection, and ranks share one memory.
_PLANNED_ON_CPU = ("table_wise", "row_wise")
_PLANNED_ON_CUDA = (*_PLANNED_ON_CPU, "table_row_wise")
_BY_COLUMN = ("column_wise", "table_column_wise", "grid_shard")
_TYPES = (*_PLANNED_ON_CUDA, *_BY_COLUMN, "data_parallel")
_KERNELS_ON_CUDA = ("fused", "fused_uvm_caching", "fused_uvm")
_KERNELS = (*_KERNELS_ON_CUDA, "dense")
CACHED_KERNEL = "fused_uvm_caching"
_CACHED_SHARE = 0.2  # of a table's rows, in GPU memory
_REPLICATED_BYTES = 1 << 20  # of a table that the planner may replicate
_COLUMN_MULTIPLE = 4  # fbgemm reads rows in fours of float32
_MOST_PROPOSALS = 1_000  # of the grid search, which else takes minutes
# GPU memory that tables do not get: the CUDA context and NCCL's buffers; of the other
# weights themselves, their gradient, Adam's two moments, DDP's buckets and a copy; and
# a share for activations and fragments.
_CONTEXT_BYTES, _DENSE_COPIES, _ACTIVATIONS = GIB, 6, 0.15
_HOST_SHARE = 0.8  # of a host's memory that tables may take


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines of a job.

    Attributes:
        nodes: hosts.
        ranks_per_node: GPUs of a host, or processes without GPUs.
        device: "cuda" or "cpu".
        hbm_bytes: memory of a GPU; 0 on the CPU.
        host_bytes: memory of a host.
    """

    nodes: int
    ranks_per_node: int
    device: Literal["cuda", "cpu"]
    hbm_bytes: int
    host_bytes: int

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.ranks_per_node

    def topology(self) -> Topology:
        """Return TorchRec's description."""
        return Topology(
            world_size=self.ranks,
            local_world_size=self.ranks_per_node,
            compute_device=self.device,
            hbm_cap=self.hbm_bytes,
            ddr_cap=int(_HOST_SHARE * self.host_bytes) // self.ranks_per_node,
            created_by_factory=True,  # every field that its factory looks up is given
        )


def this_cluster(device: torch.device, ranks: int, ranks_per_node: int) -> Cluster:
    """Return the cluster of this job, whose hosts are all like this one."""
    hbm_bytes = 0
    if device.type == "cuda":
        hbm_bytes = torch.cuda.get_device_properties(device).total_memory
    return Cluster(
        nodes=-(-ranks // ranks_per_node),
        ranks_per_node=ranks_per_node,
        device="cuda" if device.type == "cuda" else "cpu",
        hbm_bytes=hbm_bytes,
        host_bytes=host_memory(),
    )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step looks up, for the planner's estimates.

    Attributes:
        batch_size: rows of a rank's batch.
        lengths: mean ids of a row by feature; 1 for others.
    """

    batch_size: int = 512
    lengths: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A plan, and what TorchRec expects of it.

    Attributes:
        plan: for `DistributedModelParallel`.
        tables: chosen for each table: sharding, kernel, shards with rank, storage
            and time.
    """

    plan: ShardingPlan
    tables: Sequence[ShardingOption]


def plan_tables(
    model: nn.Module,
    kinds: Mapping[str, ShardingKind],
    cluster: Cluster,
    workload: Workload,
    optimizer: TableOptimizerConfig,
    sent_as: dict[str, Any] | None = None,
) -> Planned:
    """Plan the tables of an unsharded model, whose optimizer is set already.

    Args:
        model: with tables, which may be on "meta".
        kinds: how each table is sharded, "auto" for missing ones.
        cluster: that holds them.
        workload: of a step.
        optimizer: of the tables.
        sent_as: the `sharders.codecs` of embeddings; None for float32.

    Raises:
        UserError: tables that do not fit, or settings that leave no choice; with the
            reason and the fix.
    """
    tables = dict(named_tables(model))
    estimates, topology = _Estimates(), cluster.topology()
    constraints = _constraints(model, kinds, cluster, workload, optimizer)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=workload.batch_size,
        enumerator=_OrderedOptions(topology, workload.batch_size, constraints),
        storage_reservation=FixedAbsoluteStorageReservation(
            _reserved(model, tables, cluster)
        ),
        # A grid of many tables is too large to search; greedy proposals remain.
        proposer=[
            GridSearchProposer(_MOST_PROPOSALS),
            GreedyProposer(),
            GreedyProposer(use_depth=False),
            UniformProposer(),
        ],
        stats=estimates,
        constraints=constraints,
        debug=False,
    )
    root = logging.getLogger()
    root.addFilter(_is_of_use)
    try:
        plan = planner.plan(model, sharders(sent_as))
    except (PlannerError, RuntimeError, IndexError, ValueError) as error:
        raise UserError(_refusal(error, tables, kinds, cluster, optimizer)) from None
    finally:
        root.removeFilter(_is_of_use)
    for placements in plan.plan.values():
        for spec in placements.values():
            if spec.compute_kernel == CACHED_KERNEL:
                spec.cache_params.prefetch_pipeline = True
    return Planned(plan, estimates.tables)


def _is_of_use(record: logging.LogRecord) -> bool:
    """Whether a warning of the planner is more than that replicas have no shards."""
    return not record.getMessage().startswith("Sharding spec not found")


class _OrderedOptions(EmbeddingEnumerator):
    """Yields the options of a table always in one order, the first of equals first."""

    def enumerate(
        self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]
    ) -> list[ShardingOption]:
        options = super().enumerate(module, sharders)
        tables = list(dict.fromkeys(one.fqn for one in options))
        return sorted(
            options,
            key=lambda one: (
                tables.index(one.fqn),
                _TYPES.index(one.sharding_type),
                _KERNELS.index(one.compute_kernel),
            ),
        )


class _Estimates(Stats):
    """Keeps the chosen options, where TorchRec would print them."""

    tables: Sequence[ShardingOption] = ()

    def log(self, *_args: Any, best_plan: Any = (), **_named: Any) -> None:
        self.tables = best_plan


def named_tables(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the tables of an unsharded model by name."""
    return [
        (name, table.weight)
        for module in _collections(model)
        for name, table in _parts(module).items()
    ]


def _collections(
    model: nn.Module,
) -> list[EmbeddingBagCollection | EmbeddingCollection]:
    kinds = (EmbeddingBagCollection, EmbeddingCollection)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _parts(module: EmbeddingBagCollection | EmbeddingCollection) -> Mapping[str, Any]:
    if isinstance(module, EmbeddingBagCollection):
        return dict(module.embedding_bags.items())
    return dict(module.embeddings.items())


def _constraints(
    model: nn.Module,
    kinds: Mapping[str, ShardingKind],
    cluster: Cluster,
    workload: Workload,
    optimizer: TableOptimizerConfig,
) -> dict[str, ParameterConstraints]:
    found = {}
    for module in _collections(model):
        is_pooled = isinstance(module, EmbeddingBagCollection)
        configs = (
            module.embedding_bag_configs() if is_pooled else module.embedding_configs()
        )
        for one in configs:
            kind = kinds.get(one.name, "auto")
            table = _parts(module)[one.name].weight
            if kind == "data_parallel" and table.dtype != torch.float32:
                raise UserError(
                    f"sharding: {one.name} is data_parallel, whose optimizer needs "
                    "float32; set ranker.tables.precision=float32 or another sharding"
                )
            types = [kind] if kind != "auto" else _choices(table, cluster, optimizer)
            if not is_pooled and kind == "auto":
                types = [one for one in types if one != "data_parallel"]
            lengths = [workload.lengths.get(f, 1.0) for f in one.feature_names]
            found[one.name] = ParameterConstraints(
                sharding_types=types,
                compute_kernels=_kernels(types, cluster),
                min_partition=_column_width(
                    one.embedding_dim,
                    cluster.nodes if kind == "grid_shard" else cluster.ranks,
                ),
                pooling_factors=lengths,
                cache_params=_cache(cluster),
            )
    return found


def _choices(
    table: nn.Parameter, cluster: Cluster, optimizer: TableOptimizerConfig
) -> list[str]:
    """Return the sharding types that the planner may choose from for a table."""
    if cluster.device == "cpu":
        return list(_PLANNED_ON_CPU)
    types = list(_PLANNED_ON_CUDA)
    if optimizer.optimizer != "rowwise_adagrad":
        # It has one state for the columns of a row that lie together, so dividing
        # them would let the number of ranks change what is learned.
        types += _BY_COLUMN
    is_single = table.dtype == torch.float32
    if is_single and table.numel() * table.element_size() <= _REPLICATED_BYTES:
        types.append("data_parallel")
    return types


def _kernels(types: Sequence[str], cluster: Cluster) -> list[str]:
    kernels = ["fused"] if cluster.device == "cpu" else list(_KERNELS_ON_CUDA)
    if list(types) == ["data_parallel"]:
        return ["dense"]
    return [*kernels, "dense"] if "data_parallel" in types else kernels


def _cache(cluster: Cluster) -> CacheParams | None:
    if cluster.device == "cpu":
        return None
    # Not yet prefetched: for TorchRec that would be as fast as a table on the GPU.
    return CacheParams(load_factor=_CACHED_SHARE)


def _column_width(dim: int, parts: int) -> int:
    """Return the width that splits `dim` columns into at most `parts` equal parts."""
    widths = range(_COLUMN_MULTIPLE, dim, _COLUMN_MULTIPLE)
    return next((w for w in widths if dim % w == 0 and w * parts >= dim), dim)


def _reserved(
    model: nn.Module, tables: Mapping[str, nn.Parameter], cluster: Cluster
) -> int:
    """Return the bytes of a GPU that tables must leave free."""
    if cluster.device == "cpu":
        return 0
    sharded = {id(table) for table in tables.values()}
    dense = sum(
        one.numel() * one.element_size()
        for one in model.parameters()
        if id(one) not in sharded
    )
    return int(
        _CONTEXT_BYTES + _DENSE_COPIES * dense + _ACTIVATIONS * cluster.hbm_bytes
    )


def _refusal(
    error: Exception,
    tables: Mapping[str, nn.Parameter],
    kinds: Mapping[str, ShardingKind],
    cluster: Cluster,
    optimizer: TableOptimizerConfig,
) -> str:
    pinned = [f"{table} {kind}" for table, kind in kinds.items() if kind != "auto"]
    where = f"{cluster.ranks} ranks on {cluster.device}"
    if getattr(error, "error_type", None) == PlannerErrorType.INSUFFICIENT_STORAGE:
        sizes = {name: table_bytes(table, optimizer) for name, table in tables.items()}
        largest = max(sizes, key=sizes.__getitem__)
        host = int(_HOST_SHARE * cluster.host_bytes) * cluster.nodes
        room = f"{_gib(host)} of host memory"
        if cluster.device == "cuda":
            room = f"{_gib(cluster.hbm_bytes * cluster.ranks)} of GPU and {room}"
        held = f" (pinned: {', '.join(pinned)})" if pinned else ""
        smaller = "a smaller num_embeddings or embedding_dim"
        if tables[largest].dtype == torch.float32:
            smaller = f"ranker.tables.precision=float16, {smaller}"
        return (
            f"sharding: the tables need {_gib(sum(sizes.values()))} with their "
            f"optimizer's state, {largest} alone {_gib(sizes[largest])}, and {where} "
            f"have {room}, not all of it for tables{held}; use more or larger "
            f"machines, {smaller}"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return (
        f"sharding: TorchRec found no plan for {where} "
        f"({', '.join(pinned) or 'nothing pinned'}): {reason}; pin another kind, let "
        "the planner choose (auto), or make the tables smaller"
    )


def table_bytes(table: nn.Parameter, optimizer: TableOptimizerConfig) -> int:
    """Return the bytes of a table and of its optimizer's state."""
    rows, dim = table.shape
    states = {"rowwise_adagrad": rows, "adagrad": rows * dim, "adam": 2 * rows * dim}
    return table.numel() * table.element_size() + 4 * states.get(optimizer.optimizer, 0)


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"
