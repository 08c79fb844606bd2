"""Retrieval metrics of held-out targets: over all of them, and by group."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from learn_torchrec.arrays import BoolArray, Int64Array
from learn_torchrec.config import configuration
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.evaluation.retrieval import (
    RetrievalMetrics,
    ScoreBlock,
    evaluate_scores,
    rank_metrics,
    refuse_non_finite,
)
from learn_torchrec.evaluation.shared_catalogue import (
    Added,
    ItemShare,
    shared_target_ranks,
)
from learn_torchrec.jagged import Jagged
from learn_torchrec.towers.holdout import RetrievalTask
from learn_torchrec.towers.inference import (
    encode_catalogue,
    encode_histories,
    repeat_scores,
)
from learn_torchrec.towers.model import TwinTower
from learn_torchrec.towers.repeat import RepeatedItems
from learn_torchrec.training.distributed import (
    broadcast_from_rank0,
    gather_objects,
    raise_on_all_ranks,
    rank_share,
    sum_on_hosts,
)

# Of the repeat score, from the closest to 1: of equally good ones the first is taken.
_REPEAT_SCALES = (1.0, 1.4, 0.7, 2.0, 0.5, 2.8, 4.0)


@configuration
class RetrievalConfig:
    """How retrieval is evaluated.

    Attributes:
        ks: cut-offs of the metrics.
        filter_history: exclude the user's history items from the ranking. Off in the
            paper, where people buy items again; on where they do not.
        tail_events: items with at most this many training events are long-tail; their
            targets are also reported separately.
    """

    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (50, 100)
    filter_history: bool = False
    tail_events: NonNegativeInt = 5


PROTOCOLS = {
    # The paper's data: many targets per user, repeat purchases included.
    "industrial": RetrievalConfig(),
    # Leave-one-out against the full catalogue, as in published Amazon results.
    "recformer": RetrievalConfig(ks=(10, 50)),
    "hstu": RetrievalConfig(ks=(10, 50, 200), filter_history=True),
}


def validate_towers(
    towers: TwinTower,
    store: ContentStore,
    task: RetrievalTask,
    history_length: int,
    device: torch.device,
    config: RetrievalConfig,
) -> RetrievalMetrics:
    """Rank the full catalogue for every user of the task; ranks share the items.

    Sets the scale of the repeat score that finds most, by recall at the first cut-off;
    of equals, the closest to 1.
    """
    encoded = _Encoded.by(towers, store, task, history_length, device)
    if towers.repeat is None or config.filter_history:
        return encoded.metrics(config)
    recall = f"r@{config.ks[0]}"
    found = {scale: encoded.metrics(config, scale) for scale in _REPEAT_SCALES}
    # Metrics may differ between ranks in the last digit.
    best = broadcast_from_rank0(max(found, key=lambda scale: found[scale][recall]))
    towers.repeat.scale.fill_(best)
    return found[best]


@dataclass(frozen=True)
class _Encoded:
    """A task's users and this rank's items, encoded once for several rankings.

    Attributes:
        users: float32 [U, D], on every rank.
        items: of this rank.
        num_items: of all ranks.
        task: of the users.
        repeated: scores of the past before they are scaled, or None.
    """

    users: Tensor
    items: ItemShare
    num_items: int
    task: RetrievalTask
    repeated: RepeatedItems | None

    @classmethod
    def by(
        cls,
        towers: TwinTower,
        store: ContentStore,
        task: RetrievalTask,
        history_length: int,
        device: torch.device,
    ) -> Self:
        """Encode; the repeat score gets a scale of 1."""
        was_training = towers.training
        towers.eval()
        if towers.repeat is not None:
            towers.repeat.scale.fill_(1.0)
        mine = rank_share(len(store))
        # Look-ups in a sharded table are collective: every rank encodes as many items.
        most = -(-len(store) // dist.get_world_size())
        rows = np.minimum(mine.start + np.arange(most), len(store) - 1)
        items = encode_catalogue(towers, store, rows, device)[: mine.stop - mine.start]
        users = _user_vectors(towers, store, task, history_length, device)
        repeated = repeat_scores(towers, task.sequences, task.last_history)
        towers.train(was_training)
        with raise_on_all_ranks():
            refuse_non_finite(items, "item vectors", mine.start)
        share = ItemShare(items.to(device), mine.start)
        return cls(users.to(device), share, len(store), task, repeated)

    def metrics(self, config: RetrievalConfig, scale: float = 1.0) -> RetrievalMetrics:
        """Rank the catalogue, with a multiple of the repeat score."""
        added = None
        if self.repeated is not None:
            anchor, item, score = self.repeated
            added = Added(anchor, item, score * scale)
        ranks = shared_target_ranks(
            self.users,
            self.items,
            self.num_items,
            self.task.targets,
            _removed(self.task, config),
            added,
            sum_on_hosts,
        )
        return rank_metrics(ranks, self.num_items, self.task.targets, config.ks)


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


def evaluate_groups(
    rows: Mapping[str, ScoreBlock],
    train: SequenceSet,
    num_items: int,
    task: RetrievalTask,
    config: RetrievalConfig,
) -> dict[str, dict[str, RetrievalMetrics]]:
    """Evaluate named scorers on all targets, and on three groups of them.

    Popularity and the long tail are those of the events of `train`.

    Returns:
        Metrics by group and name. `all`: as configured. `new`: targets outside the
        user's history, which is excluded from the ranking. `repeated`: targets in
        the history, in the full ranking. `tail`: long-tail targets, as configured.
    """
    targets, removed = task.targets, _removed(task, config)
    masks = target_groups(train, num_items, task, config.tail_events)
    shown = {"all": removed, "new": task.history, "repeated": None, "tail": removed}
    groups = {name: (targets.filter(masks[name]), gone) for name, gone in shown.items()}
    return {
        group: {
            name: evaluate_scores(score, num_items, targets, removed, config.ks)
            for name, score in rows.items()
        }
        for group, (targets, removed) in groups.items()
    }


def target_groups(
    train: SequenceSet, num_items: int, task: RetrievalTask, tail_events: int
) -> dict[str, BoolArray]:
    """Return which of the task's targets belong to each group, bool [targets].

    `all`; `new` and `repeated`, outside and in the user's history; `tail`, of at most
    `tail_events` events of `train`, and `unseen`, of none.
    """
    repeated = _in_history(task, num_items)
    rare = rare_items(train.item_counts(num_items), tail_events)
    return {
        "all": np.ones(len(repeated), bool),
        "new": ~repeated,
        "repeated": repeated,
        **{name: is_rare[task.targets.values] for name, is_rare in rare.items()},
    }


def rare_items(counts: Int64Array, tail_events: int) -> dict[str, BoolArray]:
    """Return which items are rare, bool [N], by their training events, int64 [N]."""
    return {"tail": counts <= tail_events, "unseen": counts == 0}


def _in_history(task: RetrievalTask, num_items: int) -> BoolArray:
    """Whether each target is in its user's history, bool [targets]."""
    history = task.history.owners() * num_items + task.history.values
    targets = task.targets.owners() * num_items + task.targets.values
    return np.isin(targets, history)


def _removed(task: RetrievalTask, config: RetrievalConfig) -> Jagged | None:
    return task.history if config.filter_history else None
