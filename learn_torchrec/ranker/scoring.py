"""Inference: probabilities of rows through TorchRec's pipeline, on all ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from learn_torchrec.arrays import Float32Array
from learn_torchrec.ranker.batch import RankingBatch, evaluation_batches
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.rows import RankingRows
from learn_torchrec.ranker.tasks import scores

Pipeline: TypeAlias = TrainPipelineSparseDist[RankingBatch, Any]


class Scorer:
    """Scores successive sets of rows; see `scorer`."""

    def __init__(
        self, pipeline: Pipeline, impressions: Impressions, batch_size: int
    ) -> None:
        self._pipeline, self._batch_size = pipeline, batch_size
        self._tasks, self._vectors = impressions.tasks, impressions.vectors

    @torch.no_grad()
    def __call__(self, rows: RankingRows, padded_rows: int) -> dict[str, Float32Array]:
        """Score this rank's rows; every rank takes part with rows of its own.

        Args:
            rows: at least one.
            padded_rows: the same on every rank, at least the rows of each.

        Returns:
            Probabilities by column, float32 [N]; see `tasks.scores`.
        """
        self._pipeline.reset()
        batches = evaluation_batches(rows, self._vectors, padded_rows, self._batch_size)
        parts: list[dict[str, Float32Array]] = []
        while True:
            try:
                output = self._pipeline.progress(batches)
            except StopIteration:
                break
            found = scores(self._tasks, output.logits)
            parts.append({name: score.cpu().numpy() for name, score in found.items()})
        return {
            name: np.concatenate([part[name] for part in parts])[: len(rows)]
            for name in parts[0]
        }


@contextmanager
def scorer(
    model: DistributedModelParallel,
    impressions: Impressions,
    batch_size: int,
    device: torch.device,
) -> Iterator[Scorer]:
    """Yield a `Scorer` of a sharded model, in evaluation mode, and of the impressions.

    `batch_size` is that of a rank.
    """
    model.eval()
    # In evaluation mode the pipeline runs the forward pass only.
    pipeline: Pipeline = TrainPipelineSparseDist(model, model.fused_optimizer, device)
    yield Scorer(pipeline, impressions, batch_size)
    pipeline.detach()


def score(
    model: DistributedModelParallel,
    impressions: Impressions,
    batch_size: int,
    device: torch.device,
) -> dict[str, Float32Array]:
    """Score this rank's share of the impressions, in order.

    The arguments are those of `scorer`.

    Returns:
        Probabilities by column, float32 [this rank's rows].
    """
    parts = impressions.parts(len(impressions))
    with scorer(model, impressions, batch_size, device) as score_rows:
        (part,) = parts
        found = score_rows(part.rows, parts.padded_rows)
    return {name: values[: part.table.num_rows] for name, values in found.items()}
