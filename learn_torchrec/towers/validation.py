"""Validation of the towers: metrics of an epoch, and what only a ranking can choose.

Letters: U users, D vector dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learn_torchrec.arrays import Float64Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.evaluation.retrieval import (
    RetrievalMetrics,
    distinct_pairs,
    rank_metrics,
    refuse_non_finite,
    user_metrics,
)
from learn_torchrec.evaluation.shared_catalogue import (
    Added,
    ItemShare,
    shared_target_ranks,
)
from learn_torchrec.towers.holdout import RetrievalTask
from learn_torchrec.towers.inference import (
    encode_catalogue,
    encode_histories,
    repeat_scores,
)
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.retrieval import RetrievalConfig, removed_items
from learn_torchrec.training.distributed import (
    broadcast_from_rank0,
    gather_objects,
    raise_on_all_ranks,
    rank_share,
    sum_on_hosts,
)

# From the neutral one on: of equally good ones the first is kept.
_REPEAT_SCALES = (1.0, 1.4, 0.7, 2.0, 0.5, 2.8, 4.0, 8.0, 16.0)
_POPULARITY_WEIGHTS = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1)  # in units of the cosine
_CHOOSING_USERS = 1_000
# The long tail counts as a part of all targets, and by so much once more: otherwise
# popular items take the places that rare ones had.
_TAIL_WEIGHT = 0.5


def validate_towers(
    towers: TwinTower,
    store: ContentStore,
    task: RetrievalTask,
    history_length: int,
    device: torch.device,
    config: RetrievalConfig,
) -> RetrievalMetrics:
    """Rank the full catalogue for every user of the task; ranks share the items.

    First sets the scale of the repeat score and the weight of popularity, if the towers
    have them, on up to 1,000 users: to where recall at the first cut-off is largest,
    that of all targets plus, for towers with popularity, half that of the long tail.
    """
    ranking = _Ranking.of(towers, store, task, history_length, device, config)
    few = ranking.sample(_CHOOSING_USERS)
    if towers.repeat is not None and not config.filter_history:
        scales = [replace(few, repeat_scale=scale) for scale in _REPEAT_SCALES]
        few = _best(scales)
        towers.repeat.scale.fill_(few.repeat_scale)
    if towers.popularity is not None:
        weights = [replace(few, popularity=one) for one in _POPULARITY_WEIGHTS]
        few = _best(weights)
        towers.popularity.weight.fill_(few.popularity)
    return replace(
        ranking, repeat_scale=few.repeat_scale, popularity=few.popularity
    ).metrics()


def _best(rankings: Sequence["_Ranking"]) -> "_Ranking":
    """Return the first of the best, as rank 0 finds: sums differ in the last digit."""
    best = int(np.argmax([ranking.worth() for ranking in rankings]))
    return rankings[broadcast_from_rank0(best)]


@dataclass(frozen=True, kw_only=True)
class _Ranking:
    """A task's users and this rank's items, encoded once for several rankings.

    Attributes:
        users: float32 [U, D], on every rank.
        items: of this rank.
        num_items: of all ranks.
        task: of the users.
        config: of the evaluation.
        repeated: scores of the past at a scale of 1, or None.
        log_counts: float32 [num_items], what popularity adds at a weight of 1, or None.
        is_rare: bool [num_items], long-tail items, likewise.
        repeat_scale: multiplies `repeated`.
        popularity: weight of `log_counts`.
    """

    users: Tensor
    items: ItemShare
    num_items: int
    task: RetrievalTask
    config: RetrievalConfig
    repeated: Added | None
    log_counts: Tensor | None
    is_rare: Tensor | None
    repeat_scale: float
    popularity: float

    @classmethod
    def of(
        cls,
        towers: TwinTower,
        store: ContentStore,
        task: RetrievalTask,
        history_length: int,
        device: torch.device,
        config: RetrievalConfig,
    ) -> Self:
        """Encode the users and the items, with the settings chosen last."""
        was_training = towers.training
        towers.eval()
        scale, weight, log_counts, is_rare = 1.0, 0.0, None, None
        if towers.popularity is not None:
            weight = towers.popularity.weight.item()
            log_counts = towers.popularity.above_mean().cpu()
            is_rare = towers.popularity.rare(config.tail_events).cpu()
        mine = rank_share(len(store))
        # Look-ups in a sharded table are collective: every rank encodes as many items.
        most = -(-len(store) // dist.get_world_size())
        rows = np.minimum(mine.start + np.arange(most), len(store) - 1)
        items = encode_catalogue(towers, store, rows, device)[: mine.stop - mine.start]
        users = _user_vectors(towers, store, task, history_length, device)
        if towers.repeat is not None:
            scale = towers.repeat.scale.item()
            towers.repeat.scale.fill_(1.0)
        repeated = repeat_scores(towers, task.sequences, task.last_history)
        if towers.repeat is not None:
            towers.repeat.scale.fill_(scale)
        towers.train(was_training)
        with raise_on_all_ranks():
            refuse_non_finite(items, "item vectors", mine.start)
        return cls(
            users=users.to(device),
            items=ItemShare(items.to(device), mine.start),
            num_items=len(store),
            task=task,
            config=config,
            repeated=None if repeated is None else Added(*repeated),
            log_counts=log_counts,
            is_rare=is_rare,
            repeat_scale=scale,
            popularity=weight,
        )

    def sample(self, most: int) -> "_Ranking":
        """Return the ranking for up to `most` users, evenly spaced."""
        count = len(self.users)
        if count <= most:
            return self
        chosen = np.linspace(0, count - 1, most).astype(np.int64)
        place = torch.full((count,), -1)
        place[torch.from_numpy(chosen)] = torch.arange(most)
        repeated = self.repeated
        if repeated is not None:
            user = place.to(repeated.user.device)[repeated.user]
            repeated = Added(
                *(one[user >= 0] for one in (user, repeated.item, repeated.score))
            )
        return replace(
            self,
            users=self.users[torch.from_numpy(chosen).to(self.users.device)],
            task=self.task.sample(most),
            repeated=repeated,
        )

    def metrics(self) -> RetrievalMetrics:
        """Return the metrics of all targets."""
        targets, ks = self.task.targets, self.config.ks
        return rank_metrics(self._ranks(), self.num_items, targets, ks)

    def worth(self) -> float:
        """Return recall of all targets plus half that of the long tail, if known."""
        ranks, k = self._ranks(), self.config.ks[0]
        users, items = distinct_pairs(self.task.targets, self.num_items)
        groups = {1.0: np.ones(len(items), bool)}
        if self.is_rare is not None:
            groups[_TAIL_WEIGHT] = self.is_rare.numpy()[items]
        worth = 0.0
        for weight, mine in groups.items():
            if mine.any():
                recall, _ = user_metrics(ranks[mine], users[mine], len(self.users), k)
                worth += weight * float(np.nanmean(recall))
        return worth

    def _ranks(self) -> Float64Array:
        users, items, added = self.users, self.items, self.repeated
        if self.log_counts is not None:
            # One more dim: dot products with it add the popularity.
            first, count = items.first, len(items.vectors)
            bias = self.popularity * self.log_counts[first : first + count]
            bias = bias.to(users.device)[:, None]
            items = items._replace(vectors=torch.cat([items.vectors, bias], dim=1))
            users = torch.cat([users, users.new_ones(len(users), 1)], dim=1)
        if added is not None:
            added = added._replace(score=added.score * self.repeat_scale)
        return shared_target_ranks(
            users,
            items,
            self.num_items,
            self.task.targets,
            removed_items(self.task, self.config),
            added,
            sum_on_hosts,
        )


def _user_vectors(
    towers: TwinTower,
    store: ContentStore,
    task: RetrievalTask,
    history_length: int,
    device: torch.device,
) -> Tensor:
    """Return the vectors of the task's users on every rank, float32 [U, D]."""
    events = task.last_history
    # Histories do not divide into equally many look-ups, which are collective.
    alone = towers.ids is None
    mine = events[rank_share(len(events))] if alone else events
    vectors = encode_histories(
        towers, store, task.sequences, mine, history_length, device
    )
    return torch.cat(gather_objects(vectors)) if alone else vectors
