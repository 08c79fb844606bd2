"""Held-out users: what their towers read, what they should find, and who is who."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learn_torchrec.config import require
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, is_validation_user
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.retrieval import (
    JaggedRows,
    RetrievalMetrics,
    evaluate_retrieval,
    evaluate_scores,
)
from learn_torchrec.towers.inference import encode_catalogue, encode_histories
from learn_torchrec.towers.model import TwinTower, averaged_content

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """How retrieval is judged.

    Attributes:
        ks: cut-offs of the metrics.
        filter_history: take the items of a user's history out of the ranking. Off
            in the paper: people buy things again; on where they do not.
    """

    ks: tuple[int, ...] = (50, 100)
    filter_history: bool = False

    def __post_init__(self) -> None:
        require(len(self.ks) > 0 and min(self.ks) > 0, "retrieval.ks: at least 1")


@dataclass(frozen=True, kw_only=True)
class UserSplit:
    """Disjoint users: the towers train on one set and are judged on the others."""

    train: SequenceSet
    validation: SequenceSet
    test: SequenceSet


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Users whose later events are to be found from their earlier ones.

    Attributes:
        sequences: the users and all their events.
        last_history: int64 [U], the event index that closes each user's history.
        history: the history's items.
        targets: the items to find.
    """

    sequences: SequenceSet
    last_history: Ints
    history: JaggedRows
    targets: JaggedRows


def split_users(sequences: SequenceSet, cutoff: int, split: SplitConfig) -> UserSplit:
    """Split users into those who train, validate and test the towers.

    Users who first appear at or after `cutoff` are the test: disjoint from the
    training users, and all their events lie after everything the towers learn from.
    Training and validation users are seen up to `cutoff` only.

    Raises:
        UserError: one of the three sets has no user with enough events.
    """
    active = sequences.select_users(sequences.lengths > 0)
    arrived = active.first_times() >= cutoff
    known = _with_enough(active.select_users(~arrived).before(cutoff), split)
    validates = is_validation_user(known.user_ids, split.validation_users)
    result = UserSplit(
        train=known.select_users(~validates),
        validation=known.select_users(validates),
        test=_with_enough(active.select_users(arrived), split),
    )
    for name, mend in (
        ("train", "move split.towers_until later"),
        ("validation", "raise split.validation_users"),
        ("test", "move split.towers_until earlier"),
    ):
        if len(getattr(result, name)) == 0:
            raise UserError(
                f"split: no {name} user has split.min_events={split.min_events} "
                f"events; {mend} or lower split.min_events"
            )
    return result


def retrieval_task(sequences: SequenceSet, history_share: float) -> RetrievalTask:
    """Make the earlier share of every user's events history, the rest targets."""
    lengths = sequences.lengths
    kept = np.clip((lengths * history_share).astype(np.int64), 1, lengths - 1)
    position = np.arange(len(sequences.items)) - np.repeat(
        sequences.offsets[:-1], lengths
    )
    in_history = position < np.repeat(kept, lengths)
    return RetrievalTask(
        sequences=sequences,
        last_history=sequences.offsets[:-1] + kept - 1,
        history=_jagged(sequences.items[in_history], kept),
        targets=_jagged(sequences.items[~in_history], lengths - kept),
    )


def evaluate_towers(
    towers: TwinTower,
    store: ContentStore,
    task: RetrievalTask,
    history_length: int,
    device: torch.device,
    config: RetrievalConfig,
) -> RetrievalMetrics:
    """Rank the whole catalogue for every user of the task."""
    was_training = towers.training
    towers.eval()
    items = encode_catalogue(towers, store, np.arange(len(store)), device)
    users = encode_histories(
        towers, store, task.sequences, task.last_history, history_length, device
    )
    towers.train(was_training)
    return evaluate_retrieval(
        users, items, task.targets, _removed(task, config), config.ks
    )


def evaluate_baselines(
    train: SequenceSet,
    store: ContentStore,
    task: RetrievalTask,
    config: RetrievalConfig,
) -> dict[str, RetrievalMetrics]:
    """The rows a tower has to beat: popularity and averaged content vectors.

    `popularity` ranks by the training users' event counts; `content_mean` is the
    paper's Baseline-v1: the user is the mean of the history's content vectors.
    """
    removed = _removed(task, config)
    counts = torch.from_numpy(np.bincount(train.items, minlength=len(store)))
    content = torch.nn.functional.normalize(
        torch.from_numpy(store.gather(np.arange(len(store)))).float(), dim=-1
    )
    users = torch.stack(
        [
            averaged_content(content[torch.from_numpy(rows)])
            for rows in np.split(task.history.rows, task.history.offsets[1:-1])
        ]
    )

    def popularity(start: int, stop: int) -> Tensor:
        return counts.expand(stop - start, -1)

    return {
        "popularity": evaluate_scores(
            popularity, len(store), task.targets, removed, config.ks
        ),
        "content_mean": evaluate_retrieval(
            users, content, task.targets, removed, config.ks
        ),
    }


def _removed(task: RetrievalTask, config: RetrievalConfig) -> JaggedRows | None:
    return task.history if config.filter_history else None


def _with_enough(sequences: SequenceSet, split: SplitConfig) -> SequenceSet:
    return sequences.select_users(sequences.lengths >= max(split.min_events, 2))


def _jagged(rows: Ints, lengths: Ints) -> JaggedRows:
    return JaggedRows(rows, np.r_[0, np.cumsum(lengths)])
