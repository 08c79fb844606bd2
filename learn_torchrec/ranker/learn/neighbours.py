"""Past conversion rates of the texts nearest to a candidate's, itself left out.

An item without a past has neighbours that have one. Only what lies strictly before an
impression's second counts, as in `features.past`.

Letters: N rows, T texts, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learn_torchrec.arrays import Float32Array, Float64Array, Int64Array
from learn_torchrec.datasets.point_in_time import PastEvents, PastTotals
from learn_torchrec.ids import UNKNOWN
from learn_torchrec.ranker.learn.reduced import ReducedContent

# Impressions that a rate is drawn to the overall rate by.
_PRIOR_IMPRESSIONS = 10.0
_TEMPERATURE = 0.15  # of a neighbour's weight, exp((similarity - 1) / temperature)


@dataclass(frozen=True)
class PastLabels:
    """The labelled impressions of one task, counted by text and by item.

    Attributes:
        by_text: all, and those with label 1.
        by_item: likewise.
    """

    by_text: tuple[PastEvents | PastTotals, PastEvents | PastTotals]
    by_item: tuple[PastEvents | PastTotals, PastEvents | PastTotals]

    @classmethod
    def of(
        cls, texts: Int64Array, items: Int64Array, times: Int64Array, labels: Int64Array
    ) -> "PastLabels":
        """Sort the impressions of known items, int64 [n] each."""
        yes = labels == 1
        return cls(
            (PastEvents(texts, times), PastEvents(texts[yes], times[yes])),
            (PastEvents(items, times), PastEvents(items[yes], times[yes])),
        )


class NeighbourRates:
    """Weighted conversion rates of an item's own text and its k nearest others.

    The impressions of the item itself do not count: `item_past_rate` has them.

    Args:
        content: with the neighbours.
        past: of each task.
        k: neighbours that count, at most those that `content` knows.
    """

    def __init__(
        self, content: ReducedContent, past: Sequence[PastLabels], k: int
    ) -> None:
        self._content, self.past = content, past
        self._k = min(k, content.neighbours.shape[1])
        self.width = len(past) + 1

    def of(self, item_rows: Int64Array, times: Int64Array) -> Float32Array:
        """Return the inputs of rows, float32 [N, tasks + 1].

        They are the log odds of each task's label among the neighbours less the overall
        log odds, 0 where nothing is known, and log(1 + their weighted impressions).

        Args:
            item_rows: int64 [N], rows of the content, -1 where missing.
            times: int64 [N], unix seconds.
        """
        result = np.zeros((len(item_rows), self.width), np.float32)
        known = np.flatnonzero(item_rows != UNKNOWN)
        items, when = item_rows[known], times[known]
        own = np.asarray(self._content.texts)[items].astype(np.int64)
        texts = np.c_[own, self._content.neighbours[own, : self._k]].astype(np.int64)
        near = self._content.similarities[own, : self._k].astype(np.float64)
        weights = np.c_[np.ones(len(own)), np.exp((near - 1) / _TEMPERATURE)]
        for task, past in enumerate(self.past):
            shown, yes = (
                self._weighted(weights, texts, items, when, by_text, by_item)
                for by_text, by_item in zip(past.by_text, past.by_item, strict=True)
            )
            all_shown, all_yes = (part.all_before(when) for part in past.by_text)
            overall = (all_yes + 1) / (all_shown + 2)
            odds = (yes + _PRIOR_IMPRESSIONS * overall) / (
                shown - yes + _PRIOR_IMPRESSIONS * (1 - overall)
            )
            result[known, task] = np.log(odds) - np.log(overall / (1 - overall))
            result[known, -1] = np.log1p(shown)
        return result

    @staticmethod
    def _weighted(
        weights: Float64Array,
        texts: Int64Array,
        items: Int64Array,
        times: Int64Array,
        by_text: PastEvents | PastTotals,
        by_item: PastEvents | PastTotals,
    ) -> Float64Array:
        """Return the weighted events of texts [n, k + 1], without the item's own."""
        spread = np.repeat(times, texts.shape[1])
        counts = by_text.before(texts.ravel(), spread).reshape(texts.shape)
        total: Float64Array = (weights * counts).sum(1)
        return np.maximum(total - by_item.before(items, times), 0.0)
