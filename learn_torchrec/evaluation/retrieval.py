"""Full-gallery retrieval metrics with exact ranks (paper, offline experiments).

In the paper's industrial results H@K lies below R@K, so it is not the usual rate of
users with any hit. We report H@K as the hit rate over all (user, target) pairs and R@K
as the mean of the users' recalls; `hit_any@k` is the usual rate. With one target per
user the three are equal.

U users, I gallery items, D vector dim, B users in a block, P (user, target) pairs.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.arrays import AnyArray, Float64Array, Int64Array, name_rows
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.pairs import Scores
from learn_torchrec.jagged import Jagged

OUTSIDE_GALLERY = -1
# Metrics by name: h@k, r@k, hit_any@k, n@k, mrr and the counts.
RetrievalMetrics: TypeAlias = dict[str, float]
# Maps users (start, stop) to their scores [stop - start, I].
ScoreBlock: TypeAlias = Callable[[int, int], Tensor]

_BLOCK_ELEMENTS = 1 << 24  # scores of one block: 64 MiB in float32


def evaluate_retrieval(
    user_vectors: Tensor,
    item_vectors: Tensor,
    targets: Jagged,
    history: Jagged | None = None,
    ks: Sequence[int] = (50, 100),
) -> RetrievalMetrics:
    """Rank the gallery by dot product for every user; see `evaluate_scores`.

    Args:
        user_vectors: floating [U, D].
        item_vectors: floating [I, D] on the same device.
        targets: gallery rows of each user's targets.
        history: gallery rows to exclude from each user's ranking, or None.
        ks: cut-offs.

    Raises:
        UserError: non-finite vectors (names the rows) or incompatible shapes; see
            `evaluate_scores`.

    Example:
        >>> metrics = evaluate_retrieval(
        ...     torch.tensor([[1.0, 0.0]]),
        ...     torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]),
        ...     Jagged.from_lists([[1]]),
        ...     ks=(1, 2),
        ... )
        >>> metrics["h@1"], metrics["h@2"], metrics["mrr"]
        (0.0, 1.0, 0.5)
    """
    for name, vectors in (("user", user_vectors), ("item", item_vectors)):
        if vectors.dim() != 2 or vectors.shape[1] != user_vectors.shape[-1]:
            raise UserError(
                f"{name} vectors: shape {list(vectors.shape)}; users and items need "
                "[rows, dim] with the same dim"
            )
        refuse_non_finite(vectors, f"{name} vectors")
    users, items = _at_least_float32(user_vectors), _at_least_float32(item_vectors)
    if len(targets) != len(users):
        raise UserError(
            f"targets: {len(targets)} users, {len(users)} user vectors; "
            "pass one (possibly empty) target list per user vector"
        )

    def score_block(start: int, stop: int) -> Tensor:
        return users[start:stop] @ items.T

    return evaluate_scores(score_block, len(items), targets, history, ks)


def evaluate_scores(
    score_block: ScoreBlock,
    num_items: int,
    targets: Jagged,
    history: Jagged | None = None,
    ks: Sequence[int] = (50, 100),
) -> RetrievalMetrics:
    """Return the `rank_metrics` of the `target_ranks` of all users."""
    ranks = target_ranks(score_block, num_items, targets, history)
    return rank_metrics(ranks, num_items, targets, ks)


def target_ranks(
    score_block: ScoreBlock,
    num_items: int,
    targets: Jagged,
    history: Jagged | None = None,
    users: slice | None = None,
) -> Float64Array:
    """Return the rank of every target of some users in the whole gallery.

    A target's rank is 1 + (items scored higher) + 1/2 (items tied with it), so
    collapsed vectors earn chance level, not the top rank. Targets are de-duplicated
    per user; those outside the gallery have no rank.

    Items of the user's history are excluded. A target among them is a miss of infinite
    rank: a recommender that filters the history cannot find it.

    Args:
        score_block: maps (start, stop) to the scores [stop - start, I] of these
            users, on any device. Popularity, for example:
            `lambda start, stop: counts.expand(stop - start, -1)`.
        num_items: I.
        targets: gallery rows of each user's targets, -1 outside the gallery.
        history: gallery rows to exclude from each user's ranking, or None.
        users: a range of users; None for all.

    Returns:
        float64 [P], by user and then by item: ranks of consecutive ranges of users can
        be concatenated.

    Raises:
        UserError: non-finite scores (names the user rows), rows outside the gallery, or
            incompatible shapes.
    """
    _check_rows(targets, num_items, len(targets), "targets")
    if history is not None:
        _check_rows(history, num_items, len(targets), "history")
    first, last, _ = (users or slice(None)).indices(len(targets))
    owners, items = distinct_pairs(targets, num_items)
    removed = None if history is None else distinct_pairs(history, num_items)
    ranks = [np.empty(0)]
    block = max(1, _BLOCK_ELEMENTS // max(num_items, 1))
    for start in range(first, last, block):
        stop = min(start + block, last)
        pairs = slice(*np.searchsorted(owners, (start, stop)))
        if pairs.start == pairs.stop:
            continue
        scores = _checked_scores(score_block, start, stop, num_items)
        if removed is not None:
            scores = _without(scores, removed, start, stop)
        ranks.append(_ranks(scores, owners[pairs] - start, items[pairs]))
    return np.concatenate(ranks)


def rank_metrics(
    ranks: Float64Array, num_items: int, targets: Jagged, ks: Sequence[int] = (50, 100)
) -> RetrievalMetrics:
    """Return the metrics of all users' `target_ranks`.

    Users without a target in the gallery are skipped.

    Args:
        ranks: float64 [P], of all users.
        num_items: I.
        targets: as for `target_ranks`.
        ks: cut-offs.

    Returns:
        For each k: `h@k` hits over (user, target) pairs; `r@k` mean user recall;
        `hit_any@k` share of users with a hit; `n@k` mean NDCG with binary gains and
        the ideal of min(targets, k) hits, at most 1. `mrr` mean over users of 1 / rank
        of the best target in the full ranking. Counts: `users` evaluated,
        `users_skipped`, `targets` in the gallery after de-duplication,
        `targets_outside_gallery`. Metrics are NaN when no user is evaluated.

    Raises:
        UserError: cut-offs below 1.
    """
    if not ks or min(ks) < 1:
        raise UserError(f"ks {tuple(ks)}: give cut-offs of 1 or more")
    users, _ = distinct_pairs(targets, num_items)
    num_users = len(targets)
    evaluated = np.bincount(users, minlength=num_users) > 0
    metrics: RetrievalMetrics = {}
    for k in ks:
        recall, ndcg = (
            each[evaluated] for each in user_metrics(ranks, users, num_users, k)
        )
        metrics[f"h@{k}"] = _mean(ranks <= k)
        metrics[f"r@{k}"] = _mean(recall)
        metrics[f"hit_any@{k}"] = _mean(recall > 0)
        metrics[f"n@{k}"] = _mean(ndcg)
    best = np.full(num_users, math.inf)
    np.minimum.at(best, users, ranks)
    return metrics | {
        "mrr": _mean(1 / best[evaluated]),
        "users": int(evaluated.sum()),
        "users_skipped": int(num_users - evaluated.sum()),
        "targets": len(users),
        "targets_outside_gallery": int((targets.values == OUTSIDE_GALLERY).sum()),
    }


def user_metrics(
    ranks: Float64Array, users: Int64Array, num_users: int, k: int
) -> tuple[Float64Array, Float64Array]:
    """Return each user's recall and NDCG at `k`, float64 [U]; NaN without a target.

    NDCG has binary gains and the ideal of min(targets, k) hits, and is at most 1.

    Args:
        ranks: float64 [P], of (user, target) pairs, see `target_ranks`.
        users: int64 [P], user of each pair.
        num_users: U.
        k: the cut-off.
    """
    targets = np.bincount(users, minlength=num_users)
    is_hit = ranks <= k
    hits = np.bincount(users, is_hit, num_users)
    gains = np.bincount(users, is_hit / np.log2(ranks + 1), num_users)
    most = min(k, int(targets.max(initial=1)))  # k may be a billion
    ideal = np.cumsum(1 / np.log2(np.arange(2, most + 2)))
    # Mid-ranks can put more than k tied targets within the first k.
    best = ideal[np.clip(targets, 1, most) - 1]
    without = np.where(targets > 0, 0.0, np.nan)
    recall = hits / np.maximum(targets, 1) + without
    return recall, np.minimum(gains / best, 1.0) + without


def _at_least_float32(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def refuse_non_finite(values: Tensor, name: str, first_row: int = 0) -> None:
    """Refuse NaN and infinity in a matrix.

    Raises:
        UserError: names the rows.
    """
    is_bad = ~torch.isfinite(values).all(dim=1).cpu().numpy()
    if is_bad.any():
        raise UserError(
            f"{name}: not finite in {name_rows(is_bad, first_row)}; find what made the "
            "NaN or infinity before evaluating"
        )


def _check_rows(jagged: Jagged, num_items: int, num_users: int, name: str) -> None:
    if len(jagged) != num_users:
        raise UserError(f"{name}: {len(jagged)} users, targets have {num_users}")
    is_bad = (jagged.values < OUTSIDE_GALLERY) | (jagged.values >= num_items)
    if is_bad.any():
        entry = int(np.flatnonzero(is_bad)[0])
        raise UserError(
            f"{name} of user row {jagged.owners()[entry]}: item row "
            f"{jagged.values[entry]}, the gallery has rows 0 to {num_items - 1}; "
            f"write {OUTSIDE_GALLERY} for items outside it"
        )


def distinct_pairs(jagged: Jagged, num_items: int) -> tuple[Int64Array, Int64Array]:
    """Return distinct (user, item) pairs within the gallery, ordered by user."""
    inside = jagged.values != OUTSIDE_GALLERY
    keys = np.unique(jagged.owners()[inside] * num_items + jagged.values[inside])
    users, items = np.divmod(keys, max(num_items, 1))
    return users, items


def _checked_scores(
    score_block: ScoreBlock, start: int, stop: int, num_items: int
) -> Tensor:
    scores = score_block(start, stop).detach()
    if scores.shape != (stop - start, num_items):
        raise UserError(
            f"scores of users {start} to {stop - 1}: shape {list(scores.shape)}, "
            f"expected {[stop - start, num_items]}"
        )
    if not scores.is_floating_point():
        return scores.double()  # counts: float64 holds them exactly
    refuse_non_finite(scores, "user scores", start)
    return _at_least_float32(scores)


def _without(
    scores: Tensor, removed: tuple[Int64Array, Int64Array], start: int, stop: int
) -> Tensor:
    """Return a copy in which removed items score -inf, below every other item."""
    pairs = slice(*np.searchsorted(removed[0], (start, stop)))
    users, items = (torch.from_numpy(part[pairs]) for part in removed)
    scores = scores.clone()
    scores[users.to(scores.device) - start, items.to(scores.device)] = -math.inf
    return scores


def _ranks(scores: Tensor, users: Int64Array, items: Int64Array) -> Float64Array:
    """Return the mid-rank of each (row of `scores`, item) pair, float64 [P]."""
    count = _counts if scores.device.type == "cpu" else _counts_on_device
    own, higher, equal = count(scores, users, items)
    ranks: Float64Array = 1 + higher + (equal - 1) / 2
    return np.where(own == -math.inf, math.inf, ranks)


def _counts(
    scores: Tensor, users: Int64Array, items: Int64Array
) -> tuple[Scores, Int64Array, Int64Array]:
    """Return each pair's score, and how many scores of its user are higher, and equal.

    On a CPU, NumPy counts true values tens of times faster than PyTorch sums booleans,
    so a loop over pairs beats a vectorised comparison.
    """
    matrix = scores.numpy()
    own = matrix[users, items]
    higher, equal = np.empty((2, len(users)), np.int64)
    for pair, (user, score) in enumerate(zip(users, own, strict=True)):
        higher[pair] = np.count_nonzero(matrix[user] > score)
        equal[pair] = np.count_nonzero(matrix[user] == score)
    return own, higher, equal


def _counts_on_device(
    scores: Tensor, users: Int64Array, items: Int64Array
) -> tuple[Scores, Int64Array, Int64Array]:
    """As `_counts`, for many pairs at once."""
    user, item = (torch.from_numpy(x).to(scores.device) for x in (users, items))
    own = scores[user, item]
    higher, equal = torch.empty_like(user), torch.empty_like(user)
    step = max(1, _BLOCK_ELEMENTS // scores.shape[1])
    for start in range(0, len(own), step):
        pairs = slice(start, start + step)
        rows, score = scores[user[pairs]], own[pairs, None]
        higher[pairs] = (rows > score).sum(1)
        equal[pairs] = (rows == score).sum(1)
    return own.cpu().numpy(), higher.cpu().numpy(), equal.cpu().numpy()


def _mean(values: AnyArray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
