"""Scores of the full catalogue for held-out users, by the towers."""

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.content.store import ContentStore
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

    Cosine similarities, plus the score of history items (see `RepeatConsumption`) and
    the items' popularity (see `Popularity`), on `device`. Every rank takes part where
    the towers have an ID table.
    """
    was_training = towers.training
    towers.eval()
    items = encode_catalogue(towers, store, np.arange(len(store)), device).to(device)
    events = task.last_history
    vectors = encode_histories(
        towers, store, task.sequences, events, history_length, device
    ).to(device)
    repeated = repeat_scores(towers, task.sequences, events)
    popularity = towers.popularity() if towers.popularity is not None else 0.0
    towers.train(was_training)

    def score(start: int, stop: int) -> Tensor:
        similarity = vectors[start:stop] @ items.T + popularity
        if repeated is None:
            return similarity
        bounds = torch.tensor([start, stop], device=device)
        begin, end = torch.searchsorted(repeated.anchor, bounds)
        index = repeated.anchor[begin:end] - start, repeated.item[begin:end]
        return similarity.index_put_(index, repeated.score[begin:end], accumulate=True)

    return score
