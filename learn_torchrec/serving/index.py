"""An index of item vectors: the best items of a user, at once, out of millions.

An index is an artefact (kind "index") that `index_build` writes. It holds

- `items/`, the exact vectors by id (see `vector_table`),
- `index.faiss` and `positions.npy`: a FAISS index, and the row in `items/` of each of
  its positions, -1 for an item that was removed since,
- `popular.npy`: rows for a user of whom nothing is known, best first,
- `titles.parquet`, where the items' texts were given.

Scores are always those of the exact vectors.

Letters: I items, P positions of the FAISS index, Q queries, D vector dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_torchrec.array_files import read_array
from learn_torchrec.arrays import BoolArray, Float32Array, Int64Array
from learn_torchrec.artifact import Manifest, listed_files, read_manifest, reading
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.topk import TopItems
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.page_checksums import VERIFIED
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.schema import TITLE
from learn_torchrec.spaces import refuse_other_space, space_of
from learn_torchrec.vector_table import ITEMS, VectorTable

KIND = "index"
FAISS_FILE, POSITIONS_FILE = "index.faiss", "positions.npy"
POPULAR_FILE, TITLES_FILE = "popular.npy", "titles.parquet"
FLAT, HNSW, IVFPQ = "flat", "hnsw", "ivfpq"
REFINED = 4  # candidates of compressed vectors for each item that is asked for
_AGAIN = "build the index again"
_EXACT_SHARE = 0.05  # of items that may be found, below which all of them are scored
_BLOCK_ITEMS = 1 << 16


def load_faiss() -> Any:
    """Return the module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("an index needs FAISS: pip install faiss-cpu") from None
    return faiss


@dataclass(frozen=True, kw_only=True)
class ItemIndex:
    """An opened index; safe for several threads.

    Attributes:
        manifest: of the artefact.
        items: vectors and ids, I rows.
        faiss: the FAISS index.
        kind: FLAT, HNSW or IVFPQ.
        effort: how much of the index a search reads: `efSearch` or `nprobe`.
        positions: int64 [P].
        popular: int64, rows for an unknown user, best first.
        recall: share of the exact first 100 that a search finds, when it was built.
        titles: string [I], null for an unknown title; None if none are known.
        allowed: bool [I], the items that may be found; None for all.
    """

    manifest: Manifest
    items: VectorTable
    faiss: Any
    kind: str
    effort: int
    positions: Int64Array
    popular: Int64Array
    recall: float
    titles: pa.Array | None = None
    allowed: BoolArray | None = None

    @classmethod
    def open(cls, directory: Path) -> "ItemIndex":
        """Open an index; the FAISS part is read, the vectors are mapped.

        Raises:
            UserError: no such artefact, a damaged one, or FAISS is missing.
        """
        manifest = read_manifest(directory, KIND)
        faiss = load_faiss()
        with reading(directory, manifest, list(manifest.files), _AGAIN):
            try:
                searcher = faiss.read_index(str(directory / FAISS_FILE))
            except RuntimeError as error:
                raise ValueError(f"{FAISS_FILE}: {error}") from None
            titles = None
            if TITLES_FILE in manifest.files:
                table = pq.read_table(directory / TITLES_FILE, **VERIFIED)
                titles = table[TITLE].combine_chunks()
            found = cls(
                manifest=manifest,
                items=VectorTable.open(
                    directory / ITEMS, listed_files(directory, manifest)
                ),
                faiss=searcher,
                kind=manifest.facts["kind"],
                effort=manifest.facts["effort"],
                positions=read_array(directory / POSITIONS_FILE),
                popular=read_array(directory / POPULAR_FILE),
                recall=float(manifest.facts["recall_at_100"]),
                titles=titles,
            )
            found._check()
            return found

    def _check(self) -> None:
        """Check that the parts are of one index.

        Raises:
            ValueError: names what is of another.
        """
        for name, rows, least in (
            (POSITIONS_FILE, self.positions, UNKNOWN),
            (POPULAR_FILE, self.popular, 0),
        ):
            is_list = rows.ndim == 1 and rows.dtype == np.int64
            if not (is_list and ((rows >= least) & (rows < len(self))).all()):
                raise ValueError(f"{name}: no rows of the items")
        if (self.faiss.ntotal, self.faiss.d) != (len(self.positions), self.dim):
            raise ValueError(f"{FAISS_FILE}: of other vectors")
        if self.titles is not None and len(self.titles) != len(self):
            raise ValueError(f"{TITLES_FILE}: of other items")
        if self.kind not in (FLAT, HNSW, IVFPQ) or type(self.effort) is not int:
            raise ValueError(f"{self.kind!r} with effort {self.effort!r} is no index")

    def __len__(self) -> int:
        return len(self.items.index)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.items.vectors.shape[1])

    def restricted(self, allowed: BoolArray) -> "ItemIndex":
        """Return an index in which only some items [I] can be found."""
        both = allowed if self.allowed is None else self.allowed & allowed
        return replace(self, allowed=both)

    def search(
        self,
        queries: Float32Array,
        k: int,
        excluded: Sequence[Int64Array] | None = None,
    ) -> TopItems:
        """Return the items of highest dot product.

        Args:
            queries: float32 [Q, D].
            k: items per query.
            excluded: rows that must not be found, for each query.

        Returns:
            Scores and rows [Q, k]; row UNKNOWN and score -inf where there are not
            enough items.

        Raises:
            UserError: vectors of another length.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise UserError(
                f"user vectors of shape {list(queries.shape)}, but the index has "
                f"{self.dim} columns; use the vectors it was built from"
            )
        excluded = excluded or [np.empty(0, np.int64)] * len(queries)
        found = self.num_allowed
        if found < _EXACT_SHARE * len(self):
            return self._exact(queries, k, excluded)
        top = _kept(*self._candidates(queries, k, excluded), excluded, k)
        missing = [
            row
            for row, items in enumerate(top.items)
            if (items != UNKNOWN).sum() < min(k, found - len(np.unique(excluded[row])))
        ]
        if missing:  # an approximate index ended before it had found enough
            again = self._exact(queries[missing], k, [excluded[n] for n in missing])
            top.scores[missing], top.items[missing] = again
        return top

    @property
    def num_allowed(self) -> int:
        """Number of items that may be found."""
        return len(self) if self.allowed is None else int(self.allowed.sum())

    def _candidates(
        self, queries: Float32Array, k: int, excluded: Sequence[Int64Array]
    ) -> tuple[Float32Array, Int64Array]:
        """Return scores and rows of candidates [Q, K], best first."""
        wanted = k + max((len(rows) for rows in excluded), default=0)
        if self.kind == IVFPQ:
            wanted *= REFINED
        wanted = max(1, min(wanted, self.faiss.ntotal))
        scores, found = self.faiss.search(
            np.ascontiguousarray(queries, np.float32),
            wanted,
            params=parameters(self.kind, self.effort, wanted, self._selector()),
        )
        rows = np.where(found >= 0, self.positions[found], UNKNOWN)
        if self.kind == IVFPQ:
            scores = self._scores(queries, rows)
            order = np.argsort(-scores, axis=1, kind="stable")
            scores = np.take_along_axis(scores, order, axis=1)
            rows = np.take_along_axis(rows, order, axis=1)
        return scores, rows

    def _selector(self) -> Any:
        """Return FAISS's selector of the positions that may be found; None for all."""
        is_alive = self.positions >= 0
        if self.allowed is not None:
            is_alive &= self.allowed[self.positions]
        if is_alive.all():
            return None
        return load_faiss().IDSelectorBitmap(np.packbits(is_alive, bitorder="little"))

    def _scores(self, queries: Float32Array, rows: Int64Array) -> Float32Array:
        """Return the exact scores of rows [Q, K]; -inf for UNKNOWN."""
        vectors = self.items.gather(rows.reshape(-1)).astype(np.float32)
        vectors = vectors.reshape(*rows.shape, self.dim)
        scores = np.einsum("qd,qkd->qk", queries, vectors)
        return np.where(rows == UNKNOWN, -np.inf, scores).astype(np.float32)

    def _exact(
        self, queries: Float32Array, k: int, excluded: Sequence[Int64Array]
    ) -> TopItems:
        """As `search`, from the scores of all items that may be found."""
        rows = np.arange(len(self))
        if self.allowed is not None:
            rows = rows[self.allowed]
        wanted = k + max((len(each) for each in excluded), default=0)
        return _kept(*exact_top(self.items, queries, wanted, rows), excluded, k)


def refuse_other_vectors(index: ItemIndex, vectors: LearnVectors, name: str) -> None:
    """Refuse users' vectors of another space than the index's, for any dot product.

    Raises:
        UserError: names the vectors as `name`, and what differs.
    """
    refuse_other_space(
        space_of(index.manifest),
        space_of(vectors.manifest),
        f"{name}: they, and the items of the index,",
        "build the index of these vectors",
    )


def exact_top(
    items: VectorTable, queries: Float32Array, k: int, rows: Int64Array
) -> tuple[Float32Array, Int64Array]:
    """Return scores and rows of the best of some rows, best first, [Q, up to k].

    The scores of all queries and rows never exist at once.
    """
    faiss = load_faiss()
    queries = np.ascontiguousarray(queries, np.float32)
    scores = np.empty((len(queries), 0), np.float32)
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), _BLOCK_ITEMS):
        part = rows[start : start + _BLOCK_ITEMS]
        vectors = items.gather(part).astype(np.float32)
        product = faiss.METRIC_INNER_PRODUCT
        found = faiss.knn(queries, vectors, min(k, len(part)), metric=product)
        scores = np.concatenate([scores, found[0]], axis=1)
        best = np.concatenate([best, part[found[1]]], axis=1)
        order = np.lexsort((best, -scores))[:, :k]
        scores = np.take_along_axis(scores, order, axis=1)
        best = np.take_along_axis(best, order, axis=1)
    return scores, best


def parameters(kind: str, effort: int, wanted: int, selector: Any = None) -> Any:
    """Return FAISS's parameters of a search for `wanted` items."""
    faiss = load_faiss()
    given = {} if selector is None else {"sel": selector}
    if kind == HNSW:
        return faiss.SearchParametersHNSW(efSearch=max(effort, wanted), **given)
    if kind == IVFPQ:
        return faiss.SearchParametersIVF(nprobe=effort, **given)
    return faiss.SearchParameters(**given)


def _kept(
    scores: Float32Array, rows: Int64Array, excluded: Sequence[Int64Array], k: int
) -> TopItems:
    """Return the first k of candidates [Q, K] that exist and are not excluded."""
    top = TopItems(
        np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), UNKNOWN)
    )
    for query, left_out in enumerate(excluded):
        is_new = (rows[query] != UNKNOWN) & ~np.isin(rows[query], left_out)
        kept = np.flatnonzero(is_new)[:k]
        top.scores[query, : len(kept)] = scores[query, kept]
        top.items[query, : len(kept)] = rows[query, kept]
    return top
