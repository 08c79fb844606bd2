"""The last rows of a training and their scores, as the trained model gave them.

They are kept beside the weights: whoever loads these can see that they score the same.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.distributed import DistributedModelParallel

from learn_torchrec.arrays import Float32Array
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.loading.row_groups import ROW_NUMBER, RowSource
from learn_torchrec.ranker.config import RankerConfig
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.scoring import score
from learn_torchrec.training.distributed import gather_objects, is_writer

PROBE_FILE = "probe.parquet"
_TRAINED = "trained_"  # the prefix of the scores
_ROWS = 1000


def write_probe(
    model: DistributedModelParallel,
    impressions: Impressions,
    config: RankerConfig,
    device: torch.device,
    directory: Path,
) -> None:
    """Score the last rows of a training and keep them; every rank takes part.

    Args:
        model: trained; it is in evaluation mode afterwards.
        impressions: of the training.
        config: of the ranker.
        device: of the model.
        directory: of the ranker.
    """
    source = impressions.source
    table = _last_rows(source)
    rows = TableRows(table, None, source.name)
    probe = Impressions(rows, config, impressions.learn, impressions.lookups)
    shares = gather_objects(score(model, probe, config.training.batch_size, device))
    if is_writer():
        for name in shares[0]:
            values = np.concatenate([share[name] for share in shares])
            table = table.append_column(f"{_TRAINED}{name}", pa.array(values))
        pq.write_table(table.drop_columns([ROW_NUMBER]), directory / PROBE_FILE)


def read_probe(directory: Path) -> tuple[pa.Table, Mapping[str, Float32Array]]:
    """Return the rows that `write_probe` kept, and their scores by column.

    Raises:
        OSError: there are none; ArrowInvalid: damaged.
    """
    table = pq.read_table(directory / PROBE_FILE)
    names = [name for name in table.column_names if name.startswith(_TRAINED)]
    found = {name.removeprefix(_TRAINED): table[name].to_numpy() for name in names}
    return table.drop_columns(names), found


def _last_rows(source: RowSource) -> pa.Table:
    """Return up to 1,000 rows from the end, in their order."""
    found: list[pa.Table] = []
    missing = _ROWS
    for group in reversed(range(len(source))):
        skip = max(0, int(source.sizes[group]) - missing)
        found[:0] = source.pieces(group, skip)
        missing = _ROWS - sum(piece.num_rows for piece in found)
        if missing <= 0:
            break
    return pa.concat_tables(found)
