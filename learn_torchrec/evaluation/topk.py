"""The K best items of every user, exactly and in blocks, or by an approximate index.

FAISS searches on a CPU (`faiss.knn`, which copies neither side), torch elsewhere; the
scores of all users and items never exist at once. An approximate index comes with its
recall against the exact answer, which bounds the error of metrics computed through it.

U users, I items, D vector dim.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.arrays import Float32Array, Int64Array
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.retrieval import refuse_non_finite
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.jagged import Jagged

_BLOCK_ELEMENTS = 1 << 26  # scores of one torch block: 256 MiB in float32
_BLOCK_USERS = 1 << 14  # users that FAISS answers at a time


class TopItems(NamedTuple):
    """The best items of every user, best first.

    Attributes:
        scores: float32 [U, K] dot products.
        items: int64 [U, K] rows of the item vectors. Equal scores are ordered by row;
            which of several equal scores make the cut at K is undefined.
    """

    scores: Float32Array
    items: Int64Array


class ApproximateTopItems(NamedTuple):
    """Result of an approximate index, and its recall.

    Attributes:
        top: as from the exact search; row -1 where the index found too few.
        recall: share of the exact top K that it found, over `recall_users` users.
        recall_users: number of users on which the recall is measured.
    """

    top: TopItems
    recall: float
    recall_users: int


def top_items(user_vectors: Tensor, item_vectors: Tensor, k: int) -> TopItems:
    """Return every user's K items of highest dot product.

    Args:
        user_vectors: floating [U, D].
        item_vectors: floating [I, D], on the same device.
        k: K, at most I.

    Raises:
        UserError: incompatible shapes, K out of range, or non-finite vectors.
    """
    _check(user_vectors, item_vectors, k)
    if user_vectors.device.type == "cpu" and _faiss() is not None:
        return _top_by_faiss(user_vectors, item_vectors, k)
    return _top_by_torch(user_vectors, item_vectors, k)


def top_new_items(
    user_vectors: Tensor, item_vectors: Tensor, k: int, history: Jagged
) -> TopItems:
    """As `top_items`, without the items (rows) of each user's history.

    Row UNKNOWN and score -inf pad the items of a user with fewer than K new ones.
    """
    _check(user_vectors, item_vectors, k)
    num_items = len(item_vectors)
    top = _empty(len(user_vectors), k)
    # A block needs candidates for its longest history: block users by length.
    users_by_length = np.argsort(history.lengths, kind="stable")
    for start in range(0, len(users_by_length), _BLOCK_USERS):
        users = users_by_length[start : start + _BLOCK_USERS]
        known = history.take(users)
        candidates = min(num_items, k + int(known.lengths.max(initial=0)))
        found = top_items(
            user_vectors[torch.from_numpy(users)], item_vectors, candidates
        )
        owners = np.arange(len(users))[:, None]
        is_known = np.isin(
            owners * num_items + found.items, known.owners() * num_items + known.values
        )
        kept = np.argsort(is_known, axis=1, kind="stable")[:, :k]
        is_known = np.take_along_axis(is_known, kept, axis=1)
        scores, items = (np.take_along_axis(part, kept, axis=1) for part in found)
        top.scores[users] = np.where(is_known, -np.inf, scores)
        top.items[users] = np.where(is_known, UNKNOWN, items)
    return top


def approximate_top_items(
    user_vectors: Tensor,
    item_vectors: Tensor,
    k: int,
    index: str = "HNSW32",
    recall_users: int = 1000,
) -> ApproximateTopItems:
    """As `top_items`, from an approximate FAISS index whose recall is measured.

    `index` is FAISS's factory string, e.g. "HNSW32" or "IVF1024,Flat". The exact answer
    is computed too for `recall_users` random users.

    Raises:
        UserError: see `top_items`; FAISS is missing or does not know the index.
    """
    _check(user_vectors, item_vectors, k)
    faiss = _faiss()
    if faiss is None:
        raise UserError("approximate search needs FAISS: pip install faiss-cpu")
    users, items = _as_float32(user_vectors), _as_float32(item_vectors)
    try:
        built = faiss.index_factory(items.shape[1], index, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise UserError(f"index {index!r}: FAISS refuses it ({reason})") from None
    built.train(items)
    built.add(items)
    top = TopItems(*built.search(users, k))
    drawn = np.random.default_rng(0).permutation(len(users))[:recall_users]
    exact = top_items(torch.from_numpy(users[drawn]), torch.from_numpy(items), k)
    found = [
        len(np.intersect1d(*pair))
        for pair in zip(top.items[drawn], exact.items, strict=True)
    ]
    recall = float(np.sum(found)) / max(exact.items.size, 1)
    return ApproximateTopItems(top, recall, len(drawn))


def _check(user_vectors: Tensor, item_vectors: Tensor, k: int) -> None:
    shapes = list(user_vectors.shape), list(item_vectors.shape)
    if (
        user_vectors.dim() != 2
        or item_vectors.dim() != 2
        or shapes[0][1] != shapes[1][1]
    ):
        raise UserError(
            f"user vectors {shapes[0]}, item vectors {shapes[1]}: give two matrices "
            "with the same number of columns"
        )
    if not 1 <= k <= len(item_vectors):
        raise UserError(f"k {k}: choose 1 to {len(item_vectors)}, the number of items")
    for name, vectors in (("user", user_vectors), ("item", item_vectors)):
        # The sum of a row with a NaN or infinity is not finite, and is small.
        refuse_non_finite(vectors.sum(dim=1, keepdim=True), f"{name} vectors")


def _faiss() -> Any:
    """Return the module, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _as_float32(vectors: Tensor) -> Float32Array:
    values: Float32Array = vectors.detach().cpu().to(torch.float32).numpy()
    return np.ascontiguousarray(values)


def _top_by_faiss(user_vectors: Tensor, item_vectors: Tensor, k: int) -> TopItems:
    faiss = _faiss()
    users, items = _as_float32(user_vectors), _as_float32(item_vectors)
    top = _empty(len(users), k)
    for start in range(0, len(users), _BLOCK_USERS):
        block = slice(start, start + _BLOCK_USERS)
        found = faiss.knn(users[block], items, k, metric=faiss.METRIC_INNER_PRODUCT)
        _store(top, block, *found)
    return top


def _top_by_torch(user_vectors: Tensor, item_vectors: Tensor, k: int) -> TopItems:
    top = _empty(len(user_vectors), k)
    items = item_vectors.float().T
    step = max(1, _BLOCK_ELEMENTS // len(item_vectors))
    for start in range(0, len(user_vectors), step):
        block = slice(start, start + step)
        found = (user_vectors[block].float() @ items).topk(k)
        _store(top, block, found.values.cpu().numpy(), found.indices.cpu().numpy())
    return top


def _empty(num_users: int, k: int) -> TopItems:
    return TopItems(np.empty((num_users, k), np.float32), np.empty((num_users, k), int))


def _store(
    top: TopItems, block: slice, scores: Float32Array, items: Int64Array
) -> None:
    """Store a block's result, equal scores ordered by row."""
    order = np.lexsort((items, -scores))
    top.scores[block] = np.take_along_axis(scores, order, axis=1)
    top.items[block] = np.take_along_axis(items, order, axis=1)
