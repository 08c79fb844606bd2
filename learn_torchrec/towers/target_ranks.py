"""Ranks of held-out targets by several rows, compared by group of targets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
from learn_torchrec.towers.retrieval import RetrievalConfig, target_groups

# Whether the items of the history leave the ranking.
RANKINGS = {"kept": False, "filtered": True}


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
        self._by_ranking: dict[str, dict[str, list[Float64Array]]] = {
            name: {} for name in RANKINGS
        }

    def add(self, name: str, score: ScoreBlock) -> None:
        """Rank by a row; by each seed, if it has several."""
        task = self._task
        for ranking, is_filtered in RANKINGS.items():
            history = task.history if is_filtered else None
            ranks = target_ranks(score, self._items, task.targets, history)
            self._by_ranking[ranking].setdefault(name, []).append(ranks)

    def compared(self, reference: str) -> dict[str, Any]:
        """Return all rows beside a reference row, by group, ranking and metric.

        The metrics are r@k, n@k and h@k, as `rank_metrics` defines them; see
        `compare_rows` for what is said of each.
        """
        return {
            group: {"targets": int(mask.sum()), "users": self._users(mask)}
            | {
                ranking: self._metrics(mask, rows, reference)
                for ranking, rows in self._by_ranking.items()
                # Repeated targets are not in a ranking without the history.
                if mask.any() and not (group == "repeated" and RANKINGS[ranking])
            }
            for group, mask in self._groups.items()
        }

    def _users(self, mask: BoolArray) -> int:
        return len(np.unique(self._owners[mask]))

    def _metrics(
        self,
        mask: BoolArray,
        rows: Mapping[str, Sequence[Float64Array]],
        reference: str,
    ) -> dict[str, Any]:
        owners, targets = np.unique(
            self._owners[mask], return_inverse=True, return_counts=True
        )[1:]
        found: dict[str, Any] = {}
        for k in self._ks:
            recalls: dict[str, list[Float64Array]] = {}
            gains: dict[str, list[Float64Array]] = {}
            for name, seeds in rows.items():
                by_seed = (
                    user_metrics(ranks[mask], owners, len(targets), k)
                    for ranks in seeds
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
