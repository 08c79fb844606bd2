"""Inference: probabilities of rows through TorchRec's pipeline, on all ranks."""

from collections.abc import Callable, Iterator
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
from learn_torchrec.training.batch import pinned

Scorer: TypeAlias = Callable[[RankingRows, int], dict[str, Float32Array]]


@contextmanager
def scorer(
    model: DistributedModelParallel,
    impressions: Impressions,
    batch_size: int,
    device: torch.device,
) -> Iterator[Scorer]:
    """Yield a function that scores rows of the impressions in batches of a rank.

    It takes this rank's rows, at least one, and the number of rows to pad them to,
    which is the same on every rank. It returns probabilities by column, float32 [N],
    see `tasks.scores`. Every rank takes part in a call.
    """
    model.eval()
    # In evaluation mode the pipeline runs the forward pass only.
    pipeline: TrainPipelineSparseDist[RankingBatch, Any] = TrainPipelineSparseDist(
        model, model.fused_optimizer, device
    )

    @torch.no_grad()
    def score_rows(rows: RankingRows, padded_rows: int) -> dict[str, Float32Array]:
        pipeline.reset()
        batches = pinned(
            evaluation_batches(rows, impressions.learn, padded_rows, batch_size), device
        )
        parts: list[dict[str, Float32Array]] = []
        while True:
            try:
                output = pipeline.progress(batches)
            except StopIteration:
                break
            found = scores(impressions.tasks, output.logits)
            parts.append({name: score.cpu().numpy() for name, score in found.items()})
        return {
            name: np.concatenate([part[name] for part in parts])[: len(rows)]
            for name in parts[0]
        }

    yield score_rows
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
