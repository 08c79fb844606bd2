"""Row-wise optimizer state of tables whose columns were divided otherwise.

Row-wise Adagrad keeps a number for each row and part of the columns: the mean square
of that part's gradients, summed over the steps. TorchRec stores it part after part,
[parts * rows], so that another number of parts is another size, which PyTorch refuses.

Here every column keeps the number of its former part, and a new part gets the mean over
its columns. Where parts are merged, that is the state they would have had as one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from learn_torchrec.training.tensors import load_range, read_index


@dataclass(frozen=True)
class ColumnState:
    """The state of one table, to be loaded into other parts of its columns.

    Attributes:
        name: of the stored state.
        state: [parts * rows], to be filled.
        rows: of the table.
        before: columns of each part as stored.
        now: columns of each part.
    """

    name: str
    state: ShardedTensor
    rows: int
    before: Sequence[range]
    now: Sequence[range]

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Fill this rank's shards; ranks need not take part together.

        Raises:
            UserError: stored tensors that cannot be read.
        """
        for shard in self.state.local_shards():
            part, first = divmod(shard.metadata.shard_offsets[0], self.rows)
            columns = self.now[part]
            shard.tensor.zero_()
            for index, stored in enumerate(self.before):
                if common := _overlap(columns, stored):
                    values = torch.empty(shard.tensor.shape)
                    start = index * self.rows + first
                    load_range(values, self.name, start, directory)
                    share = common / len(columns)
                    shard.tensor.add_(values.to(shard.tensor.device), alpha=share)


def column_states(
    model: Mapping[str, Any], optimizer: Mapping[str, Any], directory: Path
) -> list[ColumnState]:
    """Return the states of tables whose columns are no longer divided as stored.

    `model` and `optimizer` are state dicts, stored in `directory` under these names.
    """
    stored, found = read_index(directory).state_dict_metadata, []
    for parameter, states in optimizer["state"].items():
        table, entry = model.get(parameter), stored.get(f"model.{parameter}")
        if not isinstance(table, ShardedTensor):
            continue
        if not isinstance(entry, TensorStorageMetadata):
            continue
        shards = table.metadata().shards_metadata
        now = _columns((one.shard_offsets, one.shard_sizes) for one in shards)
        before = _columns((chunk.offsets, chunk.sizes) for chunk in entry.chunks)
        if now != before:
            for key, state in _row_wise(states):
                name = f"optimizer.state.{parameter}.{key}"
                one = ColumnState(name, state, table.size()[0], before, now)
                found.append(one)
    return found


def _row_wise(states: Mapping[str, Any]) -> Iterator[tuple[str, ShardedTensor]]:
    for key, state in states.items():
        if isinstance(state, ShardedTensor) and len(state.size()) == 1:
            yield key, state


def _columns(places: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[range]:
    """Return the parts of the columns that shards at (offsets, sizes) lie in."""
    ends = {first[1]: first[1] + size[1] for first, size in places}
    return [range(start, stop) for start, stop in sorted(ends.items())]


def _overlap(one: range, other: range) -> int:
    return max(0, min(one.stop, other.stop) - max(one.start, other.start))
