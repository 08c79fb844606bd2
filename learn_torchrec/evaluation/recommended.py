"""Another model's recommendations as scores of the catalogue.

Letters: U users, I items of the catalogue, B users of a block.
"""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from learn_torchrec.arrays import Int64Array, joined, name_rows
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.parquet import ParquetParts
from learn_torchrec.evaluation.retrieval import ScoreBlock
from learn_torchrec.ids import IdIndex, as_ids, refuse_other_type
from learn_torchrec.jagged import positions_in
from learn_torchrec.schema import ITEM_ID, USER_ID

RANK = "rank"
_FORM = f"{USER_ID}, {ITEM_ID} and {RANK}, 1 for the best"

logger = logging.getLogger(__name__)


def recommended_scores(path: Path, users: pa.Array, store: ContentStore) -> ScoreBlock:
    """Return scores in the order of a file of recommendations.

    The n-th of a user's items of the catalogue scores 1 / n, one that is not listed 0:
    it ties with all others below the list.

    Args:
        path: a Parquet or CSV file with a row for each recommended item, as
            `learn-torchrec recommend` writes; the history's items are among them.
        users: ids [U], each of which needs recommendations.
        store: the catalogue; other items are left out, and counted.

    Raises:
        UserError: a missing or unreadable file, a missing column, a rank below 1, an
            item or a rank twice for a user, or a user without recommendations.
    """
    parts = ParquetParts(path, "a file of recommendations")
    parts.require([USER_ID, ITEM_ID, RANK], f"recommendations have {_FORM}")
    table = parts.read([USER_ID, ITEM_ID, RANK])
    ranks = _checked_ranks(table, path)
    owners = IdIndex.build(users, "users").rows_of(_ids(table, USER_ID, users, path))
    items = store.rows_of(_ids(table, ITEM_ID, store.item_ids, path))
    if unknown := int((items < 0).sum()):
        logger.warning("%s: %d rows of unknown items are left out", path, unknown)
    kept = (owners >= 0) & (items >= 0)
    owners, items, ranks = owners[kept], items[kept], ranks[kept]
    order = np.lexsort((ranks, owners))
    owners, items, ranks = owners[order], items[order], ranks[order]
    counts = np.bincount(owners, minlength=len(users))
    if not counts.all():
        first = users[int(np.argmin(counts))].as_py()
        raise UserError(
            f"{path}: {int((counts == 0).sum())} of {len(users)} test users have no "
            f"recommendations, the first is {first!r}; add theirs"
        )
    pairs = owners * len(store) + items
    if len(np.unique(pairs)) < len(pairs):
        raise UserError(
            f"{path}: an item is there twice for a user; keep its best rank"
        )
    is_again = (np.diff(owners) == 0) & (np.diff(ranks) == 0)
    if is_again.any():
        place = int(np.argmax(is_again))
        raise UserError(
            f"{path}: column {RANK}: {ranks[place]} is there twice for {USER_ID} "
            f"{users[int(owners[place])].as_py()!r}; give each item its own"
        )
    offsets = np.concatenate([[0], np.cumsum(counts)])
    scores = torch.from_numpy(1 / (positions_in(counts) + 1))

    def score(start: int, stop: int) -> Tensor:
        rows = slice(offsets[start], offsets[stop])
        block = torch.zeros(stop - start, len(store), dtype=torch.float64)
        place = torch.from_numpy(owners[rows] - start), torch.from_numpy(items[rows])
        return block.index_put_(place, scores[rows])

    return score


def _checked_ranks(table: pa.Table, path: Path) -> Int64Array:
    column = joined(table[RANK])
    if not pa.types.is_integer(column.type) or column.null_count:
        raise UserError(f"{path}: column {RANK}: must hold integers, 1 for the best")
    ranks = column.to_numpy().astype(np.int64)
    if (ranks < 1).any():
        rows = name_rows(ranks < 1)
        raise UserError(f"{path}: column {RANK}: below 1 in {rows}; 1 is the best")
    return ranks


def _ids(table: pa.Table, name: str, known: pa.Array, path: Path) -> pa.Array:
    """Return a column's ids.

    Raises:
        UserError: they are of another type than the known ones.
    """
    ids = as_ids(table[name], f"{path}: column {name}")
    refuse_other_type(
        ids, as_ids(known, name).type, f"{path}: column {name}", "the data"
    )
    return ids
