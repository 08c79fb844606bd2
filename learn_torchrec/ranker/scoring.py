"""Inference: rows to probabilities through TorchRec's pipeline, on all ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from learn_torchrec.ranker.batch import RankingBatch, evaluation_batches, rank_rows
from learn_torchrec.ranker.rows import RankingRows

Pipeline: TypeAlias = TrainPipelineSparseDist[RankingBatch, Any]


class Scorer:
    """Scores one set of rows after another; see `scorer`."""

    def __init__(self, pipeline: Pipeline, batch_size: int) -> None:
        self._pipeline, self._batch_size = pipeline, batch_size

    @torch.no_grad()
    def __call__(self, rows: RankingRows, width: int) -> Tensor:
        """Score this rank's rows; every rank takes part with rows of its own.

        Args:
            rows: at least one.
            width: the same on every rank, at least the rows of each.

        Returns:
            Probabilities, float32 [N] on the CPU.
        """
        self._pipeline.reset()
        batches = evaluation_batches(rows, width, self._batch_size)
        parts: list[Tensor] = []
        while True:
            try:
                output = self._pipeline.progress(batches)
            except StopIteration:
                return torch.cat(parts)[: len(rows)]
            parts.append(torch.sigmoid(output.logits).cpu())


@contextmanager
def scorer(
    model: DistributedModelParallel, batch_size: int, device: torch.device
) -> Iterator[Scorer]:
    """Yield what scores rows with a model, which it puts into evaluation mode.

    Args:
        model: sharded over the ranks.
        batch_size: rows of a rank's batch.
        device: this rank's.
    """
    model.eval()
    # In evaluation mode the pipeline neither goes backward nor steps.
    pipeline: Pipeline = TrainPipelineSparseDist(model, model.fused_optimizer, device)
    yield Scorer(pipeline, batch_size)
    pipeline.detach()


def score(
    model: DistributedModelParallel,
    rows: RankingRows,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Score this rank's share of rows that every rank has (see `rank_rows`).

    Args:
        model: sharded over the ranks.
        rows: all of them.
        batch_size: rows of a rank's batch.
        device: this rank's.

    Returns:
        Probabilities, float32 [this rank's rows] on the CPU.
    """
    mine = rank_rows(len(rows))
    share = rows.take(mine if len(mine) else np.zeros(1, np.int64))
    with scorer(model, batch_size, device) as scores:
        return scores(share, -(-len(rows) // dist.get_world_size()))[: len(mine)]
