"""What the dense part of a ranker takes: tensors by name.

The ID tables are read outside of it. Both the exporter, which traces it, and the
runner, which has no TorchRec, build its inputs here.

Letters: B rows, F dense features, V ids of a feature or events of all histories, M
distinct items.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from learn_torchrec.ranker.learn.batch import HistoryBatch, LearnBatch

DENSE, LEARN, HISTORY = "dense", "learn", "history"
BAG, LENGTHS, VALUES = "bag", "lengths", "values"
CANDIDATE_IDS, HISTORY_IDS = "learn_item/candidate", "learn_item/history"


class Looked:
    """The embeddings of a feature's ids, in a `JaggedTensor`'s place.

    Args:
        values: float32 [V, dim].
        lengths: int64 [B].
    """

    def __init__(self, values: Tensor, lengths: Tensor) -> None:
        self._values, self._lengths = values, lengths

    def values(self) -> Tensor:
        """Return the embeddings, [V, dim]."""
        return self._values

    def lengths(self) -> Tensor:
        """Return the ids of each row, [B]."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Return where each row starts, [B + 1]."""
        found: Tensor = torch.ops.fbgemm.asynchronous_complete_cumsum(self._lengths)
        return found


class Pooled:
    """The sums of features' embeddings, in a `KeyedTensor`'s and its ids' place.

    Args:
        sums: float32 [B, dim], by feature.
        lengths: int64 [B], by feature.
    """

    def __init__(self, sums: Mapping[str, Tensor], lengths: Mapping[str, Tensor]):
        self._sums, self._lengths = dict(sums), dict(lengths)

    def to_dict(self) -> dict[str, Tensor]:
        """Return the sums by feature."""
        return dict(self._sums)

    def keys(self) -> list[str]:
        """Return the features."""
        return list(self._lengths)

    def lengths(self) -> Tensor:
        """Return the ids of each row, [F * B]."""
        return torch.cat(list(self._lengths.values()))


def learn_tensors(batch: LearnBatch) -> dict[str, Tensor]:
    """Return LEARN's inputs by name, without the ids of attention."""
    found = {
        f"{LEARN}/{field.name}": value
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    if batch.history is not None:
        for field in fields(batch.history):
            value = getattr(batch.history, field.name)
            if isinstance(value, Tensor):
                found[f"{HISTORY}/{field.name}"] = value
        for space, vectors in batch.history.vectors.items():
            found[f"{HISTORY}/vectors/{space}"] = vectors
    return found


def learn_batch(tensors: Mapping[str, Tensor], item_ids: Any = None) -> LearnBatch:
    """Return the batch of `learn_tensors`."""
    history = None
    plain = ("candidates", "items", "lengths", "counts", "ages")
    if f"{HISTORY}/{plain[0]}" in tensors:
        prefix = f"{HISTORY}/vectors/"
        history = HistoryBatch(
            **{name: tensors[f"{HISTORY}/{name}"] for name in plain},
            vectors={
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            },
            longest=1,  # nothing is padded: statistics come computed
        )
    prefix = f"{LEARN}/"
    given = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return LearnBatch(**given, history=history, item_ids=item_ids)
