"""What decides a ranker: its features, tasks and shape, and how it trains."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from learn_torchrec.config import OPERATIONAL, configuration
from learn_torchrec.ranker.features import FeaturesConfig
from learn_torchrec.ranker.tables import ShardingConfig
from learn_torchrec.ranker.tasks import TaskConfig, check_tasks
from learn_torchrec.training.optim import Decay, OptimizerConfig
from learn_torchrec.training.table_optimizer import TableOptimizerConfig


@configuration
class RankerModelConfig:
    """Shape of the ranker.

    Attributes:
        embedding_dim: of every ID feature; a multiple of 4.
        dense_layers: hidden sizes of the bottom MLP, before the embedding dim.
        over_layers: hidden sizes of each task's top MLP, before the logit.
        learn: what a ranker with vectors reads: "all", the "vectors" without an
            auxiliary network, the "fusion" embedding only, or nothing ("off": the
            baseline).
        fusion_hidden_dim: between the auxiliary network's two linear layers.
        fusion_dim: of the fusion embedding.
        stop_gradient: keep the main loss from shaping the fusion embedding.
    """

    embedding_dim: Annotated[int, Field(gt=0, multiple_of=4)] = 32
    dense_layers: tuple[PositiveInt, ...] = (128,)
    over_layers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 64)
    learn: Literal["all", "vectors", "fusion", "off"] = "all"
    fusion_hidden_dim: PositiveInt = 128
    fusion_dim: PositiveInt = 64
    stop_gradient: bool = False


@configuration
class StreamConfig:
    """How impressions are read while training.

    Attributes:
        enabled: read row groups of `parquet:` impressions as they are needed, instead
            of all rows at the start.
        lanes: places of the data that a batch takes its rows from; the number used is
            the largest divisor of the batch size up to this one.
        shuffle_rows: rows of all lanes that are shuffled together; of a table in
            memory all are.
        workers: reader processes per rank; 0 reads in threads of the rank, as a
            table in memory always is.
        timeout: seconds after which a worker that gives nothing counts as hung.
    """

    enabled: bool = False
    lanes: PositiveInt = 8
    shuffle_rows: PositiveInt = 262_144
    workers: Annotated[NonNegativeInt, OPERATIONAL] = 0
    timeout: Annotated[PositiveFloat, OPERATIONAL] = 300.0


@configuration
class RankerTrainingConfig:
    """How long and in what pieces the ranker trains.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows in a global batch, over all ranks.
        decay: of all learning rates, tables' too, after their warm-up.
        eviction_interval: steps between two moments at which `managed_collision`
            features may give up rare ids for new ones.
        stream: how rows are read.
        seed: of weights and order.
    """

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 2048
    decay: Decay = "cosine"
    eviction_interval: PositiveInt = 100
    stream: StreamConfig = field(default_factory=StreamConfig)
    seed: NonNegativeInt = 0


@configuration
class RankerConfig:
    """Everything that decides the ranker, given impressions and vectors.

    Attributes:
        features: the columns it reads.
        tasks: what it predicts.
        model: its shape.
        optimizer: of everything but the tables; its warm-up is theirs too.
        tables: the tables' optimizer.
        sharding: of the tables.
        training: how long.
    """

    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)
    model: RankerModelConfig = field(default_factory=RankerModelConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3)
    )
    tables: TableOptimizerConfig = field(default_factory=TableOptimizerConfig)
    sharding: Annotated[ShardingConfig, OPERATIONAL] = field(
        default_factory=ShardingConfig
    )
    training: RankerTrainingConfig = field(default_factory=RankerTrainingConfig)

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
