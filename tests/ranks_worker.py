"""What `test_ranks.py` runs under torchrun: trains both models, writes what it saw.

usage: ranks_worker.py CONTENT_DIRECTORY MARKET_DIRECTORY OUT_FILE
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from learn_torchrec.content.store import ContentStore
from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import load_histories
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.datasets.split import SplitConfig
from learn_torchrec.ranker import training as ranker_training
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerModelConfig,
    RankerTrainingConfig,
    ValidationConfig,
)
from learn_torchrec.ranker.features import FeaturesConfig, HashedFeature
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.learn.config import LearnConfig
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.reduced import ReducedContent
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.ranker.sampling import logit_offsets
from learn_torchrec.ranker.scoring import score
from learn_torchrec.ranker.training import best_passes, train_ranker
from learn_torchrec.ranker.validation import HeldOut
from learn_torchrec.towers import build as towers_build
from learn_torchrec.towers.config import TowersConfig, TowersTrainingConfig
from learn_torchrec.towers.encoders.architecture import EncoderShape
from learn_torchrec.towers.holdout import split_towers
from learn_torchrec.towers.model import TowersModelConfig
from learn_torchrec.towers.objectives.config import LossConfig
from learn_torchrec.towers.objectives.dense_all_action import dense_all_action_loss
from learn_torchrec.towers.retrieval import RetrievalConfig
from learn_torchrec.towers.sampling import SamplingConfig
from learn_torchrec.towers.training import train_towers
from learn_torchrec.training.distributed import gather_objects, process_group
from learn_torchrec.training.optim import OptimizerConfig
from learn_torchrec.vector_table import VectorTable


class Recorder:
    """Stands where the run log does and keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def write(self, **values: float) -> None:
        self.lines.append(values)


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
    gradients = [(x / scale).flatten().tolist() for x in (anchors.grad, positives.grad)]
    parts = gather_objects(gradients)
    return {
        "loss": float(np.mean(gather_objects(loss.item()))),
        "anchor_gradient": [x for part in parts for x in part[0]],
        "positive_gradient": [x for part in parts for x in part[1]],
    }


def towers(content: Path, market: Path, device: torch.device) -> dict[str, object]:
    """Losses and validation of the real training, dropout off."""
    store = ContentStore.open(content)
    split = SplitConfig(validation_users=0.2)
    histories = load_histories(open_dataset(f"parquet:{market}"), store, split)
    data = split_towers(histories.sequences, histories.times, split)
    shape = EncoderShape(
        width=16, num_layers=1, num_heads=2, feed_forward_dim=32, dropout=0.0
    )
    config = TowersConfig(
        model=TowersModelConfig(encoder=shape),
        optimizer=OptimizerConfig(learning_rate=3e-3, max_grad_norm=0.5),
        training=TowersTrainingConfig(epochs=4, batch_size=15),
    )
    log = Recorder()
    trained = train_towers(
        config,
        data,
        store,
        RetrievalConfig(ks=(5,)),
        device,
        log,
    )
    return {
        "loss": [line["loss"] for line in log.lines],
        "mrr": [line["mrr"] for line in log.lines],
        "weights": trained.state["encoder.vector_projection.weight"].tolist(),
    }


def next_item(content: Path, market: Path, device: torch.device) -> dict[str, object]:
    """The same with ids in a sharded table, drawn candidates, and what is validated."""
    store = ContentStore.open(content)
    split = SplitConfig(holdout="leave_one_out", min_events=4)
    histories = load_histories(open_dataset(f"parquet:{market}"), store, split)
    shape = EncoderShape(
        width=16, num_layers=1, num_heads=2, feed_forward_dim=32, dropout=0.0
    )
    config = TowersConfig(
        model=TowersModelConfig(
            encoder=shape,
            inputs="content+id",
            item_tower="projection",
            id_shrinkage=3.0,
            repeat=True,
            popularity=True,
        ),
        sampling=SamplingConfig(history_length=20),
        loss=LossConfig(objective="next_item", candidates=30),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        training=TowersTrainingConfig(epochs=3, batch_size=15),
    )
    log = Recorder()
    towers_build.TrainPipelineSparseDist, pipelines = watched()
    data = split_towers(histories.sequences, histories.times, split)
    retrieval = RetrievalConfig(ks=(5,))
    trained = train_towers(config, data, store, retrieval, device, log)
    table = trained.state["ids.table.embeddings.t_item_id.weight"]
    return {
        "loss": [line["loss"] for line in log.lines],
        "mrr": [line["mrr"] for line in log.lines],
        "weights": trained.state["encoder.vector_projection.weight"].tolist(),
        "table": table.tolist(),
        "chosen": [
            trained.state[name].item() for name in ("repeat.scale", "popularity.weight")
        ],
        "pipelined": pipelines[0].pipelined,
    }


def watched() -> tuple[type, list[TrainPipelineSparseDist]]:
    """TorchRec's pipeline, which keeps the names of what it took apart."""
    pipelines: list[TrainPipelineSparseDist] = []

    class Watched(TrainPipelineSparseDist):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            pipelines.append(self)

        def detach(self):
            self.pipelined = [type(m).__name__ for m in self._pipelined_modules]
            return super().detach()

    return Watched, pipelines


def ranking_rows(market: Path, config: RankerConfig) -> list[Impressions]:
    """All rows; the first 2,501; the other 499, which do not divide among ranks."""
    impressions = open_dataset(f"parquet:{market}").impressions
    rates = pa.array(np.linspace(0.1, 1, impressions.num_rows))
    impressions = impressions.append_column("sampling_rate", rates)
    random = np.random.default_rng(0)
    user_ids = impressions["user_id"].combine_chunks().unique().slice(5)
    users = VectorTable.build(
        ids=user_ids,
        times=np.zeros(len(user_ids), np.int64),
        vectors=random.normal(size=(len(user_ids), 4)),
    )
    item_ids = impressions["item_id"].combine_chunks().unique().slice(3)
    items = VectorTable.build(
        ids=item_ids, vectors=random.normal(size=(len(item_ids), 4))
    )
    unit = random.normal(size=(len(item_ids), 4))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    content = ReducedContent.build(items.index, unit.astype(np.float16), 3)
    vectors = LearnVectors(users=users, items=items, manifest=None, content=content)
    learn = LearnInputs(vectors, content, config.learn)
    learn = learn.read(open_dataset(f"parquet:{market}"), config.tasks, ("like",))
    return [
        Impressions(TableRows(rows, None, "impressions"), config, learn)
        for rows in (impressions, impressions.slice(0, 2501), impressions.slice(2501))
    ]


def ranker(market: Path, device: torch.device, learn: LearnConfig) -> dict[str, object]:
    """Losses and scores of the real training, and what the pipeline took apart."""
    sparse = tuple(
        HashedFeature(column=name, num_embeddings=64) for name in ("user_id", "item_id")
    )
    config = RankerConfig(
        features=FeaturesConfig(sparse=sparse, dense=("hour",)),
        model=RankerModelConfig(embedding_dim=8, dense_layers=(8,), over_layers=(8,)),
        # At twice the rate rounding alone, such as of rows in another order within
        # the same batches, moves scores by 2e-3.
        learn=learn,
        optimizer=OptimizerConfig(learning_rate=5e-3),
        training=RankerTrainingConfig(epochs=3, batch_size=64),
    )
    ranker_training.TrainPipelineSparseDist, pipelines = watched()
    (rows, earlier, latest), log = ranking_rows(market, config), Recorder()
    model, *_ = train_ranker(config, rows, device, log)
    scores = gather_objects(score(model, rows, 100, device)["score"].tolist())
    return {
        "loss": [line["loss"] for line in log.lines],
        "scores": [x for part in scores for x in part],
        "pipelined": pipelines[0].pipelined,
        "offset": logit_offsets(rows)["cvr"],
        **validated(config, HeldOut(earlier, latest), device),
    }


def validated(
    config: RankerConfig, rows: HeldOut, device: torch.device
) -> dict[str, object]:
    """What held-out rows, that do not divide among the ranks, say of a training."""
    validation = ValidationConfig(every_steps=25, patience=100)
    config = replace(config, validation=validation)
    _, facts = best_passes(config, rows, device, Recorder())
    return {
        name: [one[name] for one in facts["evaluations"]]
        for name in ("uauc", "auc", "ne", "step")
    }


def main() -> None:
    content, market, out = map(Path, sys.argv[1:])
    with process_group() as device:
        result = {
            "contrastive": loss_and_gradient(),
            "towers": towers(content, market, device),
            "next_item": next_item(content, market, device),
            "ranker": ranker(market, device, LearnConfig(form="paper")),
            "residual": ranker(market, device, LearnConfig()),
            "attention": ranker(market, device, LearnConfig(attention="content+id")),
        }
        if dist.get_rank() == 0:
            out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
