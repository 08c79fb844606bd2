"""Held-out users: what their towers read, what they should find, and who is who."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from learn_torchrec.config import configuration
from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.datasets.split import SplitConfig, SplitTimes, user_draws
from learn_torchrec.errors import UserError
from learn_torchrec.evaluation.retrieval import (
    RetrievalMetrics,
    ScoreBlock,
    evaluate_scores,
    rank_metrics,
    target_ranks,
)
from learn_torchrec.jagged import Jagged
from learn_torchrec.towers.inference import (
    encode_catalogue,
    encode_histories,
    repeat_scores,
)
from learn_torchrec.towers.model import TwinTower, averaged_content
from learn_torchrec.training.distributed import agreed, gather_objects, rank_share

Ints = NDArray[np.int64]
_LEAST_LEAVE_ONE_OUT = 4  # two events to learn from, one to validate, one to test


@configuration
class RetrievalConfig:
    """How retrieval is judged.

    Attributes:
        ks: cut-offs of the metrics.
        filter_history: take the items of a user's history out of the ranking. Off
            in the paper: people buy things again; on where they do not.
        tail_events: items with at most so many training events are the tail, whose
            targets are reported apart too.
    """

    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (50, 100)
    filter_history: bool = False
    tail_events: NonNegativeInt = 5


PROTOCOLS = {
    # The paper's own data: many targets a user, who may buy a thing again.
    "industrial": RetrievalConfig(),
    # Leave-one-out against the whole catalogue, as Amazon tables are made.
    "recformer": RetrievalConfig(ks=(10, 50)),
    "hstu": RetrievalConfig(ks=(10, 50, 200), filter_history=True),
}


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
    history: Jagged
    targets: Jagged


@dataclass(frozen=True, kw_only=True)
class TowersSplit:
    """What the towers learn from, and what they are judged on.

    Attributes:
        train: the training users' events.
        cuts: int64 [U], each training user's events before the moment that parts
            history from targets; None where there is no such moment.
        validation: to choose the best epoch by.
        test: what no choice may look at.
        known_until: the towers know events strictly before it, unix seconds.
    """

    train: SequenceSet
    cuts: Ints | None
    validation: RetrievalTask
    test: RetrievalTask
    known_until: int


def split_towers(
    sequences: SequenceSet, times: SplitTimes, split: SplitConfig
) -> TowersSplit:
    """Hold users or events out as `split.holdout` says.

    Raises:
        UserError: one of the three sets has no user with enough events.
    """
    if split.holdout == "new_users":
        return _hold_out_new_users(sequences, times.towers_until, split)
    active = _with_enough(sequences, split)
    if split.holdout == "leave_one_out":
        return _leave_one_out(active, split)
    return _split_at_a_moment(active, times.towers_until, split)


def _hold_out_new_users(
    sequences: SequenceSet, moment: int, split: SplitConfig
) -> TowersSplit:
    """Test on users who first appear at or after `moment`; know nothing as late.

    There may be none: only an evaluation needs them.
    """
    active = sequences.select_users(sequences.lengths > 0)
    arrived = active.first_times() >= moment
    known = _with_enough(active.select_users(~arrived).before(moment), split)
    validates = user_draws(known.user_ids) < split.validation_users
    test = _with_enough(active.select_users(arrived), split)
    train, validation = known.select_users(~validates), known.select_users(validates)
    _refuse_empty(split, train, "train", "move split.towers_until later")
    _refuse_empty(split, validation, "validation", "raise split.validation_users")
    return TowersSplit(
        train=train,
        cuts=None,
        validation=retrieval_task(validation, _shares(validation, split)),
        test=retrieval_task(test, _shares(test, split)),
        known_until=moment,
    )


def _split_at_a_moment(
    active: SequenceSet, moment: int, split: SplitConfig
) -> TowersSplit:
    """The paper's split: users are disjoint, `moment` parts history from targets."""
    draws = user_draws(active.user_ids)
    validates = draws < split.validation_users
    tests = draws >= 1 - split.test_users
    train = active.select_users(~validates & ~tests)
    _refuse_empty(split, train, "train", "lower split.test_users")
    tasks = []
    for name, chosen in (("validation", validates), ("test", tests)):
        users = active.select_users(chosen)
        cuts = _events_before(users, moment)
        has_both = (cuts > 0) & (cuts < users.lengths)
        users = users.select_users(has_both)
        _refuse_empty(
            split, users, name, f"raise split.{name}_users or move split.towers_until"
        )
        tasks.append(retrieval_task(users, cuts[has_both]))
    return TowersSplit(
        train=train,
        cuts=_events_before(train, moment),
        validation=tasks[0],
        test=tasks[1],
        known_until=int(active.times.max()) + 1,
    )


def _leave_one_out(active: SequenceSet, split: SplitConfig) -> TowersSplit:
    """All users train; the last event is the test, the one before the validation."""
    users = active.select_users(active.lengths >= _LEAST_LEAVE_ONE_OUT)
    _refuse_empty(split, users, "train", "use users with 4 events or more")
    without_test = users.without_last(1)
    return TowersSplit(
        train=users.without_last(2),
        cuts=None,
        validation=retrieval_task(without_test, without_test.lengths - 1),
        test=retrieval_task(users, users.lengths - 1),
        known_until=int(users.times.max()) + 1,
    )


def retrieval_task(sequences: SequenceSet, history_lengths: Ints) -> RetrievalTask:
    """Make the first `history_lengths` [U] events of users history, the rest targets.

    Args:
        sequences: U users with at least 2 events.
        history_lengths: int64 [U], at least 1 and below the user's events.
    """
    lengths = sequences.lengths
    position = np.arange(len(sequences.items)) - np.repeat(
        sequences.offsets[:-1], lengths
    )
    in_history = position < np.repeat(history_lengths, lengths)
    return RetrievalTask(
        sequences=sequences,
        last_history=sequences.offsets[:-1] + history_lengths - 1,
        history=_jagged(sequences.items[in_history], history_lengths),
        targets=_jagged(sequences.items[~in_history], lengths - history_lengths),
    )


def evaluate_towers(
    towers: TwinTower,
    store: ContentStore,
    task: RetrievalTask,
    history_length: int,
    device: torch.device,
    config: RetrievalConfig,
) -> RetrievalMetrics:
    """Rank the whole catalogue for every user of the task; ranks share the users."""
    mine = rank_share(len(task.sequences))
    score = towers_scores(towers, store, task, history_length, device, mine)
    with agreed():
        ranks = target_ranks(
            score, len(store), task.targets, _removed(task, config), mine
        )
    ranks = np.concatenate(gather_objects(ranks))
    return rank_metrics(ranks, len(store), task.targets, config.ks)


def towers_scores(
    towers: TwinTower,
    store: ContentStore,
    task: RetrievalTask,
    history_length: int,
    device: torch.device,
    users: slice | None = None,
) -> ScoreBlock:
    """Return the towers' scores of the whole catalogue for blocks of users.

    Cosines, and what it adds that an item is in the window that the tower reads. They
    are on `device`.

    Args:
        towers: every rank takes part where they have a sharded table of ids.
        store: of the content vectors.
        task: users and their histories.
        history_length: most events a window holds.
        device: where `towers` lives.
        users: a run of users to score; all when None.
    """
    was_training = towers.training
    towers.eval()
    first, last, _ = (users or slice(None)).indices(len(task.sequences))
    # Ranks look ids up together, as often as each other: all of them encode all users.
    alone = towers.ids is None
    items = encode_catalogue(towers, store, np.arange(len(store)), device).to(device)
    events = task.last_history[first:last] if alone else task.last_history
    vectors = encode_histories(
        towers, store, task.sequences, events, history_length, device
    )
    vectors = (vectors if alone else vectors[first:last]).to(device)
    seen = repeat_scores(
        towers, task.sequences, task.last_history[first:last], history_length
    )
    towers.train(was_training)

    def score(start: int, stop: int) -> Tensor:
        start, stop = start - first, stop - first
        similarity = vectors[start:stop] @ items.T
        if seen is None:
            return similarity
        bounds = torch.tensor([start, stop], device=device)
        begin, end = torch.searchsorted(seen.anchor, bounds)
        index = seen.anchor[begin:end] - start, seen.item[begin:end]
        return similarity.index_put_(index, seen.score[begin:end], accumulate=True)

    return score


def baseline_scores(
    train: SequenceSet, store: ContentStore, task: RetrievalTask
) -> dict[str, ScoreBlock]:
    """Return the scores of the rows a tower has to beat.

    - `popularity` ranks by the training users' event counts.
    - `content_mean` is the paper's Baseline-v1: the user is the mean of the history's
      content vectors.
    - `already_bought` puts the items of the user's history first, the most frequent
      ones before the others, and popularity behind them.
    """
    counts = torch.from_numpy(np.bincount(train.items, minlength=len(store)))
    content = torch.nn.functional.normalize(
        torch.from_numpy(store.gather(np.arange(len(store)))).float(), dim=-1
    )
    users = torch.stack(
        [
            averaged_content(content[torch.from_numpy(rows)])
            for rows in np.split(task.history.values, task.history.offsets[1:-1])
        ]
    )
    share = counts.double() / (counts.max() + 1)  # below 1: behind any history item

    def already_bought(start: int, stop: int) -> Tensor:
        scores = share.repeat(stop - start, 1)
        events = slice(task.history.offsets[start], task.history.offsets[stop])
        owners = torch.from_numpy(task.history.owners()[events] - start)
        bought = torch.from_numpy(task.history.values[events])
        ones = torch.ones(len(bought), dtype=scores.dtype)
        return scores.index_put_((owners, bought), ones, accumulate=True)

    return {
        "popularity": lambda start, stop: counts.expand(stop - start, -1),
        "content_mean": lambda start, stop: users[start:stop] @ content.T,
        "already_bought": already_bought,
    }


def evaluate_rows(
    rows: Mapping[str, ScoreBlock],
    train: SequenceSet,
    num_items: int,
    task: RetrievalTask,
    config: RetrievalConfig,
) -> dict[str, dict[str, RetrievalMetrics]]:
    """Judge rows on all targets, and on three groups of them.

    Args:
        rows: name to scores.
        train: events that popularity and the tail are counted on.
        num_items: of the catalogue.
        task: users and targets.
        config: how to judge.

    Returns:
        Group, row, metric. `all`: as configured. `new`: targets that the user's
        history does not have, the history taken out of the ranking. `repeated`: those
        that it has, in the whole ranking. `tail`: targets with at most `tail_events`
        training events, as configured otherwise.
    """
    counts = np.bincount(train.items, minlength=num_items)
    is_new = ~_in_history(task, num_items)
    groups = {
        "all": (task.targets, _removed(task, config)),
        "new": (_only(task.targets, is_new), task.history),
        "repeated": (_only(task.targets, ~is_new), None),
        "tail": (
            _only(task.targets, counts[task.targets.values] <= config.tail_events),
            _removed(task, config),
        ),
    }
    return {
        group: {
            name: evaluate_scores(score, num_items, targets, removed, config.ks)
            for name, score in rows.items()
        }
        for group, (targets, removed) in groups.items()
    }


def _in_history(task: RetrievalTask, num_items: int) -> NDArray[np.bool_]:
    """Whether each target is in its user's history, bool [targets]."""
    history = task.history.owners() * num_items + task.history.values
    targets = task.targets.owners() * num_items + task.targets.values
    return np.isin(targets, history)


def _only(targets: Jagged, keep: NDArray[np.bool_]) -> Jagged:
    kept = np.bincount(targets.owners()[keep], minlength=len(targets))
    return _jagged(targets.values[keep], kept)


def _removed(task: RetrievalTask, config: RetrievalConfig) -> Jagged | None:
    return task.history if config.filter_history else None


def _refuse_empty(split: SplitConfig, users: SequenceSet, name: str, mend: str) -> None:
    if len(users) == 0:
        raise UserError(
            f"split: no {name} user has split.min_events={split.min_events} "
            f"events; {mend} or lower split.min_events"
        )


def _shares(sequences: SequenceSet, split: SplitConfig) -> Ints:
    """Events of each user that are history, by `split.history_share`, int64 [U]."""
    lengths = sequences.lengths
    kept: Ints = np.clip((lengths * split.history_share).astype(int), 1, lengths - 1)
    return kept


def _events_before(sequences: SequenceSet, moment: int) -> Ints:
    """Events of each user strictly before `moment`, int64 [U]."""
    earlier = np.r_[0, np.cumsum(sequences.times < moment)]
    counts: Ints = np.diff(earlier[sequences.offsets])
    return counts


def _with_enough(sequences: SequenceSet, split: SplitConfig) -> SequenceSet:
    return sequences.select_users(sequences.lengths >= max(split.min_events, 2))


def _jagged(rows: Ints, lengths: Ints) -> Jagged:
    return Jagged(rows, np.r_[0, np.cumsum(lengths)])
