"""A served ranker's ID tables, in bytes as fbgemm reads them.

A row of an int8 table is its scale and bias in half precision and a byte per dim; rows
of other tables are plain numbers. `pack` gives the bits that TorchRec's
`quantize_embeddings` gives; reading them needs fbgemm alone.

Letters: B rows of a batch, F features, V ids of all bags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import fbgemm_gpu  # noqa: F401  # the operators
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)
from safetensors import safe_open
from torch import Tensor, nn

from learn_torchrec.config import configuration

Precision: TypeAlias = Literal["int8", "half", "float"]
_TYPES = {
    "int8": SparseType.INT8,
    "half": SparseType.FP16,
    "float": SparseType.FP32,
}
_SCALE_AND_BIAS = 4  # bytes of an int8 row


@configuration
class Table:
    """A table's shape.

    Attributes:
        name: of the table.
        rows: of the table.
        dim: of its embeddings.
    """

    name: str
    rows: int
    dim: int


@configuration
class Group:
    """Tables that one call of fbgemm reads.

    Attributes:
        name: of the group.
        tables: at least one.
        features: those of the tables, table after table, and the table of each.
        pooled: whether a bag's embeddings are summed.
    """

    name: str
    tables: tuple[Table, ...]
    features: tuple[tuple[str, int], ...]
    pooled: bool


def pack(weights: Tensor, precision: Precision) -> Tensor:
    """Return the bytes of a table's rows, uint8 [rows, bytes].

    `weights` are float32 [rows, dim].
    """
    plain = weights.detach().contiguous()
    if precision == "int8":
        return torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(plain, 8)
    halves = plain.half() if precision == "half" else plain
    return halves.view(torch.uint8)


def unpack(packed: Tensor, precision: Precision) -> Tensor:
    """Return the weights that a packed table stands for, float32 [rows, dim]."""
    if precision == "int8":
        restored: Tensor = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(
            packed, 8
        )
        return restored
    kind = torch.float16 if precision == "half" else torch.float32
    return packed.view(kind).float()


@dataclass(frozen=True)
class Ids:
    """The ids of a group's features for B rows.

    Attributes:
        rows: int64 [V], table rows, feature after feature.
        lengths: int64 [F, B], ids of each bag.
        weights: float32 [V]; None for 1.
    """

    rows: Tensor
    lengths: Tensor
    weights: Tensor | None = None


class Lookup(nn.Module):
    """Looks ids up in the tables of a group.

    Args:
        group: the tables and their features.
        precision: of the tables.
        packed: the bytes of each table, by name, see `pack`.
        device: of the tables.
    """

    def __init__(
        self,
        group: Group,
        precision: Precision,
        packed: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.group, self.device = group, device
        on_cpu = device.type == "cpu"
        place = EmbeddingLocation.HOST if on_cpu else EmbeddingLocation.DEVICE
        kind = _TYPES[precision]
        self.tables = IntNBitTableBatchedEmbeddingBagsCodegen(
            [(t.name, t.rows, t.dim, kind, place) for t in group.tables],
            feature_table_map=[table for _, table in group.features],
            pooling_mode=PoolingMode.SUM if group.pooled else PoolingMode.NONE,
            device=device,
            output_dtype=SparseType.FP32,
            row_alignment=1 if on_cpu else 16,
        )
        self.tables.initialize_weights()
        self.tables.assign_embedding_weights(
            [_parts(packed[table.name], precision) for table in group.tables]
        )

    @torch.no_grad()
    def forward(self, ids: Ids) -> dict[str, Tensor]:
        """Return each feature's embeddings, float32.

        Of a pooled group they are the sums, [B, dim]; else those of the feature's
        ids, [ids of the feature, dim].
        """
        lengths = ids.lengths.flatten()
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        torch.cumsum(lengths, 0, out=offsets[1:])
        weights = None if ids.weights is None else ids.weights.to(self.device)
        found = self.tables(
            ids.rows.to(self.device, torch.int32), offsets.to(self.device), weights
        )
        names = [name for name, _ in self.group.features]
        if self.group.pooled:
            dims = [self.group.tables[table].dim for _, table in self.group.features]
            return dict(zip(names, found.split(dims, dim=1), strict=True))
        counts = ids.lengths.sum(1).tolist()
        return dict(zip(names, found.split(counts), strict=True))


def _parts(packed: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    if precision != "int8":
        return packed, None
    return packed[:, :-_SCALE_AND_BIAS], packed[:, -_SCALE_AND_BIAS:]


def read_tables(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the bytes of tables from a file of safetensors.

    Raises:
        OSError: no such file; SafetensorError: damaged.
    """
    with safe_open(str(path), framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in names}
