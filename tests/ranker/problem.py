"""One small ranking problem for the sharding tests: its rows and its settings."""

import typing

import numpy as np
import pyarrow as pa
import torch
from torchrec import EmbeddingBagCollection, EmbeddingCollection

from learn_torchrec.config import replace
from learn_torchrec.datasets.loading.in_memory import TableRows
from learn_torchrec.ranker.build import build_task
from learn_torchrec.ranker.config import (
    RankerConfig,
    RankerModelConfig,
    RankerTrainingConfig,
)
from learn_torchrec.ranker.features import (
    FeaturesConfig,
    HashedFeature,
    IdFeature,
    IndexedFeature,
    ManagedCollisionFeature,
)
from learn_torchrec.ranker.impressions import Impressions
from learn_torchrec.ranker.learn.config import LearnConfig, PaperConfig
from learn_torchrec.ranker.learn.inputs import LearnInputs
from learn_torchrec.ranker.learn.shape import LearnShape
from learn_torchrec.ranker.learn.vectors import LearnVectors
from learn_torchrec.ranker.model import LearnRankerTrain
from learn_torchrec.ranker.tables import ShardingConfig
from learn_torchrec.ranker.tasks import TaskConfig
from learn_torchrec.training.optim import OptimizerConfig
from learn_torchrec.training.sharding import ShardingKind, init_tables
from learn_torchrec.training.table_optimizer import TableOptimizerConfig
from learn_torchrec.vector_table import VectorTable

EMBEDDING_DIM = 8
ROWS, BATCH, DIM = 643, 64, 4  # rows do not divide evenly among ranks
SHAPE = LearnShape(vector_dim=DIM)
KINDS = typing.get_args(ShardingKind)
# Every kind with the default optimizer; the other optimizers and decays once.
CASES = dict.fromkeys(KINDS, ("rowwise_adagrad", "cosine")) | {
    "column_wise/adagrad": ("adagrad", "linear"),
    "row_wise/sgd": ("sgd", "constant"),
    "data_parallel/sgd": ("sgd", "cosine"),
}
# With attention, means, a shared table, other dims and DCN-v2.
ARCHITECTURE_CASES = (
    "auto",
    "table_wise",
    "row_wise/sgd",
    "column_wise/adagrad",
    "grid_shard",
    "data_parallel",
)


def column_width(case: str) -> int:
    """Return how many columns of a table lie together."""
    divided = case.partition("/")[0] in ("column_wise", "table_column_wise")
    return EMBEDDING_DIM // 2 if divided else EMBEDDING_DIM


class Recorder:
    """Stands where the run log does and keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def write(self, **values: float) -> None:
        self.lines.append(values)


def table() -> pa.Table:
    random = np.random.default_rng(3)
    lengths = random.integers(0, 4, ROWS)
    offsets = pa.array(np.r_[0, lengths.cumsum()].astype(np.int32))
    tags = random.integers(0, 30, lengths.sum())
    shares = random.random(lengths.sum()).astype(np.float32)
    users, items = random.integers(0, 25, ROWS), random.integers(0, 40, ROWS)
    labels = (users % 2 == 0).astype(np.float32)
    weights, hours = (random.random(ROWS).astype(np.float32) for _ in range(2))
    bought = random.integers(0, 2, ROWS)
    lengths = random.integers(0, 6, ROWS)
    history = random.integers(0, 40, lengths.sum())
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "timestamp": np.arange(ROWS) + 10,
            "label": labels,
            "weight": weights,
            "hour": hours,
            "bought": bought,
            "tags": pa.ListArray.from_arrays(offsets, pa.array(tags)),
            "shares": pa.ListArray.from_arrays(offsets, pa.array(shares)),
            "history": pa.ListArray.from_arrays(
                pa.array(np.r_[0, lengths.cumsum()].astype(np.int32)), pa.array(history)
            ),
        }
    )


def features(case: str) -> FeaturesConfig:
    """Return features for `ARCHITECTURE_CASES`."""
    # TorchRec shards unpooled tables by table, rows or columns.
    by_rows = case.partition("/")[0] in ("grid_shard", "data_parallel")
    return FeaturesConfig(
        sparse=(
            HashedFeature(column="user_id", num_embeddings=32, embedding_dim=4),
            IndexedFeature(
                column="item_id",
                num_embeddings=36,
                sharding="row_wise" if by_rows else None,
            ),
            HashedFeature(column="tags", num_embeddings=40, weights="shares"),
            HashedFeature(column="tags", name="like", table="tags", pooling="mean"),
            IndexedFeature(
                column="history",
                pooling="attention",
                query="item_id",
                padding=0,
                max_length=3,
            ),
        ),
        dense=("hour",),
    )


def architecture(case: str) -> RankerConfig:
    """Return the settings of one of `ARCHITECTURE_CASES`."""
    base = config(case)
    return replace(
        base,
        features=features(case),
        model=replace(
            base.model,
            interaction="dcn",
            dcn_layers=2,
            dcn_rank=4,
            attention_hidden_dim=6,
        ),
    )


def config(case: str, managed: bool = False) -> RankerConfig:
    optimizer, decay = CASES[case]
    users: IdFeature = HashedFeature(column="user_id", num_embeddings=32)
    if managed:
        users = ManagedCollisionFeature(column="user_id", num_embeddings=64)
    items = IndexedFeature(column="item_id", num_embeddings=36)
    tags = HashedFeature(column="tags", num_embeddings=40, weights="shares")
    return RankerConfig(
        features=FeaturesConfig(sparse=(users, items, tags), dense=("hour",)),
        tasks=(TaskConfig(auxiliary_label="bought"),),
        model=RankerModelConfig(
            embedding_dim=EMBEDDING_DIM,
            dense_layers=(8,),
            over_layers=(8,),
        ),
        learn=LearnConfig(
            form="paper", paper=PaperConfig(fusion_hidden_dim=8, fusion_dim=4)
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=0.3),
        tables=TableOptimizerConfig(optimizer=optimizer, learning_rate=0.1),
        sharding=ShardingConfig(kind=case.partition("/")[0]),
        training=RankerTrainingConfig(
            batch_size=BATCH, decay=decay, eviction_interval=3
        ),
    )


def impressions(settings: RankerConfig) -> Impressions:
    random = np.random.default_rng(4)
    users, items = (
        VectorTable.build(
            ids=pa.array(range(count)),
            times=times,
            vectors=random.normal(size=(count, DIM)).astype(np.float32),
        )
        for count, times in ((20, np.zeros(20, np.int64)), (35, None))
    )
    vectors = LearnVectors(users=users, items=items, manifest=None)
    source = TableRows(table(), None, "impressions")
    return Impressions(source, settings, LearnInputs(vectors, None, settings.learn))


def unsharded(settings: RankerConfig) -> LearnRankerTrain:
    """Return a ranker of plain modules; its tables start like the sharded ones."""
    task = build_task(settings, SHAPE, torch.device("cpu"))
    for module in task.modules():
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection):
            module.to_empty(device="cpu")
    init_tables(task, settings.training.seed)
    return task
