"""What `test_ranks.py` runs under torchrun: trains both models, writes what it saw.

usage: ranks_worker.py CONTENT_DIRECTORY MARKET_DIRECTORY OUT_FILE
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.ranker.batch import rank_rows, training_batches
from learn_torchrec.ranker.rows import FeaturesConfig, SparseFeature, prepare_rows
from learn_torchrec.ranker.training import (
    RankerConfig,
    RankerModelConfig,
    RankerTrainingConfig,
    build_ranker,
    score,
)
from learn_torchrec.ranker.vectors import LearnVectors, VectorTable
from learn_torchrec.towers.batch import epoch_batches
from learn_torchrec.towers.encoder import EncoderShape
from learn_torchrec.towers.loss import LossConfig, dense_all_action_loss
from learn_torchrec.towers.model import TowersModelConfig, TwinTowerTrain
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.towers.training import build_towers
from learn_torchrec.training.distributed import gather_objects, process_group
from learn_torchrec.training.optim import OptimizerConfig, dense_optimizer

STEPS = 6


def loss_and_gradient(num_users: int = 8) -> dict[str, object]:
    """The contrastive loss of a fixed global batch, and its gradient by user."""
    random = torch.Generator().manual_seed(0)
    anchors = torch.randn(num_users, 3, 4, generator=random)
    positives = torch.randn(num_users, 2, 4, generator=random)
    mask = torch.rand(num_users, 3, generator=random) < 0.8
    items = torch.randint(-1, 9, (num_users, 2), generator=random)
    items[:, 0] = items[:, 0].abs()
    per_rank = num_users // dist.get_world_size()
    mine = slice(dist.get_rank() * per_rank, (dist.get_rank() + 1) * per_rank)
    anchors, positives = (x[mine].requires_grad_() for x in (anchors, positives))
    loss = dense_all_action_loss(
        anchors, positives, mask[mine], items[mine], temperature=0.5
    )
    loss.backward()
    # Data-parallel training averages gradients over ranks.
    scale = dist.get_world_size()
    gradients = [
        [(x / scale).flatten().tolist() for x in (anchors.grad, positives.grad)]
    ]
    parts = [part for rank in gather_objects(gradients) for part in rank]
    return {
        "loss": float(np.mean(gather_objects(loss.item()))),
        "anchor_gradient": [x for part in parts for x in part[0]],
        "positive_gradient": [x for part in parts for x in part[1]],
    }


def towers_curve(content: Path, market: Path, device: torch.device) -> list[float]:
    store = ContentStore.open(content)
    dataset = open_dataset(f"parquet:{market}")
    sequences = load_histories(dataset, store, SplitConfig()).sequences
    torch.manual_seed(0)
    shape = EncoderShape(
        width=16, num_layers=1, num_heads=2, feed_forward_dim=32, dropout=0.0
    )
    mean, std = (torch.from_numpy(x).float() for x in (store.mean, store.std))
    towers = build_towers(TowersModelConfig(encoder=shape), mean, std)
    model = torch.nn.parallel.DistributedDataParallel(
        TwinTowerTrain(towers, LossConfig())
    )
    optimizer = dense_optimizer(
        model.named_parameters(), OptimizerConfig(learning_rate=3e-3, max_grad_norm=0.5)
    )
    curve: list[float] = []
    for epoch in range(3):
        for batch in epoch_batches(
            sequences, store, SamplingConfig(), batch_size=24, seed=0, epoch=epoch
        ):
            optimizer.zero_grad()
            loss, _ = model(batch.to(device))
            loss.backward()
            optimizer.step()
            curve.append(float(np.mean(gather_objects(loss.item()))))
    return curve


def ranker_curve(market: Path, device: torch.device) -> dict[str, object]:
    impressions = open_dataset(f"parquet:{market}").impressions
    sparse = tuple(
        SparseFeature(column=name, num_embeddings=64) for name in ("user_id", "item_id")
    )
    config = RankerConfig(
        features=FeaturesConfig(sparse=sparse, dense=("hour",)),
        model=RankerModelConfig(embedding_dim=8, dense_layers=(8,), over_layers=(8,)),
        training=RankerTrainingConfig(batch_size=64),
    )
    rows = prepare_rows(impressions, config.features, None, "impressions")
    random = np.random.default_rng(0)
    table = VectorTable(
        ids=None, times=None, vectors=random.normal(size=(50, 4)).astype(np.float32)
    )
    rows = dataclasses.replace(
        rows,
        user_rows=random.integers(-1, 50, len(rows)),
        item_rows=random.integers(-1, 50, len(rows)),
        vectors=LearnVectors(users=table, items=table, manifest=None),
    )
    model = build_ranker(config, 4, device)
    dense = dense_optimizer(
        in_backward_optimizer_filter(model.named_parameters()), config.optimizer
    )
    optimizer = CombinedOptimizer([model.fused_optimizer, dense])
    pipeline = TrainPipelineSparseDist(model, optimizer, device)
    batches = training_batches(rows, batch_size=64, seed=0, epoch=0)
    curve = [
        float(np.mean(gather_objects(pipeline.progress(batches)[0].item())))
        for _ in range(STEPS)
    ]
    pipelined = [type(module).__name__ for module in pipeline._pipelined_modules]
    pipeline.detach()
    scores = gather_objects(score(model, rows, 100, device).tolist())
    assert [len(part) for part in gather_objects(rank_rows(len(rows)).tolist())] == [
        len(part) for part in scores
    ]
    return {
        "loss": curve,
        "scores": [x for part in scores for x in part][:300],
        "count": sum(map(len, scores)),
        "pipelined": pipelined,
    }


def main() -> None:
    content, market, out = map(Path, sys.argv[1:])
    with process_group() as device:
        result = {
            "contrastive": loss_and_gradient(),
            "towers": towers_curve(content, market, device),
            "ranker": ranker_curve(market, device),
        }
        if dist.get_rank() == 0:
            out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
