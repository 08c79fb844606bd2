"""Sharding a model's ID tables over ranks, as `planning.py` plans or settings pin."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ParameterSharding, ShardingPlan

from learn_torchrec.errors import UserError
from learn_torchrec.placement import ShardingKind
from learn_torchrec.text import printable
from learn_torchrec.training.distributed import (
    host_group,
    local_world_size,
    on_rank0,
)
from learn_torchrec.training.planning import (
    CACHED_KERNEL,
    Workload,
    named_tables,
    plan_tables,
    this_cluster,
)
from learn_torchrec.training.precision import Communication
from learn_torchrec.training.sharders import codecs, sharders
from learn_torchrec.training.table_optimizer import (
    TableOptimizerConfig,
    refuse_unsupported,
    step_in_backward,
)

_ROWS_IN_BLOCK = 4096


def shard_tables(
    model: nn.Module,
    device: torch.device,
    optimizer: TableOptimizerConfig,
    kinds: Mapping[str, ShardingKind] | None = None,
    on_plan: Callable[[str], None] | None = None,
    workload: Callable[[], Workload] | None = None,
    communication: Communication = "float32",
) -> DistributedModelParallel:
    """Shard every table of `model` and replicate the rest.

    Tables are updated in the backward pass, except replicated (data-parallel) ones:
    these need `table_optimizer.replicated_optimizer`.

    Args:
        model: with unsharded tables; other parameters are equal on every rank.
        device: this rank's.
        optimizer: of the tables.
        kinds: by table name, "auto" for missing ones. Tables of an
            `EmbeddingCollection` must not be data-parallel.
        on_plan: called with the plan as text.
        workload: returns what a step looks up; called on rank 0, which plans.
        communication: precision in which ranks send embeddings and their gradients.

    Raises:
        UserError: an optimizer or a plan that the backend cannot run, with the reason.
    """
    refuse_unsupported(optimizer, device)
    sent_as = codecs(communication, device)
    tables = dict(named_tables(model))
    step_in_backward(tables.values(), optimizer)
    cluster = this_cluster(device, dist.get_world_size(), local_world_size())

    def make_plan() -> ShardingPlan:
        load = workload() if workload is not None else Workload()
        return plan_tables(model, kinds or {}, cluster, load, optimizer, sent_as).plan

    plan = on_rank0(make_plan)
    if on_plan is not None:
        on_plan(describe(plan, tables))
    return DistributedModelParallel(
        model, device=device, plan=plan, sharders=sharders(sent_as)
    )


def has_cache(model: nn.Module) -> bool:
    """Whether rows of a sharded model's tables are cached on the GPU."""
    return isinstance(model, DistributedModelParallel) and any(
        spec.compute_kernel == CACHED_KERNEL
        for placements in model.plan.plan.values()
        for spec in placements.values()
    )


def describe(plan: ShardingPlan, tables: Mapping[str, Tensor]) -> str:
    """Return a plan as text, a line per table."""
    lines = [
        f"{table}: {tables[table].shape[0]:,} x {tables[table].shape[1]}, "
        f"{spec.sharding_type}, {spec.compute_kernel}: {', '.join(_placements(spec))}"
        for placements in plan.plan.values()
        for table, spec in placements.items()
    ]
    return "\n".join(map(printable, sorted(lines)))


def _placements(sharding: ParameterSharding) -> Iterator[str]:
    if sharding.sharding_spec is None:
        yield "every rank holds all of it"
        return
    for shard in sharding.sharding_spec.shards:
        (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
        yield (
            f"rank {shard.placement.rank()} rows {row:,}-{row + rows:,} "
            f"columns {column}-{column + columns}"
        )


def table_of(parameter: str) -> str | None:
    """Return the name of a parameter's table; None for other parameters.

    TorchRec's names are `<module>.embedding_bags.<table>.weight`, or `.embeddings.`.
    """
    parts = parameter.split(".")
    if len(parts) < 3 or parts[-1] != "weight":
        return None
    return parts[-2] if parts[-3] in ("embedding_bags", "embeddings") else None


@torch.no_grad()
def init_tables(model: DistributedModelParallel, seed: int) -> None:
    """Initialize every table like TorchRec, uniformly within sqrt(1 / rows).

    The values depend only on (seed, table, row), so they are the same for any number
    of ranks and any sharding. TorchRec itself draws each shard from its rank's random
    state: equal seeds give equal shards, and other numbers of ranks other values.
    """
    for parameter, table in model.state_dict().items():
        name = table_of(parameter)
        if name is None:
            continue
        for part, row, column in _local_parts(table):
            _fill(part, (row, column), table.size(), seed, name)


@torch.no_grad()
def fill_rows(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write `rows`, int64 [n], of a sharded or replicated table of a state dict.

    Every rank writes its own part of the `values`, float32 [n, W]; or [n] of a table
    of one number a row.
    """
    for part, first, column in _local_parts(table):
        mine = ((rows >= first) & (rows < first + len(part))).nonzero().squeeze(1)
        own = values[mine]
        if part.ndim > 1:
            own = own[:, column : column + part.shape[1]]
        part[(rows[mine] - first).to(part.device)] = own.to(part)


def _local_parts(table: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """Yield this rank's parts of a table, each with its first row and column."""
    if isinstance(table, ShardedTensor):
        for shard in table.local_shards():
            row, *column = shard.metadata.shard_offsets
            yield shard.tensor, row, column[0] if column else 0
    else:  # replicated
        yield table, 0, 0


def _fill(
    part: Tensor, offsets: tuple[int, int], size: torch.Size, seed: int, name: str
) -> None:
    """Initialize the part of a table of `size` that starts at `offsets`."""
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


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's state to the CPU, unsharded; every rank takes part.

    On ranks other than 0 sharded tables are empty.
    """
    return full_tensors(model.state_dict())


def full_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, unsharded; see `full_state_dict`."""
    copies = {}
    for name, value in state.items():
        if isinstance(value, ShardedTensor):
            # Gathered on the CPU, so that no GPU must hold a full table.
            value = value.cpu(process_group=host_group())
            full = torch.empty(value.size() if dist.get_rank() == 0 else 0)
            value.gather(dst=0, out=full if dist.get_rank() == 0 else None)
            copies[name] = full
        else:
            copies[name] = value.detach().cpu().clone()
    return copies


def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict that `tensors.load_tensors` filled.

    Raises:
        UserError: this number of ranks would split shards of managed-collision tables.
    """
    try:
        model.load_state_dict(state)
    except AssertionError as error:  # TorchRec's: ids are anywhere in a shard
        raise UserError(
            f"{dist.get_world_size()} ranks cannot load the managed_collision tables "
            f"({error}); use the number of ranks that saved them, or a divisor of it"
        ) from None


def _block_seed(seed: int, name: str, block: int) -> int:
    text = f"{seed}/{name}/{block}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1
