"""Scores of the full catalogue for held-out users: the towers and baselines."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets.sequences import SequenceSet
from learn_torchrec.evaluation.retrieval import ScoreBlock
from learn_torchrec.towers.holdout import RetrievalTask
from learn_torchrec.towers.inference import (
    encode_catalogue,
    encode_histories,
    repeat_scores,
)
from learn_torchrec.towers.model import TwinTower


def towers_scores(
    towers: TwinTower,
    store: ContentStore,
    task: RetrievalTask,
    history_length: int,
    device: torch.device,
) -> ScoreBlock:
    """Return the towers' scores of the full catalogue for blocks of users.

    Cosine similarities, plus the score of history items (see `RepeatConsumption`), on
    `device`. Every rank takes part where the towers have an ID table.
    """
    was_training = towers.training
    towers.eval()
    items = encode_catalogue(towers, store, np.arange(len(store)), device).to(device)
    events = task.last_history
    vectors = encode_histories(
        towers, store, task.sequences, events, history_length, device
    ).to(device)
    repeated = repeat_scores(towers, task.sequences, events, history_length)
    towers.train(was_training)

    def score(start: int, stop: int) -> Tensor:
        similarity = vectors[start:stop] @ items.T
        if repeated is None:
            return similarity
        bounds = torch.tensor([start, stop], device=device)
        begin, end = torch.searchsorted(repeated.anchor, bounds)
        index = repeated.anchor[begin:end] - start, repeated.item[begin:end]
        return similarity.index_put_(index, repeated.score[begin:end], accumulate=True)

    return score


def baseline_scores(
    train: SequenceSet, store: ContentStore, task: RetrievalTask
) -> dict[str, ScoreBlock]:
    """Return the scores of the baselines.

    - `popularity` ranks by the training users' event counts.
    - `content_mean` is the paper's Baseline-v1: a user is the mean of the history's
      content vectors.
    - `already_bought` ranks the user's history items first, by their number of events,
      then all others by popularity.
    """
    counts = torch.from_numpy(train.item_counts(len(store)))
    content = F.normalize(
        torch.from_numpy(store.gather(np.arange(len(store)))).float(), dim=-1
    )
    histories = np.split(task.history.values, task.history.offsets[1:-1])
    means = [content[torch.from_numpy(rows)].mean(0) for rows in histories]
    users = torch.stack([F.normalize(mean, dim=0) for mean in means])
    share = counts.double() / (counts.max() + 1)  # < 1: after any history item

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
