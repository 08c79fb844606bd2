"""Item-item co-occurrence: the baseline that needs neither content nor training.

Letters: U users, N items, B users of a block.
"""

import warnings
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.evaluation.retrieval import ScoreBlock, evaluate_scores
from learn_torchrec.jagged import spread
from learn_torchrec.towers.holdout import RetrievalTask
from learn_torchrec.towers.retrieval import RetrievalConfig

_MOST_EVENTS = 200  # of a training user: the latest; pairs grow with their square
# 1 divides by the item's own count, which favours rare items; 0 does not.
_POWERS = (0.25, 0.5, 0.75)
_HALF_LIVES = (2.0, 8.0, 1e9)  # events
_MOST_USERS = 1_000  # to choose the settings


@dataclass(frozen=True)
class CoOccurrence:
    """How many users met both of two items.

    Attributes:
        pairs: float32 [N, N], sparse (CSR): users of both; the diagonal is zero.
        users: float32 [N], users of each item, at least 1.
    """

    pairs: Tensor
    users: Tensor

    @classmethod
    def fit(cls, train: SequenceSet, num_items: int) -> "CoOccurrence":
        """Count the pairs within each user's latest 200 events."""
        lengths = np.minimum(train.lengths, _MOST_EVENTS)
        events, _ = spread(train.ends - lengths, lengths)
        owners = np.repeat(np.arange(len(train)), lengths)
        keys = np.unique(owners * num_items + train.items[events])
        index = torch.from_numpy(np.stack(np.divmod(keys, num_items)))
        met = torch.sparse_coo_tensor(
            index,
            torch.ones(len(keys)),
            (len(train), num_items),
            check_invariants=False,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support")
            by_item = met.t().to_sparse_csr()
        counts = torch.sparse.mm(by_item, met.to_sparse_csr()).to_sparse_coo()
        row, column = counts.indices()
        apart = row != column
        pairs = torch.sparse_coo_tensor(
            counts.indices()[:, apart],
            counts.values()[apart],
            counts.shape,
            check_invariants=False,
        )
        users = torch.from_numpy(np.bincount(index[1].numpy(), minlength=num_items))
        return cls(pairs.to_sparse_csr(), users.clamp(min=1).float())

    def scores(self, task: RetrievalTask, power: float, half_life: float) -> ScoreBlock:
        """Return the scores of the catalogue for users' histories.

        An item scores the sum over the history's events of the share of the event's
        users who met the item, divided by the item's users to the `power`; an event
        counts half as much as one that is `half_life` events later.
        """
        items, lengths = task.history.values, task.history.lengths
        ends = task.history.offsets[1:]
        ages = np.repeat(ends, lengths) - np.arange(len(items)) - 1
        weights = torch.from_numpy(0.5 ** (ages / half_life)).float()
        rows, owners = torch.from_numpy(items), torch.from_numpy(task.history.owners())
        weights /= self.users[rows]
        by_candidate = self.users.pow(-power)

        def block(start: int, stop: int) -> Tensor:
            first, last = task.history.offsets[[start, stop]]
            history = torch.zeros(len(self.users), stop - start)
            place = rows[first:last], owners[first:last] - start
            history.index_put_(place, weights[first:last], accumulate=True)
            # Pairs are symmetric.
            return torch.sparse.mm(self.pairs, history).T * by_candidate

        return block

    def tuned(
        self, validation: RetrievalTask, task: RetrievalTask, config: RetrievalConfig
    ) -> ScoreBlock:
        """Return the scores for a task's users in the best of nine settings.

        The best by NDCG at the first cut-off on the validation users; 1,000 are enough.
        """
        some = validation.sample(_MOST_USERS)
        removed = some.history if config.filter_history else None
        metric, ks = f"n@{config.ks[0]}", config.ks[:1]

        def quality(settings: tuple[float, float]) -> float:
            score, items = self.scores(some, *settings), len(self.users)
            return evaluate_scores(score, items, some.targets, removed, ks)[metric]

        return self.scores(task, *max(product(_POWERS, _HALF_LIVES), key=quality))
