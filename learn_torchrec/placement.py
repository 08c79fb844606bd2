"""The ways to place a table on ranks, in TorchRec's words."""

from typing import Literal

ShardingKind = Literal[
    "auto",
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]
