"""Retrieval metrics of held-out targets: over all of them, and by group."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from learn_torchrec.arrays import BoolArray, Int64Array
from learn_torchrec.config import configuration
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.evaluation.retrieval import (
    RetrievalMetrics,
    ScoreBlock,
    evaluate_scores,
)
from learn_torchrec.jagged import Jagged
from learn_torchrec.towers.holdout import RetrievalTask


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
    targets, removed = task.targets, removed_items(task, config)
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


def removed_items(task: RetrievalTask, config: RetrievalConfig) -> Jagged | None:
    """Return the items that leave each user's ranking; None if none does."""
    return task.history if config.filter_history else None
