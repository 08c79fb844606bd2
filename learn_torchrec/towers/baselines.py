"""Scores of the full catalogue for held-out users, by what needs no training."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learn_torchrec.arrays import Float32Array
from learn_torchrec.content.store import ContentStore
from learn_torchrec.evaluation.retrieval import ScoreBlock
from learn_torchrec.towers.co_occurrence import CoOccurrence
from learn_torchrec.towers.holdout import RetrievalTask, TowersSplit
from learn_torchrec.towers.retrieval import RetrievalConfig

BASELINES = ("popularity", "content_mean", "already_bought", "co_occurrence")
_MOST_COUNTED = 20_000_000  # events, whose pairs fit into memory


def baseline_scores(
    data: TowersSplit, store: ContentStore, task: RetrievalTask, config: RetrievalConfig
) -> dict[str, ScoreBlock]:
    """Return the scores of the `BASELINES`, by name.

    - `popularity` ranks by the training users' event counts.
    - `content_mean` is the paper's Baseline-v1: a user is the mean of the history's
      content vectors.
    - `already_bought` ranks the user's history items first, by their number of events,
      then all others by popularity.
    - `co_occurrence` ranks by the users that an item shares with the history's items,
      see `CoOccurrence`; left out where the log's pairs would not fit into memory.
    """
    counts = torch.from_numpy(data.train.item_counts(len(store)))
    share = counts.double() / (counts.max() + 1)  # < 1: after any history item

    def already_bought(start: int, stop: int) -> Tensor:
        scores = share.repeat(stop - start, 1)
        events = slice(task.history.offsets[start], task.history.offsets[stop])
        owners = torch.from_numpy(task.history.owners()[events] - start)
        bought = torch.from_numpy(task.history.values[events])
        ones = torch.ones(len(bought), dtype=scores.dtype)
        return scores.index_put_((owners, bought), ones, accumulate=True)

    scores: dict[str, ScoreBlock] = {
        "popularity": lambda start, stop: counts.expand(stop - start, -1),
        "content_mean": averaged_content(store, task),
        "already_bought": already_bought,
    }
    if data.train.num_events <= _MOST_COUNTED:
        pairs = CoOccurrence.fit(data.train, len(store))
        scores["co_occurrence"] = pairs.tuned(data.validation, task, config)
    return scores


def averaged_content(store: ContentStore, task: RetrievalTask) -> ScoreBlock:
    """Return the cosines of the mean of the history's vectors with every item."""
    content = _unit_content(store)
    histories = np.split(task.history.values, task.history.offsets[1:-1])
    means = [content[torch.from_numpy(rows)].mean(0) for rows in histories]
    users = torch.stack([F.normalize(mean, dim=0) for mean in means])
    return lambda start, stop: users[start:stop] @ content.T


def content_similarity(store: ContentStore, users: Float32Array) -> ScoreBlock:
    """Return the cosines of users' vectors, float32 [U, C], with every item."""
    content = _unit_content(store)
    vectors = F.normalize(torch.from_numpy(users), dim=-1)
    return lambda start, stop: vectors[start:stop] @ content.T


def _unit_content(store: ContentStore) -> Tensor:
    vectors = torch.from_numpy(store.gather(np.arange(len(store)))).float()
    return F.normalize(vectors, dim=-1)
