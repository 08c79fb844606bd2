"""Building an index of item vectors: its kind, its recall, and what changed since.

Letters: I items, P positions of the FAISS index, D vector dim.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.arrays import AnyArray, Float32Array, Int64Array
from learn_torchrec.errors import UserError
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.matrix import create_shard
from learn_torchrec.page_checksums import WRITTEN
from learn_torchrec.schema import ITEM_ID, TITLE
from learn_torchrec.serving.index import (
    FAISS_FILE,
    FLAT,
    HNSW,
    IVFPQ,
    POPULAR_FILE,
    POSITIONS_FILE,
    REFINED,
    TITLES_FILE,
    ItemIndex,
    exact_top,
    load_faiss,
    parameters,
)
from learn_torchrec.vector_table import ITEMS, VectorTable, write_index

RECALL_AT = 100
KINDS = (FLAT, HNSW, IVFPQ)
_FLAT_ITEMS = 50_000  # which a processor scores in about a millisecond
_LINKS = 32  # of an item in the HNSW graph
_CONSTRUCTION = 80  # candidates for them
_EFFORTS = {FLAT: (0,), HNSW: (64, 128, 256, 512, 1024), IVFPQ: (8, 16, 32, 64, 128)}
_TRAINING_ITEMS = 100_000
_LEAST_BYTE_ITEMS = 39 * 256  # to train codes of a byte; of half a byte below
_ITERATIONS = 12  # of k-means, on a sample
_REBUILT_SHARE = 0.2  # of removed or added items, beyond which all is built anew
_QUERIES = 1000
_POPULAR = 1000
_BLOCK_ITEMS = 1 << 16

logger = logging.getLogger(__name__)


class Built(NamedTuple):
    """A FAISS index and what is known of it.

    Attributes:
        faiss: the index.
        kind: FLAT, HNSW or IVFPQ.
        positions: int64 [P], the row of each position, UNKNOWN where removed.
        effort: of a search, see `ItemIndex`.
        recall: share of the exact best `RECALL_AT` that it finds.
        queries: on so many user vectors.
    """

    faiss: Any
    kind: str
    positions: Int64Array
    effort: int
    recall: float
    queries: int


def memory_of(kind: str, items: int, dim: int) -> int:
    """Return the bytes that a FAISS index takes."""
    per_item = {
        FLAT: 4 * dim,
        HNSW: 2 * dim + 4 * 2 * _LINKS + 16,
        IVFPQ: _code_bytes(dim) + 8,
    }
    return items * per_item[kind]


def choose_kind(items: int, dim: int, memory: int) -> str:
    """Return the kind for a number of items that fits into `memory` bytes.

    Flat is exact, and fast for a few; HNSW is the fastest of many, IVF-PQ the smallest.
    """
    if items <= _FLAT_ITEMS and memory_of(FLAT, items, dim) <= memory:
        return FLAT
    return HNSW if memory_of(HNSW, items, dim) <= memory else IVFPQ


def build(items: VectorTable, queries: Float32Array, kind: str, recall: float) -> Built:
    """Build an index and find the least effort that reaches a recall.

    Args:
        items: the vectors, I rows.
        queries: float32 [Q, D], user vectors to measure the recall on.
        kind: FLAT, HNSW or IVFPQ.
        recall: to reach; the effort is the most where none does.
    """
    dim = int(items.vectors.shape[1])
    searcher = _empty_index(kind, len(items.index), dim)
    if kind == IVFPQ:
        random = np.random.default_rng(0)
        sample = random.permutation(len(items.index))[:_TRAINING_ITEMS]
        searcher.train(_vectors(items, np.sort(sample)))
    positions = np.arange(len(items.index))
    _add(searcher, items, positions)
    return _measured(searcher, kind, positions, items, queries, recall)


def update(
    earlier: ItemIndex, items: VectorTable, queries: Float32Array, recall: float
) -> Built | None:
    """Bring an index to new vectors: add, remove and replace what differs.

    Returns:
        None if so much differs that it should be built anew.
    """
    rows = _unchanged_rows(earlier, items)
    known = earlier.positions >= 0
    positions = np.full(len(earlier.positions), UNKNOWN)
    positions[known] = rows[earlier.positions[known]]
    is_new = np.ones(len(items.index), bool)
    is_new[positions[positions >= 0]] = False
    added = np.flatnonzero(is_new)
    changes = max(len(added), int((positions < 0).sum()))
    if changes > _REBUILT_SHARE * len(positions):
        return None
    _add(earlier.faiss, items, added)
    positions = np.concatenate([positions, added])
    logger.info("%d items added, %d removed", len(added), int((positions < 0).sum()))
    return _measured(earlier.faiss, earlier.kind, positions, items, queries, recall)


def write(
    working: Path,
    built: Built,
    items: VectorTable,
    popular: Int64Array,
    titles: pa.Array | None,
) -> None:
    """Write the files of an index into an artefact's working directory.

    `popular` are rows, best first; `titles` are string [I] or None.
    """
    folder = working / ITEMS
    folder.mkdir()
    shape = (len(items.index), int(items.vectors.shape[1]))
    shard = create_shard(folder, 0, shape)
    for block in _row_blocks(shape[0]):
        shard[block] = items.gather(block)
    shard.flush()
    write_index(folder, items.index.ids)
    load_faiss().write_index(built.faiss, str(working / FAISS_FILE))
    np.save(working / POSITIONS_FILE, built.positions)
    np.save(working / POPULAR_FILE, popular)
    if titles is not None:
        named = pa.table({ITEM_ID: items.index.ids, TITLE: titles})
        pq.write_table(named, working / TITLES_FILE, **WRITTEN)


def facts_of(built: Built, items: VectorTable) -> dict[str, Any]:
    """Return what the manifest says of an index."""
    dim = int(items.vectors.shape[1])
    return {
        "kind": built.kind,
        "items": len(items.index),
        "dim": dim,
        "effort": built.effort,
        f"recall_at_{RECALL_AT}": built.recall,
        "recall_users": built.queries,
        "memory_mb": round(memory_of(built.kind, len(built.positions), dim) / 2**20, 1),
        "removed": int((built.positions < 0).sum()),
    }


def sample_queries(users: VectorTable) -> Float32Array:
    """Return the latest vectors of at most 1000 users, drawn alike each time.

    Raises:
        UserError: no user has a vector.
    """
    drawn = np.random.default_rng(0).permutation(len(users.index))[:_QUERIES]
    ids = users.index.ids.take(pa.array(np.sort(drawn)))
    rows = users.rows_as_of(ids, None)
    rows = rows[rows != UNKNOWN]
    if not len(rows):
        raise UserError("the vectors have none of a user; export them again")
    return users.gather(rows).astype(np.float32)


def popular_rows(
    items: VectorTable, queries: Float32Array, counts: Int64Array | None
) -> Int64Array:
    """Return the rows of items for a user of whom nothing is known, best first.

    By the events of each item, int64 [I], where those are given; else the items that
    are nearest to the average user.
    """
    k = min(_POPULAR, len(items.index))
    if counts is not None:
        return np.argsort(-counts, kind="stable")[:k]
    mean = queries.mean(axis=0, keepdims=True)
    return exact_top(items, mean, k, np.arange(len(items.index)))[1][0]


def _code_bytes(dim: int) -> int:
    """Return the bytes of a product-quantised vector: one for each two dims."""
    return next(size for size in range((dim + 1) // 2, 0, -1) if dim % size == 0)


def _empty_index(kind: str, items: int, dim: int) -> Any:
    faiss = load_faiss()
    product = faiss.METRIC_INNER_PRODUCT
    if kind == FLAT:
        return faiss.IndexFlatIP(dim)
    if kind == HNSW:
        half = faiss.ScalarQuantizer.QT_fp16
        result = faiss.IndexHNSWSQ(dim, half, _LINKS, product)
        result.hnsw.efConstruction = _CONSTRUCTION
        result.is_trained = True  # half precision has nothing to train
        return result
    lists = max(1, min(int(4 * np.sqrt(items)), items // 40))
    coarse = faiss.IndexFlatIP(dim)
    bits = 8 if items >= _LEAST_BYTE_ITEMS else 4
    result = faiss.IndexIVFPQ(coarse, dim, lists, _code_bytes(dim), bits, product)
    result.own_fields = True
    coarse.this.disown()
    for clustering in (result.cp, result.pq.cp):
        clustering.niter = _ITERATIONS
        clustering.min_points_per_centroid = 1  # no warnings for small catalogues
    return result


def _add(searcher: Any, items: VectorTable, rows: Int64Array) -> None:
    for start in range(0, len(rows), _BLOCK_ITEMS):
        searcher.add(_vectors(items, rows[start : start + _BLOCK_ITEMS]))


def _vectors(items: VectorTable, rows: Int64Array) -> Float32Array:
    return items.gather(rows).astype(np.float32)


def _row_blocks(rows: int) -> list[Int64Array]:
    cuts = range(_BLOCK_ITEMS, rows, _BLOCK_ITEMS)
    return np.split(np.arange(rows), list(cuts))


def _unchanged_rows(earlier: ItemIndex, items: VectorTable) -> Int64Array:
    """Return the new row of each earlier item, UNKNOWN if it left or its vector moved.

    Raises:
        UserError: other vectors altogether.
    """
    if earlier.dim != items.vectors.shape[1] or earlier.items.index.type != (
        items.index.type
    ):
        raise UserError(
            "--from: the index has vectors or ids of another kind; build it without"
        )
    rows = items.index.rows_of(earlier.items.index.ids)
    for block in _row_blocks(len(rows)):
        there = block[rows[block] != UNKNOWN]
        before: AnyArray = earlier.items.gather(there)
        now: AnyArray = items.gather(rows[there])
        rows[there[(before != now).any(axis=1)]] = UNKNOWN
    return rows


def _measured(
    searcher: Any,
    kind: str,
    positions: Int64Array,
    items: VectorTable,
    queries: Float32Array,
    recall: float,
) -> Built:
    """Return the index with the least effort that reaches a recall."""
    k = min(RECALL_AT, len(items.index))
    _, exact = exact_top(items, queries, k, np.arange(len(items.index)))
    found, effort = 0.0, 0
    for effort in _EFFORTS[kind]:
        search = _searcher(searcher, kind, positions, items, effort)
        found = _overlap(search(queries, k), exact)
        logger.info("%s, effort %d: recall %.4f", kind, effort, found)
        if found >= recall:
            break
    return Built(searcher, kind, positions, effort, found, len(queries))


def _searcher(
    searcher: Any, kind: str, positions: Int64Array, items: VectorTable, effort: int
) -> Callable[[Float32Array, int], Int64Array]:
    """Return how the rows [Q, k] of queries are found, as `ItemIndex.search` does."""
    faiss = load_faiss()
    bits = np.packbits(positions >= 0, bitorder="little")
    selector = None if (positions >= 0).all() else faiss.IDSelectorBitmap(bits)

    def search(queries: Float32Array, k: int) -> Int64Array:
        wanted = min(k * REFINED if kind == IVFPQ else k, len(positions))
        given = parameters(kind, effort, wanted, selector)
        _, found = searcher.search(queries, wanted, params=given)
        return np.where(found >= 0, positions[found], UNKNOWN)

    return search


def _overlap(found: Int64Array, exact: Int64Array) -> float:
    shared = [np.isin(best, row).sum() for row, best in zip(found, exact, strict=True)]
    return float(np.sum(shared) / max(exact.size, 1))
