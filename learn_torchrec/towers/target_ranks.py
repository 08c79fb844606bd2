"""Ranks of held-out targets by several rows, compared by group of targets.

Rare items are ranked among themselves, too, and repeated ones among their user's
history. In a ranking of all items a row that knows nothing of popularity, as chance
does, fills its first places with rare items and so finds some of them, and one that
shows the history first finds what is repeated; among themselves every row shows as
many.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.arrays import BoolArray, Float64Array, Int64Array
from learn_torchrec.evaluation.retrieval import (
    ScoreBlock,
    distinct_pairs,
    target_ranks,
    user_metrics,
)
from learn_torchrec.evaluation.retrieval_study import compare_rows
from learn_torchrec.jagged import Jagged
from learn_torchrec.towers.holdout import TowersSplit
from learn_torchrec.towers.retrieval import (
    RetrievalConfig,
    rare_items,
    target_groups,
)

# Whether the items of the history leave the ranking.
RANKINGS = {"kept": False, "filtered": True}
AMONG = "among"  # the ranking of a group's items alone

_Ranks = dict[str, list[Float64Array]]  # by row and seed


class _RareItems(NamedTuple):
    """The items of a group, and its targets among them.

    Attributes:
        items: int64 [n], catalogue rows.
        targets: of all users, as indices into `items`.
    """

    items: Int64Array
    targets: Jagged

    @classmethod
    def of(cls, is_rare: BoolArray, targets: Jagged) -> Self:
        """Return those of a catalogue, bool [N], and what is among them of targets."""
        place = np.cumsum(is_rare) - 1
        chosen = targets.filter(is_rare[targets.values])
        chosen = Jagged(place[chosen.values], chosen.offsets)
        return cls(np.flatnonzero(is_rare), chosen)

    def ranks(self, score: ScoreBlock) -> Float64Array:
        """Return the targets' ranks among the items, by a score of the catalogue."""
        columns = torch.from_numpy(self.items)
        return target_ranks(
            lambda start, stop: score(start, stop)[:, columns],
            len(self.items),
            self.targets,
        )

    @property
    def size(self) -> int:
        """How many items compete."""
        return len(self.items)


class _Histories(NamedTuple):
    """The users' histories, and the targets in them.

    Attributes:
        num_items: of the catalogue.
        owners: int64 [pairs], user of each distinct item of a history, ascending.
        items: int64 [pairs].
        targets: of all users.
    """

    num_items: int
    owners: Int64Array
    items: Int64Array
    targets: Jagged

    def ranks(self, score: ScoreBlock) -> Float64Array:
        """Return the targets' ranks among the items of their user's history."""

        def of_history(start: int, stop: int) -> Tensor:
            scores = score(start, stop).double()
            own = slice(*np.searchsorted(self.owners, (start, stop)))
            index = (
                torch.from_numpy(self.owners[own] - start).to(scores.device),
                torch.from_numpy(self.items[own]).to(scores.device),
            )
            below = torch.full_like(scores, torch.finfo(torch.float64).min)
            return below.index_put_(index, scores[index])

        return target_ranks(of_history, self.num_items, self.targets)

    @property
    def size(self) -> float:
        """How many items compete, in the mean over users with targets."""
        counts = np.bincount(self.owners, minlength=len(self.targets))
        return float(counts[self.targets.lengths > 0].mean())


class TargetRanks:
    """The ranks of all test targets by every row, with the history and without.

    Args:
        data: the test's users, and the events that say how well known an item is.
        num_items: of the catalogue.
        config: cut-offs, and what the long tail is.
    """

    def __init__(
        self, data: TowersSplit, num_items: int, config: RetrievalConfig
    ) -> None:
        self._task, self._items, self._ks = data.test, num_items, config.ks
        masks = target_groups(data.train, num_items, data.test, config.tail_events)
        self._owners, items = distinct_pairs(data.test.targets, num_items)
        self._groups = {
            name: _of_pairs(
                data.test.targets.filter(mask), self._owners, items, num_items
            )
            for name, mask in masks.items()
        }
        rare = rare_items(data.train.item_counts(num_items), config.tail_events)
        self._few: dict[str, _RareItems | _Histories] = {
            name: _RareItems.of(is_rare, data.test.targets)
            for name, is_rare in rare.items()
        }
        self._few["repeated"] = _Histories(
            num_items,
            *distinct_pairs(data.test.history, num_items),
            data.test.targets.filter(masks["repeated"]),
        )
        self._by_ranking: dict[str, _Ranks] = {name: {} for name in RANKINGS}
        self._among: dict[str, _Ranks] = {name: {} for name in self._few}

    def add(self, name: str, score: ScoreBlock) -> None:
        """Rank by a row; by each seed, if it has several."""
        task = self._task
        for ranking, is_filtered in RANKINGS.items():
            history = task.history if is_filtered else None
            ranks = target_ranks(score, self._items, task.targets, history)
            self._by_ranking[ranking].setdefault(name, []).append(ranks)
        for group, few in self._few.items():
            self._among[group].setdefault(name, []).append(few.ranks(score))

    def compared(self, reference: str) -> dict[str, Any]:
        """Return all rows beside a reference row, by group, ranking and metric.

        The metrics are r@k, n@k and h@k, as `rank_metrics` defines them; see
        `compare_rows` for what is said of each.
        """
        return {
            group: {"targets": int(mask.sum()), "users": self._users(mask)}
            | self._all_ranked(group, mask, reference)
            | self._few_ranked(group, mask, reference)
            for group, mask in self._groups.items()
        }

    def _all_ranked(
        self, group: str, mask: BoolArray, reference: str
    ) -> dict[str, Any]:
        return {
            ranking: self._metrics(
                self._owners[mask],
                {name: [r[mask] for r in seeds] for name, seeds in rows.items()},
                reference,
            )
            for ranking, rows in self._by_ranking.items()
            # Repeated targets are not in a ranking without the history.
            if mask.any() and not (group == "repeated" and RANKINGS[ranking])
        }

    def _few_ranked(
        self, group: str, mask: BoolArray, reference: str
    ) -> dict[str, Any]:
        if group not in self._few or not mask.any():
            return {}
        # In the order of the targets' ranks: by user.
        compared = self._metrics(self._owners[mask], self._among[group], reference)
        return {"items": self._few[group].size, AMONG: compared}

    def _users(self, mask: BoolArray) -> int:
        return len(np.unique(self._owners[mask]))

    def _metrics(
        self, owners: Int64Array, rows: _Ranks, reference: str
    ) -> dict[str, Any]:
        """Compare ranks of the same pairs, whose users are int64 [pairs]."""
        user, targets = np.unique(owners, return_inverse=True, return_counts=True)[1:]
        found: dict[str, Any] = {}
        for k in self._ks:
            recalls: dict[str, list[Float64Array]] = {}
            gains: dict[str, list[Float64Array]] = {}
            for name, seeds in rows.items():
                by_seed = (
                    user_metrics(ranks, user, len(targets), k) for ranks in seeds
                )
                recalls[name], gains[name] = map(list, zip(*by_seed, strict=True))
            found[f"r@{k}"] = compare_rows(recalls, reference)
            found[f"n@{k}"] = compare_rows(gains, reference)
            # Hits over all targets: recall, each user weighted by its targets.
            found[f"h@{k}"] = compare_rows(recalls, reference, targets)
        return found


def _of_pairs(
    chosen: Jagged, owners: Int64Array, items: Int64Array, num_items: int
) -> BoolArray:
    """Return which (user, target) pairs are among some targets."""
    users, rows = distinct_pairs(chosen, num_items)
    return np.isin(owners * num_items + items, users * num_items + rows)
