"""A sharding plan on a terminal and as JSON."""

from collections.abc import Sequence
from typing import Any

from torchrec.distributed.planner.types import ShardingOption

from learn_torchrec.evaluation.report.terminal import align
from learn_torchrec.training.planning import (
    CACHED_KERNEL,
    GIB,
    Cluster,
    Planned,
    Workload,
)

_MOST_RANKS = 16  # that are printed one by one


def plan_facts(
    planned: Planned, cluster: Cluster, workload: Workload
) -> dict[str, Any]:
    """Return who holds what, in bytes and milliseconds, ready for JSON."""
    hbm, host, milliseconds = ([0.0] * cluster.ranks for _ in range(3))
    for table in planned.tables:
        for rank, shard in _placed(table, cluster):
            hbm[rank] += shard.storage.hbm
            host[rank] += shard.storage.ddr
            milliseconds[rank] += shard.perf.total
    return {
        "cluster": vars(cluster),
        "rows_per_rank": workload.batch_size,
        "tables": {
            table.name: {
                "rows": table.tensor.shape[0],
                "dim": table.tensor.shape[1],
                "bytes": table.tensor.numel() * table.tensor.element_size(),
                "sharding": table.sharding_type,
                "kernel": table.compute_kernel,
                "ranks": sorted({rank for rank, _ in _placed(table, cluster)}),
            }
            for table in planned.tables
        },
        "ranks": [
            {"gpu_bytes": int(a), "host_bytes": int(b), "milliseconds": round(c, 3)}
            for a, b, c in zip(hbm, host, milliseconds, strict=True)
        ],
    }


def plan_text(planned: Planned, cluster: Cluster, workload: Workload) -> str:
    """Return the tables, the ranks and a verdict."""
    facts = plan_facts(planned, cluster, workload)
    tables = [["table", "rows x dim", "GiB", "sharding", "kernel", "ranks"]]
    for name, one in facts["tables"].items():
        shape, size = f"{one['rows']:,} x {one['dim']}", f"{one['bytes'] / GIB:,.2f}"
        held = _ranges(one["ranks"], cluster.ranks)
        tables.append([name, shape, size, one["sharding"], one["kernel"], held])
    ranks = [["rank", "GPU GiB", "host GiB", "ms a step"]]
    shown = facts["ranks"][:_MOST_RANKS]
    for rank, one in enumerate(shown):
        ranks.append([str(rank), *_amounts(one)])
    if len(shown) < cluster.ranks:
        most = {key: max(one[key] for one in facts["ranks"]) for key in shown[0]}
        ranks.append(["most of all", *_amounts(most)])
    where = f"{cluster.nodes} x {cluster.ranks_per_node}"
    memory = f"{cluster.host_bytes / GIB:,.0f} GiB a host"
    if cluster.device == "cuda":
        memory = f"{cluster.hbm_bytes / GIB:,.0f} GiB a GPU, {memory}"
    lines = [
        f"It fits: {where} ranks on {cluster.device}, {memory}, "
        f"{workload.batch_size:,} rows a rank.",
        align(tables, left=(0, 3, 4, 5)),
        align(ranks, left=(0,)),
    ]
    if any(one["kernel"] == CACHED_KERNEL for one in facts["tables"].values()):
        lines.append(
            f"{CACHED_KERNEL}: the table lies in host memory, a fifth of its rows also "
            "on the GPU; rows are fetched a batch ahead."
        )
    return "\n\n".join(lines)


def _placed(table: ShardingOption, cluster: Cluster) -> Sequence[tuple[int, Any]]:
    """Return each shard with its rank; a replicated table is on every rank."""
    if table.sharding_type == "data_parallel":
        return [(rank, table.shards[0]) for rank in range(cluster.ranks)]
    return [(int(shard.rank or 0), shard) for shard in table.shards]


def _ranges(ranks: Sequence[int], count: int) -> str:
    if len(ranks) == count:
        return "all"
    if ranks == list(range(ranks[0], ranks[-1] + 1)) and len(ranks) > 1:
        return f"{ranks[0]}-{ranks[-1]}"
    return " ".join(map(str, ranks))


def _amounts(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['gpu_bytes'] / GIB:,.2f}",
        f"{one['host_bytes'] / GIB:,.2f}",
        f"{one['milliseconds']:,.2f}",
    ]
