"""A served ranker's model: its tables and its dense part, without TorchRec.

Letters: B rows, V ids of all bags.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learn_torchrec.arrays import Float32Array
from learn_torchrec.ranker.features.base import IdBags, joined_ids
from learn_torchrec.ranker.learn.batch import LearnBatch
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.ranker.tasks import scores
from learn_torchrec.serving.served import Served
from learn_torchrec.serving.signature import (
    BAG,
    CANDIDATE_IDS,
    DENSE,
    HISTORY_IDS,
    LENGTHS,
    VALUES,
    learn_tensors,
)
from learn_torchrec.serving.tables import Ids, Lookup

POOLED, SEQUENCES, HISTORY_TABLE = "pooled", "sequences", "learn_items"
Program = Callable[[Mapping[str, Tensor]], Tensor]


class ServedModel:
    """Scores encoded rows.

    Args:
        served: the ranker.
        lookups: its tables, by group.
        program: the dense part, see `dense.DensePart`.
        device: of the program.
    """

    def __init__(
        self,
        served: Served,
        lookups: Mapping[str, Lookup],
        program: Program,
        device: torch.device,
    ) -> None:
        self.served, self.device = served, device
        self._lookups, self._program = dict(lookups), program
        self._needs_lengths = any(f.pooling == "mean" for f in served.features.pooled)

    @torch.no_grad()
    def scores(
        self, rows: RankingRows, learn: LearnBatch | None
    ) -> dict[str, Float32Array]:
        """Return probabilities by column, float32 [B], as `ranker.tasks.scores`."""
        logits = self._program(self.inputs(rows, learn)).unbind(1)
        names = [task.name for task in self.served.tasks]
        found = scores(self.served.tasks, dict(zip(names, logits, strict=True)))
        return {name: values.cpu().numpy() for name, values in found.items()}

    @torch.no_grad()
    def inputs(self, rows: RankingRows, learn: LearnBatch | None) -> dict[str, Tensor]:
        """Return the dense part's inputs; the tables are read here."""
        found = {DENSE: torch.from_numpy(rows.dense)}
        ids = _ids(rows.sparse)
        for name, sums in self._lookups[POOLED](ids).items():
            found[f"{BAG}/{name}"] = sums
        if self._needs_lengths:
            found |= _lengths(rows.sparse, ids)
        if rows.sequences:
            found |= self._unpooled(
                SEQUENCES, list(rows.sequences), _ids(rows.sequences)
            )
        if learn is not None:
            found |= learn_tensors(learn)
            if learn.item_ids is not None:
                names = [CANDIDATE_IDS, HISTORY_IDS]
                found |= self._unpooled(HISTORY_TABLE, names, learn.item_ids)
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def _unpooled(self, group: str, names: list[str], ids: Ids) -> dict[str, Tensor]:
        looked = self._lookups[group](ids)
        found = {f"{VALUES}/{name}": looked[name] for name in names}
        lengths = zip(names, ids.lengths, strict=True)
        return found | {f"{LENGTHS}/{name}": values for name, values in lengths}


def item_ids(_: Any, values: Tensor, lengths: Tensor) -> Ids:
    """Return candidates and histories as `LearnInputs.batch` wants them kept."""
    return Ids(values, lengths.view(2, -1))


def _ids(features: Mapping[str, IdBags]) -> Ids:
    """Return the ids of features side by side."""
    bags = list(features.values())
    values, weights = joined_ids(bags)
    return Ids(
        rows=torch.from_numpy(values),
        lengths=torch.from_numpy(np.stack([ids.lengths for ids in bags])),
        weights=None if weights is None else torch.from_numpy(weights),
    )


def _lengths(features: Mapping[str, IdBags], ids: Ids) -> dict[str, Tensor]:
    pairs = zip(features, ids.lengths, strict=True)
    return {f"{LENGTHS}/{name}": lengths for name, lengths in pairs}
